"""Files that are complete or absent."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it is flushed to disk and renamed to `path`.

    When the body raises, `path` keeps its former content and no temporary file stays behind.

    Raises:
        OSError: with `path` as its file name, where the error itself names none (a full disk).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")  # one name: what a killed process left is overwritten
    try:
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Make `content` the content of `path`, or leave `path` as it is."""
    with written_atomically(path) as temporary:
        temporary.write_bytes(content)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable. Windows cannot open folders, and needs no such call."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _digest_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def write_digest(path: Path, content: bytes | memoryview) -> None:
    """Write <path>.sha256, as `sha256sum --check` reads it, for a `path` that will have this content."""
    line = f"{hashlib.sha256(content).hexdigest()}  {path.name}\n"
    write_atomically(_digest_file(path), line.encode())


def check_digest(path: Path) -> bool:
    """Whether the content of `path` is the one that <path>.sha256 was written for; False without such a file.

    Raises:
        OSError: `path` cannot be read.
    """
    try:
        recorded = _digest_file(path).read_text(encoding="ascii").split()
    except (FileNotFoundError, UnicodeDecodeError):
        return False
    return recorded[:1] == [sha256_of(path)]


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())
