"""Images a second that loaders deliver, ready for the network; time to the first batch; CPU time; peak memory.

All crop, flip and normalise to fp32 (FFCV's own on a GPU: fp16), and "ours, resident, bf16" to what training in
bf16 takes. "B2 with cutout" is FFCV's pipeline as published. Ours have in their first batch all that train.py does
for it; the baselines find images and labels there beforehand, B1 from PNG lists its files.
"""

import os
import resource
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from benchmarks.baselines import ImageDataset, ffcv_loader, pil_loader, pil_transform
from benchmarks.common import (
    HAS_FFCV,
    Contender,
    Row,
    base_config,
    default_device,
    interleave,
    make_parser,
    run,
    synchronize,
)
from benchmarks.processes import PeakMemory, in_own_process
from data.decode import allowed_cores
from data.errors import InputError
from data.prepared import Prepared
from data.sources import find_source
from training.config import Config
from training.hardware import make_accelerator
from training.parts import make_stream, open_data, open_prepared

SECONDS = 2.0
"""Of a measurement, at least: one pass of the fastest takes tenths, and begins as a process that was idle."""

Passes = Callable[[], Iterator[Tensor]]
"""Starts one pass over the images: augmented floats (n, 3, 32, 32) on the device."""


def ours(loader: Any, precision: Any, config: Config, _prepared: Prepared) -> Passes:
    """Opens the images itself, as it does in training."""
    config = replace(config, loader=loader, precision=precision)
    accelerator = make_accelerator(config)
    prepared, opened, _ = open_data(config, accelerator)
    stream, _ = make_stream(config, accelerator, prepared, opened)
    return lambda: (batch.images for (batch,) in stream.epoch(0))


def pil(from_files: bool, config: Config, prepared: Prepared) -> Passes:
    """B1, from the arrays in memory or from the image files."""
    device = default_device()
    if from_files:
        split = find_source(config.dataset, config.source_folder).load().train
        images: Any = split.images
        labels = split.labels
    else:
        images = prepared.images[: prepared.train_count].copy()  # as torchvision keeps them, in memory
        labels = prepared.labels[: prepared.train_count]
    dataset = ImageDataset(images, labels, pil_transform(prepared.mean, prepared.std))
    loader = pil_loader(Subset(dataset, range(_count(config, prepared))), config.batch_size, config.workers)
    return lambda: (images.to(device) for images, _ in loader)


def ffcv(cutout: bool, config: Config, prepared: Prepared) -> Passes:
    count = _count(config, prepared)
    loader = ffcv_loader(prepared, count, config.batch_size, config.workers, default_device(), cutout)
    return lambda: (images for images, _ in loader)


def _count(config: Config, prepared: Prepared) -> int:
    return round(config.subset * prepared.train_count)


OPENERS: dict[str, Callable[[Config, Prepared], Passes]] = {
    "ours, ffcv": partial(ours, "ffcv", "no"),
    "ours, resident": partial(ours, "resident", "no"),
    "ours, resident, bf16": partial(ours, "resident", "bf16"),
    "B1, arrays": partial(pil, False),
    "B1, PNG": partial(pil, True),
    "B2": partial(ffcv, False),
    "B2 with cutout": partial(ffcv, True),
}
_OF_FFCV = ("ours, ffcv", "B2", "B2 with cutout")


def of_whole_passes(name: str, config: Config) -> Config:
    """All images, since a pass of fewer would be over before it can be timed; of B1 as few as asked for."""
    return config if name.startswith("B1") else replace(config, subset=1.0)


def open_throughput(name: str, configs: list[Config]) -> Callable[[int], dict[str, Any]]:
    """A function that measures one pass of the loader with `configs[index]`; each opened when first asked for."""
    opened: dict[int, Passes] = {}

    def measure(index: int) -> dict[str, Any]:
        if index not in opened:
            config = of_whole_passes(name, configs[index])
            opened[index] = OPENERS[name](config, open_prepared(config))
        # On a CPU those of ours that augment, and of the resident loader all; beside a GPU train.py has one.
        torch.set_num_threads(configs[index].workers if default_device().type == "cpu" else 1)
        return timed_passes(opened[index])

    return measure


