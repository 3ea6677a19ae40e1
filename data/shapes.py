"""The built-in data set `shapes`: ten classes of drawn 32x32 RGB images, made from a seed without any download.

Each image shows one shape. Place, size, direction and colours of the shape, the background and the noise are
drawn at random, so that no single pixel tells the class: a linear classifier fails, a small ResNet does not.
Every class is mirror-symmetric, so that horizontal flips keep the label. The ranges below are chosen such that
ResNet-18 with the 7x7/2 stem passes 95 % in the five epochs of recipes/demo.yaml.

    python -m data.shapes FOLDER        writes the images in the layout of Kaggle's "cifar-10" competition
"""

import csv
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from data.errors import InputError
from data.listing import images_below
from data.spec import IMAGE_SIZE

Floats = npt.NDArray[np.float32]

TRAIN_COUNT = 5000
TEST_COUNT = 1000

# Position in SeedSequence's spawn key: the streams of two splits are independent for every seed.
_SPLITS = ("train", "test")

# Ranges of the drawing, uniform. Colours and noise in units of the full range of a channel. Shapes are brighter
# than their background: where the sign of the contrast is random too, nine epochs do not get past 40 %.
_RADIUS_PIXELS = (8.0, 12.0)
_TILT_DEGREES = (-45.0, 45.0)
_BACKGROUND = (0.0, 0.4)
_FOREGROUND = (0.6, 1.0)
_GRADIENT = (-0.2, 0.2)  # of the background over the image's width, in each channel
_NOISE = (0.0, 0.1)  # standard deviation


# A shape is a function of (x, y), arrays of coordinates in which the shape fits the unit circle; x points up and
# y to the right. It returns the signed distance to the outline, negative inside; near the outline it is exact
# enough to antialias.


def _wedge(x: Floats, y: Floats, degrees: float, offset: float) -> Floats:
    """Signed distance to the half-plane, mirrored at the x axis, whose normal points `degrees` off that axis."""
    angle = np.radians(degrees)
    return x * np.float32(np.cos(angle)) + np.abs(y) * np.float32(np.sin(angle)) - np.float32(offset)


def _box(x: Floats, y: Floats, half_width: float, half_height: float) -> Floats:
    return np.maximum(np.abs(x) - np.float32(half_width), np.abs(y) - np.float32(half_height))


def _disc(x: Floats, y: Floats, radius: float) -> Floats:
    return np.hypot(x, y) - np.float32(radius)


def _triangle(x: Floats, y: Floats) -> Floats:
    return np.maximum(-x - np.float32(0.5), _wedge(x, y, 60.0, 0.5))


def _arrow(x: Floats, y: Floats) -> Floats:
    head = np.maximum(np.float32(0.1) - x, _wedge(x, y, 50.0, np.cos(np.radians(50.0))))
    return np.minimum(head, _box(x + np.float32(0.4), y, 0.55, 0.25))


def _circle(x: Floats, y: Floats) -> Floats:
    return _disc(x, y, 0.9)


def _crescent(x: Floats, y: Floats) -> Floats:
    return np.maximum(_disc(x, y, 1.0), -_disc(x - np.float32(0.55), y, 0.8))


def _cross(x: Floats, y: Floats) -> Floats:
    return np.minimum(_box(x, y, 0.95, 0.27), _box(x, y, 0.27, 0.95))


def _heart(x: Floats, y: Floats) -> Floats:
    """A square with its corner down and a disc on each of the two upper sides."""
    u, v = (x + y) * np.float32(0.5**0.5) + np.float32(0.12), (x - y) * np.float32(0.5**0.5) + np.float32(0.12)
    lobes = np.minimum(_disc(u - np.float32(0.55), v, 0.55), _disc(u, v - np.float32(0.55), 0.55))
    return np.minimum(_box(u, v, 0.55, 0.55), lobes)


def _hourglass(x: Floats, y: Floats) -> Floats:
    return np.maximum(np.abs(x) - np.float32(0.72), _wedge(-np.abs(x), y, 50.0, 0.05))


def _ring(x: Floats, y: Floats) -> Floats:
    return np.abs(_disc(x, y, 0.75)) - np.float32(0.22)


def _square(x: Floats, y: Floats) -> Floats:
    return _box(x, y, 0.7, 0.7)


def _star(x: Floats, y: Floats) -> Floats:
    """Five points: the plane is folded onto one of them, which a wedge then cuts out."""
    sector = np.float32(2 * np.pi / 5)
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    angle -= sector * np.round(angle / sector)
    return _wedge(radius * np.cos(angle), radius * np.sin(angle), 66.0, np.cos(np.radians(66.0)))


_DISTANCES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "arrow": _arrow,
    "circle": _circle,
    "crescent": _crescent,
    "cross": _cross,
    "heart": _heart,
    "hourglass": _hourglass,
    "ring": _ring,
    "square": _square,
    "star": _star,
    "triangle": _triangle,
}
CLASSES = tuple(_DISTANCES)


