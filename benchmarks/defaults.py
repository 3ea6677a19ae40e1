"""What no other benchmark measures of the defaults: each beside its alternatives.

- "metrics read every": --log-every. On a CPU with a network that computes nothing, as a step of a real one takes
  longer than what is to be seen;
- "evaluation batch": images of one forward pass in validation and evaluate.py;
- "SGD": the optimizer's step alone, parameter by parameter, all at once (foreach), or with its fused kernel;
- "images augmented together": those of 1, 4 or 16 steps; images/s of the stream alone;
- "freed memory" (on a CPU), in steps of the network and of reading and augmenting images alone: kept for the next
  tensors, or returned to the system as glibc does by itself;
- "maps of four pixels at most" (on a CPU, in fp32), in steps of the network with two stems: convolved by one
  product of matrices over all images, or by torch's convolution.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

import resnet.resnet
from benchmarks.common import Row, base_config, default_device, endless, make_parser, run
from benchmarks.loops import make_trainer, our_steps, time_steps
from benchmarks.memory_format import open_network
from benchmarks.processes import in_turn
from benchmarks.step_overhead import NoNetwork
from data.resident_loader import ResidentLoader
from data.sampling import evaluation_batches
from data.stream import Stream
from training.config import Config
from training.hardware import choose_precision, keep_freed_memory, set_threads
from training.parts import initial_model, make_transform, open_prepared

READINGS = {"step": 1, "10 steps": 10, "50 steps": 50, "epoch": 10**9}
EVALUATION_BATCHES = (125, 500, 2000)
SGD = {"one by one": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
STEPS_AT_ONCE = (1, 4, 16)
FREED_MEMORY = {"kept": True, "returned": False}
SMALL_MAPS = {"product of matrices": True, "convolution": False}


def open_reading(config: Config, every: int) -> Callable[[int], dict[str, float]]:
    device = default_device()
    trainer = make_trainer(config, None if device.type == "cuda" else NoNetwork)

    def steps() -> Iterator[None]:
        for _ in our_steps(trainer):
            if trainer.progress.step % every == 0:
                trainer.training_row("step")
            yield

    running = steps()
    return lambda count: {"us/step": 1e6 * time_steps(running, 16 * count, device) / (16 * count)}


def open_evaluation(config: Config, batch: int) -> Callable[[int], dict[str, float]]:
    trainer = make_trainer(config)
    ids = trainer.stream.ids[:2000]

    def evaluate() -> dict[str, Any]:  # it reads its metrics at the end: the device is waited for
        return trainer.predictor.evaluate(trainer.loader.read(evaluation_batches(ids, batch)), trainer.num_classes)

    passes = iter(evaluate, None)

    def measure(count: int) -> dict[str, float]:
        count = -(-count // 20)
        return {"images/s": count * len(ids) / time_steps(passes, count, trainer.accelerator.device)}

    return measure


def open_sgd(config: Config, kernels: dict[str, bool]) -> Callable[[int], dict[str, float]]:
    device = default_device()
    set_threads(device.type == "cpu")
    model = initial_model(config, num_classes=10).to(device)
    for parameter in model.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4, **kernels)
    steps = iter(optimizer.step, "")  # endless: it returns None
    return lambda count: {"us/step": 1e6 * time_steps(steps, count, device) / count}


def open_stream(config: Config, steps_at_once: int) -> Callable[[int], dict[str, float]]:
    stream = make_trainer(config, NoNetwork).stream
    stream.steps_at_once = steps_at_once
    batches = endless(lambda: stream.epoch(0))

    def measure(count: int) -> dict[str, float]:
        seconds = time_steps(batches, 16 * count, default_device())
        return {"images/s": 16 * count * config.batch_size / seconds}

    return measure


def open_memory(config: Config, kept: bool) -> Callable[[int], dict[str, float]]:
    if kept:
        keep_freed_memory()
    return open_network(config, "channels_last")


def open_memory_of_images(config: Config, kept: bool) -> Callable[[int], dict[str, float]]:
    """Of the resident loader's images alone, in batches four times as large."""
    device, prepared = default_device(), open_prepared(config)
    set_threads(device.type == "cpu")
    if kept:
        keep_freed_memory()
    transform = make_transform(config, prepared, device, "no")
    ids, size = torch.arange(prepared.train_count), 4 * config.batch_size
    stream = Stream(ResidentLoader(prepared, device), transform, ids, size, config.seed)
    batches = endless(lambda: stream.epoch(0))
    return lambda count: {"images/s": 16 * count * size / time_steps(batches, 16 * count, device)}


def open_small_maps(stem: Any, config: Config, by_product: bool) -> Callable[[int], dict[str, float]]:
    resnet.resnet._AVX2_ALONE = by_product
    return open_memory(replace(config, stem=stem, precision="no"), kept=True)


def benchmark(arguments: Namespace) -> list[Row]:
    on_gpu, batch_size = arguments.device == "cuda", 16 if arguments.quick else 128
    precision = choose_precision("auto", use_cpu=not on_gpu)
    stem = "cifar" if on_gpu else "imagenet"
    config = base_config(arguments, batch_size=batch_size, stem=stem, precision=precision)
    alternatives: list[tuple[str, Callable[..., Any], dict[Any, Any]]] = [
        ("metrics read every", open_reading, READINGS),
        ("evaluation batch", open_evaluation, {batch: batch for batch in EVALUATION_BATCHES}),
        ("SGD", open_sgd, SGD),
        ("images augmented together", open_stream, {f"{n} x {batch_size}": n for n in STEPS_AT_ONCE}),
    ]
    if not on_gpu:
        alternatives.append(("freed memory, network", open_memory, FREED_MEMORY))
        alternatives.append(("freed memory, images", open_memory_of_images, FREED_MEMORY))
        alternatives += [
            (f"maps of four pixels at most, {stem}", partial(open_small_maps, stem), SMALL_MAPS)
            for stem in ("imagenet", "cifar-pool")
        ]
    openings = [
        ({"default": default, "value": name}, (opener, config, value))
        for default, opener, values in alternatives
        for name, value in values.items()
    ]
    return in_turn(openings, 1 if arguments.quick else 100 if on_gpu else 20, arguments.repeats)


def main() -> None:
    run("defaults", make_parser("defaults", __doc__), benchmark)


if __name__ == "__main__":
    main()
