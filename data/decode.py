"""Image files to pixels, on all allowed cores."""

import errno
import os
import signal
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from data.errors import InputError
from data.parent import die_with_parent
from data.spec import IMAGE_SIZE

_MODES = ("RGB", "L", "P", "RGBA", "LA", "1")
# By content, not by name: for EPS, say, Pillow would start another program.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF")
_NOT_THE_FILES_FAULT = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, getattr(errno, "ESTALE", errno.EIO)}


def allowed_cores() -> int:
    """The cores this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def decode(path: str | Path) -> npt.NDArray[np.uint8]:
    """One image file as uint8 (32, 32, 3), RGB.

    Greyscale, palette and RGBA are converted (alpha is dropped); 16-bit, CMYK, animated images and those of
    another size are refused with InputError.

    Raises:
        OSError, MemoryError: the disk or the machine is to blame, and not the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of sizes that are refused and alpha that is dropped here
            return _pixels(path)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # on a damaged file Pillow raises nearly anything
        if isinstance(error, OSError) and error.errno in _NOT_THE_FILES_FAULT:
            raise
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a readable image ({reason}); replace or remove it") from error


def _pixels(path: str | Path) -> npt.NDArray[np.uint8]:
    with Image.open(path, formats=_FORMATS) as image:
        raw_modes = {str(tile[3]) for tile in image.tile}  # RGB;16B and such where Pillow would drop bits
        if image.mode not in _MODES or any(";16" in mode for mode in raw_modes):
            kind = f"mode {image.mode}" if image.mode not in _MODES else f"16-bit {image.mode}"
            raise InputError(f"{path}: {kind} is not read; save it as an 8-bit RGB image")
        if getattr(image, "n_frames", 1) > 1:
            raise InputError(f"{path}: has several frames; save it as one 8-bit RGB image")
        if image.size != (IMAGE_SIZE, IMAGE_SIZE):
            width, height = image.size
            raise InputError(f"{path}: {width}x{height} pixels; expected {IMAGE_SIZE}x{IMAGE_SIZE}: resize it")
        return np.asarray(image.convert("RGB"))


def decode_fast(path: str | Path) -> npt.NDArray[np.uint8]:
    """What `decode` gives, but PNG files as Kaggle's are by OpenCV, which is faster."""
    decode_png = _opencv()
    if decode_png is None:
        return decode(path)
    content, pixels = b"", None
    with suppress(OSError):
        content = _first_bytes(path, 4 * IMAGE_SIZE**2)  # more than such a file has
    if is_plain_png(content):
        with suppress(Exception):  # which would say nothing of the file: Pillow does
            pixels = decode_png(np.frombuffer(content, np.uint8))
    return decode(path) if pixels is None else pixels


def _first_bytes(path: str | Path, count: int) -> bytes:
    """Up to `count` bytes from the start of a file. To make a file object would take as long again."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        return os.read(descriptor, count)
    finally:
        os.close(descriptor)


@cache
def _opencv() -> Callable[..., Any] | None:
    """OpenCV's decoder of images in memory, where FFCV has brought it along, and it is whole and not too old."""
    try:
        from cv2 import IMREAD_COLOR_RGB, imdecode
    except Exception:  # a broken installation raises nearly anything
        return None
    return partial(imdecode, flags=IMREAD_COLOR_RGB)


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


# All of a PNG before its pixels, if it is 8-bit RGB and says nothing else; and its end.
_PNG_HEADER = struct.pack(">IIBBBBB", IMAGE_SIZE, IMAGE_SIZE, 8, 2, 0, 0, 0)
_PNG_START = b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", _PNG_HEADER)
_PNG_END = _png_chunk(b"IEND", b"")


def is_plain_png(content: bytes) -> bool:
    """Whether it is a PNG of 8-bit RGB, 32x32, with its pixels in one chunk and no others, and right checksums."""
    pixels = content[len(_PNG_START) + 8 : -len(_PNG_END) - 4]
    return content == _PNG_START + _png_chunk(b"IDAT", pixels) + _PNG_END


def decode_stream(paths: Sequence[str | Path], size: int) -> Iterator[npt.NDArray[np.uint8]]:
    """The images of `paths` in order, `size` at a time: uint8 (size, 32, 32, 3), the last one shorter.

    One chunk for each core is decoded ahead, so that memory stays bounded for any number of images.
    """
    chunks = [paths[start : start + size] for start in range(0, len(paths), size)]
    if len(chunks) <= 1:  # not worth starting processes, nor importing OpenCV
        for chunk in chunks:
            yield np.stack([decode(path) for path in chunk])
        return
    count = min(allowed_cores(), len(chunks))
    with ExitStack() as stack:
        workers = [stack.enter_context(_worker()) for _ in range(count)]
        stack.enter_context(_killed_worker_told(os.path.dirname(paths[0])))
        for worker, chunk in zip(workers, chunks, strict=False):
            worker.send(chunk)
        for number in range(len(chunks)):
            worker = workers[number % count]
            decoded = worker.recv()
            if number + count < len(chunks):
                worker.send(chunks[number + count])
            if isinstance(decoded, Exception):
                raise decoded
            yield decoded


@contextmanager
def _worker() -> Iterator[Any]:
    """The connection to a process that decodes the chunks which it is sent.

    Not a pool: of a pool whose processes are all killed, named semaphores would stay on the system.
    """
    # spawn: a forked child would inherit torch's threads and locks in an unknown state
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, os.getpid()), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.kill()
        process.join()
        ours.close()


def _serve(connection: Any, parent: int) -> None:
    die_with_parent(parent, getattr(signal, "SIGKILL", 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches this process too; the parent will end it
    with open(os.devnull, "w") as nowhere:  # where libpng tells what it finds odd about a file
        os.dup2(nowhere.fileno(), 2)
    with suppress(EOFError):  # the parent is gone
        while True:
            connection.send(_decoded_or_why_not(connection.recv()))


def _decoded_or_why_not(paths: Sequence[str | Path]) -> npt.NDArray[np.uint8] | Exception:
    try:
        return np.stack([decode_fast(path) for path in paths])
    except (InputError, OSError, MemoryError) as error:
        return error


@contextmanager
def _killed_worker_told(folder: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError):
        reason = "a process that decodes images has ended; was it killed, for want of memory?"
        raise OSError(errno.ECHILD, reason, folder) from None
