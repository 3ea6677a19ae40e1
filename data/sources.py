"""Where images come from: Kaggle's folder, torchvision's archives, class folders, the built-in shapes.

`find_source` recognises the layout of a folder. A source says cheaply whether it has changed
(`signature`), and lists its images and labels in full when they have to be read (`load`).
"""

import http.client
import io
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from data.errors import InputError
from data.files import sha256_of
from data.labels import Label, label_table
from data.listing import (
    IMAGE_SUFFIXES,
    check_kinds,
    describe,
    digest,
    folders_in,
    image_entries,
    images_below,
    natural_order,
    numbered_images,
    readable,
)
from data.spec import SPECS, DatasetSpec


@dataclass
class Split:
    """Images of one split, in id order: paths to decode, or pixels as uint8 (n, 32, 32, 3); labels int64 (n,)."""

    images: list[str] | npt.NDArray[np.uint8] = field(default_factory=list)
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
        """A digest that changes when the source changes, and when something comes in that `load` refuses."""

    def load(self) -> Contents:
        """List all images with their labels; InputError for what the user has to mend."""


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

    def _inside(self, name: str) -> Iterator[Path]:
        """Images in folders inside one of the two."""
        for inside in folders_in(self.folder / name):
            yield from images_below(inside)

    def signature(self) -> str:
        parts = []
        for name, table in self.splits:
            with readable(table):
                parts.append(sha256_of(table))
            parts += describe(self.folder / name)
            parts += map(str, self._inside(name))
        return digest(parts)

    def load(self) -> Contents:
        for name, _ in self.splits:
            for image in self._inside(name):
                raise InputError(
                    f"{image}: in a folder inside {name}/; move it to {self.folder / name}, or remove it"
                )
            check_kinds(self.folder / name)
        tables = {name: label_table(path) for name, path in self.splits}
        found = sorted({label.name for label in tables["train"].values()}, key=natural_order)
        classes = self.spec.classes if self.spec else _two_or_more(self.folder, found)
        splits = {name: self._split(name, path, tables[name], classes) for name, path in self.splits}
        train, test = splits["train"], splits.get("test", Split())
        _check_classes_of_training(train, classes, self.folder / "trainLabels.csv")
        _check_classes_of_test(train, test, classes, self.folder / "testLabels.csv")
        return Contents(classes, train, test, self.spec)

    def _split(self, name: str, path: Path, table: dict[int, Label], classes: tuple[str, ...]) -> Split:
        images = numbered_images(self.folder / name)
        if unlabelled := images.keys() - table.keys():
            number = min(unlabelled)
            raise InputError(f"{images[number]}: no row with id {number} in {path}; add it, or remove the image")
        if missing := table.keys() - images.keys():
            number = min(missing)
            where, folder = f"{path}, row {table[number].row}", self.folder / name
            raise InputError(f"{where}: id {number} has no image in {folder}; add it, or remove the row")
        codes = {name: code for code, name in enumerate(classes)}
        for label in table.values():
            if label.name not in codes:
                raise InputError(f"{path}, row {label.row}: unknown class {label.name!r}; {_known(classes)}")
        labels = [codes[table[number].name] for number in images]
        return Split(list(images.values()), np.array(labels, dtype=np.int64))


def _two_or_more(folder: Path, classes: list[str]) -> tuple[str, ...]:
    """InputError for a single class: there is nothing to tell apart."""
    if len(classes) < 2:
        raise InputError(
            f"{folder}: all images are of one class, {classes[0]!r}; expected two or more: --data-dir is the "
            "folder above the classes, or above train/"
        )
    return tuple(classes)


def _known(classes: tuple[str, ...]) -> str:
    return f"expected one of {', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}"


def _check_classes_of_training(train: Split, classes: tuple[str, ...], place: Path) -> None:
    absent = sorted(set(range(len(classes))) - set(train.labels.tolist()))
    if absent:
        raise InputError(f"{place}: no images of the class {classes[absent[0]]!r}; add some")


