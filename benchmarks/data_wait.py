"""The share of a training step that is spent waiting for data, with both loaders.

"waiting" is the time until the next batch is there, augmented, over that of the whole step; the device is waited
for before and after, so that nothing overlaps: an upper bound. "with data / without" is the time of steps as they
are in training over that of steps with one batch again and again.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from itertools import product, repeat

from benchmarks.common import HAS_FFCV, Row, base_config, endless, make_parser, run, synchronize
from benchmarks.loops import Steps, make_trainer, time_steps
from benchmarks.processes import in_turn
from data.loaders import Batch
from training.config import Config
from training.engine import Trainer


def open_shares(config: Config) -> Callable[[int], dict[str, float]]:
    """A function that measures a number of steps; for a process of its own."""
    trainer = make_trainer(config)
    data = endless(lambda: trainer.stream.epoch(0))
    with_data, without = steps_with(trainer, data), steps_with(trainer, repeat(next(data)))
    device = trainer.accelerator.device

    def measure(count: int) -> dict[str, float]:
        count += -count % trainer.stream.steps_at_once  # those are read together
        ratio = time_steps(with_data, count, device) / time_steps(without, count, device)
        return {"waiting %": waiting_percentage(trainer, data, count), "with data / without": ratio}

    return measure


def steps_with(trainer: Trainer, data: Iterator[list[Batch]]) -> Steps:
    for batches in data:
        trainer.train_step(batches)
        yield


def waiting_percentage(trainer: Trainer, data: Iterator[list[Batch]], count: int) -> float:
    device = trainer.accelerator.device
    waiting_s = total_s = 0.0
    synchronize(device)
    for _ in range(count):
        started = time.perf_counter()
        batches = next(data)
        synchronize(device)
        waiting_s += time.perf_counter() - started
        trainer.train_step(batches)
        synchronize(device)
        total_s += time.perf_counter() - started
    return 100 * waiting_s / total_s


def benchmark(arguments: Namespace) -> list[Row]:
    on_gpu = arguments.device == "cuda"
    count = 1 if arguments.quick else 48 if on_gpu else 3
    stems = ("cifar", "imagenet") if on_gpu or arguments.full else ("imagenet",)
    stems = stems[:1] if arguments.brief else stems
    sizes = (128, 512) if on_gpu or arguments.full else (128,)
    loaders = ("ffcv", "resident") if HAS_FFCV else ("resident",)
    openings = []
    for stem, size, loader in product(stems, sizes, loaders):
        config = base_config(arguments, batch_size=size, stem=stem, loader=loader)
        case = {"loader": loader, "network": config.model, "stem": stem, "batch": size}
        openings.append((case, (open_shares, config)))
    return in_turn(openings, count, arguments.repeats)


def main() -> None:
    parser = make_parser("data_wait", __doc__)
    parser.add_argument(
        "--brief", action="store_true", help="one stem: cifar on a GPU or with --full, imagenet on a CPU"
    )
    run("data_wait", parser, benchmark)


if __name__ == "__main__":
    main()
