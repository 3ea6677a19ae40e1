"""Where images come from: each layout as it is found on disk, and each mistake in one line."""

import os
import shutil
import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock, Timeout

from data import shapes
from data.decode import decode
from data.errors import InputError
from data.labels import label_table
from data.listing import images_below, natural_order, numbered_images
from data.sources import (
    BuiltInShapes,
    ClassFolders,
    KaggleFolder,
    Source,
    Split,
    TorchvisionArchive,
    find_source,
)
from data.spec import CIFAR10, CIFAR100, SPECS
from tests.images import (
    accept_checksums,
    random_images,
    save_image,
    serve,
    write_archive,
    write_class_folder,
    write_kaggle,
    write_labels,
)

PIXELS = random_images(1)[0]


def refused(action: Callable[[], object], *parts: object) -> None:
    """The action ends with an InputError of one line that has all `parts` in it."""
    with pytest.raises(InputError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


def names(split: Split, root: Path) -> list[str]:
    return [str(Path(path).relative_to(root)) for path in split.images]


# What is known of the data sets -----------------------------------------------------------------------------


def test_cifar10_has_its_ten_classes_in_torchvisions_order() -> None:
    expected = "airplane automobile bird cat deer dog frog horse ship truck"
    assert CIFAR10.classes == tuple(expected.split())


def test_cifar100_has_100_classes_five_in_each_of_20_coarse_ones() -> None:
    assert len(set(CIFAR100.classes)) == len(CIFAR100.classes) == len(CIFAR100.coarse_of) == 100
    assert list(CIFAR100.classes) == sorted(CIFAR100.classes)
    assert len(set(CIFAR100.coarse_classes)) == 20
    assert [CIFAR100.coarse_of.count(coarse) for coarse in range(20)] == [5] * 20


def test_cifar100s_coarse_labels_are_the_archives() -> None:
    """The coarse labels of the classes 0 to 99 in the published archive."""
    published = """4 1 14 8 0 6 7 7 18 3 3 14 9 18 7 11 3 9 7 11 6 11 5 10 7 6 13 15 3 15 0 11 1 10 12 14 16 9
        11 5 5 19 8 8 15 13 14 17 18 10 16 4 17 4 2 0 17 4 18 17 10 3 2 12 12 16 12 1 9 19 2 10 0 1 16 12 9 13
        15 13 16 19 2 4 6 19 5 5 8 19 18 1 2 15 6 0 17 8 14 13"""
    assert CIFAR100.coarse_of == tuple(map(int, published.split()))


@pytest.mark.parametrize(
    ("fine", "coarse"),
    [
        ("apple", "fruit_and_vegetables"),
        ("wolf", "large_carnivores"),
        ("whale", "aquatic_mammals"),
        ("lawn_mower", "vehicles_2"),
        ("sweet_pepper", "fruit_and_vegetables"),
        ("crab", "non-insect_invertebrates"),
    ],
)
def test_a_fine_class_of_cifar100_has_its_coarse_one(fine: str, coarse: str) -> None:
    index = CIFAR100.coarse_of[CIFAR100.classes.index(fine)]
    assert CIFAR100.coarse_classes[index] == coarse


@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.name)
def test_deviations_are_those_of_pixels(spec: object) -> None:
    assert all(0.24 < deviation < 0.28 for deviation in spec.std)  # type: ignore[attr-defined]


# Kaggle's folder --------------------------------------------------------------------------------------------


def kaggle(folder: Path, dataset: str = "folder") -> Source:
    source = find_source(dataset, folder)
    assert isinstance(source, KaggleFolder)
    return source


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """Kaggle's layout with the images 1 to 12, cat and dog in turn."""
    folder = tmp_path / "animals"
    write_kaggle(folder, ["cat", "dog"] * 6)
    return folder


