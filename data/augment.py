"""Augmentation of whole batches on their device.

Every choice is a hash of (seed, epoch, sample id), see data/keyed.py. torchvision's transforms draw from torch's
global generator, and once for all images of a batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from data.keyed import random_bits, random_integers, shift_right


@dataclass(frozen=True)
class Augmentation:
    """What training changes in an image; the default changes nothing.

    crop_padding: pixels added on each side before a random crop of the original size.
    crop_mode: what fills the padding: "zero", "reflect" (without repeating the edge) or "edge". A crop with
        "edge" is Keras' width_shift_range and height_shift_range with fill_mode "nearest", in whole pixels.
    flip: mirror left to right: "none"; "random", half of the images, drawn anew in each epoch; or "alternating",
        half of them in even epochs and the other half in odd ones, so that two epochs in a row show each image
        both ways (Jordan, 2024, arXiv:2404.00498).
    cutout: side in pixels of a square, centred anywhere in the image, set to the mean colour (DeVries and
        Taylor, 2017, arXiv:1708.04552).
    erasing: probability of a rectangle of 2 to 33 % of the area, in any place where the whole of it fits, set to
        the mean colour (Zhong et al., 2017, arXiv:1708.04896).
    trivial: one operation of TrivialAugment, after crop and flip: see data/trivial.py.
    """

    crop_padding: int = 0
    crop_mode: str = "zero"
    flip: str = "none"
    cutout: int = 0
    erasing: float = 0.0
    trivial: bool = False


class BatchTransform:
    """uint8 images in, normalised floats out, on the device of the images.

    Args:
        mean, std: per channel, of pixels scaled to 0..1.
        augmentation: applied by `augment`, not by `normalize`.
        seed: the run's seed.
        device: where the batches are.
        dtype: of the result, which is channels_last in memory.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.augmentation = augmentation or Augmentation()
        if self.augmentation.trivial:  # imports torchvision: seconds of a start, but not of its first step
            from data.trivial import trivial_augment

            self.trivial_augment = trivial_augment
        self.seed = seed
        self.dtype = dtype
        deviation = torch.tensor(std, dtype=torch.float64)
        # pixel / 255 normalised, as one multiplication and one addition
        self.scale = (1 / (255 * deviation)).float().to(device)
        self.offset = (-torch.tensor(mean, dtype=torch.float64) / deviation).float().to(device)

    def normalize(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) uint8 -> the same shape in `dtype`."""
        pixels = images.permute(0, 2, 3, 1)
        width = pixels.shape[2]
        # Row by row, as numbers that lie side by side: three channels alone are too few for vector instructions.
        rows = pixels.flatten(2).float()
        # Two roundings: as one operation it would be one or two, as the processor has it, and the bits others'.
        rows = rows.mul_(self.scale.repeat(width)).add_(self.offset.repeat(width)).to(self.dtype)
        return rows.view_as(pixels).permute(0, 3, 1, 2)

    def augment(self, images: Tensor, ids: Tensor, epoch: int) -> Tensor:
        """(n, 3, h, w) uint8 and their ids (n,) -> augmented and normalised."""
        chosen = self.augmentation
        images = crop_and_flip(images, ids, chosen, self.seed, epoch)
        if chosen.trivial:
            images = self.trivial_augment(images, ids, self.seed, epoch)
        floats = self.normalize(images)
        if chosen.cutout:
            cutout_(floats, ids, chosen.cutout, self.seed, epoch)
        if chosen.erasing:
            erase_(floats, ids, chosen.erasing, self.seed, epoch)
        return floats


def crop_and_flip(images: Tensor, ids: Tensor, chosen: Augmentation, seed: int, epoch: int) -> Tensor:
    """Random crop of the padded images, and random flip.

    Each row of a crop lies in one piece in the padded image, from where it is copied: many times faster than a
    gather of pixels. All crops are mirrored, and one of the two is taken of each: faster than to mirror some.

    Args:
        images: uint8 (n, c, h, w).
        ids: int64 (n,).

    Returns:
        uint8 (n, c, h, w), channels_last in memory.
    """
    padding = chosen.crop_padding
    if not padding and chosen.flip == "none":
        return images
    count, channels, height, width = images.shape
    device = images.device
    bits = random_bits(ids, seed, "crop", epoch)
    top = random_integers(bits, 2 * padding + 1, field=0)
    left = random_integers(bits, 2 * padding + 1, field=1)
    image = torch.arange(count, device=device)

    pixels = pad(images.permute(0, 2, 3, 1), padding, chosen.crop_mode)
    padded_height, padded_width = pixels.shape[1:3]
    rows = top[:, None] + torch.arange(height, device=device)
    starts = (image[:, None] * padded_height + rows) * padded_width + left[:, None]
    # every place where a row can start: they overlap
    pieces = pixels.as_strided((pixels.numel() // channels - width + 1, width * channels), (channels, 1))
    pixels = pieces.index_select(0, starts.flatten()).view(count, height, width, channels)
    if chosen.flip != "none":
        both = torch.cat([pixels, pixels.flip(2)])
        pixels = both.index_select(0, image + count * mirrored(ids, chosen.flip, seed, epoch))
    return pixels.permute(0, 3, 1, 2)


def pad(pixels: Tensor, padding: int, mode: str) -> Tensor:
    """(n, h, w, c) with `padding` pixels more on each side; `mode` as in Augmentation."""
    if mode == "zero":
        return F.pad(pixels, (0, 0, padding, padding, padding, padding)).contiguous()
    for axis in (1, 2):
        size = pixels.shape[axis]
        position = torch.arange(-padding, size + padding, device=pixels.device)
        pixels = pixels.index_select(axis, _inside(position, size, mode))
    return pixels


def mirrored(ids: Tensor, flip: str, seed: int, epoch: int) -> Tensor:
    """Which images `flip`, "random" or "alternating", mirrors in an epoch: bool (n,)."""
    if flip == "alternating":
        return shift_right(random_bits(ids, seed, "flip"), 63) != epoch % 2
    return shift_right(random_bits(ids, seed, "flip", epoch), 63).bool()


def _inside(position: Tensor, size: int, mode: str) -> Tensor:
    """The pixel that stands for a position outside the image."""
    if mode == "reflect":
        return size - 1 - (size - 1 - position.abs()).abs()
    return position.clamp(0, size - 1)


def cutout_(images: Tensor, ids: Tensor, size: int, seed: int, epoch: int) -> Tensor:
    """Set, in place, a square of `size` pixels to 0, the mean colour; what lies outside the image is cut off.

    Args:
        images: (n, c, h, w), normalised.
        ids: int64 (n,).
    """
    height, width = images.shape[2:]
    bits = random_bits(ids, seed, "cutout", epoch)
    top = random_integers(bits, height, field=0) - size // 2
    left = random_integers(bits, width, field=1) - size // 2
    return _hide_(images, top, left, top + size, left + size)


ERASED_AREA = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)
ERASING_ATTEMPTS = 10
"""The rectangles of torchvision's RandomErasing: shares of the area, height / width, and draws until one fits."""


