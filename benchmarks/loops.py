"""Training loops that can be asked for a few steps: the suite's own Trainer, and the baselines."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.baselines import (
    RESIDENT_BATCH,
    AccelerateLoop,
    ImageDataset,
    fp32_epoch,
    half,
    pil_loader,
    pil_transform,
    resident_epoch,
    resident_images,
)
from benchmarks.common import MIB, default_device, endless, synchronize
from data.prepared import Prepared
from training.config import Config
from training.engine import Trainer
from training.hardware import DTYPES, make_accelerator
from training.parts import initial_model, open_data, open_prepared
from training.stopping import StopRequest

Steps = Iterator[Any]
"""One optimization step after the other, through any number of epochs."""


def make_trainer(config: Config, model: Callable[[int], nn.Module] | None = None) -> Trainer:
    """The suite's trainer as train.py makes it.

    Args:
        model: given the number of classes, another network than the config's.
    """
    accelerator = make_accelerator(config)
    prepared, loader, _ = open_data(config, accelerator)
    classes = len(prepared.classes)
    network = model(classes) if model else initial_model(config, classes)
    return Trainer(config, accelerator, network, prepared, loader, StopRequest())


def our_steps(trainer: Trainer) -> Steps:
    def epoch() -> Iterator[None]:
        yield from trainer.train_epoch()
        trainer.progress.epoch += 1

    return endless(epoch)


def b1_steps(config: Config) -> Steps:
    prepared, device = open_prepared(config), default_device()
    model = initial_model(config, len(prepared.classes)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    loader = pil_loader(_arrays(prepared, normalize=True), config.batch_size, config.workers)
    return endless(lambda: fp32_epoch(model, optimizer, loader, device))


def b3_steps(config: Config) -> Steps:
    prepared, device = open_prepared(config), default_device()
    dtype = DTYPES[half(device.type)]
    model = initial_model(config, len(prepared.classes)).to(device, dtype)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.85, weight_decay=5e-4, nesterov=True)
    images, labels = resident_images(prepared, prepared.train_count, device, dtype)
    return endless(lambda: resident_epoch(model, optimizer, images, labels))


def b4_steps(config: Config) -> Steps:
    accelerator = make_accelerator(config)
    prepared = open_prepared(config)
    model = initial_model(config, len(prepared.classes))
    loader = pil_loader(_arrays(prepared, normalize=False), config.batch_size, config.workers)
    return endless(AccelerateLoop(accelerator, model, loader, prepared).epoch)


def _arrays(prepared: Prepared, normalize: bool) -> ImageDataset:
    images = prepared.images[: prepared.train_count].copy()  # as torchvision keeps them, in memory
    transform = pil_transform(prepared.mean, prepared.std, normalize=normalize)
    return ImageDataset(images, prepared.labels[: prepared.train_count], transform)


def open_steps(loop: str, config: Config) -> tuple[Steps, int]:
    """The steps of a loop, and the images of each."""
    if loop == "ours":
        return our_steps(make_trainer(config)), config.batch_size
    if loop == "B1":
        return b1_steps(config), config.batch_size
    if loop == "B3":
        return b3_steps(config), RESIDENT_BATCH
    return b4_steps(config), config.batch_size


def open_loop(loop: str, config: Config) -> Callable[[int], dict[str, float]]:
    """A function that measures a number of whole steps, data and all; for a process of its own."""
    steps, batch_size = open_steps(loop, config)
    device = default_device()

    def measure(count: int) -> dict[str, float]:
        seconds = time_steps(steps, count, device)
        found = {"images/s": count * batch_size / seconds}
        if device.type == "cuda":
            # Since the process began: what a graph needs is allocated once, when it is captured.
            found["peak memory MiB"] = torch.cuda.max_memory_allocated(device) / MIB
        return found

    return measure


def time_steps(steps: Steps, count: int, device: torch.device) -> float:
    """Seconds of `count` steps, until the device has done them."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(count):
        next(steps)
    synchronize(device)
    return time.perf_counter() - started


def open_launches(loop: str, config: Config) -> Callable[[], float]:
    """A function that counts the launches of a step, after some that compile and warm up."""
    steps, _ = open_steps(loop, config)
    time_steps(steps, 5, default_device())
    return partial(launches_per_step, steps)


def launches_per_step(steps: Steps, count: int = 16) -> float:
    """Kernels, and graphs of kernels, that the CPU launches in a step.

    count: a multiple of the steps whose images are augmented together: 16 of 128 images.
    """
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        for _ in range(count):
            next(steps)
        torch.cuda.synchronize()
    names = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")
    return sum(entry.count for entry in profiled.key_averages() if entry.key.startswith(names)) / count