def test_kaggles_images_are_read_in_number_order_with_their_labels(animals: Path) -> None:
    contents = kaggle(animals).load()
    assert names(contents.train, animals) == [f"train/{number}.png" for number in range(1, 13)]
    assert contents.classes == ("cat", "dog")
    assert contents.train.labels.tolist() == [0, 1] * 6
    assert contents.train.labels.dtype == np.int64
    assert len(contents.test.labels) == 0
    assert contents.spec is None
    np.testing.assert_array_equal(decode(Path(contents.train.images[9])), random_images(12)[9])


def test_the_rows_of_kaggles_labels_may_come_in_any_order(animals: Path) -> None:
    rows = [(number, "cat" if number % 2 else "dog") for number in range(1, 13)]
    write_labels(animals / "trainLabels.csv", sorted(rows, key=lambda row: str(row[0]), reverse=True))
    assert kaggle(animals).load().train.labels.tolist() == [0, 1] * 6


def test_kaggles_labels_take_cifars_class_order(tmp_path: Path) -> None:
    write_kaggle(tmp_path, CIFAR10.classes[::-1])
    contents = kaggle(tmp_path, "cifar10").load()
    assert contents.train.labels.tolist() == list(range(10))[::-1]
    assert contents.classes == CIFAR10.classes
    assert contents.spec is CIFAR10


def test_kaggles_test_images_are_labelled_only_by_test_labels(tmp_path: Path) -> None:
    write_kaggle(tmp_path, ["a", "b", "a"], ["b", "a"])
    contents = kaggle(tmp_path).load()
    assert names(contents.test, tmp_path) == ["test/1.png", "test/2.png"]
    assert contents.test.labels.tolist() == [1, 0]
    (tmp_path / "testLabels.csv").unlink()
    assert len(kaggle(tmp_path).load().test.images) == 0


def test_labels_that_look_like_missing_values_are_names(tmp_path: Path) -> None:
    path = write_labels(tmp_path / "labels.csv", [(1, "NA"), (2, "null"), (3, "007")])
    assert label_table(path) == {1: ("NA", 2), 2: ("null", 3), 3: ("007", 4)}


