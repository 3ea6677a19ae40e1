"""Which images, in which order, on which process: pure functions of (seed, epoch).

Ids are the positions of the images in the prepared data set. Everything here runs before any loader.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from data.errors import InputError
from data.keyed import random_bits, random_permutation


def split(labels: Tensor, fraction: float, seed: int, classes: Sequence[str] = ()) -> tuple[Tensor, Tensor]:
    """Part training ids from validation ids, class by class.

    Within each class the ids with the smallest hashes of (seed, id) go to validation: `fraction` of the
    class, rounded, at least one, and never all.

    Args:
        labels: int64 (n,), the class of each training image; position is id.
        fraction: share of the validation set, between 0 and 1.
        seed: chooses the split.
        classes: their names, for the message.

    Returns:
        Training and validation ids, each int64, ascending; disjoint, and together all n.

    Raises:
        InputError: a class has a single image.
    """
    return _hold_out(labels, fraction, random_bits(torch.arange(len(labels)), seed, "split"), classes)


def split_last(
    labels: Tensor, fraction: float, seed: int = 0, classes: Sequence[str] = ()
) -> tuple[Tensor, Tensor]:
    """As `split`, but the last ids of each class go to validation; the seed has no say.

    Of shuffled images, as in CIFAR's archives, that is the end of the training set but for a few images. It
    serves folders too, where the end of the training set would be all of the last classes.
    """
    return _hold_out(labels, fraction, -torch.arange(len(labels)), classes)


def subset(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Ids, ascending, of `fraction` of each class, rounded, at least one image."""
    bits = random_bits(torch.arange(len(labels)), seed, "subset")
    chosen = [_first(ids, bits, max(round(fraction * len(ids)), 1)) for ids in _ids_by_class(labels)]
    return torch.cat(chosen).sort().values


def _hold_out(labels: Tensor, fraction: float, keys: Tensor, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Of each class the ids that come first by `keys` (int64, one for each id) go to validation."""
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for ids in _ids_by_class(labels):
        if len(ids) < 2:
            label = int(labels[ids])
            name = repr(classes[label]) if classes else label
            raise InputError(
                f"class {name} has one image: it cannot be split; add images, or use a larger --subset or "
                "--split none"
            )
        held_out[_first(ids, keys, min(max(round(fraction * len(ids)), 1), len(ids) - 1))] = True
    return (~held_out).nonzero().squeeze(1), held_out.nonzero().squeeze(1)


def _ids_by_class(labels: Tensor) -> list[Tensor]:
    return [(labels == label).nonzero().squeeze(1) for label in labels.unique()]


def _first(ids: Tensor, keys: Tensor, count: int) -> Tensor:
    """The `count` of `ids` with the smallest keys."""
    return ids[torch.argsort(keys[ids], stable=True)[:count]]


def epoch_batches(ids: Tensor, batch_size: int, seed: int, epoch: int) -> Tensor:
    """The global batches of an epoch.

    The ids that do not fill a last batch wait for a later epoch's order: every step sees a whole batch, so
    the mean of its gradient has the same weight on any number of processes.

    Returns:
        int64 (steps, batch_size).
    """
    order = random_permutation(ids, seed, "order", epoch)
    steps = len(ids) // batch_size
    return order[: steps * batch_size].view(steps, batch_size)


def partner_batches(batches: Tensor, seed: int, epoch: int) -> Tensor:
    """The global batches of an epoch (or its last ones), each permuted: the partners its images are mixed with.

    An id occurs once in an epoch, so that its hash of (seed, epoch) orders its batch anew. An image may be its
    own partner.

    Args:
        batches: int64 (steps, batch_size).

    Returns:
        int64 (steps, batch_size).
    """
    return batches.gather(1, random_bits(batches, seed, "partners", epoch).argsort(dim=1, stable=True))


def micro_batches(batches: Tensor, rank: int, world_size: int, accumulation: int) -> Tensor:
    """This process' exact share of each global batch.

    A global batch is cut into `accumulation` x `world_size` micro-batches in order.

    Args:
        batches: int64 (steps, batch_size); batch_size divides by world_size x accumulation.

    Returns:
        int64 (steps, accumulation, batch_size / (world_size x accumulation)).
    """
    steps, batch_size = batches.shape
    size = batch_size // (world_size * accumulation)  # -1 would be no size where no steps are left
    return batches.view(steps, accumulation, world_size, size)[:, :, rank]


def evaluation_batches(ids: Tensor, batch_size: int, rank: int = 0, world_size: int = 1) -> list[Tensor]:
    """This process' share of `ids` for evaluation: each id exactly once over all processes.

    The last batch may be short, and a process may have none.
    """
    share = torch.tensor_split(ids, world_size)[rank]
    return list(share.split(batch_size)) if len(share) else []
