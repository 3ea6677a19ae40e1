"""Pictures made of the data set's images, drawn with Pillow: predictions by class, and the worst mistakes."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from data.files import write_atomically
from data.spec import IMAGE_SIZE
from training.evaluation import Predictions

WRONG = (213, 94, 0)  # vermilion, told apart by the colour-blind
BACKGROUND, TEXT, FAINT = (24, 24, 24), (255, 255, 255), (170, 170, 170)
MOST_COLUMNS = 190  # of many classes: as wide as a row of the CIFAR-100 study's picture
FRAME, INNER = 4, 1  # pixels around each image; and how many of them part it from the colour of its frame


def _save(picture: Image.Image, path: Path) -> None:
    content = BytesIO()
    picture.save(content, format="png")
    write_atomically(path, content.getvalue())


def _tile(pixels: npt.NDArray[np.uint8], zoom: int, wrong: bool) -> Image.Image:
    """An image in its frame, which is coloured where the prediction is wrong.

    A dark line inside the colour sets it off from an image in the same one.
    """
    side = zoom * IMAGE_SIZE
    tile = Image.new("RGB", (side + 2 * FRAME,) * 2, WRONG if wrong else BACKGROUND)
    inside = FRAME - INNER
    tile.paste(BACKGROUND, (inside, inside, side + FRAME + INNER, side + FRAME + INNER))
    tile.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST), (FRAME, FRAME))
    return tile


def draw_predictions(
    images: npt.NDArray[np.uint8], predictions: Predictions, classes: Sequence[str], title: str, path: Path
) -> None:
    """A row for each predicted class: its name, how many images came there, and these images, wrong ones framed.

    Where a row has no room for all of them, evenly chosen ones are shown, so that right and wrong keep their
    proportion.

    Args:
        images: uint8 (n, 32, 32, 3), the whole data set; `predictions.ids` points into it.
    """
    few = len(classes) <= 20
    fullest = int(np.bincount(predictions.predicted).max())
    zoom, columns, lines = (2, 25, 2) if few else (1, min(max(fullest, 25), MOST_COLUMNS), 1)
    step = zoom * IMAGE_SIZE + 2 * FRAME + 2
    band, margin, head = lines * step + 6, 250, 44
    picture = Image.new("RGB", (margin + columns * step + 10, head + band * len(classes)), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((10, 10), title, TEXT, font=ImageFont.load_default(20))
    for label, name in enumerate(classes):
        top = head + label * band
        found = (predictions.predicted == label).nonzero()[0]
        wrong = int((predictions.labels[found] != label).sum())
        draw.text((10, top), name, TEXT, font=ImageFont.load_default(20 if few else 15))
        room = columns * lines
        shown = found[np.linspace(0, len(found) - 1, min(len(found), room)).round().astype(int)]
        counts = f"{len(found)} predicted, {wrong} wrong" + (f"; {room} shown" if len(found) > room else "")
        draw.text((10, top + (26 if few else 17)), counts, FAINT, font=ImageFont.load_default(14 if few else 11))
        for position, index in enumerate(shown):
            tile = _tile(images[predictions.ids[index]], zoom, wrong=predictions.labels[index] != label)
            picture.paste(tile, (margin + position % columns * step, top + position // columns * step))
    _save(picture, path)


def draw_mistakes(
    images: npt.NDArray[np.uint8], predictions: Predictions, classes: Sequence[str], title: str, path: Path
) -> None:
    """The wrong predictions of the highest loss: image, predicted class and its probability, true class."""
    zoom, columns, most, width, height, head = 4, 8, 40, 184, 192, 44
    wrong = (predictions.predicted != predictions.labels).nonzero()[0]
    worst = wrong[np.argsort(-predictions.loss[wrong], kind="stable")[:most]]
    rows = max(1, -(-len(worst) // columns))
    picture = Image.new("RGB", (columns * width + 10, head + rows * height), BACKGROUND)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    draw.text((10, 10), title, TEXT, font=ImageFont.load_default(20))
    for position, index in enumerate(worst):
        left, top = 10 + position % columns * width, head + position // columns * height
        picture.paste(_tile(images[predictions.ids[index]], zoom, wrong=True), (left, top))
        predicted, true = classes[predictions.predicted[index]], classes[predictions.labels[index]]
        draw.text((left, top + 140), f"{predicted} {100 * predictions.confidence[index]:.0f} %", TEXT, font=font)
        draw.text((left, top + 160), f"true: {true}", FAINT, font=font)
    _save(picture, path)
