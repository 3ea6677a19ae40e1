"""Augmentation of batches against one image at a time, written out in NumPy with the same hashes."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.functional import normalize

from data.augment import Augmentation, BatchTransform, crop_and_flip, cutout_, erase_
from data.keyed import random_bits
from data.spec import CIFAR10
from data.trivial import trivial_augment
from tests.images import random_images

properties = settings(max_examples=60, deadline=None, derandomize=True, database=None)
MODES = ("zero", "reflect", "edge")
FLIPS = ("none", "random", "alternating")
ALL = Augmentation(crop_padding=4, crop_mode="reflect", flip="random", cutout=8, erasing=0.5, trivial=True)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Batches this small gain nothing from threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# One image at a time ----------------------------------------------------------------------------------------


def halves(number: int, seed: int, purpose: str, *epoch: int) -> tuple[int, int]:
    """The upper and the lower 32 random bits."""
    bits = int(random_bits(torch.tensor([number]), seed, purpose, *epoch)) & ((1 << 64) - 1)
    return bits >> 32, bits & 0xFFFFFFFF


def crop_and_flip_one(image: np.ndarray, number: int, chosen: Augmentation, seed: int, epoch: int) -> np.ndarray:
    """(h, w, c) uint8 -> the same shape."""
    height, width, _ = image.shape
    padding = chosen.crop_padding
    mode = {"zero": "constant", "reflect": "reflect", "edge": "edge"}[chosen.crop_mode]
    padded = np.pad(image, [(padding, padding), (padding, padding), (0, 0)], mode=mode)
    upper, lower = halves(number, seed, "crop", epoch)
    top, left = upper * (2 * padding + 1) >> 32, lower * (2 * padding + 1) >> 32
    cropped = padded[top : top + height, left : left + width]
    mirrored = {
        "none": 0,
        "random": halves(number, seed, "flip", epoch)[0] >> 31,
        "alternating": (halves(number, seed, "flip")[0] >> 31) ^ (epoch % 2),
    }
    return cropped[:, ::-1] if mirrored[chosen.flip] else cropped


def hidden_one(height: int, width: int, size: int, number: int, seed: int, epoch: int) -> np.ndarray:
    """(h, w) bool: the pixels that cutout hides."""
    upper, lower = halves(number, seed, "cutout", epoch)
    centre_y, centre_x = upper * height >> 32, lower * width >> 32
    hidden = np.zeros((height, width), dtype=bool)
    for y in range(centre_y - size // 2, centre_y - size // 2 + size):
        for x in range(centre_x - size // 2, centre_x - size // 2 + size):
            if 0 <= y < height and 0 <= x < width:
                hidden[y, x] = True
    return hidden


def normalize_one(image: np.ndarray) -> np.ndarray:
    return (image / 255 - np.array(CIFAR10.mean)) / np.array(CIFAR10.std)


def to_batch(images: np.ndarray) -> Tensor:
    """(n, h, w, 3) -> (n, 3, h, w), channels_last in memory, as the loaders give it."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def to_images(batch: Tensor) -> np.ndarray:
    return batch.permute(0, 2, 3, 1).numpy()


def transform(augmentation: Augmentation | None = None, seed: int = 0, **options: Any) -> BatchTransform:
    return BatchTransform(CIFAR10.mean, CIFAR10.std, augmentation, seed, **options)


# Crop and flip ----------------------------------------------------------------------------------------------


