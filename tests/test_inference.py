"""The one path from images to logits."""

import pytest
import torch

from data.augment import BatchTransform
from resnet import build_model
from training.inference import Predictor

CPU = torch.device("cpu")
IMAGES = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def predictor(precision: str = "no", flip: bool = False) -> Predictor:
    torch.manual_seed(0)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    transform = BatchTransform((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), dtype=dtype)
    return Predictor(build_model("resnet18", 10, "imagenet"), transform, CPU, precision, flip)


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
    plain, flipped = predictor(), predictor(flip=True)
    expected = (plain.logits(IMAGES) + plain.logits(IMAGES.flip(3))) / 2
    torch.testing.assert_close(flipped.logits(IMAGES), expected)
    assert not torch.allclose(flipped.logits(IMAGES), plain.logits(IMAGES))


def test_low_precision_gives_float32_logits_near_the_exact_ones():
    exact, low = predictor().logits(IMAGES), predictor("bf16").logits(IMAGES)
    assert low.dtype == torch.float32
    assert not torch.equal(low, exact)
    torch.testing.assert_close(low, exact, atol=0.1, rtol=0.1)


def test_an_image_does_not_depend_on_the_others_of_its_batch():
    found = predictor()
    torch.testing.assert_close(found.logits(IMAGES)[2:3], found.logits(IMAGES[2:3]))


@pytest.mark.parametrize("flip", [False, True])
def test_inference_leaves_no_gradients(flip):
    found = predictor(flip=flip)
    assert not found.logits(IMAGES).requires_grad