def test_a_label_may_be_in_any_script(tmp_path: Path) -> None:
    names = ["\u06cc\u200c\u0647\u0627", "\U0001f469\u200d\U0001f52c", "\u732b\u3000\u72ac", "a\u00a0b"]
    path = write_labels(tmp_path / "labels.csv", enumerate(names, start=1))
    assert [label.name for label in label_table(path).values()] == names


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "cannot be read as CSV"),
        ("id,label", "no rows after the header"),
        ("1,cat\n2,dog\n", "the header is 1,cat; expected id,label"),
        ("id\n1\n", "the header is id; expected id,label"),
        ("label,id\ncat,1\n", "the header is label,id; expected id,label"),
        ("id;label\n1;cat\n", "the header is id;label; expected id,label"),
        ('id,"la\nbel"\n1,cat\n', "expected id,label"),
        ("id,label\n1,cat\n2,dog,7\n", "cannot be read as CSV"),
        ("id,label\n1,cat,7\n2,dog,7\n", "trainLabels.csv"),
        ('id,label\n1,"cat\n', "cannot be read as CSV"),
        ("id,label\n1,cat\nx2,dog\n", "row 3: the id 'x2' is not a number"),
        ("id,label\n1,cat\n-2,dog\n", "row 3: the id '-2' is not a number"),
        ("id,label\n1,cat\n,dog\n", "row 3: the id '' is not a number"),
        ("id,label\n1,cat\n99999999999999999999,dog\n", "row 3"),
        ("id,label\n1,cat\n2,dog\n01,dog\n", "row 4: the id 1 occurs twice"),
        ("id,label\n1,cat\n2,cat \n", "row 3: the label 'cat ' has blanks around it"),
        ("id,label\n1,cat\n2,c\x07t\n", "row 3: the label 'c\\x07t' has blanks around it, or is no text"),
    ],
)
def test_a_mistake_in_the_labels_is_named_with_its_file_and_row(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "trainLabels.csv"
    path.write_text(text)
    refused(lambda: label_table(path), path, reason)


@pytest.mark.parametrize("last_row", ["2,", "2"])
def test_an_empty_label_is_no_class(tmp_path: Path, last_row: str) -> None:
    write_kaggle(tmp_path, ["cat", "dog"])
    (tmp_path / "trainLabels.csv").write_text(f"id,label\n1,cat\n{last_row}\n")
    refused(kaggle(tmp_path).load, tmp_path / "trainLabels.csv", "row 3")


def test_labels_that_are_not_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trainLabels.csv"
    path.write_bytes(b"id,label\n1,c\xff\n")
    refused(lambda: label_table(path), path, "cannot be read as CSV")


def test_a_label_without_image_is_refused(animals: Path) -> None:
    (animals / "train" / "10.png").unlink()
    refused(kaggle(animals).load, animals / "trainLabels.csv", "id 10 has no image in", animals / "train")


def test_an_image_without_label_is_refused(animals: Path) -> None:
    save_image(animals / "train" / "13.png", PIXELS)
    refused(kaggle(animals).load, animals / "train" / "13.png", "no row with id 13", "trainLabels.csv")


def test_a_class_that_the_data_set_does_not_have_is_refused(tmp_path: Path) -> None:
    write_kaggle(tmp_path, ["cat", "dog", "unicorn"])
    refused(kaggle(tmp_path, "cifar10").load, "trainLabels.csv, row 4: unknown class 'unicorn'", "airplane")


def test_a_class_without_labels_is_refused(tmp_path: Path) -> None:
    write_kaggle(tmp_path, CIFAR10.classes[:9])
    refused(kaggle(tmp_path, "cifar10").load, tmp_path / "trainLabels.csv", "no images of the class 'truck'")


@pytest.mark.parametrize(
    ("lost", "reason"),
    [("train/notes/13.png", "in a folder inside train/"), ("train/13.TIF", "of this kind are not")],
)
def test_an_image_that_kaggles_layout_has_no_place_for_is_refused(animals: Path, lost: str, reason: str) -> None:
    source = kaggle(animals)
    (animals / "train" / "notes").mkdir()
    save_image(animals / "samples" / "1.png", PIXELS)
    former = source.signature()
    source.load()
    save_image(animals / lost, PIXELS)
    assert source.signature() != former
    refused(source.load, animals / lost, reason)


def test_a_test_class_without_training_images_is_refused(tmp_path: Path) -> None:
    write_kaggle(tmp_path, ["cat", "dog"], ["cat", "emu"])
    refused(kaggle(tmp_path).load, "testLabels.csv, row 3: unknown class 'emu'")


def test_a_name_that_is_not_a_number_is_refused(animals: Path) -> None:
    save_image(animals / "train" / "extra.png", PIXELS)
    refused(kaggle(animals).load, animals / "train" / "extra.png", "the name is not a number")


def test_one_number_twice_is_refused(animals: Path) -> None:
    save_image(animals / "train" / "7.jpg", PIXELS)
    refused(kaggle(animals).load, animals / "train" / "7.", "a second image with the number 7")


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    refused(lambda: numbered_images(tmp_path), tmp_path, "no images", ".png")


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    refused(lambda: numbered_images(tmp_path / "test"), tmp_path / "test", "cannot be read")


# Class folders ----------------------------------------------------------------------------------------------


def class_folders(folder: Path, dataset: str = "folder") -> Source:
    source = find_source(dataset, folder)
    assert isinstance(source, ClassFolders)
    return source


def test_class_folders_of_one_level_are_all_training_images(tmp_path: Path) -> None:
    write_class_folder(tmp_path, ["b", "a"], 11)
    contents = class_folders(tmp_path).load()
    assert contents.classes == ("a", "b")
    expected = [f"{name}/{number}.png" for name in "ab" for number in range(1, 12)]
    assert names(contents.train, tmp_path) == expected
    assert contents.train.labels.tolist() == [0] * 11 + [1] * 11
    assert len(contents.test.images) == 0


def test_class_folders_of_two_levels_part_training_and_test_images(tmp_path: Path) -> None:
    write_class_folder(tmp_path / "train", ["a", "b"], 3)
    write_class_folder(tmp_path / "test", ["b", "a"], 2)
    contents = class_folders(tmp_path).load()
    assert names(contents.train, tmp_path) == [
        f"train/{name}/{number}.png" for name in "ab" for number in (1, 2, 3)
    ]
    assert names(contents.test, tmp_path) == [f"test/{name}/{number}.png" for name in "ab" for number in (1, 2)]
    assert contents.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert contents.test.labels.tolist() == [0, 0, 1, 1]


def test_a_training_folder_alone_has_no_test_images(tmp_path: Path) -> None:
    write_class_folder(tmp_path / "train", ["a", "b"], 2)
    contents = class_folders(tmp_path).load()
    assert (len(contents.train.images), len(contents.test.images)) == (4, 0)


def test_class_folders_with_numbers_are_in_number_order(tmp_path: Path) -> None:
    write_class_folder(tmp_path, ["class10", "class2", "class1"], 1)
    assert class_folders(tmp_path).load().classes == ("class1", "class2", "class10")


def test_class_folders_take_cifars_class_order(tmp_path: Path) -> None:
    write_class_folder(tmp_path / "train", CIFAR10.classes, 1)
    write_class_folder(tmp_path / "test", CIFAR10.classes, 1)
    contents = class_folders(tmp_path, "cifar10").load()
    assert contents.train.labels.tolist() == list(range(10))
    assert contents.test.labels.tolist() == list(range(10))
    assert contents.spec is CIFAR10


def test_other_files_and_folders_beside_the_classes_do_not_count(tmp_path: Path) -> None:
    write_class_folder(tmp_path, ["a", "b"], 1)
    (tmp_path / "a" / "notes.txt").touch()
    save_image(tmp_path / ".hidden" / "1.png", PIXELS)
    save_image(tmp_path / "a" / "2.JPG", PIXELS)
    contents = class_folders(tmp_path).load()
    assert names(contents.train, tmp_path) == ["a/1.png", "a/2.JPG", "b/1.png"]


def test_a_class_without_images_that_can_be_read_is_refused(tmp_path: Path) -> None:
    write_class_folder(tmp_path / "train", ["a", "b"], 1)
    write_class_folder(tmp_path / "test", ["a", "b"], 1)
    for empty in (tmp_path / "train" / "c", tmp_path / "test" / "a"):
        empty.mkdir(exist_ok=True)
        for image in empty.iterdir():
            image.rename(image.with_suffix(".gif"))
        refused(class_folders(tmp_path).load, empty, "no images (.png, .jpg, .jpeg, .bmp, .webp) of this class")
        empty.rename(tmp_path / "elsewhere")
        shutil.rmtree(tmp_path / "elsewhere")


def test_an_image_of_a_kind_that_is_not_read_is_refused(tmp_path: Path) -> None:
    write_class_folder(tmp_path, ["a", "b"], 2)
    (tmp_path / "b" / "2.png").rename(tmp_path / "b" / "2.TIF")
    refused(class_folders(tmp_path).load, tmp_path / "b" / "2.TIF", "images of this kind are not read")


@pytest.mark.parametrize(
    ("lost", "reason"),
    [("train/1.png", "an image beside the classes' folders"), ("test/a/more/1.png", "a folder inside a class")],
)
def test_an_image_that_belongs_to_no_class_is_refused(tmp_path: Path, lost: str, reason: str) -> None:
    for split in ("train", "test"):
        write_class_folder(tmp_path / split, ["a", "b"], 1)
    source = class_folders(tmp_path)
    former = source.signature()
    save_image(tmp_path / lost, PIXELS)
    assert source.signature() != former  # a cache of the former images would hide it
    refused(source.load, tmp_path / Path(lost).parent, reason)


@pytest.mark.parametrize("lost", ["train/c/more/1.png", "train/c/1.gif", "train/a/1.gif", "test/c/"])
def test_what_is_refused_is_noticed_where_there_is_a_cache(tmp_path: Path, lost: str) -> None:
    (tmp_path / "notes").mkdir()
    for split in ("train", "test"):
        write_class_folder(tmp_path / split, ["a", "b"], 1)
    source = class_folders(tmp_path)
    former = source.signature()
    (tmp_path / lost if lost.endswith("/") else (tmp_path / lost).parent).mkdir(parents=True, exist_ok=True)
    if not lost.endswith("/"):
        (tmp_path / lost).touch()
    assert source.signature() != former
    refused(source.load, tmp_path / lost.partition("more")[0].removesuffix("1.gif"))


@pytest.mark.parametrize("linked", [".", "one/two"])
def test_a_link_beside_train_is_followed(tmp_path: Path, linked: str) -> None:
    write_class_folder(tmp_path / "images/train", ["a", "b"], 1)
    (tmp_path / "images/notes").mkdir()
    source = class_folders(tmp_path / "images")
    source.load()
    save_image(tmp_path / "elsewhere" / linked / "1.png", PIXELS)
    (tmp_path / "images/val").symlink_to(tmp_path / "elsewhere")
    refused(source.load, tmp_path / "images/val", "images beside train/ and test/ are not read")


def test_links_that_lead_back_do_not_lead_on(tmp_path: Path) -> None:
    image = save_image(tmp_path / "more" / "1.png", PIXELS)
    (tmp_path / "more" / "up").symlink_to(tmp_path)
    assert list(images_below(tmp_path)) == [image]


@pytest.mark.parametrize("images", ["val/a/1.png", "more/1.png", "val/more/a/1.png", "1.png"])
def test_images_beside_train_and_test_are_refused(tmp_path: Path, images: str) -> None:
    write_class_folder(tmp_path / "train", ["a", "b"], 1)
    source = class_folders(tmp_path)
    (tmp_path / "notes").mkdir()
    former = source.signature()
    source.load()
    save_image(tmp_path / images, PIXELS)
    assert source.signature() != former
    refused(source.load, tmp_path / Path(images).parts[0], "images beside train/ and test/ are not read")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_class_whose_name_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    write_class_folder(tmp_path, ["a", os.fsdecode(b"b\xe4")], 1)
    refused(class_folders(tmp_path).load, tmp_path / os.fsdecode(b"b\xe4"), "not in UTF-8")


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    write_class_folder(tmp_path, ["a"], 3)
    refused(class_folders(tmp_path).load, tmp_path, "all images are of one class, 'a'")
    write_kaggle(tmp_path / "kaggle", ["a"] * 3)
    refused(find_source("folder", tmp_path / "kaggle").load, tmp_path / "kaggle", "one class, 'a'")


def test_a_class_folder_that_the_data_set_does_not_have_is_refused(tmp_path: Path) -> None:
    write_class_folder(tmp_path / "train", [*CIFAR10.classes, "unicorn"], 1)
    refused(class_folders(tmp_path, "cifar10").load, tmp_path / "train" / "unicorn", "unknown class 'unicorn'")


def test_a_class_of_test_images_alone_is_refused(tmp_path: Path) -> None:
    write_class_folder(tmp_path / "train", ["a", "b"], 1)
    write_class_folder(tmp_path / "test", ["c"], 1)
    refused(class_folders(tmp_path).load, tmp_path / "test" / "c", "unknown class 'c'")


def test_a_class_without_images_is_refused(tmp_path: Path) -> None:
    write_class_folder(tmp_path / "train", CIFAR10.classes[1:], 1)
    refused(class_folders(tmp_path, "cifar10").load, tmp_path / "train", "no images of the class 'airplane'")


def test_kaggles_images_without_their_labels_are_not_two_classes(animals: Path) -> None:
    """train/ and test/ full of images, without trainLabels.csv: "train" and "test" are no classes."""
    save_image(animals / "test" / "1.png", PIXELS)
    (animals / "trainLabels.csv").unlink()
    refused(lambda: find_source("folder", animals).load(), "trainLabels.csv")


@pytest.mark.parametrize("name", ["m2", "10", "a10b2", "10²", "²", "٣"])
def test_any_name_can_be_put_in_natural_order(name: str) -> None:
    """Raised digits and those of other scripts sort as text, after the numbers."""
    assert sorted([name, "7"], key=natural_order) == ["7", name]


# Torchvision's archive --------------------------------------------------------------------------------------


@pytest.fixture(params=[CIFAR10, CIFAR100], ids=lambda spec: spec.name)
def archive(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TorchvisionArchive:
    """A tiny archive, with its download beside it; the network answers nothing."""
    count = len(request.param.classes)
    folder = tmp_path / "archive"
    write_archive(folder, request.param, list(range(count)), [3, 1, 2])
    accept_checksums(monkeypatch, folder, request.param)
    serve(monkeypatch, urllib.error.URLError("Name or service not known"))
    source = find_source(request.param.name, folder)
    assert isinstance(source, TorchvisionArchive)
    return source


def holds_the_tiny_archive(source: Source) -> bool:
    contents = source.load()
    images = random_images(len(contents.classes) + 3)
    np.testing.assert_array_equal(contents.train.images, images[:-3])
    np.testing.assert_array_equal(contents.test.images, images[-3:])
    assert contents.train.labels.tolist() == list(range(len(contents.classes)))
    assert contents.test.labels.tolist() == [3, 1, 2]
    assert contents.train.labels.dtype == contents.test.labels.dtype == np.int64
    return contents.spec is not None and contents.classes == contents.spec.classes


def test_torchvisions_archive_is_read_without_a_network(
    archive: TorchvisionArchive, capsys: pytest.CaptureFixture[str]
) -> None:
    (archive.folder / archive._archives[archive.spec.name]).unlink()
    assert holds_the_tiny_archive(archive)
    assert capsys.readouterr().out == ""


def test_the_archive_is_unpacked_where_only_its_download_is_there(archive: TorchvisionArchive) -> None:
    shutil.rmtree(archive.folder / archive._batches[archive.spec.name])
    found = find_source(archive.spec.name, archive.folder)
    assert isinstance(found, TorchvisionArchive)
    assert holds_the_tiny_archive(found)


@pytest.mark.parametrize("exists", [False, True], ids=["absent", "empty"])
def test_an_absent_or_empty_folder_is_filled_by_a_download(
    archive: TorchvisionArchive,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    exists: bool,
) -> None:
    content = (archive.folder / archive._archives[archive.spec.name]).read_bytes()
    asked = serve(monkeypatch, content)
    target = tmp_path / "downloads" / archive.spec.name
    if exists:
        target.mkdir(parents=True)
    assert holds_the_tiny_archive(find_source(archive.spec.name, target))
    assert capsys.readouterr().out == f"{target}: no images there; downloading {archive.spec.name}\n"
    assert asked
    assert all(url.endswith(archive._archives[archive.spec.name]) for url in asked)


def test_one_at_a_time_downloads_and_unpacks(archive: TorchvisionArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those with caches, and so locks, of their own."""
    read, locked = TorchvisionArchive._read, []

    def read_while_others_try(source: TorchvisionArchive, *arguments: Any) -> list[Split]:
        with pytest.raises(Timeout):
            FileLock(source.folder / ".lock", timeout=0).acquire()
        locked.append(source)
        return read(source, *arguments)

    monkeypatch.setattr(TorchvisionArchive, "_read", read_while_others_try)
    assert holds_the_tiny_archive(archive)
    assert locked


def test_a_folder_with_nothing_but_the_lock_of_a_killed_download_is_empty(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    assert isinstance(find_source("cifar10", tmp_path), TorchvisionArchive)


@pytest.mark.parametrize(
    "answer",
    [
        urllib.error.URLError("Name or service not known"),
        TimeoutError("timed out"),
        b"<html>Sign in to the network",
    ],
    ids=["no network", "no answer", "a web page"],
)
def test_a_download_that_fails_is_told_in_one_line_each_time(
    archive: TorchvisionArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes | Exception
) -> None:
    serve(monkeypatch, answer)
    target = tmp_path / "downloads"
    for _ in range(2):
        source = find_source(archive.spec.name, target)
        refused(source.load, target, "could not be downloaded", archive._archives[archive.spec.name], "--data-dir")
        assert not target.exists()


def test_a_damaged_archive_is_not_read(archive: TorchvisionArchive) -> None:
    (archive.folder / archive._archives[archive.spec.name]).unlink()
    batch = next((archive.folder / archive._batches[archive.spec.name]).glob("*test*"))
    content = bytearray(batch.read_bytes())
    content[len(content) // 2] ^= 1
    batch.write_bytes(content)
    refused(archive.load, archive.folder, "could not be downloaded or read")


def test_an_archive_with_other_classes_is_refused(
    archive: TorchvisionArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    kind = datasets.CIFAR10 if archive.spec is CIFAR10 else datasets.CIFAR100
    load_meta = kind._load_meta

    def reversed_classes(self: "datasets.CIFAR10") -> None:
        load_meta(self)
        self.classes = self.classes[::-1]

    monkeypatch.setattr(kind, "_load_meta", reversed_classes)
    refused(archive.load, archive.folder, "classes")


# The built-in shapes, and folders of no kind ----------------------------------------------------------------


def test_shapes_need_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "TRAIN_COUNT", 30)
    monkeypatch.setattr(shapes, "TEST_COUNT", 20)
    source = find_source("shapes", tmp_path / "absent")
    assert isinstance(source, BuiltInShapes)
    contents = source.load()
    assert contents.classes == shapes.CLASSES
    for split, name, count in ((contents.train, "train", 30), (contents.test, "test", 20)):
        images, labels = shapes.generate(0, count, name)
        np.testing.assert_array_equal(split.images, images)
        np.testing.assert_array_equal(split.labels, labels)


@pytest.mark.parametrize("dataset", ["cifar10", "folder"])
def test_a_folder_of_no_known_layout_is_told_what_was_looked_for(tmp_path: Path, dataset: str) -> None:
    (tmp_path / "notes.txt").touch()
    looked_for = ["train/*.png with trainLabels.csv", "train/<class>/*.png", "<class>/*.png"]
    batches = ["cifar-10-batches-py"] if dataset == "cifar10" else []
    refused(lambda: find_source(dataset, tmp_path), f"--data-dir {tmp_path} has none of", *looked_for, *batches)


def test_an_absent_folder_of_other_classes_is_refused(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    refused(lambda: find_source("folder", absent), f"--data-dir {absent} does not exist", "looked for")


@pytest.mark.parametrize("dataset", ["cifar10", "folder"])
def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path, dataset: str) -> None:
    path = tmp_path / "images.zip"
    path.touch()
    refused(lambda: find_source(dataset, path), f"--data-dir {path} is not a folder")


def test_the_other_data_sets_archive_is_not_taken(tmp_path: Path) -> None:
    write_archive(tmp_path, CIFAR100, [0], [0])
    refused(lambda: find_source("cifar10", tmp_path), "has none of", "cifar-10-batches-py")
