"""Files that are complete or absent."""

import errno
import glob
import hashlib
import json
import os
import secrets
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

DAY_S = 24 * 60 * 60


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it is flushed to disk and renamed to `path`.

    When the body raises, `path` keeps its former content and no temporary file stays behind. Of several processes
    that write one path together the last one's content stays. A link is followed.

    Raises:
        OSError: with `path` as its file name, where the error itself names the temporary file or none.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = f".{path.name[:50]}"  # a name may have 255 bytes, four for a letter
    _remove_remnants(path.parent, stem)
    temporary = path.with_name(f"{stem}.{_process_space()}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        _sync_file(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno is None:  # numpy's on a full disk: all it has is a message
            raise OSError(errno.EIO, str(error), str(path)) from error
        if error.filename is None or str(error.filename) == str(temporary):
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # on a read-only disk: what failed there before is what is told
            temporary.unlink(missing_ok=True)


def _process_space() -> str:
    """Where a process' number means that process: on this machine and, on Linux, in this container."""
    container = 0
    with suppress(OSError):
        container = os.stat("/proc/self/ns/pid").st_ino
    return f"{zlib.crc32(f'{socket.gethostname()} {container}'.encode()):08x}"


def _remove_remnants(folder: Path, stem: str) -> None:
    """Remove what writers that were killed have left: of other machines and containers, what is a day old."""
    for remnant in folder.glob(f"{glob.escape(stem)}.*.tmp"):
        with suppress(OSError, ValueError):  # another process removes it, or uses it; another program's name
            space, pid = remnant.name.split(".")[-4:-2]
            is_dead = space == _process_space() and not psutil.pid_exists(int(pid))
            if is_dead or time.time() - remnant.stat().st_mtime > DAY_S:
                remnant.unlink()


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Make `content` the content of `path`, or leave `path` as it is."""
    with written_atomically(path) as temporary:
        temporary.write_bytes(content)


def write_with_digest(path: Path, content: bytes | memoryview) -> None:
    """As `write_atomically`, with <path>.sha256 beside it, as `sha256sum --check` reads it.

    A digest without its file means nothing, a file without its digest is damaged: so the digest is there first,
    beside that of the former content, if any, until this one has taken its place. It comes when the disk has
    taken the content, so that a full disk leaves a former pair as it is.
    """
    line = _digest_line(path, hashlib.sha256(content).hexdigest())
    replaces = path.exists() and check_digest(path)
    with written_atomically(path) as temporary:
        temporary.write_bytes(content)
        _sync_file(temporary)
        former = _digest_file(path).read_bytes() if replaces else b""
        write_atomically(_digest_file(path), former + line)
    if replaces:
        write_atomically(_digest_file(path), line)


def _sync_file(path: Path) -> None:
    with open(path, "rb+") as handle:
        os.fsync(handle.fileno())


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


def _digest_line(path: Path, sha256: str) -> bytes:
    return f"{sha256}  ".encode() + os.fsencode(path.name) + b"\n"


def check_digest(path: Path) -> bool:
    """Whether <path>.sha256 is the one that belongs to the content of `path`; False without such a file.

    Raises:
        OSError: `path` cannot be read.
    """
    try:
        recorded = _digest_file(path).read_bytes()
    except FileNotFoundError:
        return False
    return _digest_line(path, sha256_of(path)) in recorded.splitlines(keepends=True)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, _json(value))


def read_json(path: Path) -> Any:
    """What `write_json` wrote.

    Raises:
        ValueError: the file is not JSON, or not to the byte as `write_json` writes it.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    value = json.loads(content)
    if _json(value) != content:
        raise ValueError(f"{path}: not as it was written")
    return value


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
