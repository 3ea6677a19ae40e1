"""Where images come from: Kaggle's folder, torchvision's archives, class folders, the built-in shapes.

`find_source` recognises the layout of a folder. A source says cheaply whether it has changed
(`signature`), and lists its images and labels in full when they have to be read (`load`).
"""

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from data.errors import InputError
from data.spec import SPECS, DatasetSpec

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


@dataclass
class Split:
    """Images of one split, in id order: paths to decode, or pixels as uint8 (n, 32, 32, 3); labels int64 (n,)."""

    images: list[Path] | npt.NDArray[np.uint8] = field(default_factory=list)
    labels: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


@dataclass
class Contents:
    """All labelled images of a source. `spec` is None where mean and deviation are still to be computed."""

    classes: tuple[str, ...]
    train: Split
    test: Split
    spec: DatasetSpec | None = None


class Source(Protocol):
    """A place with images. `key` names it: the same place has the same key on every start."""

    key: str

    def signature(self) -> str:
        """A digest that changes when the source changes."""

    def load(self) -> Contents:
        """List all images with their labels; InputError for what the user has to mend."""


def natural_order(name: str) -> tuple[list[tuple[int, int | str]], str]:
    """Sort key under which 2.png comes before 10.png; 1.png and 01.png have an order, too."""
    parts = [part for part in re.split(r"([0-9]+)", name) if part]
    return [(0, int(part)) if part.isascii() and part.isdigit() else (1, part) for part in parts], name


def numbered_images(folder: Path) -> dict[int, Path]:
    """The images of a folder whose names are numbers, in number order.

    Raises:
        InputError: no images, or a name that is not a number, or one number twice.
    """
    images: dict[int, Path] = {}
    for entry in _image_entries(folder):
        path = Path(entry.path)
        if not path.stem.isdecimal():
            raise InputError(f"{path}: the name is not a number; expected names such as 1{path.suffix}")
        if int(path.stem) in images:
            raise InputError(f"{path}: a second image with the number {int(path.stem)}; remove one of them")
        images[int(path.stem)] = path
    if not images:
        raise InputError(f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)}) in this folder")
    return dict(sorted(images.items()))