@properties
@given(
    ids=st.lists(st.integers(0, 1 << 40), min_size=1, max_size=5),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    padding=st.integers(0, 4),
    mode=st.sampled_from(MODES),
    flip=st.sampled_from(FLIPS),
    seed=st.integers(0, 1 << 40),
    epoch=st.integers(0, 1000),
)
def test_crop_and_flip_do_to_each_image_what_the_reference_does(
    ids: list[int], size: tuple[int, int], padding: int, mode: str, flip: str, seed: int, epoch: int
) -> None:
    chosen = Augmentation(crop_padding=padding, crop_mode=mode, flip=flip)
    images = random_images(len(ids), seed=1)[:, : size[0], : size[1]].copy()
    result = to_images(crop_and_flip(to_batch(images), torch.tensor(ids), chosen, seed, epoch))
    assert result.dtype == np.uint8
    for image, number, found in zip(images, ids, result, strict=True):
        np.testing.assert_array_equal(found, crop_and_flip_one(image, number, chosen, seed, epoch))


def positions(count: int, chosen: Augmentation, epoch: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Read out of the augmented pixels, for `count` images: row and column shift, and whether mirrored."""
    grid = torch.arange(32, dtype=torch.uint8)
    coordinates = torch.stack([grid[:, None].expand(32, 32), grid.expand(32, 32), torch.zeros(32, 32)]).byte()
    images = coordinates.expand(count, 3, 32, 32)
    result = crop_and_flip(images, torch.arange(count), chosen, 0, epoch).int()
    mirrored = result[:, 1, 16, 17] < result[:, 1, 16, 16]
    columns = torch.where(mirrored, result[:, 1, 16, 15], result[:, 1, 16, 16]) - 16
    return result[:, 0, 16, 16] - 16, columns, mirrored


@pytest.mark.parametrize("padding", [1, 4])
def test_every_offset_is_drawn_about_equally_often(padding: int) -> None:
    count = 9000
    rows, columns, _ = positions(count, Augmentation(crop_padding=padding, flip="random"))
    drawn = Counter(zip(rows.tolist(), columns.tolist(), strict=True))
    shifts = range(-padding, padding + 1)
    assert set(drawn) == {(row, column) for row in shifts for column in shifts}
    expected = count / (2 * padding + 1) ** 2
    assert all(abs(found - expected) < 5 * expected**0.5 for found in drawn.values())


def test_about_half_of_the_images_are_mirrored_whatever_their_shift() -> None:
    rows, columns, mirrored = positions(4000, Augmentation(crop_padding=4, flip="random"))
    for part in (mirrored, mirrored[rows > 0], mirrored[columns > 0]):
        assert abs(part.double().mean() - 0.5) < 5 * 0.5 / len(part) ** 0.5


def test_without_flip_nothing_is_mirrored() -> None:
    assert not positions(100, Augmentation(crop_padding=4))[2].any()


def test_the_next_epoch_shifts_and_mirrors_anew() -> None:
    one, other = (positions(4000, Augmentation(crop_padding=4, flip="random"), epoch) for epoch in (0, 1))
    assert abs((one[0] == other[0]).double().mean() - 1 / 9) < 0.03
    assert abs((one[2] == other[2]).double().mean() - 1 / 2) < 0.05


def test_alternating_flip_mirrors_in_each_epoch_the_half_that_was_not_before() -> None:
    chosen = Augmentation(crop_padding=4, flip="alternating")
    even, odd, again = (positions(4000, chosen, epoch)[2] for epoch in (0, 1, 2))
    assert torch.equal(odd, ~even)
    assert torch.equal(again, even)
    assert abs(even.double().mean() - 0.5) < 0.05


def test_a_crop_with_edge_moves_by_at_most_the_padding_and_repeats_the_edge() -> None:
    chosen = Augmentation(crop_padding=3, crop_mode="edge")
    images = random_images(200)
    result = to_images(crop_and_flip(to_batch(images), torch.arange(200), chosen, 0, 0))
    rows, columns, _ = positions(200, chosen)
    assert set(rows.tolist()) == set(columns.tolist()) == set(range(-3, 4))
    for image, found, row, column in zip(images, result, rows.tolist(), columns.tolist(), strict=True):
        y, x = np.clip(np.arange(32) + row, 0, 31), np.clip(np.arange(32) + column, 0, 31)
        np.testing.assert_array_equal(found, image[y][:, x])


# Cutout -----------------------------------------------------------------------------------------------------


@properties
@given(
    ids=st.lists(st.integers(0, 1 << 40), min_size=1, max_size=5),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    side=st.integers(1, 10),
    epoch=st.integers(0, 1000),
)
def test_cutout_hides_the_pixels_that_the_reference_hides(
    ids: list[int], size: tuple[int, int], side: int, epoch: int
) -> None:
    result = cutout_(torch.ones(len(ids), 3, *size), torch.tensor(ids), side, 5, epoch)
    for number, found in zip(ids, result.numpy(), strict=True):
        hidden = hidden_one(*size, side, number, 5, epoch)
        np.testing.assert_array_equal(found, np.broadcast_to(~hidden, found.shape))


def test_cutouts_centre_lies_anywhere_and_the_square_is_cut_off_at_the_borders() -> None:
    ids = torch.arange(5000)
    hidden = cutout_(torch.ones(5000, 1, 16, 16), ids, 8, 0, 0)[:, 0] == 0
    assert hidden.any(dim=0).all()
    sizes = {(int(one.any(1).sum()), int(one.any(0).sum())) for one in hidden}
    # from a quarter of the square in a corner to the whole of it
    assert sizes == {(height, width) for height in range(4, 9) for width in range(4, 9)}


def test_cutout_hides_with_the_mean_colour() -> None:
    images = torch.ones(8, 3, 16, 16, dtype=torch.uint8)
    result = transform(Augmentation(cutout=4)).augment(images, torch.arange(8), epoch=0)
    assert (result == 0).flatten(1).any(dim=1).all()  # normalised, zero is the mean
    assert (result[result != 0] < -1).all()


# Random erasing ---------------------------------------------------------------------------------------------


def erased_one(height: int, width: int, number: int, seed: int, epoch: int) -> np.ndarray:
    """(h, w) bool: the pixels that erasing hides, as torchvision's RandomErasing.get_params draws them."""
    hidden = np.zeros((height, width), dtype=bool)
    for attempt in range(10):
        upper, lower = halves(number * 10 + attempt, seed, "erasing size", epoch)
        area = height * width * (0.02 + upper / 2**32 * (0.33 - 0.02))
        ratio = math.exp(math.log(0.3) + lower / 2**32 * (math.log(3.3) - math.log(0.3)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if h < height and w < width:
            upper, lower = halves(number, seed, "erasing place", epoch)
            top, left = upper * (height - h + 1) >> 32, lower * (width - w + 1) >> 32
            hidden[top : top + h, left : left + w] = True
            break
    return hidden


@properties
@given(
    ids=st.lists(st.integers(0, 1 << 40), min_size=1, max_size=5),
    size=st.tuples(st.integers(1, 32), st.integers(1, 32)),
    epoch=st.integers(0, 1000),
)
def test_erasing_hides_the_pixels_that_the_reference_hides(
    ids: list[int], size: tuple[int, int], epoch: int
) -> None:
    result = erase_(torch.ones(len(ids), 3, *size), torch.tensor(ids), 1.0, 5, epoch)
    for number, found in zip(ids, result.numpy(), strict=True):
        np.testing.assert_array_equal(found, np.broadcast_to(~erased_one(*size, number, 5, epoch), found.shape))


def test_erasing_changes_its_share_of_the_images_by_torchvisions_areas() -> None:
    hidden = erase_(torch.ones(4000, 1, 32, 32), torch.arange(4000), 0.25, 0, 0)[:, 0] == 0
    areas = hidden.flatten(1).sum(1)
    erased = areas[areas > 0].double() / 1024
    assert abs(len(erased) - 1000) < 150
    assert abs(erased.mean() - (0.02 + 0.33) / 2) < 0.01
    assert 0.01 < erased.min() < 0.03
    assert 0.32 < erased.max() < 0.35
    assert hidden.any(dim=0).all()


# Normalising, and all together ------------------------------------------------------------------------------


def test_normalising_is_torchvisions() -> None:
    images = to_batch(random_images(4))
    expected = normalize(images.float() / 255, list(CIFAR10.mean), list(CIFAR10.std))
    torch.testing.assert_close(transform(ALL).normalize(images), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    "chosen",
    [
        Augmentation(),
        Augmentation(crop_padding=4, flip="random"),
        Augmentation(crop_padding=4, crop_mode="reflect", cutout=8),
        Augmentation(flip="random"),
        Augmentation(cutout=16),
        Augmentation(crop_padding=3, crop_mode="edge", flip="random", cutout=7),
        Augmentation(flip="alternating", cutout=4, erasing=1.0),
        Augmentation(crop_padding=4, flip="random", trivial=True),
    ],
    ids=str,
)
def test_augmenting_is_crop_flip_normalise_and_cutout_of_each_image(chosen: Augmentation) -> None:
    images, ids = random_images(6), [3, 0, 77, 49_999, 12, 5]
    result = to_images(transform(chosen, seed=9).augment(to_batch(images), torch.tensor(ids), epoch=2))
    for image, number, found in zip(images, ids, result, strict=True):
        moved = crop_and_flip_one(image, number, chosen, 9, 2)
        if chosen.trivial:
            moved = to_images(trivial_augment(to_batch(moved[None].copy()), torch.tensor([number]), 9, 2))[0]
        expected = normalize_one(moved)
        if chosen.cutout:
            expected[hidden_one(32, 32, chosen.cutout, number, 9, 2)] = 0
        if chosen.erasing:
            expected[erased_one(32, 32, number, 9, 2)] = 0
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_an_images_result_does_not_depend_on_its_batch_nor_its_place() -> None:
    images, ids = to_batch(random_images(12)), torch.arange(100, 112)
    whole = transform(ALL).augment(images, ids, epoch=1)
    backwards = transform(ALL).augment(images.flip(0), ids.flip(0), epoch=1)
    assert torch.equal(whole, backwards.flip(0))
    for place in range(12):
        alone = transform(ALL).augment(images[place : place + 1], ids[place : place + 1], epoch=1)
        assert torch.equal(alone[0], whole[place])


def test_the_same_seed_and_epoch_repeat_and_others_differ() -> None:
    images, ids = to_batch(random_images(12)), torch.arange(12)
    first = transform(ALL, seed=0).augment(images, ids, epoch=1)
    assert torch.equal(first, transform(ALL, seed=0).augment(images, ids, epoch=1))
    for seed, epoch in ((0, 2), (1, 1), (1, 0)):
        other = transform(ALL, seed=seed).augment(images, ids, epoch)
        differing = (first != other).flatten(1).any(dim=1)
        assert differing.all()


def test_augmenting_leaves_its_input_alone() -> None:
    images = to_batch(random_images(4))
    before = images.clone()
    transform(ALL).augment(images, torch.arange(4), epoch=0)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    "chosen", [Augmentation(), Augmentation(flip="random"), Augmentation(cutout=8), ALL], ids=str
)
def test_batches_are_channels_last(chosen: Augmentation) -> None:
    options, wanted = transform(chosen), torch.channels_last
    for images in (to_batch(random_images(4)), to_batch(random_images(4)).contiguous()):
        assert options.augment(images, torch.arange(4), epoch=0).is_contiguous(memory_format=wanted)
        assert options.normalize(images).is_contiguous(memory_format=wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_result_is_rounded_once_to_the_dtype_asked_for(dtype: torch.dtype) -> None:
    images, ids = to_batch(random_images(4)), torch.arange(4)
    exact = transform(ALL).augment(images, ids, epoch=0)
    result = transform(ALL, dtype=dtype).augment(images, ids, epoch=0)
    assert result.dtype == dtype
    assert torch.equal(result, exact.to(dtype))
