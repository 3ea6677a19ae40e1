"""TrivialAugment against torchvision, one image at a time with the same operation and magnitude."""

import math
from collections import Counter

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from data.trivial import LEVELS, OPERATIONS, trivial_augment
from tests.images import random_images

SPACE = v2.TrivialAugmentWide._AUGMENTATION_SPACE
OFF_BY_ONE = {"Brightness": 0.02, "Color": 0.02, "Sharpness": 0.01}
"""Where torchvision rounds a float32 down that should be a whole number: by 1, at most in this share of pixels."""


def torchvisions(operation: str, image: Tensor, magnitude: float) -> Tensor:
    """What TrivialAugmentWide makes of one image (3, h, w).

    Shifts and thresholds are rounded first: its float32 magnitudes fall short of whole numbers at a few levels.
    """
    still = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    degrees = math.degrees(math.atan(magnitude))
    made = {
        "Identity": lambda: image,
        "ShearX": lambda: F.affine(image, **(still | {"shear": [degrees, 0.0]}), center=[0, 0]),
        "ShearY": lambda: F.affine(image, **(still | {"shear": [0.0, degrees]}), center=[0, 0]),
        "TranslateX": lambda: F.affine(image, **(still | {"translate": [int(round(magnitude, 3)), 0]})),
        "TranslateY": lambda: F.affine(image, **(still | {"translate": [0, int(round(magnitude, 3))]})),
        "Rotate": lambda: F.rotate(image, magnitude),
        "Brightness": lambda: F.adjust_brightness(image, 1 + magnitude),
        "Color": lambda: F.adjust_saturation(image, 1 + magnitude),
        "Contrast": lambda: F.adjust_contrast(image, 1 + magnitude),
        "Sharpness": lambda: F.adjust_sharpness(image, 1 + magnitude),
        "Posterize": lambda: F.posterize(image, int(magnitude)),
        "Solarize": lambda: F.solarize(image, round(255 * magnitude, 3)),
        "AutoContrast": lambda: F.autocontrast(image),
        "Equalize": lambda: F.equalize(image),
    }
    return made[operation]()


def images() -> Tensor:
    """Noise, smooth noise with few values, and one colour: (5, 3, 32, 32), channels_last in memory."""
    noise = torch.from_numpy(random_images(2)).permute(0, 3, 1, 2)
    generator = torch.Generator().manual_seed(0)
    dull = (torch.randn(2, 3, 32, 32, generator=generator) * 20 + 120).clamp(0, 255).byte()
    together = torch.cat([noise, dull, torch.full((1, 3, 32, 32), 77, dtype=torch.uint8)])
    return together.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("operation", list(OPERATIONS))
def test_every_operation_at_every_strength_is_torchvisions(operation: str) -> None:
    before = images()
    magnitudes, signed = SPACE[operation]
    strengths = magnitudes(LEVELS, 32, 32)
    for level in range(LEVELS if strengths is not None else 1):
        for sign in (1, -1) if signed else (1,):
            magnitude = 0.0 if strengths is None else sign * float(strengths[level])
            everywhere = (torch.full((len(before),), number) for number in (level, sign))
            found = OPERATIONS[operation](before, *everywhere)
            expected = torch.stack([torchvisions(operation, image, magnitude) for image in before])
            assert found.dtype == torch.uint8
            difference = (found.int() - expected.int()).abs()
            assert difference.max() <= (operation in OFF_BY_ONE), (level, sign)
            assert (difference > 0).double().mean() <= OFF_BY_ONE.get(operation, 0), (level, sign)
    assert torch.equal(before, images())


def test_each_image_gets_an_operation_of_its_own_by_its_id_alone() -> None:
    before, ids = images(), torch.tensor([3, 77, 12, 500, 8])
    augmented = trivial_augment(before, ids, seed=1, epoch=2)
    assert augmented.is_contiguous(memory_format=torch.channels_last)
    for place in range(5):
        alone = trivial_augment(before[place : place + 1], ids[place : place + 1], seed=1, epoch=2)
        assert torch.equal(alone[0], augmented[place])
    assert torch.equal(trivial_augment(before.flip(0), ids.flip(0), 1, 2), augmented.flip(0))
    assert torch.equal(before, images())


def drawn(count: int, seed: int = 0, epoch: int = 0) -> list[tuple[str, int, int]]:
    """Operation, level and sign of each id, as the operations are handed them."""
    found: dict[int, tuple[str, int, int]] = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:

            def note(chosen: Tensor, level: Tensor, sign: Tensor, name: str = name) -> Tensor:
                numbers = chosen[:, :2, 0, 0].long()
                for place, *drawn in zip(
                    (numbers[:, 0] * 256 + numbers[:, 1]).tolist(), level.tolist(), sign.tolist(), strict=True
                ):
                    found[place] = (name, *drawn)
                return chosen

            patch.setitem(OPERATIONS, name, note)
        ids = torch.arange(count)
        pixels = torch.stack([ids // 256, ids % 256, ids * 0], dim=1).byte()[:, :, None, None]
        trivial_augment(pixels.expand(count, 3, 2, 2).contiguous(), ids, seed, epoch)
    return [found[number] for number in range(count)]


def test_operations_levels_and_signs_are_drawn_evenly_and_anew() -> None:
    count = 14 * 31 * 2 * 10
    once = drawn(count)
    for number, choices in enumerate((OPERATIONS, range(LEVELS), (1, -1))):
        seen = Counter(one[number] for one in once)
        assert set(seen) == set(choices)
        expected = count / len(choices)
        assert all(abs(times - expected) < 5 * expected**0.5 for times in seen.values())
    for other in (drawn(count, epoch=1), drawn(count, seed=1)):
        same = sum(one == another for one, another in zip(once, other, strict=True))
        assert same < count / (14 * 31 * 2) * 5


def test_images_need_not_be_square() -> None:
    tall = torch.from_numpy(random_images(1)).permute(0, 3, 1, 2)[:, :, :, :20]
    one = torch.tensor([10])
    for operation in ("ShearX", "ShearY", "Rotate", "TranslateY", "Contrast", "Sharpness"):
        magnitude = float(SPACE[operation][0](LEVELS, 32, 20)[10])
        found = OPERATIONS[operation](tall, one, one // 10)
        assert torch.equal(found[0], torchvisions(operation, tall[0], magnitude)), operation
