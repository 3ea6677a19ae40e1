"""A network's forward and backward pass as CUDA graphs: two launches where there were hundreds.

In batches of 128 a GPU computes ResNet-18 faster than a CPU can ask it to, operation by operation. The operations
stay the same ones, and so do the bits.
"""

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from data.spec import IMAGE_SIZE
from training.sam import SAM

Pass = Callable[[Tensor], Any]
Passes = tuple[Pass, Pass]
"""What takes the images of a step's first pass, and of the second that SAM adds."""


class TrainingPass(nn.Module):
    """`model` in training mode. A module of its own, since make_graphed_callables replaces the `forward` of the
    one it is given, and the network itself still has to take batches of other sizes."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits


def capture_passes(model: nn.Module, sam: SAM | None, batch_size: int, dtype: torch.dtype) -> Passes:
    """The passes of a step of one batch, which has to be of this size.

    A backward pass writes the gradients where the same pass of the step before did: they are used up, and
    forgotten, within a step.

    Args:
        model: on a GPU, where its parameters have to stay in memory.
        sam: of the model; with it a step has two passes.
        dtype: of the images.
    """
    device = next(model.parameters()).device
    images = blank_images(batch_size, dtype, device)
    first = _capture(model, images)
    if sam is None:
        return first, first
    with sam.statistics_kept():
        return first, _capture(model, images)


def blank_images(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Of the form in which images come: (count, 3, h, w), channels_last."""
    images = torch.zeros(count, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=dtype, device=device)
    return images.to(memory_format=torch.channels_last)


def _capture(model: nn.Module, images: Tensor) -> Pass:
    model.train()
    gc.collect()  # no graph of a former network may be freed during a capture
    # Gradients are added to the parameters' in the stream of the capture, which is intended.
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    with buffers_kept(model), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Attempting to run cuBLAS")  # which makes itself a context
        return torch.cuda.make_graphed_callables(TrainingPass(model), (images,))


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """BatchNorm's running statistics are afterwards what they were before: passes inside do not count."""
    former = [(buffer, buffer.clone()) for buffer in model.buffers()]
    yield
    for buffer, value in former:
        buffer.copy_(value)
