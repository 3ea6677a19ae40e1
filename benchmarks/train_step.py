"""Images a second of whole optimization steps: beside the baselines, and over networks, batches and precisions.

A step is all that the loop does for it, its data too. Every loop and setting has a process of its own, and they
take turns, a few steps at a time. B3 trains in batches of 500, on a CPU in bf16 or, where it would emulate that,
in fp32. "utilisation" is of the rate at which the device multiplies large matrices in that precision.
"""

from argparse import Namespace
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import torch

from benchmarks.baselines import RESIDENT_BATCH, half
from benchmarks.common import HAS_FFCV, Contender, Row, base_config, default_device, interleave, make_parser, run
from benchmarks.flops import matrix_rate, training_flops
from benchmarks.loops import open_launches, open_loop
from benchmarks.processes import in_own_process, in_turn
from data.decode import allowed_cores
from training.config import Config
from training.hardware import choose_precision, has_bf16
from training.parts import initial_model

Entry = tuple[str, Config]
"""A loop and the config that it trains with."""


def precisions(device: str) -> list[str]:
    """What the device trains in at its own speed."""
    low = ["bf16"] if has_bf16(use_cpu=device == "cpu") else []
    return ["no", *low, *(["fp16"] if device == "cuda" else [])]


def beside_baselines(arguments: Namespace) -> list[Entry]:
    """ResNet-18 with the cifar stem: our loop in fp32 and in low precision, and those of B1, B3 and B4.

    In batches of 128, as B1 and B4 are published; in full, ours in 512 too, beside B3's 500.
    """
    make = partial(base_config, arguments, batch_size=128, stem=arguments.stem)
    best = choose_precision("auto", use_cpu=arguments.device == "cpu")
    ours = [make(precision="no"), make(precision=best), make(precision=best, deterministic=False)]
    ours += [make(precision=best, loader="ffcv")] if HAS_FFCV and not arguments.quick else []
    if arguments.full:
        ours += [
            make(precision=best, deterministic=False, batch_size=batch_size, compile=chosen)
            for batch_size, chosen in ((128, True), (512, False), (512, True))
        ]
    baseline = partial(make, deterministic=False)
    b1 = [baseline(precision="no", workers=workers) for workers in sorted({2, max(2, allowed_cores())})]
    b3, b4 = baseline(precision=half(arguments.device)), baseline(precision=best, workers=4)
    return [*(("ours", config) for config in ours), *(("B1", config) for config in b1), ("B3", b3), ("B4", b4)]


def of_all_settings(arguments: Namespace) -> list[list[Entry]]:
    """Groups that take turns: one for each network, stem and batch; without --full, what a CPU does in minutes."""
    cases: Any = product(("resnet18", "resnet34"), ("cifar", "imagenet"), (128, 512))
    if not arguments.full:
        cases = [("resnet18", "imagenet", 128), ("resnet18", "imagenet", 512), ("resnet34", "imagenet", 128)]
    groups = []
    for model, stem, batch_size in cases:
        compiled = (False, True) if arguments.full or batch_size == 128 else (False,)
        make = partial(base_config, arguments, model=model, stem=stem, batch_size=batch_size)
        settings = product(precisions(arguments.device), compiled)
        groups.append([("ours", make(precision=precision, compile=chosen)) for precision, chosen in settings])
    return groups


def case(loop: str, config: Config) -> dict[str, Any]:
    return {
        "loop": loop,
        "loader": config.loader if loop == "ours" else "",
        "workers": config.workers if loop in ("B1", "B4") else "",
        "network": config.model,
        "stem": config.stem,
        "batch": RESIDENT_BATCH if loop == "B3" else config.batch_size,
        "precision": f"pure {config.precision}" if loop == "B3" and config.precision != "no" else config.precision,
        "compile": config.compile,
        "deterministic": config.deterministic,
    }


def measure_group(entries: list[Entry], steps: int, repeats: int, launches: bool) -> list[Row]:
    rows = in_turn([(case(loop, config), (open_loop, loop, config)) for loop, config in entries], steps, repeats)
    if launches:
        working = [(row, entry) for row, entry in zip(rows, entries, strict=True) if not row.failed]
        contenders = [Contender(row.case, partial(count_launches, entry)) for row, entry in working]
        for (row, _), counted in zip(working, interleave(contenders, repeats=1, warmup=0), strict=True):
            row.measured |= counted.measured
            row.failed = counted.failed
    return rows


def count_launches(entry: Entry) -> dict[str, float]:
    """In a process of its own: what a profiler has attached to launches more slowly ever after."""
    with in_own_process(open_launches, *entry) as launches_per_step:
        return {"launches/step": launches_per_step()}


def add_utilisation(rows: list[Row], entries: list[Entry], rates: dict[str, float]) -> None:
    """Add to each row the FLOP/s of its network as a share of its precision's matrix rate."""
    for row, (_, config) in zip(rows, entries, strict=True):
        if "images/s" in row.measured and config.precision in rates:
            flops = training_flops(initial_model(config, num_classes=10)) / rates[config.precision]
            row.measured["utilisation"] = [rate * flops for rate in row.measured["images/s"]]


def matrix_rates(arguments: Namespace) -> list[Row]:
    """The device's FLOP/s with large matrices, in each precision."""
    device = default_device()
    size = 256 if arguments.quick else 8192 if device.type == "cuda" else 2048

    def measure(precision: str) -> dict[str, float]:
        return {"TFLOP/s": matrix_rate(device, precision, size) / 1e12}

    contenders = [
        Contender({"loop": "matrix product", "precision": name}, partial(measure, name))
        for name in precisions(arguments.device)
    ]
    rows = interleave(contenders, arguments.repeats)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return rows


def benchmark(arguments: Namespace) -> list[Row]:
    groups = [beside_baselines(arguments)]
    groups += [] if arguments.quick or arguments.brief else of_all_settings(arguments)
    steps = arguments.steps or (1 if arguments.quick else 400 if arguments.device == "cuda" else 2)
    launches = arguments.device == "cuda" and not arguments.brief
    matrices = matrix_rates(arguments)
    rates = {row.case["precision"]: 1e12 * median(row.measured["TFLOP/s"]) for row in matrices if not row.failed}
    rows = []
    for entries in groups:
        found = measure_group(entries, steps, arguments.repeats, launches)
        add_utilisation(found, entries, rates)
        rows += found
    return rows + matrices


def main() -> None:
    parser = make_parser("train_step", __doc__)
    parser.add_argument("--steps", type=int, default=0, help="of a measurement; default: 2, on a GPU 400")
    parser.add_argument("--stem", choices=("cifar", "imagenet"), default="cifar", help="beside the baselines")
    parser.add_argument(
        "--brief", action="store_true", help="beside the baselines alone; launches are not counted"
    )
    run("train_step", parser, benchmark)


if __name__ == "__main__":
    main()
