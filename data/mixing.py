"""mixup and CutMix: pairs of images of one global batch, mixed on their device.

torchvision.transforms.v2 has both, but draws from torch's generator, and pairs images of one process' share.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from data.keyed import keyed_generator
from data.loaders import Batch


@dataclass(frozen=True)
class Mixing:
    """Which mixing a stream does; the default does none. With both, each step draws one of them, as a fair coin.

    mixup: alpha of lam ~ Beta(alpha, alpha); each image becomes lam x image + (1 - lam) x partner, and its loss
        lam x that of its own label + (1 - lam) x that of its partner's (Zhang et al., 2017, arXiv:1710.09412).
    cutmix: alpha as above; a box of about 1 - lam of the area comes from the partner, and lam is then the exact
        share of the image that is its own (Yun et al., 2019, arXiv:1905.04899).
    probability: of each step to mix at all (CutMix's authors: 0.5 on CIFAR).
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0

    def __bool__(self) -> bool:
        return bool(self.mixup or self.cutmix)


@dataclass(frozen=True)
class Mixture:
    """How all images of one step are mixed.

    lam: weight of an image's own label.
    box: top, bottom, left and right of what is pasted (CutMix); None: weighted means (mixup).
    """

    lam: float
    box: tuple[int, int, int, int] | None = None


UNMIXED = Mixture(1.0, (0, 0, 0, 0))


def draw_mixture(mixing: Mixing, size: tuple[int, int], seed: int, epoch: int, step: int) -> Mixture:
    """What a step does (counted within its epoch), for images of height and width `size`."""
    if keyed_generator(seed, "whether to mix", epoch, step).random() >= mixing.probability:
        return UNMIXED
    draw = keyed_generator(seed, "mix", epoch, step)
    if mixing.mixup and (not mixing.cutmix or draw.random() < 0.5):
        return Mixture(as_float32(draw.beta(mixing.mixup, mixing.mixup)))
    height, width = size
    side = (1 - draw.beta(mixing.cutmix, mixing.cutmix)) ** 0.5
    y, x = int(draw.integers(height)), int(draw.integers(width))
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    top, bottom = max(y - half_height, 0), min(y + half_height, height)
    left, right = max(x - half_width, 0), min(x + half_width, width)
    pasted = (bottom - top) * (right - left)
    return Mixture(as_float32(1 - pasted / (height * width)), (top, bottom, left, right))


def as_float32(value: float) -> float:
    """Rounded to float32, so that every device multiplies by the same number."""
    return float(np.float32(value))


def mix(batch: Batch, mixture: Mixture) -> Batch:
    """Mix the first half of a batch with the second, its partners.

    Args:
        batch: 2n normalised images with their labels and ids; the i-th image's partner is the (n + i)-th.

    Returns:
        n images in the dtype and memory format of the batch, the labels and ids of the first half, and the
        partners' labels with lam.
    """
    images, partners = batch.images.chunk(2)
    labels, partner_labels = batch.labels.chunk(2)
    if mixture.box is None:
        images = weighted_mean(images, partners, mixture.lam)
    else:
        top, bottom, left, right = mixture.box
        images[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
    return Batch(images, labels, batch.ids.chunk(2)[0], partner_labels, mixture.lam)


def weighted_mean(images: Tensor, partners: Tensor, lam: float) -> Tensor:
    """In float32, rounded to the images' dtype once more at the end."""
    # Two products and a sum: fused into one operation they would be rounded as the processor has it.
    mixed = images.float().mul(lam).add_(partners.float().mul(1 - lam))
    return mixed.to(images.dtype)
