"""The drawn data set: its randomness, its drawings, its difficulty and its files."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

from data import shapes
from tests.conftest import call_main


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_the_same_seed_gives_the_same_images_and_another_seed_others():
    images, labels = shapes.generate(3, 200, "train")
    assert images.shape == (200, 32, 32, 3)
    assert images.dtype == np.uint8
    assert labels.shape == (200,)
    assert labels.dtype == np.int64
    again, same_labels = shapes.generate(3, 200, "train")
    assert np.array_equal(images, again)
    assert np.array_equal(labels, same_labels)
    others, other_labels = shapes.generate(4, 200, "train")
    assert (images != others).any(axis=(1, 2, 3)).all()
    assert not np.array_equal(labels, other_labels)


def test_train_and_test_share_no_image():
    train, test = (shapes.generate(0, 1000, split)[0] for split in ("train", "test"))
    assert len({image.tobytes() for image in [*train, *test]}) == 2000


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'validation'.*train, test"):
        shapes.generate(0, 10, "validation")


@pytest.mark.parametrize("count", [0, 7, 1003])
def test_classes_are_balanced_and_in_random_order(count):
    labels = shapes.generate(0, count, "train")[1]
    counts = np.bincount(labels, minlength=10)
    assert len(counts) == 10
    assert counts.sum() == count
    assert counts.max() - counts.min() <= 1
    if count > 100:
        assert np.mean(labels == np.arange(count) % 10) < 0.2
        assert np.mean(np.diff(labels) == 0) < 0.2


def test_ten_classes_in_alphabetical_order():
    assert len(shapes.CLASSES) == 10
    assert list(shapes.CLASSES) == sorted(set(shapes.CLASSES))


@pytest.mark.parametrize("name", shapes.CLASSES)
def test_outlines_fill_the_unit_circle_and_are_mirror_symmetric(name):
    axis = np.linspace(-1.5, 1.5, 301, dtype=np.float32)
    x, y = np.meshgrid(axis, axis, indexing="ij")
    distance = shapes._DISTANCES[name](x, y)
    radius = np.hypot(x, y)
    assert (distance[radius > 1.0] > 0).all()
    assert radius[distance < 0].max() > 0.85
    # A flip of an image that is tilted by t is the mirror image tilted by -t: the same label if they are alike.
    assert np.allclose(distance, distance[:, ::-1], atol=1e-4)


def test_every_label_names_the_shape_in_its_image(monkeypatch):
    """Without tilt, noise and gradient the shape's area in squares of its radius tells the class."""
    for name in ("_TILT_DEGREES", "_NOISE", "_GRADIENT", "_BACKGROUND"):
        monkeypatch.setattr(shapes, name, (0.0, 0.0))
    monkeypatch.setattr(shapes, "_FOREGROUND", (1.0, 1.0))
    monkeypatch.setattr(shapes, "_RADIUS_PIXELS", (12.0, 12.0))
    images, labels = shapes.generate(0, 300, "train")
    areas = images.mean(axis=3).sum(axis=(1, 2)) / 255 / 12**2
    # By geometry; between its points the star's outline is cos(66) / cos(66 - 36) from the centre.
    expected = {
        "circle": np.pi * 0.9**2,
        "cross": 4 * 0.27 * (2 * 0.95 - 0.27),
        "ring": np.pi * (0.97**2 - 0.53**2),
        "square": 1.4**2,
        "star": 5 * np.sin(np.radians(36)) * np.cos(np.radians(66)) / np.cos(np.radians(30)),
        "triangle": 0.75 * 3**0.5,
    }
    for name, area in expected.items():
        assert areas[labels == shapes.CLASSES.index(name)] == pytest.approx(area, rel=0.03), name


def test_a_linear_classifier_fails():
    (images, labels), (test_images, test_labels) = (
        shapes.generate(0, count, split) for count, split in ((5000, "train"), (1000, "test"))
    )
    scaler = StandardScaler().fit(images.reshape(5000, -1).astype(np.float32))
    pixels, test_pixels = (scaler.transform(part.reshape(len(part), -1)) for part in (images, test_images))
    accuracies = [
        RidgeClassifier(alpha).fit(pixels, labels).score(test_pixels, test_labels) for alpha in (1e3, 1e4)
    ]
    assert max(accuracies) < 0.6


def test_files_hold_the_generated_images(tmp_path: Path):
    folder = tmp_path / "new" / "shapes"
    call_main(shapes.main, folder, "--seed", 5, "--train-count", 23, "--test-count", 11)
    for split, count in (("train", 23), ("test", 11)):
        images, labels = shapes.generate(5, count, split)
        names = [shapes.CLASSES[label] for label in labels]
        assert rows(folder / f"{split}Labels.csv") == [
            ["id", "label"],
            *([str(number), name] for number, name in enumerate(names, start=1)),
        ]
        assert len(list((folder / split).iterdir())) == count
        for number, image in enumerate(images, start=1):
            with Image.open(folder / split / f"{number}.png") as file:
                assert file.mode == "RGB"
                assert np.array_equal(np.asarray(file), image)
    sample = rows(folder / "sampleSubmission.csv")
    assert sample[0] == ["id", "label"]
    assert [row[0] for row in sample[1:]] == [str(number) for number in range(1, 12)]
    assert {row[1] for row in sample[1:]} <= set(shapes.CLASSES)


def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    flags = [tmp_path / "shapes", "--train-count", 12, "--test-count", 11]
    assert call_main(shapes.main, *flags) == 0
    assert call_main(shapes.main, *flags) == 0
    (tmp_path / "file").touch()
    for arguments, said in (
        ([*flags[:3], "--test-count", 10], f"{tmp_path}/shapes/test/11.png: other images are there"),
        ([tmp_path / "new", "--seed", -1], "--seed -1: expected at least 0"),
        ([tmp_path / "new", "--train-count", 9], "--train-count 9: expected at least 10"),
        ([tmp_path / "file"], f"{tmp_path}/file"),
    ):
        assert call_main(shapes.main, *arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {said}")
    assert len(list((tmp_path / "shapes/test").iterdir())) == 11


def test_without_torch_and_with_defaults_of_the_data_set():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, data.shapes; assert 'torch' not in sys.modules; sys.argv[1:] = ['-h']; "
            "data.shapes.main()",
        ],
        cwd=Path(shapes.__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "FOLDER" in done.stdout.upper()
    assert "--train-count" in done.stdout