def _check_classes_of_test(train: Split, test: Split, classes: tuple[str, ...], place: Path) -> None:
    """InputError if the test images, where there are any, lack a class: its F1 would count as 0 in the mean."""
    absent = sorted(set(train.labels.tolist()) - set(test.labels.tolist()))
    if len(test.labels) and absent:
        raise InputError(
            f"{place}: no test images of the class {classes[absent[0]]!r}; add some, or do without test images"
        )


class ClassFolders:
    """train/<class>/<image> and, if present, test/<class>/<image>; or one level, <class>/<image>."""

    def __init__(self, folder: Path, spec: DatasetSpec | None):
        self.folder, self.spec = folder, spec
        self.key = f"folders:{spec.name if spec else 'folder'}:{folder.resolve()}"
        self.roots = [folder]
        if _class_folders(folder / "train"):
            self.roots = [root for root in (folder / "train", folder / "test") if root.is_dir()]

    @staticmethod
    def recognises(folder: Path) -> bool:
        """Images in train/ and test/ alone are no classes: there, a table of labels is missing."""
        names = {sub.name for sub in _class_folders(folder)}
        return bool(_class_folders(folder / "train") or names - {"train", "test"})

    def _beside(self) -> Iterator[Path]:
        """Images beside train/ and test/, where there are these."""
        if self.roots != [self.folder]:
            yield from images_below(self.folder, leave_out=("train", "test"))

    def signature(self) -> str:
        parts = [image.name for image in self._beside()]
        for root in self.roots:
            parts += [root.name if root != self.folder else "", *describe(root)]
            for sub in folders_in(root):
                parts += [sub.name, *describe(sub)]
        return digest(parts)

    def load(self) -> Contents:
        for root in self.roots:
            _check_class_folders(root)
        for image in self._beside():
            raise InputError(
                f"{image}: images beside train/ and test/ are not read (validation images are split off train/); "
                "move them there, or remove them"
            )
        found = [sub.name for sub in _class_folders(self.roots[0])]
        classes = self.spec.classes if self.spec else _two_or_more(self.roots[0], found)
        train, *others = [self._split(root, classes) for root in self.roots]
        test = others[0] if others else Split()
        _check_classes_of_training(train, classes, self.roots[0])
        _check_classes_of_test(train, test, classes, self.roots[-1])
        return Contents(classes, train, test, self.spec)

    def _split(self, root: Path, classes: tuple[str, ...]) -> Split:
        paths: list[str] = []
        labels: list[int] = []
        for sub in _class_folders(root):
            if sub.name not in classes:
                raise InputError(f"{sub}: unknown class {sub.name!r}; {_known(classes)}")
            entries = sorted(image_entries(sub), key=lambda entry: natural_order(entry.name))
            paths += [entry.path for entry in entries]
            labels += [classes.index(sub.name)] * len(entries)
        return Split(paths, np.array(labels, dtype=np.int64))


def _class_folders(root: Path) -> list[Path]:
    """The folders in `root` that hold images, in natural order."""
    return sorted((sub for sub in folders_in(root) if image_entries(sub)), key=lambda sub: natural_order(sub.name))


