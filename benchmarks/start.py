"""Seconds from the command to the first optimization step, cold and warm; `train.py --help`, a bad flag; imports.

Each is a fresh process. Cold: with an empty cache, so that all image files are decoded, and the .beton written.
Warm: with both in place. The step is over when its row is in metrics.jsonl.
"""

import subprocess
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.common import HAS_FFCV, Contender, Row, base_config, interleave, make_parser, run
from benchmarks.processes import python, run_command
from training.config import ROOT
from training.engine import open_prepared

IMPORTS = ("torch", "torch, torchvision, accelerate", "ffcv", "train", "training.engine")


def first_step(flags: Sequence[object], cache_dir: str | None) -> dict[str, float]:
    """Start train.py, and end it after its first step.

    cache_dir: None: an empty one.

    Raises:
        RuntimeError: it ended before.
    """
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "printed", "w+") as printed:
        metrics = Path(folder) / "first/metrics.jsonl"
        where = ["--runs-dir", folder, "--name", "first", "--cache-dir", cache_dir or f"{folder}/cache"]
        command = python("train.py", *flags, *where, "--log-every", 1, "--tracker", "none")
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=printed, stderr=subprocess.STDOUT)
        try:
            while not (metrics.exists() and metrics.read_bytes().endswith(b"\n")):
                if process.poll() is not None:
                    printed.seek(0)
                    raise RuntimeError(
                        f"{' '.join(command)} ended before its first step: {printed.read()[-2000:]}"
                    )
                time.sleep(0.005)
            return {"seconds": time.perf_counter() - started}
        finally:
            process.kill()
            process.wait()


def command_seconds(command: Sequence[str], code: int = 0) -> dict[str, float]:
    return {"seconds": run_command(command, code=code).seconds}


def benchmark(arguments: Namespace) -> list[Row]:
    open_prepared(base_config(arguments))  # for the warm starts
    recipe = (
        "demo" if arguments.dataset == "shapes" else "cifar10" if arguments.device == "cuda" else "cifar10-cpu"
    )
    of_run = ["--recipe", f"recipes/{recipe}.yaml"]
    of_run += ["--data-dir", arguments.data_dir] if arguments.data_dir else []
    contenders = [
        Contender({"command": f"import {names}"}, partial(command_seconds, python("-c", f"import {names}")))
        for names in IMPORTS
        if HAS_FFCV or names != "ffcv"
    ]
    for flags, code in (["--help"], 0), (["--lr", "-1"], 2):
        ended = partial(command_seconds, python("train.py", *flags), code)
        contenders.append(Contender({"command": f"train.py {' '.join(flags)}"}, ended))
    loaders = ("resident", "ffcv") if HAS_FFCV else ("resident",)
    starts = [(loader, state) for loader in loaders for state in ("warm", "cold")]
    for loader, state in starts[:1] if arguments.quick else starts:
        cache_dir = arguments.cache_dir if state == "warm" else None
        contenders.append(
            Contender(
                {"command": f"train.py, first step, {state}, {loader}"},
                partial(first_step, [*of_run, "--loader", loader], cache_dir),
            )
        )
    return interleave(contenders, arguments.repeats)


def main() -> None:
    run("start", make_parser("start", __doc__), benchmark)


if __name__ == "__main__":
    main()
