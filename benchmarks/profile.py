"""Where the time of a training step goes, and that of reading and augmenting its images, by torch's operations.

Of each operation the time in itself, without those that it calls: on a GPU that of its kernels, on a CPU that of
the threads that call operations, whose helpers do not count.
"""

import statistics
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks.common import Row, base_config, default_device, endless, make_parser, run
from benchmarks.loops import make_trainer, our_steps, time_steps

SHOWN = 12


def ms_by_operation(steps: Iterator[Any], count: int) -> dict[str, float]:
    """Of one of `count` steps."""
    device = default_device()
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiled:
        time_steps(steps, count, device)
    found = profiled.key_averages()
    times = {entry.key: entry.self_device_time_total if on_gpu else entry.self_cpu_time_total for entry in found}
    return {name: microseconds / 1000 / count for name, microseconds in times.items()}


def longest(what: str, repeats: list[dict[str, float]]) -> list[Row]:
    """A row for each of the operations that take longest by their median, and one for all others."""
    names = {name for found in repeats for name in found}
    times = {name: [found.get(name, 0.0) for found in repeats] for name in names}
    ordered = sorted(times, key=lambda name: -statistics.median(times[name]))
    totals = [sum(found.values()) for found in repeats]
    shown = {name: times[name] for name in ordered[:SHOWN]}
    sums = map(sum, zip(*shown.values(), strict=True))
    shown["all others"] = [total - of_shown for total, of_shown in zip(totals, sums, strict=True)]
    return [
        Row(
            {"of": what, "operation": name[:200]},
            {"ms": values, "%": [100 * value / total for value, total in zip(values, totals, strict=True)]},
        )
        for name, values in shown.items()
    ]


def benchmark(arguments: Namespace) -> list[Row]:
    on_gpu = arguments.device == "cuda"
    config = base_config(
        arguments, batch_size=16 if arguments.quick else 128, stem="cifar" if on_gpu else "imagenet"
    )
    trainer = make_trainer(config)
    count = 1 if arguments.quick else 16 if on_gpu else 4
    rows = []
    for what, steps in (
        ("training step", our_steps(trainer)),
        ("its images alone", endless(lambda: trainer.stream.epoch(0))),
    ):
        time_steps(steps, count, trainer.accelerator.device)  # warms up
        rows += longest(what, [ms_by_operation(steps, count) for _ in range(arguments.repeats)])
    return rows


def main() -> None:
    run("profile", make_parser("profile", __doc__), benchmark)


if __name__ == "__main__":
    main()