def _check_class_folders(root: Path) -> None:
    """InputError for what cannot be a class, and for images that would be left out in silence."""
    for entry in image_entries(root):
        raise InputError(f"{entry.path}: an image beside the classes' folders; move it into one, or remove it")
    for folder in folders_in(root):
        try:
            folder.name.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{folder}: the class' name is not in UTF-8; give it another") from error
        if not image_entries(folder):
            kinds = ", ".join(IMAGE_SUFFIXES)
            raise InputError(f"{folder}: no images ({kinds}) of this class; add some, or remove the folder")
        for inside in folders_in(folder):
            raise InputError(f"{inside}: a folder inside a class; move its images to {folder}, or remove it")
        check_kinds(folder)


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
        return digest(["torchvision", self.spec.name])

    def load(self) -> Contents:
        from torchvision import datasets  # seconds to import, and needed only here

        kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[self.spec.name]
        with self._alone() as absent:
            train, test = self._read(kind, absent)
        return Contents(self.spec.classes, train, test, self.spec)

    @contextmanager
    def _alone(self) -> Iterator[list[Path]]:
        """Keep others, on machines with the same disk too, from downloading or unpacking meanwhile.

        Yields what is not there yet of all that may be written.
        """
        lock_file = self.folder / ".lock"
        lock = FileLock(lock_file)
        absent = [place for place in (lock_file, self.folder) if not place.exists()]
        with suppress(OSError):  # a folder that cannot be written to: nobody unpacks there
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            places = [self.folder / self._archives[self.spec.name], self.folder / self._batches[self.spec.name]]
            missing = [place for place in places if not place.exists()]
            if missing == places:
                print(f"{self.folder}: no images there; downloading {self.spec.name}", flush=True)
            yield missing + absent
        finally:
            lock.release()

    def _read(self, kind: Any, absent: list[Path]) -> list[Split]:
        """Training and test images.

        absent: what is removed again if that fails.
        """
        # torchvision draws its progress into logs, too
        progress = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
        splits = []
        for train in (True, False):
            try:
                with progress:
                    archive: Any = kind(str(self.folder), train=train, download=True)
            except (OSError, RuntimeError, http.client.HTTPException) as error:
                _discard(absent)  # a part of an archive is of no use to anybody
                reason = " ".join(str(error).split())
                raise InputError(
                    f"{self.folder}: {self.spec.name} could not be downloaded or read ({reason}); place "
                    f"{self._archives[self.spec.name]} there, or give --data-dir a folder with the images"
                ) from error
            if tuple(archive.classes) != self.spec.classes:
                raise InputError(f"{self.folder}: the archive's classes are not those of {self.spec.name}")
            splits.append(Split(archive.data, np.array(archive.targets, dtype=np.int64)))
        return splits


def _discard(places: list[Path]) -> None:
    """Remove files, and folders that are empty or torchvision's."""
    for place in places:
        with suppress(OSError):
            if not place.is_dir():
                place.unlink()
            elif place.name in TorchvisionArchive._batches.values():
                shutil.rmtree(place)
            else:
                place.rmdir()


class BuiltInShapes:
    """The drawn shapes of data/shapes.py, generated from the fixed seed 0: no files."""

    key = "shapes"

    def signature(self) -> str:
        from data import shapes

        return sha256_of(Path(shapes.__file__))

    def load(self) -> Contents:
        from data import shapes

        train = Split(*shapes.generate(0, shapes.TRAIN_COUNT, "train"))
        test = Split(*shapes.generate(0, shapes.TEST_COUNT, "test"))
        return Contents(shapes.CLASSES, train, test)


def is_empty(folder: Path) -> bool:
    """But for hidden files, such as the lock of a download that was killed."""
    return all(place.name.startswith(".") for place in folder.iterdir())


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
    with readable(folder):
        if os.path.lexists(folder) and not folder.is_file():
            next(folder.iterdir(), None)  # a folder without permission, or a link to nothing, ends here
        if KaggleFolder.recognises(folder):
            return KaggleFolder(folder, spec)
        if spec and TorchvisionArchive.recognises(folder, spec):
            return TorchvisionArchive(folder, spec)
        if folder.is_dir() and ClassFolders.recognises(folder):
            return ClassFolders(folder, spec)
        state = "has none of" if folder.is_dir() else "is not a folder" if folder.exists() else "does not exist"
        if spec and (not folder.exists() or (folder.is_dir() and is_empty(folder))):
            return TorchvisionArchive(folder, spec)
    looked_for = ["train/*.png with trainLabels.csv", "train/<class>/*.png", "<class>/*.png"]
    if spec:
        looked_for.insert(1, TorchvisionArchive._batches[dataset])
    raise InputError(f"--data-dir {folder} {state}: looked for {'; '.join(looked_for)}")
