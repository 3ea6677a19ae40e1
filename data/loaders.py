"""Id batches in, device batches out: what the two loaders have in common, and which one to use.

A loader knows nothing of seeds, ranks or epochs. It is handed lists of ids and returns those images, in
that order; so both give the same stream by construction, and resuming in mid-epoch is a slice of a list.
"""

from collections.abc import Generator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from data.errors import InputError
from data.prepared import Prepared


class Batch(NamedTuple):
    """Images (n, 3, h, w), of a loader uint8 in channels_last, of a Stream floats; labels and ids int64 (n,).

    All on the device.

    Of mixed images (data/mixing.py) also the partners' labels (n,), and lam, the weight of `labels` in the loss.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    partner_labels: Tensor | None = None
    lam: float = 1.0

    def cut(self, size: int) -> "list[Batch]":
        """Batches of `size` images each, in order, of one that is not mixed."""
        return [Batch(*parts) for parts in zip(*(whole.split(size) for whole in self[:3]), strict=True)]


class Loader(Protocol):
    name: str

    def read(self, batches: Sequence[Tensor]) -> Generator[Batch]:
        """The images of each id batch (int64 on the CPU), in order. A yielded batch stays valid."""


def ids_on_device(batches: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The id batches, moved in one transfer: one for each batch would make the CPU wait for the device."""
    if not batches:
        return []
    return list(torch.cat(list(batches)).to(device).split([len(ids) for ids in batches]))


def make_loader(choice: str, prepared: Prepared, device: torch.device, workers: int) -> tuple[Loader, str]:
    """The loader of that name, and one line for the user where `auto` had to do without FFCV.

    Args:
        choice: "ffcv", "resident", or "auto": ffcv where it is installed.
        device: where the batches go.
        workers: FFCV's threads.
    """
    from data.resident_loader import ResidentLoader

    if choice == "resident":
        return ResidentLoader(prepared, device), ""
    try:
        from data.ffcv_loader import FFCVLoader  # a second to import, and on Linux only
    except ImportError as error:
        reason = " ".join(str(error).split())
        if choice == "ffcv":
            advice = "run make setup on Linux, or use --loader resident"
            raise InputError(f"--loader ffcv: {reason}; {advice}") from error
        return ResidentLoader(prepared, device), f"no ffcv ({reason}): using the resident loader"
    return FFCVLoader(prepared, device, workers), ""
