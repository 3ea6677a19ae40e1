"""The cache on disk: decoded once, whole or not there, and no older than its source."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from data import prepared as preparing
from data import shapes
from data.errors import InputError
from data.prepared import Prepared, prepare
from data.sources import Contents, Source, Split, find_source
from data.spec import CIFAR10, CIFAR100
from tests.images import (
    Pixels,
    PixelSource,
    accept_checksums,
    pixel_source,
    random_images,
    save_image,
    write_archive,
    write_class_folder,
    write_kaggle,
    write_labels,
)


def listing(folder: Path) -> list[str]:
    """What lies in a cache folder or in the caches' folder, less the locks."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    path.write_bytes(content)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """Kaggle's layout with the images 1 to 12, cat and dog in turn, and two test images."""
    folder = tmp_path / "animals"
    write_kaggle(folder, ["cat", "dog"] * 6, ["dog", "cat"])
    return folder


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were decoded, in order; the test may clear it."""
    paths: list[Path] = []
    decode_stream = preparing.decode_stream

    def recording(chosen: Sequence[Path], size: int) -> Iterator[Pixels]:
        paths.extend(chosen)
        return decode_stream(chosen, size)

    monkeypatch.setattr(preparing, "decode_stream", recording)
    return paths


# Contents ---------------------------------------------------------------------------------------------------


def test_ids_are_the_places_of_the_training_and_then_the_test_images(animals: Path, cache: Path) -> None:
    found = prepare(find_source("folder", animals), cache)
    np.testing.assert_array_equal(found.images, random_images(14))
    assert found.labels.tolist() == [0, 1] * 6 + [1, 0]
    assert found.labels.dtype == np.int64
    assert found.train_count == 12
    assert found.test_ids == range(12, 14)
    assert found.classes == ("cat", "dog")


