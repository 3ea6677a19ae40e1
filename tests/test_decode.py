"""Image files to pixels: what is accepted, what is refused and in which words, and the stream of many."""

import errno
import multiprocessing
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import numpy as np
import psutil
import pytest
from PIL import Image

from data import decode as decoding
from data.decode import decode, decode_fast, decode_stream, is_plain_png
from data.errors import InputError
from tests.images import Pixels, random_images, save_image
from tests.jobs import nobodys_shared_memory, shared_memory_of

IMAGE = random_images(1)[0]


def accepted(path: Path) -> Pixels:
    """The pixels, which both decoders give."""
    pixels = decode(path)
    np.testing.assert_array_equal(decode_fast(path), pixels)
    return pixels


def refused(path: Path, reason: str) -> None:
    """`path` is refused by both decoders in one line that begins with its name and gives the reason."""
    for decoder in (decode, decode_fast):
        with pytest.raises(InputError) as caught:
            decoder(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        assert reason in message


def chunk(kind: bytes, content: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(rows: bytes, bits: int = 8, colour_type: int = 2, before: bytes = b"", pieces: int = 1) -> bytes:
    """A PNG of 32x32, its rows as they are in the file, in as many chunks; with other chunks `before` them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, bits, colour_type, 0, 0, 0))
    stream = zlib.compress(rows)
    size = -(-len(stream) // pieces)
    pixels = b"".join(chunk(b"IDAT", stream[at : at + size]) for at in range(0, len(stream), size))
    return b"\x89PNG\r\n\x1a\n" + header + before + pixels + chunk(b"IEND", b"")


ROWS = b"".join(b"\0" + row.tobytes() for row in IMAGE)


# Accepted ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_rgb_pixels_are_read_as_they_are(tmp_path: Path, suffix: str) -> None:
    pixels = accepted(save_image(tmp_path / f"1{suffix}", IMAGE))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, IMAGE)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_formats_are_read(tmp_path: Path, suffix: str) -> None:
    gradient = np.broadcast_to(np.arange(0, 256, 8, dtype=np.uint8)[:, None, None], (32, 32, 3))
    pixels = accepted(save_image(tmp_path / f"1{suffix}", gradient))
    assert np.abs(pixels.astype(int) - gradient).max() < 20


def test_greyscale_gives_three_equal_channels(tmp_path: Path) -> None:
    pixels = accepted(save_image(tmp_path / "1.png", IMAGE[..., 0]))
    np.testing.assert_array_equal(pixels, np.repeat(IMAGE[..., :1], 3, axis=2))


def test_black_and_white_gives_0_and_255(tmp_path: Path) -> None:
    mask = IMAGE[..., 0] > 127
    Image.fromarray(mask).save(tmp_path / "1.png")
    np.testing.assert_array_equal(accepted(tmp_path / "1.png"), np.repeat(mask[..., None] * np.uint8(255), 3, 2))


def test_a_palette_gives_its_colours(tmp_path: Path) -> None:
    palette, indices = random_images(1, seed=1)[0, :8, :2].reshape(-1, 3), IMAGE[..., 0] % 16
    image = Image.fromarray(indices, mode=None)
    image.putpalette(palette.tobytes())
    image.save(tmp_path / "1.png")
    with Image.open(tmp_path / "1.png") as written:
        assert written.mode == "P"
    np.testing.assert_array_equal(accepted(tmp_path / "1.png"), palette[indices])


@pytest.mark.parametrize("channels", [2, 4], ids=["greyscale with alpha", "RGBA"])
def test_alpha_is_dropped(tmp_path: Path, channels: int) -> None:
    pixels = random_images(2).reshape(32, 32, 6)[..., :channels].copy()
    result = accepted(save_image(tmp_path / "1.png", pixels))
    np.testing.assert_array_equal(result, np.broadcast_to(pixels[..., : channels - 1], (32, 32, 3)))


# Refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("colour_type", "channels"),
    [(0, 1), (2, 3), (4, 2), (6, 4)],
    ids=["greyscale", "RGB", "greyscale with alpha", "RGBA"],
)
def test_16_bits_are_refused(tmp_path: Path, colour_type: int, channels: int) -> None:
    path = tmp_path / "1.png"
    path.write_bytes(png((b"\0" + b"\x12\x34" * 32 * channels) * 32, 16, colour_type))
    refused(path, "8-bit")


def test_cmyk_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "1.jpg"
    Image.fromarray(IMAGE).convert("CMYK").save(path)
    refused(path, "mode CMYK")


@pytest.mark.parametrize("suffix", [".png", ".webp", ".gif"])
def test_animations_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"1{suffix}"
    frames = [Image.fromarray(pixels) for pixels in random_images(2)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    refused(path, "several frames")


@pytest.mark.parametrize("size", [(31, 32), (32, 33), (64, 64), (1, 1)])
def test_other_sizes_are_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    refused(save_image(tmp_path / "1.png", pixels), f"{size[0]}x{size[1]} pixels; expected 32x32")


@pytest.mark.parametrize("content", [b"", b"id,label\n1,cat\n", b"\x89PNG\r\n\x1a\n", b"\0" * 4000, b"GIF89a"])
def test_what_is_not_an_image_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "1.png"
    path.write_bytes(content)
    refused(path, "not a readable image")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "1.png", "not a readable image")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp"])
def test_a_truncated_image_is_refused_wherever_it_ends(tmp_path: Path, suffix: str) -> None:
    path = save_image(tmp_path / f"1{suffix}", IMAGE)
    whole = path.read_bytes()
    # the last bytes hold checksums and end marks, no pixels: without them PNG is read, and right
    for length in [*range(0, 60), *range(60, len(whole) - 32, 61), len(whole) - 32]:
        path.write_bytes(whole[:length])
        refused(path, "not a readable image")


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.EMFILE, "Too many open files"), OSError(errno.EIO, "")]
)
def test_what_is_not_the_files_fault_is_not_told_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Nobody should be told to remove a good image."""
    path = save_image(tmp_path / "1.bmp", IMAGE)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(type(error)) as caught:
        decode(path)
    assert caught.value is error
    assert decoding._decoded_or_why_not([str(path)]) is error


# Quickly ----------------------------------------------------------------------------------------------------


def test_a_plain_png_is_opencvs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cv2")
    path = save_image(tmp_path / "1.png", IMAGE)
    monkeypatch.delattr(decoding, "decode")
    np.testing.assert_array_equal(decode_fast(path), IMAGE)


class BrokenModule(ModuleType):
    def __getattr__(self, name: str) -> None:
        raise RuntimeError(name)


@pytest.mark.parametrize("module", [None, ModuleType("cv2"), BrokenModule("cv2")], ids=["none", "old", "broken"])
def test_without_opencv_pillow_reads_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType | None
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", module)
    monkeypatch.setattr(decoding, "_opencv", decoding._opencv.__wrapped__)
    assert decoding._opencv() is None
    np.testing.assert_array_equal(accepted(save_image(tmp_path / "1.png", IMAGE)), IMAGE)


def test_where_opencv_fails_pillow_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(content: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(decoding, "_opencv", lambda: fail)
    np.testing.assert_array_equal(accepted(save_image(tmp_path / "1.png", IMAGE)), IMAGE)


@pytest.mark.parametrize(
    "content",
    [
        png(ROWS, before=chunk(b"gAMA", struct.pack(">I", 45455))),
        png(ROWS, before=chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))),
        png(ROWS, pieces=3),
        png(ROWS) + b"more",
        png(ROWS + b"\0" * 40),
    ],
    ids=["gamma", "transparent colour", "pixels in pieces", "bytes behind the end", "rows too many"],
)
def test_an_unusual_png_is_read_as_pillow_reads_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "1.png"
    path.write_bytes(content)
    np.testing.assert_array_equal(accepted(path), IMAGE)


@pytest.mark.parametrize(
    "rows",
    [ROWS[:-1], b"\5" + ROWS[1:], b"\xff" + ROWS[1:], b""],
    ids=["a byte too few", "a row of an unknown filter", "another", "none"],
)
def test_rows_that_are_no_image_are_refused(tmp_path: Path, rows: bytes) -> None:
    """Their checksums are right."""
    path = tmp_path / "1.png"
    path.write_bytes(png(rows))
    refused(path, "not a readable image")


def test_a_file_that_is_damaged_anywhere_is_no_plain_png() -> None:
    whole = png(ROWS)
    assert is_plain_png(whole)
    for place in range(len(whole)):
        assert not is_plain_png(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        assert not is_plain_png(whole[:place])


def test_what_is_no_plain_png_is_not_opencvs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_opencv", lambda: lambda content: pytest.fail("shown to OpenCV"))
    path = tmp_path / "1.png"
    for content in (png(ROWS, pieces=2), png(ROWS) + b"more", png(ROWS, before=chunk(b"gAMA", b"\0\0\0\1"))):
        path.write_bytes(content)
        np.testing.assert_array_equal(decode_fast(path), IMAGE)


def test_decoding_processes_print_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """libpng, in OpenCV, would print that there are rows too many."""
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for path in paths:
        path.write_bytes(png(ROWS + b"\0" * 40))
    assert len(list(decode_stream(paths, 1))) == 2
    assert capfd.readouterr() == ("", "")


# Many -------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [save_image(tmp_path / f"{number}.png", pixels) for number, pixels in enumerate(random_images(7))]


class RecordingWorker:
    """In place of a process: decodes when it is asked for the result."""

    handed: list[Sequence[str]] = []  # to all of them

    def __init__(self) -> None:
        self.waiting: list[Sequence[str]] = []

    def send(self, chunk: Sequence[str]) -> None:
        self.handed.append(chunk)
        self.waiting.append(chunk)

    def recv(self) -> Pixels | Exception:
        return decoding._decoded_or_why_not(self.waiting.pop(0))


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """The chunks that two workers were handed."""
    monkeypatch.setattr(decoding, "_worker", lambda: nullcontext(RecordingWorker()))
    monkeypatch.setattr(decoding, "allowed_cores", lambda: 2)
    RecordingWorker.handed = []
    return RecordingWorker.handed


def no_process_stays() -> None:
    assert multiprocessing.active_children() == []


def test_a_stream_is_decoded_by_processes_in_order_with_a_shorter_last_chunk(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "allowed_cores", lambda: 2)
    chunks = list(decode_stream(files, 3))
    assert [len(chunk) for chunk in chunks] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(chunks), random_images(7))
    no_process_stays()


def test_a_failing_image_fails_the_stream_and_leaves_no_process(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "allowed_cores", lambda: 2)
    files[4].write_bytes(b"")
    with pytest.raises(InputError, match=f"^{re.escape(str(files[4]))}: not a readable image[^\n]*$"):
        list(decode_stream(files, 3))
    no_process_stays()


ORPHANING = """
import multiprocessing, signal, sys
from pathlib import Path
import data.decode as decoding
if __name__ == "__main__":
    decoding.allowed_cores = lambda: 2
    stream = decoding.decode_stream([Path(path) for path in sys.argv[1:]], 1)
    next(stream)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    signal.pause()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process of its parent's death")
def test_a_killed_process_leaves_no_decoding_process(files: list[Path], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(ORPHANING)
    job = [sys.executable, str(script), *map(str, files)]
    with subprocess.Popen(job, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        process.kill()
    assert psutil.wait_procs(workers, timeout=30)[1] == []


def test_a_stream_left_early_leaves_no_process(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "allowed_cores", lambda: 1)
    stream = decode_stream(files, 1)
    next(stream)
    stream.close()
    no_process_stays()


@pytest.mark.parametrize("size", [1, 2, 6])
def test_a_streams_chunks_come_in_order_for_any_size(
    files: list[Path], handed: list[Sequence[str]], size: int
) -> None:
    chunks = list(decode_stream(files, size))
    assert [len(chunk) for chunk in chunks] == [size] * (7 // size) + [7 % size] * (7 % size > 0)
    np.testing.assert_array_equal(np.concatenate(chunks), random_images(7))


def test_a_stream_decodes_a_chunk_ahead_for_each_core_and_no_more(
    files: list[Path], handed: list[Sequence[str]]
) -> None:
    stream = decode_stream(files * 10, 1)
    for taken in range(1, 60):
        next(stream)
        assert len(handed) == taken + 2
    stream.close()
    assert len(handed) == 61


def test_one_chunk_starts_no_processes(files: list[Path], handed: list[Sequence[str]]) -> None:
    (chunk,) = decode_stream(files, 7)
    assert len(chunk) == 7
    assert handed == []


@pytest.mark.skipif(sys.platform != "linux", reason="shows its shared memory and semaphores in a folder")
def test_a_stream_has_nothing_that_would_stay_on_the_system_when_all_is_killed(files: list[Path]) -> None:
    own = psutil.Process()
    before, nobodys = shared_memory_of([own]), nobodys_shared_memory()
    stream = decode_stream(files, 1)
    next(stream)
    workers = own.children(recursive=True)
    assert workers
    assert shared_memory_of([own, *workers]) == before
    assert nobodys_shared_memory() <= nobodys  # nor is there what none of them holds open
    stream.close()


def test_a_decoding_process_that_is_killed_is_an_error_that_names_the_folder(files: list[Path]) -> None:
    stream = decode_stream(files, 1)
    next(stream)
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.kill()
        worker.join()
    with pytest.raises(OSError, match="was it killed, for want of memory") as caught:
        list(stream)
    assert caught.value.filename == str(files[0].parent)
    no_process_stays()


def test_a_stream_of_nothing_is_empty() -> None:
    assert list(decode_stream([], 3)) == []
