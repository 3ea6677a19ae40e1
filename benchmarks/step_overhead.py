"""What Python costs in a step: a network that computes nothing, at batch 128.

"bare" is the shortest loop that trains: gradients to zero, network, loss, backward pass, optimizer. "ours" is
Trainer.train_step, with its metrics, learning rate and the device's precision; "B4" is the loop of Accelerate's
example. All get one and the same batch, which is already there (B4, which normalises in its loop, one of single
pixels); "ours, with its data" reads and augments one in each step.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines import AccelerateLoop
from benchmarks.common import (
    Row,
    base_config,
    default_device,
    endless,
    make_parser,
    run,
)
from benchmarks.loops import Steps, make_trainer, our_steps, time_steps
from benchmarks.processes import in_turn
from resnet import build_model
from training.config import Config
from training.hardware import choose_precision, make_accelerator, set_threads
from training.parts import open_prepared

NAMES = ("bare", "B4", "ours", "ours, with its data")


class NoNetwork(nn.Module):
    """Logits that do not depend on the image: one parameter for each class.

    Beside it the modules of ResNet-18, which compute nothing: what walks through a network has to pass them.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_classes))
        self.unused = build_model("resnet18", num_classes).requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.bias.expand(len(images), -1).contiguous()  # on a GPU a graph has to have a kernel


def bare_steps(config: Config, device: torch.device) -> Steps:
    set_threads(device.type == "cpu")
    images = torch.zeros(config.batch_size, 3, 32, 32, device=device)
    labels = torch.zeros(config.batch_size, dtype=torch.int64, device=device)
    model = NoNetwork(10).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    while True:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        yield


class _SameBatch(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """A data set whose items are one batch, in memory, which costs nothing to normalise."""

    def __init__(self, batch_size: int):
        self.batch = torch.zeros(batch_size, 3, 1, 1), torch.zeros(batch_size, dtype=torch.int64)

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.batch


def b4_steps(config: Config) -> Steps:
    loader = torch.utils.data.DataLoader(_SameBatch(config.batch_size), batch_size=None)
    accelerator = make_accelerator(replace(config, deterministic=False))
    return endless(AccelerateLoop(accelerator, NoNetwork(10), loader, open_prepared(config)).epoch)


def same_batch_steps(config: Config) -> Steps:
    trainer = make_trainer(config, NoNetwork)
    batches = next(trainer.stream.epoch(0))
    while True:
        trainer.train_step(batches)
        yield


def open_steps(name: str, config: Config) -> Callable[[int], dict[str, float]]:
    """A function that measures a number of steps; for a process of its own."""
    device = default_device()
    steps: Iterator[object]
    if name == "bare":
        steps = bare_steps(config, device)
    elif name == "B4":
        steps = b4_steps(config)
    elif name == "ours":
        steps = same_batch_steps(config)
    else:
        steps = our_steps(make_trainer(config, NoNetwork))

    def measure(count: int) -> dict[str, float]:
        return {"us/step": 1e6 * time_steps(steps, count, device) / count}

    return measure


def benchmark(arguments: Namespace) -> list[Row]:
    precision = choose_precision("auto", use_cpu=arguments.device == "cpu")
    config = base_config(arguments, batch_size=128, precision=precision)
    count = 20 if arguments.quick else 1000
    openings = [({"loop": name, "batch": 128}, (open_steps, name, config)) for name in NAMES]
    return in_turn(openings, count, arguments.repeats)


def main() -> None:
    run("step_overhead", make_parser("step_overhead", __doc__), benchmark)


if __name__ == "__main__":
    main()
