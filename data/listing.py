"""The image files of a folder: their order, their names, and whether they have changed."""

import hashlib
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from data.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def is_image(name: str) -> bool:
    """By its name; what is in it shows when it is decoded."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def natural_order(name: str) -> tuple[list[tuple[int, int | str]], str]:
    """Sort key under which 2.png comes before 10.png; 1.png and 01.png have an order, too."""
    # 18 digits: int() refuses thousands, which a label may have
    parts = [part for part in re.split(r"([0-9]{1,18})", name) if part]
    return [(0, int(part)) if part.isascii() and part.isdigit() else (1, part) for part in parts], name


def numbered_images(folder: Path) -> dict[int, str]:
    """The paths of the images of a folder whose names are numbers, in number order.

    Raises:
        InputError: no images, or a name that is not a number, or one number twice.
    """
    images: dict[int, str] = {}
    for entry in image_entries(folder):
        stem, suffix = os.path.splitext(entry.name)
        if not re.fullmatch("[0-9]{1,18}", stem):
            raise InputError(f"{entry.path}: the name is not a number; expected names such as 1{suffix}")
        number = int(stem)
        if number in images:
            raise InputError(f"{entry.path}: a second image with the number {number}; remove one of them")
        images[number] = entry.path
    if not images:
        raise InputError(
            f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)}) in this folder; add some, or give another"
        )
    return dict(sorted(images.items()))


@contextmanager
def readable(place: Path) -> Iterator[None]:
    """InputError for what the system does not let us read; `place` is named where the system names no file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise InputError(
            f"{error.filename or place}: cannot be read: {reason}; check its name, permissions and links"
        ) from error


def image_entries(folder: Path) -> list["os.DirEntry[str]"]:
    with readable(folder), os.scandir(folder) as entries:
        images = [entry for entry in entries if is_image(entry.name)]
        for entry in images:
            if entry.is_symlink():
                entry.stat()  # a link to nothing would else be an image that is silently left out
        return [entry for entry in images if entry.is_file()]


def folders_in(root: Path) -> list[Path]:
    """All folders in `root` but hidden ones."""
    with readable(root):
        if not root.is_dir():
            return []
        with os.scandir(root) as found:
            entries = [entry for entry in found if not entry.name.startswith(".")]
        for entry in entries:
            if entry.is_symlink():
                entry.stat()  # a link to nothing would else be a class that is silently left out
        return [Path(entry.path) for entry in entries if entry.is_dir()]


def images_below(root: Path, leave_out: Collection[str] = ()) -> Iterator[Path]:
    """Images in a folder, and in all that are in it, but hidden ones and those in it that are named to leave out.

    What cannot be opened, as a disk's lost+found, is passed over.
    """
    seen = set()
    for place, folders, files in os.walk(root, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # by a link that leads back
            folders.clear()
            continue
        seen.add(real)
        named = leave_out if place == str(root) else ()
        folders[:] = sorted(name for name in folders if name not in named and not name.startswith("."))
        for name in sorted(files):
            if is_image(name) and not name.startswith("."):
                yield Path(place, name)


def check_kinds(folder: Path) -> None:
    """InputError for images in a folder that are of a kind which is not read."""
    known = tuple(Image.registered_extensions())
    with readable(folder):
        for name in sorted(os.listdir(folder)):
            if not is_image(name) and name.lower().endswith(known):
                raise InputError(
                    f"{folder / name}: images of this kind are not read; save it as PNG, or remove it"
                )


def digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def describe(folder: Path) -> list[str]:
    """Of each image of a folder the name, size and times of change, of its content (which copies keep) and of the
    file. Of all else that is not hidden, the name: it may be refused.
    """

    found = []
    with readable(folder), os.scandir(folder) as entries:
        for entry in entries:
            if is_image(entry.name):
                status = os.stat(entry.path)  # entry.stat() keeps its result: twice as slow for 50,000 images
                found.append(f"{entry.name}|{status.st_size}|{status.st_mtime_ns}|{status.st_ctime_ns}")
            elif not entry.name.startswith("."):
                found.append(entry.name)
    return sorted(found)
