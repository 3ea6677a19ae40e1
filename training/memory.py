"""What to do when the device is out of memory, in the one line that the user sees."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

import torch

from training.cli import OneProcessError
from training.config import Config

_SIGNS = ("out of memory", "alloc failed", "can't allocate memory")


@contextmanager
def out_of_memory_told(advice: Callable[[], str]) -> Iterator[None]:
    """Turn the device's error into a OneProcessError with advice; also a decorator.

    Not always an OutOfMemoryError: CUDA's own and cuDNN's, and the CPU's, are known by what they say.
    """
    try:
        yield
    except RuntimeError as error:
        said = str(error).lower().replace("_", " ")
        if not isinstance(error, torch.OutOfMemoryError) and not any(sign in said for sign in _SIGNS):
            raise
        raise OneProcessError(f"the device is out of memory in {advice()}") from error


def training_advice(config: Config) -> str:
    """A smaller batch size and a larger accumulation that fit the number of processes, where there are such."""
    processes, batch_size = int(os.environ.get("WORLD_SIZE", "1")), config.batch_size
    shares = processes * config.accumulation
    half = batch_size // 2 // shares * shares
    at_most = batch_size // processes // 2  # one image at a time is too few for BatchNorm
    finer = (n for n in range(config.accumulation + 1, at_most + 1) if batch_size % (n * processes) == 0)
    options = [f"--batch-size {half}"] if half > shares else []
    options += [f"the same in smaller parts: --accumulation {n}" for n in islice(finer, 1)]
    tried = ", or ".join(options) or "more processes, or a smaller network"
    return f"training with --batch-size {batch_size}: try {tried}"
