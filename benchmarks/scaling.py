"""1, 2 and 4 processes: at a fixed global batch, and at a fixed batch for each process.

Of each step the time in data, compute and communication; and the rate of evaluation. Jobs take turns, each started
anew for each repeat. On a CPU all processes share the allowed cores: 2 against 1 there is what the processes cost.
On a GPU one process alone runs CUDA graphs, so that its compute is not that of several.
"""

import json
from argparse import Namespace
from dataclasses import asdict
from functools import partial

import torch

from benchmarks.common import Contender, Row, base_config, interleave, make_parser, run
from benchmarks.processes import run_command
from resnet import STEMS
from training.config import Config, as_flags
from training.hardware import choose_precision
from training.jobs import launcher
from training.parts import open_prepared


def launch(processes: int, *arguments: object) -> list[str]:
    """The command line of benchmarks/scaling_job.py in that many processes; 1: without a launcher."""
    as_module = ["-m"] if processes == 1 else ["--main_process_port", "0", "--module"]  # 0: a free one
    return [*launcher(processes), *as_module, "benchmarks.scaling_job", *map(str, arguments)]


def flags(config: Config) -> list[str]:
    """train.py's flags for what differs from its defaults."""
    defaults = asdict(Config())
    return as_flags({name: value for name, value in asdict(config).items() if value != defaults[name]})


def measure(processes: int, steps: int, validation: int, config: Config) -> dict[str, float]:
    finished = run_command(launch(processes, steps, validation, *flags(config)))
    line = next(line for line in finished.printed.splitlines() if line.startswith("{"))
    found: dict[str, float] = json.loads(line)
    return found


def benchmark(arguments: Namespace) -> list[Row]:
    prepared = open_prepared(base_config(arguments))
    on_gpu = arguments.device == "cuda"
    most = torch.cuda.device_count() if on_gpu else 2 if arguments.quick or arguments.brief else 4
    stem = arguments.stem or ("cifar" if on_gpu else "imagenet")  # that of 3x3 takes a CPU seconds for a step
    batch = 16 if arguments.quick else 512 if on_gpu else 128
    steps = 1 if arguments.quick else 100 if on_gpu else 8
    validation = min(len(prepared.labels), 10_000 if on_gpu else 1000)
    precision = choose_precision("auto", use_cpu=not on_gpu)  # the launcher's file has its own
    contenders = []
    for fixed in ("global batch",) if arguments.brief else ("global batch", "batch per process"):
        for processes in [count for count in (1, 2, 4) if count <= most]:
            size = batch if fixed == "global batch" else batch * processes
            if fixed != "global batch" and processes == 1:
                continue  # the same as above
            config = base_config(arguments, batch_size=size, stem=stem, precision=precision)
            case = {"fixed": fixed, "processes": processes, "global batch": size, "stem": stem}
            contenders.append(Contender(case, partial(measure, processes, steps, validation, config)))
    return interleave(contenders, arguments.repeats, warmup=0)


def main() -> None:
    parser = make_parser("scaling", __doc__)
    parser.add_argument("--stem", choices=STEMS, help="default: cifar on a GPU, imagenet on a CPU")
    parser.add_argument(
        "--brief", action="store_true", help="a fixed global batch, and on a CPU 1 and 2 processes"
    )
    run("scaling", parser, benchmark)


if __name__ == "__main__":
    main()
