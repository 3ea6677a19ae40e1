"""A source, decoded once: the cache on disk that both loaders read.

    <cache-dir>/<key>/images.npy    uint8 (n, 32, 32, 3), the training images and then the test images
                      labels.npy    int64 (n,)
                      meta.json     classes, statistics, counts, the source's signature, the files' digests
                      images.beton  the same for FFCV, written when it is first used

An image's id is its position in these arrays.
"""

import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from tqdm import tqdm

from data.decode import decode_stream
from data.files import read_json, sha256_of, sync_folder, write_atomically, write_json, written_atomically
from data.sources import Contents, Source
from data.spec import IMAGE_SIZE

_FORMAT = 3


@dataclass(frozen=True)
class Prepared:
    """A decoded data set.

    folder: where the cache is.
    images: uint8 (n, 32, 32, 3), mapped from the file, so that the processes of a machine share them.
    labels: int64 (n,).
    train_count: ids below it are training images, the others test images.
    classes: names, by label.
    mean, std: per channel (RGB), of training pixels scaled to 0..1.
    digest: of images, labels, classes and split; equal where the same data was prepared.
    train_digest: the same of the training images alone, whatever test images there are.
    """

    folder: Path
    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    train_count: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str
    train_digest: str

    @property
    def test_ids(self) -> range:
        return range(self.train_count, len(self.labels))


def prepare(source: Source, cache_dir: Path) -> Prepared:
    """Open the prepared cache of `source`, building it first where it is absent, damaged or out of date.

    Any number of processes may call this together: one builds, the others wait for it.

    Raises:
        InputError: an image or label that the user has to mend; nothing is left behind.
    """
    folder = cache_dir / hashlib.sha256(os.fsencode(source.key)).hexdigest()[:16]
    # The source is listed while the cache is read: each takes tenths of a second. A signature from before a wait
    # for the lock may be older than what is built then: at worst the next start builds it once more.
    with ThreadPoolExecutor(1) as pool:
        signature = pool.submit(source.signature)
        with cache_lock(folder):
            meta = _whole(folder)
            if meta is None or meta["signature"] != signature.result():
                _build(source, signature.result(), folder)
                meta = _whole(folder)
            if meta is None:
                reason = "the cache just written does not match its digests; check the disk"
                raise OSError(errno.EIO, reason, str(folder))
            return _open(folder, meta)


def _open(folder: Path, meta: dict[str, Any]) -> Prepared:
    return Prepared(
        folder=folder,
        images=np.load(folder / "images.npy", mmap_mode="c"),  # torch takes no arrays that are read-only
        labels=np.load(folder / "labels.npy"),
        train_count=meta["train_count"],
        classes=tuple(meta["classes"]),
        mean=tuple(meta["mean"]),
        std=tuple(meta["std"]),
        digest=meta["digest"],
        train_digest=meta["train_digest"],
    )


@contextmanager
def cache_lock(folder: Path) -> Iterator[None]:
    """Held while a cache folder is checked or built. The system frees it when its holder dies.

    Where we may not write there is no lock: we change nothing there, and what others change is checked.
    """
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:
        if not folder.exists() or os.access(folder.parent, os.W_OK):
            raise
    try:
        yield
    finally:
        lock.release()


def _whole(folder: Path) -> dict[str, Any] | None:
    """The cache's meta.json, if its files have their digests."""
    try:
        meta = read_json(folder / "meta.json")
        if meta.pop("sha256") != _digest_of(meta):
            return None
        if meta["format"] != _FORMAT:
            return None
        if any(sha256_of(folder / name) != digest for name, digest in meta["files"].items()):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return meta


def _digest_of(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _build(source: Source, signature: str, folder: Path) -> None:
    """Decode into a temporary folder, then rename it. Called with the lock held."""
    for remnant in folder.parent.glob(f"{folder.name}.*.tmp"):  # of a process that was killed
        shutil.rmtree(remnant, ignore_errors=True)
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        contents = source.load()
        train_digests = _write_arrays(contents, temporary)
        files = {name: sha256_of(temporary / name) for name in ("images.npy", "labels.npy")}
        mean, std = (contents.spec.mean, contents.spec.std) if contents.spec else _statistics(contents, temporary)
        content = {"classes": contents.classes, "train_count": len(contents.train.labels), "files": files}
        meta = {
            "format": _FORMAT,
            "source": source.key,
            "signature": signature,
            "mean": mean,
            "std": std,
            **content,
            "digest": _digest_of(content),
            "train_digest": _digest_of({"classes": contents.classes, "arrays": train_digests}),
        }
        write_json(temporary / "meta.json", meta | {"sha256": _digest_of(meta)})
        _remove(folder)
        os.replace(temporary, folder)
        sync_folder(folder.parent)
    except OSError as error:  # a full disk: the temporary folder is gone when this is read
        if str(error.filename).startswith(str(temporary)):
            error.filename = str(folder)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove(folder: Path) -> None:
    """A former cache, or what is in its place; OSError with its name."""
    try:
        if folder.is_symlink() or folder.is_file():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        error.filename = str(folder)  # rmtree names no more than a file in it
        raise


def _write_arrays(contents: Contents, folder: Path) -> list[str]:
    """Through file handles: of a full disk they raise OSError, where a memory map would kill the process.

    Returns the SHA-256 of the training images, and of their labels.
    """
    labels = np.concatenate([contents.train.labels, contents.test.labels])
    serialized = io.BytesIO()
    np.save(serialized, labels)
    write_atomically(folder / "labels.npy", serialized.getvalue())
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(labels), IMAGE_SIZE, IMAGE_SIZE, 3)}
    digest, left = hashlib.sha256(), len(contents.train.labels)
    bar = tqdm(total=len(labels), desc="decoding", unit="image", disable=None)
    with written_atomically(folder / "images.npy") as temporary, open(temporary, "wb") as file, bar:
        np.lib.format.write_array_header_1_0(file, header)
        parts = (contents.train.images, contents.test.images)
        as_files = all(isinstance(part, list) for part in parts)
        # one stream for both, since its processes take a second to start
        for chunk in decode_stream([path for part in parts for path in part], 1000) if as_files else parts:
            chunk = np.ascontiguousarray(chunk)
            file.write(chunk.data)
            digest.update(chunk[:left].data)
            left = max(0, left - len(chunk))
            bar.update(len(chunk))
    return [digest.hexdigest(), hashlib.sha256(contents.train.labels.data).hexdigest()]


def _statistics(contents: Contents, folder: Path) -> tuple[list[float], list[float]]:
    """Mean and deviation per channel of the training pixels, scaled to 0..1, from exact integer sums."""
    images = np.load(folder / "images.npy", mmap_mode="r")[: len(contents.train.labels)]
    values = np.arange(256)
    mean, std = [], []
    for channel in range(3):
        counts = np.zeros(256, dtype=np.int64)
        for part in np.array_split(images, 20):  # in parts, to bound the memory
            counts += np.bincount(part[..., channel].ravel(), minlength=256)
        average = float((counts * values).sum() / counts.sum() / 255)
        variance = float((counts * values**2).sum() / counts.sum() / 255**2) - average**2
        mean.append(average)
        std.append(max(variance, 1e-12) ** 0.5)
    return mean, std