def test_images_that_do_not_fill_a_chunk_are_all_there(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks of decoded images, without a file for each; in one stream, whose processes start once."""
    images, asked = random_images(23), []

    def three_at_a_time(paths: Sequence[Path], size: int) -> Iterator[Pixels]:
        numbers = np.array([int(path.name) for path in paths])
        asked.append(len(numbers))
        return (images[numbers[start : start + 3]] for start in range(0, len(numbers), 3))

    monkeypatch.setattr(preparing, "decode_stream", three_at_a_time)
    source = PixelSource(
        Split([Path(str(number)) for number in range(16)], np.zeros(16, np.int64)),
        Split([Path(str(number)) for number in range(16, 23)], np.ones(7, np.int64)),
    )
    np.testing.assert_array_equal(prepare(source, cache).images, images)
    assert asked == [23]


def test_other_images_mean_and_deviation_are_numpys_over_the_training_pixels(cache: Path) -> None:
    source = pixel_source(train_count=50, test_count=7)
    source.train.images = (source.train.images * np.array([1, 0.5, 0.1])).astype(np.uint8)  # type: ignore[operator]
    found = prepare(source, cache)
    pixels = np.asarray(source.train.images).astype(np.float64) / 255
    np.testing.assert_allclose(found.mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.std, pixels.std(axis=(0, 1, 2)), rtol=1e-9)


def test_images_of_one_colour_have_a_deviation_to_divide_by(cache: Path) -> None:
    source = pixel_source(train_count=3)
    source.train.images = np.full((3, 32, 32, 3), 200, np.uint8)
    found = prepare(source, cache)
    assert found.mean == pytest.approx((200 / 255,) * 3)
    assert all(deviation > 0 for deviation in found.std)


def test_cifars_mean_and_deviation_are_the_known_ones(tmp_path: Path, cache: Path) -> None:
    write_kaggle(tmp_path / "cifar", CIFAR10.classes)
    found = prepare(find_source("cifar10", tmp_path / "cifar"), cache)
    assert (found.mean, found.std, found.classes) == (CIFAR10.mean, CIFAR10.std, CIFAR10.classes)


def test_the_digest_is_that_of_the_data_wherever_it_comes_from(tmp_path: Path, cache: Path) -> None:
    for name in ("one", "same"):
        write_kaggle(tmp_path / name, ["a", "b", "a"])
    write_kaggle(tmp_path / "relabelled", ["a", "b", "b"])
    write_kaggle(tmp_path / "redrawn", ["a", "b", "a"], seed=1)
    names = ("one", "same", "relabelled", "redrawn")
    digests = [prepare(find_source("folder", tmp_path / name), cache).digest for name in names]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


# Every source: training, validation and test images never meet ----------------------------------------------


EVERY_SOURCE = ("kaggle", "one level", "two levels", "cifar10 archive", "cifar100 archive", "shapes")


def make_source(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Source, Pixels, Pixels]:
    """A source with several images in each class, and its training and test pixels as they were written."""
    if kind == "kaggle":
        pixels = write_kaggle(folder, ["cat", "dog"] * 10, ["dog", "cat", "dog"] * 2)
        return find_source("folder", folder), *pixels
    if kind == "one level":
        train = write_class_folder(folder, ["a", "b", "c"], 7)
        return find_source("folder", folder), train, random_images(0)
    if kind == "two levels":
        train = write_class_folder(folder / "train", ["a", "b"], 10)
        test = write_class_folder(folder / "test", ["a", "b"], 3, seed=1)
        return find_source("folder", folder), train, test
    if kind == "shapes":
        monkeypatch.setattr(shapes, "TRAIN_COUNT", 40)
        monkeypatch.setattr(shapes, "TEST_COUNT", 20)
        pixels = tuple(shapes.generate(0, count, name)[0] for name, count in (("train", 40), ("test", 20)))
        return find_source("shapes", folder), *pixels
    spec = CIFAR10 if kind == "cifar10 archive" else CIFAR100
    classes = list(range(len(spec.classes)))
    pixels = write_archive(folder, spec, classes * 2, [5, 6, 7])
    accept_checksums(monkeypatch, folder, spec)
    return find_source(spec.name, folder), *pixels


def digests(images: Pixels) -> list[bytes]:
    return [image.tobytes() for image in images]


@pytest.mark.parametrize("kind", EVERY_SOURCE)
def test_training_validation_and_test_images_never_meet(
    kind: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch  # here, since the processes that this file starts would each take seconds for it

    from data.sampling import split

    source, train_pixels, test_pixels = make_source(kind, tmp_path / "images", monkeypatch)
    found = prepare(source, cache)
    train, validation = (
        ids.tolist() for ids in split(torch.from_numpy(found.labels)[: found.train_count], 0.2, 0)
    )
    test = list(found.test_ids)
    assert sorted(train + validation + test) == list(range(len(found.labels)))
    assert len(validation) >= 2

    images = digests(found.images)
    assert len(set(images)) == len(images)
    assert sorted(images[number] for number in train + validation) == sorted(digests(train_pixels))
    assert [images[number] for number in test] == digests(test_pixels)


@pytest.mark.parametrize("kind", EVERY_SOURCE)
def test_every_source_is_found_again_without_reading_it(
    kind: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _, _ = make_source(kind, tmp_path / "images", monkeypatch)
    first = prepare(source, cache)

    def must_not_load(self: Source) -> Contents:
        raise AssertionError("read again")

    monkeypatch.setattr(type(source), "load", must_not_load)
    again = prepare(source, cache)
    assert again.digest == first.digest
    assert (again.classes, again.mean, again.std, again.train_count) == (
        *(first.classes, first.mean, first.std, first.train_count),
    )
    np.testing.assert_array_equal(again.images, first.images)


# Built when it has to be ------------------------------------------------------------------------------------


def test_images_are_decoded_once(animals: Path, cache: Path, decoded: list[Path]) -> None:
    for _ in range(3):
        prepare(find_source("folder", animals), cache)
    assert len(decoded) == 14


def test_the_same_folder_by_another_path_is_not_decoded_again(
    animals: Path, cache: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(find_source("folder", animals), cache)
    monkeypatch.chdir(animals.parent)
    prepare(find_source("folder", Path("animals")), cache)
    assert len(decoded) == 14


@pytest.mark.parametrize("levels", [1, 2])
def test_class_folders_by_another_path_are_not_decoded_again(
    tmp_path: Path, cache: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch, levels: int
) -> None:
    folder = tmp_path / "images"
    write_class_folder(folder / "train" if levels == 2 else folder, ["a", "b"], 1)
    prepare(find_source("folder", folder), cache)
    decoded.clear()
    for here, name in ((tmp_path, "images"), (folder, ".")):
        monkeypatch.chdir(here)
        prepare(find_source("folder", Path(name)), cache)
    assert decoded == []


def test_two_folders_have_two_caches(tmp_path: Path, cache: Path, decoded: list[Path]) -> None:
    for name in ("one", "other"):
        write_kaggle(tmp_path / name, ["a", "b"])
    for name in ("one", "other", "one", "other"):
        prepare(find_source("folder", tmp_path / name), cache)
    assert len(decoded) == 4


def test_a_folder_opened_as_another_data_set_is_read_as_that(tmp_path: Path, cache: Path) -> None:
    write_kaggle(tmp_path, CIFAR10.classes[::-1])
    as_folder = prepare(find_source("folder", tmp_path), cache)
    assert as_folder.mean != CIFAR10.mean
    as_cifar = prepare(find_source("cifar10", tmp_path), cache)
    assert (as_cifar.classes, as_cifar.mean) == (CIFAR10.classes, CIFAR10.mean)
    assert as_cifar.labels.tolist() == list(range(10))[::-1]
    with pytest.raises(InputError, match="unknown class 'truck'"):
        prepare(find_source("cifar100", tmp_path), cache)


def replace_image(animals: Path) -> None:
    save_image(animals / "train" / "3.png", random_images(1, seed=9)[0])


def replace_image_by_one_of_its_size(animals: Path) -> None:
    path = animals / "train" / "3.png"
    size = path.stat().st_size
    for seed in range(100):
        save_image(path, random_images(1, seed)[0])
        if path.stat().st_size == size and seed > 0:
            return
    raise AssertionError("no other image of the same size found")


def change_label(animals: Path) -> None:
    write_labels(animals / "trainLabels.csv", enumerate(["dog", *["dog", "cat"] * 5, "dog"], start=1))


def add_image(animals: Path) -> None:
    save_image(animals / "train" / "13.png", random_images(1, seed=9)[0])
    write_labels(animals / "trainLabels.csv", enumerate([*["cat", "dog"] * 6, "cat"], start=1))


def remove_image(animals: Path) -> None:
    (animals / "train" / "12.png").unlink()
    write_labels(animals / "trainLabels.csv", enumerate([*["cat", "dog"] * 5, "cat"], start=1))


def replace_test_image(animals: Path) -> None:
    save_image(animals / "test" / "1.png", random_images(1, seed=9)[0])


def remove_test_labels(animals: Path) -> None:
    (animals / "testLabels.csv").unlink()


@pytest.mark.parametrize(
    "change",
    [
        *(replace_image, replace_image_by_one_of_its_size, change_label, add_image, remove_image),
        *(replace_test_image, remove_test_labels),
    ],
)
def test_a_change_of_kaggles_folder_is_noticed(animals: Path, cache: Path, change: Callable[[Path], None]) -> None:
    before = prepare(find_source("folder", animals), cache)
    change(animals)
    after = prepare(find_source("folder", animals), cache)
    fresh = prepare(find_source("folder", animals), cache.with_name("fresh"))
    assert after.digest != before.digest
    assert (after.digest, after.train_count) == (fresh.digest, fresh.train_count)
    assert len(listing(cache)) == 1


@pytest.mark.parametrize("levels", [1, 2])
def test_changes_of_class_folders_are_noticed(tmp_path: Path, cache: Path, levels: int) -> None:
    folder = tmp_path / "images"
    root = folder / "train" if levels == 2 else folder
    write_class_folder(root, ["a", "b"], 3)

    def digest() -> str:
        return prepare(find_source("folder", folder), cache).digest

    seen = [digest()]
    save_image(root / "a" / "2.png", random_images(1, seed=9)[0])
    seen.append(digest())
    (root / "a" / "3.png").rename(root / "b" / "4.png")
    seen.append(digest())
    save_image(root / "c" / "1.png", random_images(1, seed=8)[0])
    seen.append(digest())
    if levels == 2:
        write_class_folder(folder / "test", ["a", "b", "c"], 1, seed=7)
        seen.append(digest())
    assert len(set(seen)) == len(seen)


def test_images_that_change_places_are_noticed_when_size_and_time_stay(tmp_path: Path, cache: Path) -> None:
    """As of bitmaps that an archive is unpacked over."""
    folder = tmp_path / "images"
    write_class_folder(folder, ["a", "b"], 1)
    one, other = (folder / name / "1.bmp" for name in ("a", "b"))
    for path, pixels in zip((one, other), random_images(2), strict=True):
        save_image(path, pixels)
        os.utime(path, (1, 1))
    before = prepare(find_source("folder", folder), cache)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    for path in (one, other):
        os.utime(path, (1, 1))
    assert prepare(find_source("folder", folder), cache).digest != before.digest


def test_shapes_drawn_by_other_code_are_drawn_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "TRAIN_COUNT", 10)
    monkeypatch.setattr(shapes, "TEST_COUNT", 10)
    before = prepare(find_source("shapes", tmp_path), cache)
    changed = tmp_path / "shapes.py"
    changed.write_text(Path(shapes.__file__).read_text() + "\n# changed\n")
    monkeypatch.setattr(shapes, "__file__", str(changed))
    monkeypatch.setattr(shapes, "TRAIN_COUNT", 20)
    assert prepare(find_source("shapes", tmp_path), cache).train_count == 20 != before.train_count


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "meta.json"])
def test_a_cache_with_a_file_missing_is_built_anew(cache: Path, name: str) -> None:
    source = pixel_source(11, 3)
    intact = prepare(source, cache)
    contents = {path.name: path.read_bytes() for path in intact.folder.iterdir()}
    (intact.folder / name).unlink()
    rebuilt = prepare(source, cache)
    assert source.loads == 2
    assert {path.name: path.read_bytes() for path in rebuilt.folder.iterdir()} == contents


def test_the_digest_is_of_split_and_classes_too(cache: Path) -> None:
    """The pixels and labels of all three are the same."""
    whole, moved, renamed = pixel_source(11, 3), pixel_source(10, 4), pixel_source(11, 3)
    renamed.classes = ("a", "b", "d")
    for number, source in enumerate((whole, moved, renamed)):
        source.key = str(number)
    prepared = [prepare(source, cache) for source in (whole, moved, renamed)]
    assert len({each.digest for each in prepared}) == 3
    np.testing.assert_array_equal(prepared[0].images, prepared[1].images)


def test_training_images_have_a_digest_of_their_own(animals: Path, cache: Path) -> None:
    """It stays when test images come in or go."""
    whole = prepare(find_source("folder", animals), cache)
    remove_test_labels(animals)
    without = prepare(find_source("folder", animals), cache)
    assert (whole.train_digest == without.train_digest, whole.digest == without.digest) == (True, False)
    change_label(animals)
    assert prepare(find_source("folder", animals), cache).train_digest != whole.train_digest


def test_a_cache_that_is_a_link_or_a_file_or_makes_no_sense_is_built_anew(cache: Path, tmp_path: Path) -> None:
    source = pixel_source(11)
    folder = prepare(source, cache).folder
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    prepare(source, cache)
    assert source.loads == 1
    (folder / "meta.json").write_text("[" * 100_000)
    prepare(source, cache)
    assert (source.loads, folder.is_symlink()) == (2, False)
    shutil.rmtree(folder)
    folder.touch()
    assert prepare(source, cache).folder.is_dir()


def test_a_cache_that_may_not_be_written_to_is_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = pixel_source(11)
    prepare(source, cache)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "x.lock")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(PermissionError):  # of a lock that somebody else has made in a folder of all
        prepare(source, cache)
    monkeypatch.setattr(os, "access", lambda *_: False)
    np.testing.assert_array_equal(prepare(source, cache).images, random_images(11))
    assert source.loads == 1
    with pytest.raises(PermissionError):
        prepare(source, cache.with_name("absent"))


@pytest.mark.parametrize(("key", "value"), [("train_count", 12), ("classes", ["b", "a", "c"]), ("files", [])])
def test_a_cache_whose_description_was_altered_is_built_anew(cache: Path, key: str, value: object) -> None:
    source = pixel_source(11, 3)
    path = prepare(source, cache).folder / "meta.json"
    described: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps(described | {key: value}))
    found = prepare(source, cache)
    assert source.loads == 2
    assert (found.train_count, found.classes) == (11, ("a", "b", "c"))


def test_a_cache_of_another_format_is_built_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = pixel_source(11)
    prepare(source, cache)
    monkeypatch.setattr(preparing, "_FORMAT", preparing._FORMAT + 1)
    prepare(source, cache)
    prepare(source, cache)
    assert source.loads == 2


def test_a_rebuilt_cache_leaves_nothing_of_the_former_one(cache: Path) -> None:
    source = pixel_source(11)
    folder = prepare(source, cache).folder
    (folder / "images.beton").touch()
    source.version = "2"
    prepare(source, cache)
    assert listing(folder) == ["images.npy", "labels.npy", "meta.json"]
    assert listing(cache) == [folder.name]


def test_an_open_cache_stays_readable_while_it_is_built_anew(cache: Path) -> None:
    source = pixel_source(11)
    opened = prepare(source, cache)
    source.version = "2"
    source.train = pixel_source(11, seed=1).train
    prepare(source, cache)
    np.testing.assert_array_equal(opened.images, random_images(11))


def test_a_disk_that_does_not_keep_what_is_written_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json = preparing.write_json

    def damaging(path: Path, value: object) -> None:
        write_json(path, value)
        flip_bit(path.with_name("images.npy"))

    monkeypatch.setattr(preparing, "write_json", damaging)
    with pytest.raises(OSError, match="does not match its digests"):
        prepare(pixel_source(11), cache)


# Nothing half done ------------------------------------------------------------------------------------------


def test_a_failing_image_leaves_nothing_behind(animals: Path, cache: Path) -> None:
    (animals / "train" / "7.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"7\.png: not a readable image"):
        prepare(find_source("folder", animals), cache)
    assert listing(cache) == []
    save_image(animals / "train" / "7.png", random_images(12)[6])
    np.testing.assert_array_equal(prepare(find_source("folder", animals), cache).images, random_images(14))


def test_a_source_that_fails_leaves_the_former_cache_in_place(animals: Path, cache: Path) -> None:
    folder = prepare(find_source("folder", animals), cache).folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    save_image(animals / "train" / "13.png", random_images(1, seed=9)[0])
    with pytest.raises(InputError, match="no row with id 13"):
        prepare(find_source("folder", animals), cache)
    assert listing(cache) == [folder.name]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


class KilledSource(PixelSource):
    """Ends its process in the midst of a build, as the system does when memory runs out."""

    def load(self) -> Contents:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def run_in_processes(count: int, target: Callable[..., None], *arguments: object) -> list[int | None]:
    """Run `target` in fresh processes at once; returns their exit codes."""
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(count)
    processes = [context.Process(target=target, args=(start, *arguments)) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        process.kill()  # only one that hangs is still there
    return [process.exitcode for process in processes]


def prepare_killed(start: Any, cache: Path) -> None:
    source = pixel_source(11)
    prepare(KilledSource(source.train, source.test), cache)


def test_what_a_killed_build_left_is_removed_and_its_lock_is_free(cache: Path) -> None:
    assert run_in_processes(1, prepare_killed, cache) == [-signal.SIGKILL]
    (remnant,) = listing(cache)
    assert remnant.endswith(".tmp")
    found = prepare(pixel_source(11), cache)
    assert listing(cache) == [found.folder.name]


class LoggingSource(PixelSource):
    """Writes a line into a file each time that it is read."""

    log: Path

    def load(self) -> Contents:
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()}\n")
        return super().load()


def prepare_together(start: Any, cache: Path, log: Path, result: Any) -> None:
    pixels = pixel_source(500)
    source = LoggingSource(pixels.train, pixels.test)
    source.log = log
    start.wait()
    found = prepare(source, cache)
    result.put((found.digest, np.array_equal(found.images, random_images(500))))


def test_processes_that_start_together_build_the_cache_once(cache: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    result = multiprocessing.get_context("spawn").SimpleQueue()
    assert run_in_processes(4, prepare_together, cache, log, result) == [0] * 4
    assert len(log.read_text().splitlines()) == 1
    found = [result.get() for _ in range(4)]
    assert len(set(found)) == 1
    assert found[0][1]


def test_a_cache_that_another_process_checks_or_builds_is_waited_for(cache: Path) -> None:
    folder = prepare(pixel_source(11), cache).folder
    held = []

    class Watching(PixelSource):
        def load(self) -> Contents:
            lock = FileLock(folder.with_suffix(".lock"), timeout=0, is_singleton=False)
            try:
                lock.acquire()
            except TimeoutError:
                held.append(True)
            return super().load()

    source = pixel_source(11)
    changed = Watching(source.train, source.test)
    changed.version = "2"
    prepare(changed, cache)
    assert held == [True]


def test_a_cache_folder_that_is_gone_is_built_anew(cache: Path) -> None:
    source = pixel_source(11)
    prepare(source, cache)
    shutil.rmtree(cache)
    found: Prepared = prepare(source, cache)
    assert source.loads == 2
    np.testing.assert_array_equal(found.images, random_images(11))
