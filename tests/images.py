"""Tiny image folders in every layout the suite reads, and data sets that need no files at all."""

import hashlib
import io
import pickle
import tarfile
import urllib.request
from collections.abc import Iterable, Sequence
from email.message import Message
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from data.prepared import Prepared, prepare
from data.sources import Contents, Split
from data.spec import CIFAR10, DatasetSpec

Pixels = npt.NDArray[np.uint8]


def random_images(count: int, seed: int = 0) -> Pixels:
    """uint8 (count, 32, 32, 3): noise, so that no two images are equal."""
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def save_image(path: Path, pixels: Pixels) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_labels(path: Path, rows: Iterable[tuple[object, str]]) -> Path:
    path.write_text("id,label\n" + "".join(f"{number},{label}\n" for number, label in rows))
    return path


# Layouts ----------------------------------------------------------------------------------------------------


def write_kaggle(
    folder: Path, labels: Sequence[str], test_labels: Sequence[str] | None = None, seed: int = 0
) -> tuple[Pixels, Pixels]:
    """train/1.png ... and trainLabels.csv; with `test_labels` also test/ and testLabels.csv.

    Returns the training and the test pixels, in number order.
    """
    images = random_images(len(labels) + len(test_labels or []), seed)
    splits = (images[: len(labels)], images[len(labels) :])
    for name, pixels, names in zip(("train", "test"), splits, (labels, test_labels), strict=True):
        if names is not None:
            for number, image in enumerate(pixels, start=1):
                save_image(folder / name / f"{number}.png", image)
            write_labels(folder / f"{name}Labels.csv", enumerate(names, start=1))
    return splits


def write_class_folder(root: Path, classes: Sequence[str], each: int, seed: int = 0) -> Pixels:
    """`each` images per class, <class>/1.png ...; returns the pixels by class, then by number."""
    images = random_images(len(classes) * each, seed)
    for index, image in enumerate(images):
        save_image(root / classes[index // each] / f"{index % each + 1}.png", image)
    return images


def write_archive(
    folder: Path, spec: DatasetSpec, labels: Sequence[int], test_labels: Sequence[int]
) -> tuple[Pixels, Pixels]:
    """The pickled batches of cifar-10-batches-py or cifar-100-python; returns training and test pixels."""
    images = random_images(len(labels) + len(test_labels))
    splits = (images[: len(labels)], images[len(labels) :])
    if spec is CIFAR10:
        base, key, meta = folder / "cifar-10-batches-py", "labels", ("batches.meta", "label_names")
        names, test_name = [f"data_batch_{number}" for number in range(1, 6)], "test_batch"
    else:
        base, key, meta = folder / "cifar-100-python", "fine_labels", ("meta", "fine_label_names")
        names, test_name = ["train"], "test"
    base.mkdir(parents=True)
    parts = zip(names, np.array_split(splits[0], len(names)), np.array_split(labels, len(names)), strict=True)
    for name, pixels, chosen in [*parts, (test_name, splits[1], np.array(test_labels))]:
        rows = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
        _pickle(base / name, {"data": rows, key: chosen.tolist()})
    _pickle(base / meta[0], {meta[1]: list(spec.classes)})
    return splits


def _pickle(path: Path, value: object) -> None:
    path.write_bytes(pickle.dumps(value, protocol=2))


def accept_checksums(monkeypatch: pytest.MonkeyPatch, folder: Path, spec: DatasetSpec) -> Path:
    """Make the archive that `write_archive` wrote the one that torchvision's checksums ask for.

    Returns the archive packed as its download.
    """
    from torchvision import datasets

    kind = datasets.CIFAR10 if spec is CIFAR10 else datasets.CIFAR100
    base = folder / kind.base_folder
    for name in ("train_list", "test_list"):
        listed = [[file, _md5(base / file)] for file, _ in getattr(kind, name)]
        monkeypatch.setattr(kind, name, listed)
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": _md5(base / kind.meta["filename"])})
    packed = folder / kind.filename
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(base, kind.base_folder)
    monkeypatch.setattr(kind, "tgz_md5", _md5(packed))
    return packed


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


class Response(io.BytesIO):
    """What urllib gives for a URL."""

    def __init__(self, url: str, content: bytes):
        super().__init__(content)
        self.url, self.length = url, len(content)

    def info(self) -> Message:
        """Headers: none."""
        return Message()

    def __enter__(self) -> "Response":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve(monkeypatch: pytest.MonkeyPatch, content: bytes | Exception) -> list[str]:
    """Answer every download with `content`, or fail it; returns the list that the asked URLs go to."""
    asked: list[str] = []

    def urlopen(request: urllib.request.Request, *_: object, **__: object) -> Response:
        asked.append(request.full_url)
        if isinstance(content, Exception):
            raise content
        return Response(request.full_url, content)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(torch.hub, "urlopen", urlopen)
    return asked


# Sources without files --------------------------------------------------------------------------------------


class PixelSource:
    """Images in memory as a source; `signature` may be set to pass for a changed one."""

    def __init__(self, train: Split, test: Split, classes: tuple[str, ...] = tuple("abc"), key: str = "memory"):
        self.train, self.test, self.classes, self.key = train, test, classes, key
        self.version = "1"
        self.loads = 0

    def signature(self) -> str:
        return self.version

    def load(self) -> Contents:
        self.loads += 1
        return Contents(self.classes, self.train, self.test)


def pixel_source(train_count: int, test_count: int = 0, seed: int = 0) -> PixelSource:
    """Noise with the labels 0, 1, 2, 0, 1, 2, ..."""
    images = random_images(train_count + test_count, seed)
    labels = np.arange(len(images), dtype=np.int64) % 3
    return PixelSource(
        Split(images[:train_count], labels[:train_count]), Split(images[train_count:], labels[train_count:])
    )


def prepared_pixels(cache_dir: Path, train_count: int, test_count: int = 0, seed: int = 0) -> Prepared:
    return prepare(pixel_source(train_count, test_count, seed), cache_dir)