def generate(seed: int, count: int, split: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Draw `count` images of a split: (images (count, 32, 32, 3), labels (count,), indices into CLASSES).

    The classes are balanced as far as `count` allows, in random order. `seed` is not negative. A split other
    than "train" and "test" is a ValueError.
    """
    if split not in _SPLITS:
        raise ValueError(f"split is {split!r}, allowed are {', '.join(_SPLITS)}")
    sequence = np.random.SeedSequence(seed, spawn_key=(_SPLITS.index(split),))
    rng = np.random.Generator(np.random.PCG64(sequence))
    labels = rng.permutation(np.arange(count, dtype=np.int64) % len(CLASSES))
    images = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for label, distance in enumerate(_DISTANCES.values()):
        (places,) = np.nonzero(labels == label)
        images[places] = _draw(rng, len(places), distance)
    return images, labels


def _draw(
    rng: np.random.Generator, count: int, distance: Callable[[Floats, Floats], Floats]
) -> npt.NDArray[np.uint8]:
    """Draw `count` images of one class, (count, 32, 32, 3)."""

    def uniform(low: float, high: float, *shape: int) -> Floats:
        return rng.uniform(low, high, (count, *shape)).astype(np.float32)

    rows, columns = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE].astype(np.float32) - np.float32((IMAGE_SIZE - 1) / 2)
    radius, tilt = uniform(*_RADIUS_PIXELS, 1, 1), np.radians(uniform(*_TILT_DEGREES, 1, 1))
    # The circle around the shape stays inside the image: a shape cut off may look like another one.
    reach = IMAGE_SIZE / 2 - radius
    up, right = reach * uniform(-1.0, 1.0, 1, 1) - rows, columns - reach * uniform(-1.0, 1.0, 1, 1)
    cosine, sine = np.cos(tilt) / radius, np.sin(tilt) / radius
    # A pixel whose centre is less than half a pixel from the outline is covered in part: antialiasing.
    inside = np.clip(0.5 - radius * distance(up * cosine + right * sine, right * cosine - up * sine), 0.0, 1.0)

    direction = uniform(0.0, 2 * np.pi, 1, 1)
    ramp = (columns * np.cos(direction) + rows * np.sin(direction)) / IMAGE_SIZE
    background = uniform(*_BACKGROUND, 1, 1, 3) + ramp[..., None] * uniform(*_GRADIENT, 1, 1, 3)
    clean = background + inside[..., None] * (uniform(*_FOREGROUND, 1, 1, 3) - background)
    noise = rng.standard_normal(clean.shape, np.float32) * uniform(*_NOISE, 1, 1, 1)
    return np.round(255.0 * np.clip(clean + noise, 0.0, 1.0)).astype(np.uint8)


def write_kaggle(
    folder: Path, seed: int = 0, train_count: int = TRAIN_COUNT, test_count: int = TEST_COUNT
) -> None:
    """Write the images as Kaggle's "cifar-10" competition lays them out: train/<id>.png with ids from 1,
    trainLabels.csv (id,label), test/<id>.png and sampleSubmission.csv. testLabels.csv, which Kaggle keeps to
    itself, is here as well, so that a submission can be scored.

    Raises:
        InputError: there are images that would stay beside these.
    """
    counts = {"train": train_count, "test": test_count}
    for split, count in counts.items():
        ours = {f"{number}.png" for number in range(1, count + 1)}
        for image in images_below(folder / split):
            if image.parent != folder / split or image.name not in ours:
                raise InputError(f"{image}: other images are there; remove them, or give another folder")
    for split, count in counts.items():
        images, labels = generate(seed, count, split)
        (folder / split).mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images, start=1):
            Image.fromarray(image).save(folder / split / f"{number}.png")
        _write_labels(folder / f"{split}Labels.csv", (CLASSES[label] for label in labels))
    _write_labels(folder / "sampleSubmission.csv", [CLASSES[0]] * test_count)


def _write_labels(path: Path, names: Iterable[str]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("id", "label"))
        writer.writerows(enumerate(names, start=1))


def main() -> None:
    from training.cli import OneLineParser, one_line_errors

    description = 'Write the data set "shapes" in the layout of Kaggle\'s "cifar-10".'
    parser = OneLineParser(prog="data.shapes", description=description)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-count", type=int, default=TRAIN_COUNT)
    parser.add_argument("--test-count", type=int, default=TEST_COUNT)
    with one_line_errors():
        arguments = parser.parse_args()
        for name, least in (("seed", 0), ("train_count", len(CLASSES)), ("test_count", len(CLASSES))):
            if getattr(arguments, name) < least:
                shown = f"--{name.replace('_', '-')} {getattr(arguments, name)}"
                raise InputError(f"{shown}: expected at least {least}")
        write_kaggle(arguments.folder, arguments.seed, arguments.train_count, arguments.test_count)


if __name__ == "__main__":
    main()
