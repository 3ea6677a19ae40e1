"""The processes of benchmarks/scaling.py: where the time of a few steps goes.

    accelerate launch ... -m benchmarks.scaling_job STEPS VALIDATION_IMAGES, and flags of train.py

The first process prints one line of JSON: images/s, and milliseconds of a step in data, compute and communication,
each the mean over the steps, of the first process; and images/s of evaluation. Communication is what it adds to a
step: the same step without it, which leaves each process with its own gradients, is the compute.
"""

import json
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from itertools import islice

import torch

from benchmarks.common import endless, synchronize
from benchmarks.loops import make_trainer
from data.loaders import Batch
from training.config import parse_config
from training.engine import Trainer

Steps = list[list[Batch]]


def read_steps(trainer: Trainer, count: int) -> tuple[Steps, float]:
    """The batches of the first steps, and the seconds that it took to read and augment them."""
    synchronize(trainer.accelerator.device)
    started = time.perf_counter()
    # More of them than an epoch has at large batches.
    steps = list(islice(endless(lambda: trainer.stream.epoch(0)), count))
    synchronize(trainer.accelerator.device)
    return steps, time.perf_counter() - started


def train_seconds(trainer: Trainer, batches: list[Batch], communicate: bool) -> float:
    apart: AbstractContextManager[None] = nullcontext()
    if not communicate:
        apart = trainer.accelerator.no_sync(trainer.model)
    trainer.accelerator.wait_for_everyone()
    started = time.perf_counter()
    with apart:
        trainer.train_step(batches)
    synchronize(trainer.accelerator.device)
    return time.perf_counter() - started


def validate_seconds(trainer: Trainer) -> float:
    trainer.accelerator.wait_for_everyone()
    started = time.perf_counter()
    trainer.validate()
    return time.perf_counter() - started


def measure(trainer: Trainer, count: int) -> dict[str, float]:
    steps, data_s = read_steps(trainer, count)
    seconds = {False: 0.0, True: 0.0}
    for number, batches in enumerate(steps):  # in turn, so that what else the machine does meets both
        for communicate in (number % 2 == 0, number % 2 == 1):
            seconds[communicate] += train_seconds(trainer, batches, communicate)
    evaluation_s = validate_seconds(trainer)
    milliseconds = 1000 / count
    found = {
        "images/s": count * trainer.config.batch_size / (data_s + seconds[True]),
        "data ms": data_s * milliseconds,
        "compute ms": seconds[False] * milliseconds,
        "evaluation images/s": len(trainer.val_ids) / evaluation_s,
    }
    if trainer.accelerator.num_processes > 1:
        found["communication ms"] = (seconds[True] - seconds[False]) * milliseconds
    return found


def main() -> None:
    count, validation = int(sys.argv[1]), int(sys.argv[2])
    trainer = make_trainer(parse_config(sys.argv[3:]))
    trainer.val_ids = torch.arange(validation)
    count += -count % trainer.stream.steps_at_once  # those are read together
    measure(trainer, 1)  # warms up
    found = measure(trainer, count)
    trainer.accelerator.print(json.dumps(found))
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