def _image_entries(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return [e for e in entries if e.name.lower().endswith(IMAGE_SUFFIXES) and e.is_file()]
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def _describe(folder: Path) -> list[str]:
    """Name, size and time of change of each image of a folder."""
    described = []
    for entry in _image_entries(folder):
        status = entry.stat()
        described.append(f"{entry.name}|{status.st_size}|{status.st_mtime_ns}")
    return sorted(described)


def read_labels(path: Path) -> pd.Series:
    """The labels of a CSV file with the columns id and label, indexed by id, as written.

    A byte order mark, CRLF line ends and quoted fields are accepted.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read as CSV: {' '.join(str(error).split())}") from error
    if list(table.columns) != ["id", "label"]:
        header = " ".join(",".join(map(str, table.columns)).split())
        raise InputError(f"{path}: the header is {header}; expected id,label")
    if not isinstance(table.index, pd.RangeIndex):
        raise InputError(f"{path}: the rows have more fields than the header; expected id,label")
    wrong = ~table["id"].str.fullmatch(r"\d{1,18}")
    if wrong.any():
        row = int(wrong.idxmax())
        raise InputError(f"{path}, row {row + 2}: the id {table['id'][row]!r} is not a number")
    table["id"] = table["id"].astype("int64")
    empty = table["label"].isna() | (table["label"] == "")
    if empty.any():
        raise InputError(f"{path}, row {int(empty.idxmax()) + 2}: no label")
    twice = table["id"].duplicated()
    if twice.any():
        row = int(twice.idxmax())
        raise InputError(f"{path}, row {row + 2}: the id {table['id'][row]} occurs twice")
    return table.set_index("id")["label"]


class KaggleFolder:
    """train/<number>.png with trainLabels.csv, as in Kaggle's "cifar-10".

    Kaggle publishes no test labels; where a testLabels.csv of the same form is present, test/ is the
    labelled test set. Otherwise test/ is not read here: submit.py reads it.
    """

    def __init__(self, folder: Path, spec: DatasetSpec | None):
        self.folder, self.spec = folder, spec
        self.key = f"kaggle:{spec.name if spec else 'folder'}:{folder.resolve()}"
        self.splits = [("train", folder / "trainLabels.csv")]
        if (folder / "testLabels.csv").is_file():
            self.splits.append(("test", folder / "testLabels.csv"))

    @staticmethod
    def recognises(folder: Path) -> bool:
        return (folder / "trainLabels.csv").is_file() and (folder / "train").is_dir()

    def signature(self) -> str:
        parts = []
        for name, table in self.splits:
            parts += [hashlib.sha256(table.read_bytes()).hexdigest(), *_describe(self.folder / name)]
        return _digest(parts)

    def load(self) -> Contents:
        tables = {name: read_labels(path) for name, path in self.splits}
        classes = self.spec.classes if self.spec else tuple(sorted(set(tables["train"]), key=natural_order))
        splits = {name: self._split(name, path, tables[name], classes) for name, path in self.splits}
        return Contents(classes, splits["train"], splits.get("test", Split()), self.spec)

    def _split(self, name: str, path: Path, table: pd.Series, classes: tuple[str, ...]) -> Split:
        images = numbered_images(self.folder / name)
        unlabelled = sorted(images.keys() - set(table.index))
        if unlabelled:
            raise InputError(f"{images[unlabelled[0]]}: no row with id {unlabelled[0]} in {path}")
        missing = sorted(set(table.index) - images.keys())
        if missing:
            raise InputError(f"{path}: id {missing[0]} has no image in {self.folder / name}")
        codes = pd.Index(classes).get_indexer(pd.Index(table)).astype(np.int64)  # -1: unknown
        if (codes < 0).any():
            row = int((codes < 0).argmax())
            raise InputError(f"{path}, row {row + 2}: unknown class {table.iloc[row]!r}; {_known(classes)}")
        by_id = pd.Series(codes, index=table.index)
        return Split(list(images.values()), by_id.loc[list(images)].to_numpy())


def _known(classes: tuple[str, ...]) -> str:
    return f"known are {', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}"


class ClassFolders:
    """train/<class>/<image> and, if present, test/<class>/<image>; or one level, <class>/<image>."""

    def __init__(self, folder: Path, spec: DatasetSpec | None):
        self.folder, self.spec = folder, spec
        self.key = f"folders:{spec.name if spec else 'folder'}:{folder.resolve()}"
        self.train: Path = folder
        self.test: Path | None = None
        if _class_folders(folder / "train"):
            self.train, self.test = folder / "train", folder / "test"

    @staticmethod
    def recognises(folder: Path) -> bool:
        """Images in train/ and test/ alone are no classes: there, a table of labels is missing."""
        names = {sub.name for sub in _class_folders(folder)}
        return bool(_class_folders(folder / "train") or names - {"train", "test"})

    def signature(self) -> str:
        parts = []
        for root in (self.train, self.test):
            for sub in _class_folders(root) if root else []:
                parts += [sub.name, *_describe(sub)]
        return _digest(parts)

    def load(self) -> Contents:
        found = tuple(sub.name for sub in _class_folders(self.train))
        classes = self.spec.classes if self.spec else found
        train = self._split(self.train, classes)
        test = self._split(self.test, classes) if self.test and self.test.is_dir() else Split()
        absent = sorted(set(range(len(classes))) - set(train.labels.tolist()))
        if absent:
            raise InputError(f"{self.train}: no images of the class {classes[absent[0]]!r}")
        return Contents(classes, train, test, self.spec)

    def _split(self, root: Path, classes: tuple[str, ...]) -> Split:
        split, labels = Split(), []
        for sub in _class_folders(root):
            if sub.name not in classes:
                raise InputError(f"{sub}: unknown class {sub.name!r}; {_known(classes)}")
            paths = sorted((Path(e.path) for e in _image_entries(sub)), key=lambda p: natural_order(p.name))
            split.images += paths  # type: ignore[operator]
            labels += [classes.index(sub.name)] * len(paths)
        split.labels = np.array(labels, dtype=np.int64)
        return split


def _class_folders(root: Path) -> list[Path]:
    """The folders in `root` that hold images, in natural order."""
    if not root.is_dir():
        return []
    folders = [sub for sub in root.iterdir() if sub.is_dir() and not sub.name.startswith(".")]
    return sorted((sub for sub in folders if _image_entries(sub)), key=lambda sub: natural_order(sub.name))


class TorchvisionArchive:
    """CIFAR10 or CIFAR100 as torchvision stores it, downloaded by torchvision where absent.

    torchvision checks the archive and its files against known checksums before it reads them.
    """

    _batches = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
    _archives = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}

    def __init__(self, folder: Path, spec: DatasetSpec):
        self.folder, self.spec = folder, spec
        self.key = f"torchvision:{spec.name}:{folder.resolve()}"

    @classmethod
    def recognises(cls, folder: Path, spec: DatasetSpec) -> bool:
        return (folder / cls._batches[spec.name]).is_dir() or (folder / cls._archives[spec.name]).is_file()

    def signature(self) -> str:
        # The pixels are fixed by torchvision's checksums: the name says all.
        return _digest(["torchvision", self.spec.name])

    def load(self) -> Contents:
        from torchvision import datasets  # seconds to import, and needed only here

        kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[self.spec.name]
        splits = []
        for train in (True, False):
            try:
                archive: Any = kind(str(self.folder), train=train, download=True)
            except (OSError, RuntimeError) as error:
                reason = " ".join(str(error).split())
                raise InputError(
                    f"{self.folder}: {self.spec.name} could not be downloaded or read ({reason}); place "
                    f"{self._archives[self.spec.name]} there, or give --data-dir a folder with the images"
                ) from error
            if tuple(archive.classes) != self.spec.classes:
                raise InputError(f"{self.folder}: the archive's classes are not those of {self.spec.name}")
            splits.append(Split(archive.data, np.array(archive.targets, dtype=np.int64)))
        return Contents(self.spec.classes, splits[0], splits[1], self.spec)


class BuiltInShapes:
    """The drawn shapes of data/shapes.py, generated from the fixed seed 0: no files."""

    key = "shapes"

    def signature(self) -> str:
        from data import shapes

        return _digest([hashlib.sha256(Path(shapes.__file__).read_bytes()).hexdigest()])

    def load(self) -> Contents:
        from data import shapes

        train = Split(*shapes.generate(0, shapes.TRAIN_COUNT, "train"))
        test = Split(*shapes.generate(0, shapes.TEST_COUNT, "test"))
        return Contents(shapes.CLASSES, train, test)


def find_source(dataset: str, folder: Path) -> Source:
    """The source of a data set in `folder`.

    Args:
        dataset: "cifar10", "cifar100", "shapes", or "folder" for any classes.
        folder: where the images are; for CIFAR an absent or empty folder is filled by torchvision.

    Raises:
        InputError: no known layout; the message says what was looked for.
    """
    if dataset == "shapes":
        return BuiltInShapes()
    spec = SPECS.get(dataset)
    if KaggleFolder.recognises(folder):
        return KaggleFolder(folder, spec)
    if spec and TorchvisionArchive.recognises(folder, spec):
        return TorchvisionArchive(folder, spec)
    if folder.is_dir() and ClassFolders.recognises(folder):
        return ClassFolders(folder, spec)
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if spec and empty:
        return TorchvisionArchive(folder, spec)
    looked_for = ["train/*.png with trainLabels.csv", "train/<class>/*.png", "<class>/*.png"]
    if spec:
        looked_for.insert(1, TorchvisionArchive._batches[dataset])
    state = (
        "does not exist" if not folder.exists() else "is not a folder" if not folder.is_dir() else "has none of"
    )
    raise InputError(f"--data-dir {folder} {state}: looked for {'; '.join(looked_for)}")
