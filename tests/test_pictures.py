"""Pictures of predictions: which images stand where, and how wrong ones are marked."""

import numpy as np
import pytest
from PIL import Image

from training.evaluation import Predictions
from training.pictures import BACKGROUND, FRAME, WRONG, draw_mistakes, draw_predictions

GREY = np.repeat(np.arange(10, dtype=np.uint8) * 20 + 20, 32 * 32 * 3).reshape(10, 32, 32, 3)


def predictions(labels: list[int], predicted: list[int], loss: list[float] | None = None) -> Predictions:
    """Of the images 9, 8, 7, ..., so that a position is not an id."""
    count = len(labels)
    ids = np.arange(9, 9 - count, -1)
    losses = np.array(loss or [0.0] * count, dtype=np.float32)
    return Predictions(ids, np.array(labels), np.array(predicted), np.full(count, 0.5, dtype=np.float32), losses)


def tiles(picture: np.ndarray, zoom: int) -> list[tuple[int, tuple[int, ...]]]:
    """From the upper left: each image's grey, and its frame's colour."""
    side, found = 32 * zoom, []
    values = set(GREY[:, 0, 0, 0].tolist())
    y = 0
    while y < picture.shape[0] - side:
        x, in_row = 0, False
        while x < picture.shape[1] - side:
            block = picture[y : y + side, x : x + side]
            if block[0, 0, 0] in values and (block == block[0, 0, 0]).all():
                found.append((int(block[0, 0, 0]), tuple(picture[y - FRAME, x - FRAME].tolist())))
                x, in_row = x + side, True
            x += 1
        y += side if in_row else 1
    return found


def grey(number: int) -> int:
    return int(GREY[number, 0, 0, 0])


@pytest.mark.parametrize("classes", [2, 100])
def test_images_stand_in_the_row_of_their_predicted_class_and_wrong_ones_are_framed(classes, tmp_path):
    names = [f"class {number}" for number in range(classes)]
    draw_predictions(GREY, predictions([0, 1, 1], [1, 0, 1]), names, "title", tmp_path / "p.png")
    picture = np.asarray(Image.open(tmp_path / "p.png"))
    expected = [(grey(8), WRONG), (grey(9), WRONG), (grey(7), BACKGROUND)]  # class 0: image 8; class 1: 9 and 7
    assert tiles(picture, 2 if classes == 2 else 1) == expected


@pytest.mark.parametrize(("count", "shown"), [(3, 3), (121, 121), (300, 190)])
def test_of_many_classes_a_row_has_room_for_all_images_of_the_fullest(count, shown, tmp_path):
    labels, ids = np.full(count, 1), np.arange(count) % 10
    found = Predictions(ids, labels, labels, np.ones(count, dtype=np.float32), np.zeros(count, dtype=np.float32))
    draw_predictions(GREY, found, [f"class {number}" for number in range(21)], "title", tmp_path / "p.png")
    picture = np.asarray(Image.open(tmp_path / "p.png"))
    side = 32 + 2 * FRAME + 2
    row = picture[44 + (side + 6) + side // 2, 250 + side // 2 :: side, 0]  # through the middles of its images
    assert np.isin(row, GREY[:, 0, 0, 0]).sum() == shown
    assert picture.shape[1] == 250 + max(shown, 25) * side + 10


def test_mistakes_are_sorted_by_their_loss(tmp_path):
    found = predictions([0, 0, 1, 0], [1, 0, 0, 1], loss=[1.0, 9.0, 3.0, 2.0])  # the second is right
    draw_mistakes(GREY, found, ["cat", "dog"], "title", tmp_path / "m.png")
    picture = np.asarray(Image.open(tmp_path / "m.png"))
    assert tiles(picture, 4) == [(grey(7), WRONG), (grey(6), WRONG), (grey(9), WRONG)]


def test_a_run_without_mistakes_has_a_picture_too(tmp_path):
    draw_mistakes(GREY, predictions([0, 1], [0, 1]), ["cat", "dog"], "title", tmp_path / "m.png")
    assert tiles(np.asarray(Image.open(tmp_path / "m.png")), 4) == []