def erase_(images: Tensor, ids: Tensor, probability: float, seed: int, epoch: int) -> Tensor:
    """Set, in place, a random rectangle in a random share of the images to 0, the mean colour.

    Area and ratio are torchvision's: uniform in ERASED_AREA, log-uniform in ERASED_RATIO, drawn again where the
    rectangle is as high or as wide as the image. torchvision's own RandomErasing draws one rectangle for a batch,
    from torch's generator.

    Args:
        images: (n, c, h, w), normalised.
        ids: int64 (n,).
    """
    height, width = images.shape[2:]
    heights, widths = _rectangles(ids, height, width, seed, epoch)
    fits = (heights < height) & (widths < width)
    first = fits.byte().argmax(dim=1, keepdim=True)  # of equal ones argmax takes the first
    heights, widths = heights.gather(1, first).squeeze(1), widths.gather(1, first).squeeze(1)
    place = random_bits(ids, seed, "erasing place", epoch)
    top = random_integers(place, height - heights + 1, field=0)
    left = random_integers(place, width - widths + 1, field=1)
    chosen = shift_right(random_bits(ids, seed, "erasing", epoch), 32) < round(probability * (1 << 32))
    heights = torch.where(chosen & fits.any(dim=1), heights, 0)
    return _hide_(images, top, left, top + heights, left + widths)


def _rectangles(ids: Tensor, height: int, width: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Height and width of each attempt at a rectangle, both int64 (n, ERASING_ATTEMPTS)."""
    attempts = ids[:, None] * ERASING_ATTEMPTS + torch.arange(ERASING_ATTEMPTS, device=ids.device)
    bits = random_bits(attempts, seed, "erasing size", epoch)
    # In float64: the last bits of exp, in which devices may differ, are lost when pixels are counted.
    upper, lower = (half.double() / (1 << 32) for half in (shift_right(bits, 32), bits & 0xFFFFFFFF))
    area = height * width * (ERASED_AREA[0] + upper * (ERASED_AREA[1] - ERASED_AREA[0]))
    first, last = (math.log(ratio) for ratio in ERASED_RATIO)
    ratio = (first + lower * (last - first)).exp()
    return (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()


def _hide_(images: Tensor, top: Tensor, left: Tensor, bottom: Tensor, right: Tensor) -> Tensor:
    """Set, in place, a rectangle of each image to 0: its first and its first following row and column, (n,)."""
    y = torch.arange(images.shape[2], device=images.device)
    x = torch.arange(images.shape[3], device=images.device)
    in_rows = (y >= top[:, None]) & (y < bottom[:, None])
    in_columns = (x >= left[:, None]) & (x < right[:, None])
    hidden = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    return images.masked_fill_(hidden, 0)  # in place: masked_fill would not keep the memory format
