"""TrivialAugment (Mueller and Hutter, 2021, arXiv:2103.10158) of whole batches on their device: to each image one
operation at one strength, both drawn evenly.

The operations, their strengths and what they do are those of torchvision's TrivialAugmentWide on uint8 images,
with nearest pixels and black outside. All of them make sense at 32x32, though the farthest shift, of 32 pixels,
leaves a black image. torchvision's own class draws from torch's generator, one operation and strength for a
whole batch, and its functions take one strength for all images. So only autocontrast and equalize, which have
none, are its own here. The others are written in integers, which every device computes alike.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from data.keyed import random_bits, random_integers

LEVELS = 31
"""Strengths of an operation: 0, the weakest, to 30."""
ONE = 1 << 30
COSINES, SINES = (
    torch.tensor([round(ONE * function(math.radians(4.5 * level))) for level in range(LEVELS)])
    for function in (math.cos, math.sin)
)
"""Of the angle of each strength, where 1 is ONE."""


def trivial_augment(images: Tensor, ids: Tensor, seed: int, epoch: int) -> Tensor:
    """Augment each image by a hash of (seed, epoch, its id).

    Args:
        images: uint8 (n, 3, h, w).
        ids: int64 (n,).

    Returns:
        uint8 (n, 3, h, w), in the memory format of `images`.
    """
    bits = random_bits(ids, seed, "trivial", epoch)
    operation = random_integers(bits, len(OPERATIONS), field=0)
    signed_level = random_integers(bits, 2 * LEVELS, field=1)
    level, sign = signed_level // 2, 1 - 2 * (signed_level % 2)
    kinds = torch.arange(len(OPERATIONS), device=ids.device)
    counts = (operation[:, None] == kinds).sum(0).tolist()  # the CPU waits for the device, here alone
    result = images.clone()
    for operate, chosen in zip(OPERATIONS.values(), operation.argsort(stable=True).split(counts), strict=True):
        if len(chosen):
            result[chosen] = operate(images[chosen], level[chosen], sign[chosen])
    return result


# Each operation: uint8 images (n, 3, h, w), levels and signs (n,) -> uint8 images. ------------------------------


def shear_x(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Row y moves by 0.033 x level x (y + 1/2) pixels, rounded."""
    rows, columns = _grid(images)
    moved = (33 * _column(sign * level) * (2 * rows + 1) + 1000).div(2000, rounding_mode="floor")
    return _pick(images, rows, columns + moved)


def shear_y(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return shear_x(images.mT, level, sign).mT


def translate_x(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """By 32 / 30 x level pixels, rounded towards 0."""
    rows, columns = _grid(images)
    return _pick(images, rows, columns - _column(sign * (16 * level // 15)))


def translate_y(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return translate_x(images.mT, level, sign).mT


def rotate(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Anticlockwise by 4.5 x level degrees, about the centre."""
    cosine = _column(COSINES.to(level.device)[level])
    sine = _column(sign * SINES.to(level.device)[level])
    height, width = images.shape[2:]
    rows, columns = _grid(images)
    y, x = 2 * rows + 1 - height, 2 * columns + 1 - width  # from the centre, in half pixels
    source_rows = (sine * x + cosine * y + height * ONE) >> 31
    return _pick(images, source_rows, (cosine * x - sine * y + width * ONE) >> 31)


def brightness(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return _blend(images, torch.zeros_like(images), level, sign)


def color(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    return _blend(images, _grey(images), level, sign)


def contrast(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    pixels = images.shape[2] * images.shape[3]
    return _blend(images, _grey(images).sum((1, 2, 3), keepdim=True), level, sign, divisor=pixels)


def sharpness(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Away from, or towards, the weighted means of 3x3 pixels, the middle one five times; the border stays."""
    blurred = images.long()
    height, width = images.shape[2:]
    window = [blurred[:, :, y : height - 2 + y, x : width - 2 + x] for y in range(3) for x in range(3)]
    total = torch.stack(window).sum(0) + 4 * window[4]
    blurred = blurred.clone()
    blurred[:, :, 1:-1, 1:-1] = (2 * total + 13) // 26  # rounded; 13 leaves no halves
    return _blend(images, blurred, level, sign)


def posterize(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Keep the upper 8 - level / 5 bits, rounded."""
    dropped = (2 * level + 5) // 10
    return (images.long() & _column(256 - (1 << dropped))).byte()


def solarize(images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """Invert what is at least 8.5 x (30 - level)."""
    return torch.where(2 * images.long() >= 17 * _column(30 - level), 255 - images, images)


OPERATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "Identity": lambda images, level, sign: images,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "Rotate": rotate,
    "Brightness": brightness,
    "Color": color,
    "Contrast": contrast,
    "Sharpness": sharpness,
    "Posterize": posterize,
    "Solarize": solarize,
    "AutoContrast": lambda images, level, sign: functional.autocontrast(images),
    "Equalize": lambda images, level, sign: functional.equalize(images),
}
"""By torchvision's names."""


def _column(values: Tensor) -> Tensor:
    """(n,) -> (n, 1, 1, 1)."""
    return values[:, None, None, None]


def _grid(images: Tensor) -> tuple[Tensor, Tensor]:
    """The row (1, 1, h, 1) and the column (1, 1, 1, w) of each pixel."""
    rows = torch.arange(images.shape[2], device=images.device)[:, None]
    return rows[None, None], torch.arange(images.shape[3], device=images.device)[None, None, None]


def _pick(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The pixels at these positions, that broadcast to (n, 1, h, w); 0 outside of the image."""
    count, channels, height, width = images.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    place = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    picked = images.flatten(2).gather(2, place.flatten(2).expand(count, channels, -1))
    return picked.view(count, channels, height, width) * inside


def _grey(images: Tensor) -> Tensor:
    """Luma, rounded down: int64 (n, 1, h, w)."""
    red, green, blue = images.long().unbind(1)
    return ((2989 * red + 5870 * green + 1140 * blue) // 10_000)[:, None]


def _blend(images: Tensor, other: Tensor, level: Tensor, sign: Tensor, divisor: int = 1) -> Tensor:
    """f x images + (1 - f) x other / divisor, rounded down, where f is 1 + 0.033 x level x sign."""
    thousandths = _column(1000 + 33 * level * sign)
    mixed = thousandths * divisor * images.long() + (1000 - thousandths) * other.long()
    return (mixed.clamp(min=0) // (1000 * divisor)).clamp(max=255).byte()