def timed_passes(passes: Passes) -> dict[str, Any]:
    """Rate and CPU time of whole passes, their workers' start included; and the form in which images come."""
    device, count, seconds, cpu, started = default_device(), 0, 0.0, cpu_seconds(), time.perf_counter()
    while seconds < SECONDS:
        for batch in passes():
            count += len(batch)
        synchronize(device)
        seconds = time.perf_counter() - started
    return {
        "images/s": count / seconds,
        "CPU s / 10,000 images": (cpu_seconds() - cpu) / count * 10_000,
        "form": form_of(batch),
    }


def form_of(batch: Tensor) -> str:
    """Such as "float32 channels_last"."""
    channels_last = batch.is_contiguous(memory_format=torch.channels_last)
    return f"{str(batch.dtype).removeprefix('torch.')} {'channels_last' if channels_last else 'contiguous'}"


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def open_start(name: str, config: Config) -> Callable[[bool], dict[str, float]]:
    """A function for a fresh process: time to the first batch, imports apart, or the memory of a first pass."""
    if "ffcv" in name or name.startswith("B2"):
        import_module("data.ffcv_loader")
    prepared = open_prepared(config)

    def measure(watch_memory: bool) -> dict[str, float]:
        # A pass of fewer could be over before its memory is looked at for the first time.
        of_pass = replace(config, subset=1.0) if watch_memory else config
        with PeakMemory(os.getpid()) if watch_memory else nullcontext() as memory:
            started = time.perf_counter()
            images = OPENERS[name](of_pass, prepared)()
            next(images)
            synchronize(default_device())
            first = time.perf_counter() - started
            for _ in images:
                pass
        return {"peak memory MiB": memory.mib} if memory else {"first batch s": first}

    return measure


def measure_start(name: str, config: Config) -> dict[str, float]:
    """A process for each, as watching the memory would slow the first batch down."""
    measured: dict[str, float] = {}
    for watch_memory in (False, True):
        with in_own_process(open_start, name, config) as measure:
            measured |= measure(watch_memory)
    return measured


def throughput(names: list[str], configs: list[Config], repeats: int) -> list[Row]:
    """Whole passes; each loader has one process, in which it is opened once for each config."""
    with ExitStack() as stack:
        measures = {name: stack.enter_context(in_own_process(open_throughput, name, configs)) for name in names}
        contenders = [
            Contender(case(name, config), partial(measures[name], index))
            for index, config in enumerate(configs)
            for name in names
        ]
        return interleave(contenders, repeats)


def starts(names: list[str], configs: list[Config], repeats: int) -> list[Row]:
    """First passes, each in a process of its own."""
    contenders = [
        Contender(case(name, config), partial(measure_start, name, config)) for config in configs for name in names
    ]
    return interleave(contenders, repeats, warmup=0)


def case(name: str, config: Config) -> dict[str, Any]:
    return {"loader": name, "batch": config.batch_size, "workers": config.workers}


def has_files(config: Config) -> bool:
    return config.dataset == "cifar10" and isinstance(
        find_source(config.dataset, config.source_folder).load().train.images, list
    )


def benchmark(arguments: Namespace) -> list[Row]:
    base = base_config(arguments, precision="no")
    count = open_prepared(base).train_count
    images = arguments.images or (count if arguments.full else 1000 if arguments.quick else 10_000)
    absent = [*([] if HAS_FFCV else _OF_FFCV), *([] if has_files(base) else ["B1, PNG"])]
    for name in arguments.only or ():
        if name in absent:
            raise InputError(f"--only {name}: needs {'FFCV' if name in _OF_FFCV else 'image files'}")
    names = [name for name in arguments.only or OPENERS if name not in absent]
    workers = (1, 2, allowed_cores()) if arguments.full and allowed_cores() > 2 else (1, 2)
    configs = [
        replace(base, batch_size=batch, workers=number, subset=min(1.0, images / count))
        for batch in (128, 512)
        for number in workers
    ]
    if arguments.quick:
        configs = configs[:1]
    rows = throughput(names, configs, arguments.repeats)
    for row in starts(names, configs if arguments.full else configs[-1:], arguments.repeats):
        same = next(other for other in rows if row.case.items() <= other.case.items())
        same.measured |= row.measured
        same.failed = same.failed or row.failed
    return rows


def main() -> None:
    parser = make_parser("loaders", __doc__)
    parser.add_argument(
        "--images", type=int, default=0, help="of a pass of B1; default: 10000, or all with --full"
    )
    parser.add_argument("--only", nargs="+", choices=tuple(OPENERS), help="these loaders; default: all")
    run("loaders", parser, benchmark)


if __name__ == "__main__":
    main()
