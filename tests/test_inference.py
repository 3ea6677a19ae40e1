"""The one path from images to logits."""

import pytest
import torch
import torch.nn.functional as F

from data.augment import BatchTransform
from resnet import build_model
from training.cli import TTA
from training.inference import Predictor

CPU = torch.device("cpu")
IMAGES = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def predictor(precision: str = "no") -> Predictor:
    torch.manual_seed(0)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    transform = BatchTransform((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), dtype=dtype)
    return Predictor(build_model("resnet18", 10, "imagenet"), transform, CPU, precision)


def test_logits_are_those_of_the_network_on_normalised_images():
    found = predictor()
    normalised = (IMAGES / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(
        3, 1, 1
    )
    found.model.eval()
    with torch.no_grad():
        expected = found.model(normalised)
    found.model.train()  # evaluation must not depend on the mode it finds
    torch.testing.assert_close(found.logits(IMAGES), expected)


def test_flip_is_the_mean_over_an_image_and_its_mirror_image():
    found = predictor()
    expected = (found.logits(IMAGES) + found.logits(IMAGES.flip(3))) / 2
    torch.testing.assert_close(found.logits(IMAGES, "flip"), expected)
    assert not torch.allclose(found.logits(IMAGES, "flip"), found.logits(IMAGES))


def test_six_views_are_airbenchs():
    """infer_mirror_translate of Jordan's airbench: half of the weight on the images that were not moved."""
    found = predictor()

    def mirror(images):
        return 0.5 * found.logits(images) + 0.5 * found.logits(images.flip(3))

    padded = F.pad(IMAGES.float(), (1, 1, 1, 1), "reflect").byte()
    moved = torch.stack([mirror(padded[:, :, :32, :32]), mirror(padded[:, :, 2:34, 2:34])]).mean(0)
    expected = 0.5 * mirror(IMAGES) + 0.5 * moved
    torch.testing.assert_close(found.logits(IMAGES, "six"), expected)
    assert not torch.allclose(found.logits(IMAGES, "six"), found.logits(IMAGES, "flip"))


def test_low_precision_gives_float32_logits_near_the_exact_ones():
    exact, low = predictor().logits(IMAGES), predictor("bf16").logits(IMAGES)
    assert low.dtype == torch.float32
    assert not torch.equal(low, exact)
    torch.testing.assert_close(low, exact, atol=0.1, rtol=0.1)


def test_an_image_does_not_depend_on_the_others_of_its_batch():
    found = predictor()
    torch.testing.assert_close(found.logits(IMAGES)[2:3], found.logits(IMAGES[2:3]))


@pytest.mark.parametrize("tta", TTA)
def test_inference_leaves_no_gradients(tta):
    assert not predictor().logits(IMAGES, tta).requires_grad
