"""Training steps of the network alone, its weights and images contiguous or channels_last, in each precision."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.common import Row, base_config, default_device, make_parser, run
from benchmarks.loops import time_steps
from benchmarks.processes import Opening, in_turn
from benchmarks.train_step import precisions
from training.config import Config
from training.hardware import DTYPES, set_threads
from training.parts import initial_model

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def network_steps(config: Config, memory_format: str) -> Iterator[None]:
    """Steps on one batch of noise; of fp16 without the scaling of its loss."""
    device, form = default_device(), FORMATS[memory_format]
    model = initial_model(config, num_classes=10).to(device, memory_format=form)  # type: ignore[call-overload]
    images = torch.randn(config.batch_size, 3, 32, 32, device=device).contiguous(memory_format=form)
    labels = torch.randint(0, 10, (config.batch_size,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    while True:
        with torch.autocast(device.type, DTYPES[config.precision], enabled=config.precision != "no"):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield


def open_network(config: Config, memory_format: str) -> Callable[[int], dict[str, float]]:
    """A function that measures a number of steps; for a process of its own."""
    device = default_device()
    set_threads(device.type == "cpu")
    steps = network_steps(config, memory_format)
    return lambda count: {"images/s": count * config.batch_size / time_steps(steps, count, device)}


def benchmark(arguments: Namespace) -> list[Row]:
    on_gpu = arguments.device == "cuda"
    # On a GPU a small batch takes as long as the CPU takes to launch it, whatever the format.
    make = partial(base_config, arguments, batch_size=8 if arguments.quick else 1024 if on_gpu else 128)
    stems = ("cifar", "imagenet") if on_gpu else ("cifar-pool", "imagenet")
    openings: list[Opening] = []
    for stem in stems[-1:] if arguments.quick else stems:
        for precision in precisions(arguments.device):
            for name in FORMATS:
                config = make(stem=stem, precision=precision)
                case = {"stem": stem, "batch": config.batch_size, "precision": precision, "memory": name}
                openings.append((case, (open_network, config, name)))
    return in_turn(openings, 1 if arguments.quick else 100 if on_gpu else 4, arguments.repeats)


def main() -> None:
    run("memory_format", make_parser("memory_format", __doc__), benchmark)


if __name__ == "__main__":
    main()
