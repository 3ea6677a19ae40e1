"""What a user can get wrong, through the scripts: exit code 2, one line that says what and what to do, no remains.

And what looks wrong and is not: how it is read.
"""

import ctypes
import importlib
import os
import re
import shlex
import shutil
import struct
import sys
import urllib.error
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from data import prepared as preparation
from data.prepared import prepare
from data.sources import find_source
from data.spec import CIFAR10
from resnet import build_model
from tests.conftest import TINY, call_main, run_script
from tests.images import (
    Pixels,
    accept_checksums,
    random_images,
    serve,
    write_archive,
    write_class_folder,
    write_kaggle,
)
from training.checkpoint import take_checkpoint, take_weights
from training.config import Config

LABELS = ["cat", "dog"] * 12
TABLE = "id,label\n" + "".join(f"{number},{label}\n" for number, label in enumerate(LABELS, start=1))
Spoil = Callable[[Path, pytest.MonkeyPatch], object]


# What spoils the input --------------------------------------------------------------------------------------
# Each takes the folder of the case, which has images/ in Kaggle's layout: train/1.png to 24.png, cat and dog.


def nothing(here: Path, patch: pytest.MonkeyPatch) -> None:
    """The flags of the command are wrong, or what it asks for is not there."""


def table(content: str | bytes, name: str = "trainLabels.csv") -> Spoil:
    data = content.encode() if isinstance(content, str) else content
    return lambda here, patch: (here / "images" / name).write_bytes(data)


def changed(old: str, new: str) -> Spoil:
    """trainLabels.csv with one place in it changed."""
    assert TABLE.count(old) == 1
    return table(TABLE.replace(old, new))


def image(content: bytes | Image.Image, name: str = "5.png", **options: object) -> Spoil:
    """images/train/<name> replaced."""

    def spoil(here: Path, patch: pytest.MonkeyPatch) -> None:
        path = here / "images" / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.save(path, **options)

    return spoil


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(bits: int, colour_type: int, row: bytes, width: int = 32, height: int = 32) -> bytes:
    """A PNG file of equal rows, as Pillow itself does not write them."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress((b"\0" + row) * min(height, 32)))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def noise(seed: int = 0) -> Image.Image:
    return Image.fromarray(random_images(1, seed)[0])


def truncated(here: Path, patch: pytest.MonkeyPatch) -> None:
    path = here / "images" / "train" / "5.png"
    path.write_bytes(path.read_bytes()[:1000])


def one_bit_wrong(here: Path, patch: pytest.MonkeyPatch) -> None:
    path = here / "images" / "train" / "5.png"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


def without(*names: str) -> Spoil:
    def spoil(here: Path, patch: pytest.MonkeyPatch) -> None:
        for name in names:
            path = here / "images" / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def link(name: str, target: str, then: Spoil = nothing) -> Spoil:
    """A symbolic link in place of a file or folder."""

    def spoil(here: Path, patch: pytest.MonkeyPatch) -> None:
        then(here, patch)
        path = here / name
        path.unlink(missing_ok=True) if not path.is_dir() else shutil.rmtree(path)
        path.symlink_to(target)

    return spoil


def forbidden(name: str, then: Spoil = nothing) -> Spoil:
    """A file or folder without permission."""

    def spoil(here: Path, patch: pytest.MonkeyPatch) -> None:
        then(here, patch)
        (here / name).chmod(0)
        obey_permissions()

    return spoil


def classes(train: dict[str, int], test: dict[str, int] | None = None) -> Spoil:
    """Class folders in place of Kaggle's layout: so many images in each class."""

    def spoil(here: Path, patch: pytest.MonkeyPatch) -> None:
        shutil.rmtree(here / "images")
        for split, counts in (("train", train), ("test", test or {})):
            for name, count in counts.items():
                (here / "images" / split / name).mkdir(parents=True)
                write_class_folder(here / "images" / split, [name], count)

    return spoil


def kaggle(labels: list[str], test_labels: list[str] | None = None) -> Spoil:
    def spoil(here: Path, patch: pytest.MonkeyPatch) -> None:
        shutil.rmtree(here / "images")
        write_kaggle(here / "images", labels, test_labels)

    return spoil


def processes(count: int, then: Spoil = nothing) -> Spoil:
    """As if so many processes had been launched; what is refused is refused before they meet."""

    def spoil(here: Path, patch: pytest.MonkeyPatch) -> None:
        then(here, patch)
        patch.setattr(Accelerator, "num_processes", property(lambda self: count))

    return spoil


def recipe(text: str | bytes) -> Spoil:
    data = text.encode() if isinstance(text, str) else text
    return lambda here, patch: (here / "mine.yaml").write_bytes(data)


def file(name: str, content: bytes) -> Spoil:
    def spoil(here: Path, patch: pytest.MonkeyPatch) -> None:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).unlink(missing_ok=True)
        (here / name).write_bytes(content)

    return spoil


def weights(name: str, model: str) -> Spoil:
    """A state dict as torchvision distributes them."""
    return lambda here, patch: torch.save(build_model(model, 1000).state_dict(), here / name)


def recorded_weights(classes: list[str], **config: object) -> Spoil:
    """A weights file whose record is that of another network than the resnet18 in it."""

    def spoil(here: Path, patch: pytest.MonkeyPatch) -> None:
        about = {"config": {**asdict(Config()), "stem": "imagenet", **config}, "classes": classes}
        about |= {"mean": [0.5] * 3, "std": [0.25] * 3, "precision": "no", "data": ""}
        take_weights(here / "other.safetensors", build_model("resnet18", 2, "imagenet"), about)()

    return spoil


def checkpoint(state: dict[str, object]) -> Spoil:
    """A whole checkpoint, the newest of the run, that train.py did not write."""
    return lambda here, patch: take_checkpoint(here / "runs" / "tiny" / "checkpoints", 10**7, state)()


def damaged_checkpoints(here: Path, patch: pytest.MonkeyPatch) -> None:
    for path in (here / "runs" / "tiny" / "checkpoints").glob("*.pt"):
        path.unlink()
        path.write_bytes(b"PK")


def images_for_submission(*names: str) -> Spoil:
    def spoil(here: Path, patch: pytest.MonkeyPatch) -> None:
        (here / "test").mkdir()
        for name in names:
            noise().save(here / "test" / name)

    return spoil


def both(*spoils: Spoil) -> Spoil:
    return lambda here, patch: [spoil(here, patch) for spoil in spoils]


def download(content: bytes | Exception) -> Spoil:
    """The network answers this."""
    return lambda here, patch: serve(patch, content)


def tampered_download(here: Path, patch: pytest.MonkeyPatch) -> None:
    """A whole archive under the right name, which is not the one that torchvision's checksum asks for."""
    write_archive(here / "made", CIFAR10, list(range(10)), list(range(10)))
    with pytest.MonkeyPatch.context() as only_here:
        packed = accept_checksums(only_here, here / "made", CIFAR10)
    serve(patch, packed.read_bytes())


def out_of_memory(here: Path, patch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has 1 GiB free.")

    patch.setattr(torch.nn.BatchNorm2d, "forward", fail)


# The table --------------------------------------------------------------------------------------------------


def bad(name: str, spoil: Spoil, line: str, says: str, leaves: str = "") -> object:
    """A case: what is spoilt, the command, and what its one line must say.

    In the command {here} is the folder of the case, {shapes} the images that the run {here}/runs/tiny was
    trained on. train.py is also given the flags of a tiny run on {here}/images. `leaves` matches the paths that
    may be new: nothing, as a rule.
    """
    return pytest.param(spoil, line, says, leaves, id=name)


TRAIN, ON_CIFAR10 = "train.py", "train.py --dataset cifar10"
RECIPE = "train.py --recipe {here}/mine.yaml"
WEIGHTS = "train.py --weights {here}/other.pth"
RESUME = "train.py --name tiny --data-dir {shapes}"
EVALUATE = "evaluate.py {here}/runs/tiny"
SUBMIT = "submit.py {here}/runs/tiny --images {here}/test --out {here}/out.csv"
IN_EVALUATION = "device is out of memory in evaluation, 500 images at a time: free what other programs hold, or"
CSV = r"trainLabels\.csv"
TYPE = "Expected a .*; see train.py --help"

# A table stays one: no argument a line.
# fmt: off
LABEL_FILES = [
    bad("csv: missing column", table(re.sub(",.*", "", TABLE)), TRAIN,
        CSV + ": the header is id; expected id,label"),
    bad("csv: extra column", table(re.sub("\n", ",x\n", TABLE)), TRAIN, "id,label,x; expected id,label"),
    bad("csv: columns exchanged", changed("id,label", "label,id"), TRAIN, "header is label,id; expected id,label"),
    bad("csv: no header", changed("id,label\n", ""), TRAIN, CSV + ": the header is 1,cat; expected id,label"),
    bad("csv: semicolons", table(TABLE.replace(",", ";")), TRAIN, "the header is id;label; expected id,label"),
    bad("csv: field too many", changed("\n4,dog", "\n4,dog,7"), TRAIN,
        CSV + ", row 5: .*3 fields; expected id,label"),
    bad("csv: field too few", changed("\n4,dog", "\n4"), TRAIN, CSV + ", row 5: no label; add it"),
    bad("csv: label empty", changed("\n4,dog", "\n4,"), TRAIN, CSV + ", row 5: no label; add it"),
    bad("csv: empty", table(""), TRAIN, CSV + ": .*it is empty; expected the header id,label"),
    bad("csv: header alone", table("id,label\n"), TRAIN,
        CSV + ": no rows after the header; expected an id and a label in each"),
    bad("csv: unknown class", changed("\n4,dog", "\n4,elk"), ON_CIFAR10,
        CSV + ", row 5: unknown class 'elk'; expected one of"),
    bad("csv: duplicate id", changed("\n4,dog", "\n3,dog"), TRAIN, CSV + ", row 5: the id 3 occurs twice; remove"),
    bad("csv: the same id as 03", changed("\n4,dog", "\n03,dog"), TRAIN, ", row 5: the id 3 occurs twice; remove"),
    bad("csv: after empty lines", changed("\n4,dog", "\n\n\n4,elk"), ON_CIFAR10,
        CSV + ", row 7: unknown class 'elk'"),
    bad("csv: id is a word", changed("\n4,dog", "\nfour,dog"), TRAIN,
        CSV + ", row 5: .*'four' is not a number; expected"),
    bad("csv: id is negative", changed("\n4,dog", "\n-4,dog"), TRAIN,
        CSV + ", row 5: .*'-4' is not a number; expected"),
    bad("csv: id is empty", changed("\n4,dog", "\n,dog"), TRAIN,
        CSV + ", row 5: the id '' is not a number; expected"),
    bad("csv: id of 20 digits", changed("\n4,", "\n" + "4" * 20 + ","), TRAIN, CSV + ", row 5: .*is not a number"),
    bad("csv: id of raised digits", changed("\n4,", "\n⁴,"), TRAIN, CSV + ", row 5: the id '⁴' is not a number"),
    bad("csv: id without image", without("train/10.png"), TRAIN,
        CSV + ", row 11: id 10 has no image .*; add it, or remove"),
    bad("csv: image without id", image(noise(), "25.png"), TRAIN,
        r"25\.png: no row with id 25 .*; add it, or remove"),
    bad("csv: quote left open", changed("\n4,dog", '\n4,"dog'), TRAIN,
        CSV + ", row 25: .*unexpected end of data; expected"),
    bad("csv: text after a quote", changed("\n4,dog", '\n4,"do"g'), TRAIN,
        CSV + ", row 5: .* as CSV: .*; expected id,label"),
    bad("csv: Latin-1", table(TABLE.replace("cat", "Bär").encode("latin-1")), TRAIN,
        CSV + ": .*; expected text in UTF-8"),
    bad("csv: UTF-16", table(TABLE.encode("utf-16")), TRAIN, CSV + ": .*; expected text in UTF-8"),
    bad("csv: absent", without("trainLabels.csv"), TRAIN, "--data-dir .* has none of: .*with trainLabels.csv"),
    bad("csv: unreadable", forbidden("images/trainLabels.csv"), TRAIN, CSV + ".*Permission denied; check its"),
    bad("csv: a link to itself", link("images/trainLabels.csv", "trainLabels.csv"), TRAIN,
        CSV + ": .*symbolic.*; check its"),
    bad("csv: line break in a class", changed("\n4,dog", '\n4,"do\ng"'), ON_CIFAR10,
        CSV + r", row 6: the label 'do\\ng' has blanks around it, or is no text; write it plainly"),
    bad("csv: no image of a class", nothing, ON_CIFAR10, CSV + ": no images of the class 'airplane'; add some"),
    bad("csv: class in test alone", kaggle(LABELS, ["cat", "elk"]), TRAIN,
        r"testLabels\.csv, row 3: unknown class"),
    bad("csv: class missing from test", kaggle(LABELS, ["cat"]), TRAIN, r"testLabels\.csv: no .*class 'dog'; add"),
    bad("csv: name of the class with one image", kaggle(["cat", "dog", "cat"]), TRAIN,
        "class 'dog' has one image: .*; add images, or use a larger --subset or --split none"),
]

IMAGES = [
    bad("image: truncated", truncated, TRAIN, r"train/5\.png: not a readable image .*; replace or remove it"),
    bad("image: one bit wrong", one_bit_wrong, TRAIN,
        r"train/5\.png: not a readable image .*; replace or remove it"),
    bad("image: text", image(b"id,label\n"), TRAIN,
        r"train/5\.png: not a readable image .*; replace or remove it"),
    bad("image: zero bytes", image(b""), TRAIN, r"train/5\.png: not a readable image .*; replace or remove it"),
    bad("image: 16-bit grey", image(png(16, 0, b"\1\2" * 32)), TRAIN,
        r"/5\.png: mode I;16 .*; save it as an 8-bit"),
    bad("image: 16-bit RGB", image(png(16, 2, b"\1\2" * 96)), TRAIN,
        r"/5\.png: 16-bit RGB .*; save it as an 8-bit"),
    bad("image: 16-bit RGBA", image(png(16, 6, b"\1\2" * 128)), TRAIN,
        r"/5\.png: 16-bit RGBA .*; save it as an 8-bit"),
    bad("image: CMYK", image(noise().convert("CMYK"), format="JPEG"), TRAIN,
        r"/5\.png: mode CMYK .*; save it as an 8-bit"),
    bad("image: animated", image(noise(), save_all=True, append_images=[noise(1)]), TRAIN,
        r"train/5\.png: has several frames; save it as one 8-bit"),
    bad("image: too wide", image(noise().resize((33, 32))), TRAIN,
        r"/5\.png: 33x32 pixels; expected 32x32: resize it"),
    bad("image: one pixel", image(noise().resize((1, 1))), TRAIN,
        r"/5\.png: 1x1 pixels; expected 32x32: resize it"),
    bad("image: bomb", image(png(8, 2, b"", 30000, 30000)), TRAIN,
        r"/5\.png: .*decompression bomb.*; replace or remove"),
    bad("image: smaller bomb", image(png(8, 2, b"", 10000, 10000)), TRAIN,
        r"/5\.png: 10000x10000 pixels; expected 32x32"),
    bad("image: EPS by another name", image(noise(), format="EPS"), TRAIN,
        r"/5\.png: .*cannot identify.*; replace or remove"),
    bad("image: unreadable", forbidden("images/train/5.png"), TRAIN,
        r"/5\.png: .*Permission denied.*; replace or remove"),
    bad("image: a link to itself", link("images/train/5.png", "5.png"), TRAIN,
        r"/5\.png: .*symbolic.*; check its"),
    bad("image: a link to nothing", link("images/train/5.png", "gone"), TRAIN, r"/5\.png: .*No such.*; check its"),
    bad("image: name not a number", image(noise(), "cat.png"), TRAIN,
        r"/cat\.png: .*not a number; expected .*1\.png"),
    bad("image: raised digits", image(noise(), "²5.png"), TRAIN, r"/²5\.png: .*not a number; expected .*1\.png"),
    bad("image: a number twice", image(noise(), "05.png"), TRAIN,
        r"/0?5\.png: a second image with the number 5; remove"),
]

FOLDERS = [
    bad("folder: empty", without("train", "trainLabels.csv"), TRAIN,
        "--data-dir .*images has none of: looked for"),
    bad("folder: absent", without("."), TRAIN, "--data-dir .*images does not exist: looked for"),
    bad("folder: a file", both(without("."), file("images", b"")), TRAIN,
        "--data-dir .*images is not a folder: looked for"),
    bad("folder: without images", both(without("train"), file("images/train/1.txt", b"")), TRAIN,
        "train: no images .*; add"),
    bad("folder: unreadable", forbidden("images"), TRAIN, "images: cannot be read: Permission denied; check its"),
    bad("folder: train unreadable", forbidden("images/train"), TRAIN,
        "train: cannot be read: Permission.*; check its"),
    bad("folder: link to itself", link("images", "images"), TRAIN,
        "images: cannot be read: .*symbolic.*; check its"),
    bad("folder: links in a circle", both(link("a", "images"), link("images", "a")), TRAIN,
        "images: .*symbolic.*; check its"),
    bad("folder: link to nothing", link("images", "gone"), TRAIN,
        "images: cannot be read: No such file.*; check its"),
    bad("folder: link to nothing, for CIFAR-10", link("images", "gone"), ON_CIFAR10,
        "images: cannot be read: No such file.*; check its"),
    bad("classes: a link to itself", link("images/train/cat", "cat", classes({"cat": 3, "dog": 3})), TRAIN,
        "train/cat: cannot be read: .*symbolic.*; check its"),
    bad("classes: unreadable", forbidden("images/train/cat", classes({"cat": 3, "dog": 3})), TRAIN,
        "train/cat: cannot be read: Permission denied; check its"),
    bad("classes: one image", classes({"cat": 3, "dog": 1}), TRAIN,
        "class .* has one image: .*; add images, or use a larger --subset or --split none"),
    bad("classes: missing from test", classes({"cat": 3, "dog": 3}, {"dog": 1}), TRAIN,
        "images/test: no test images of the class 'cat'; add some"),
    bad("classes: in test alone", classes({"cat": 3, "dog": 3}, {"cat": 1, "dog": 1, "elk": 1}), TRAIN,
        "images/test/elk: unknown class 'elk'; expected one of cat, dog"),
    bad("classes: not CIFAR-10's", classes({"cat": 3, "elk": 3}), ON_CIFAR10,
        "train/elk: unknown class 'elk'; expected one of"),
    bad("classes: one", classes({"cat": 3}), TRAIN,
        "images/train: all images are of one class, 'cat'; expected two or more: --data-dir is the folder above"),
    bad("classes: one without images", classes({"cat": 3, "dog": 0}), TRAIN,
        "images/train/dog: no images .* of this class; add some, or remove the folder"),
    bad("classes: some missing", classes({"cat": 3}), ON_CIFAR10, "images/train: no .*class 'airplane'; add some"),
    bad("archive: no network", both(without("."), download(urllib.error.URLError("Name or service not known"))),
        ON_CIFAR10,
        r"images: cifar10 could not be downloaded .*; place cifar-10-python\.tar\.gz there, or give --data-dir"),
    bad("archive: a web page", both(without("."), download(b"<html>Sign in")), ON_CIFAR10,
        r"images: cifar10 could not be downloaded .*corrupted.*; place cifar-10-python\.tar\.gz there"),
    bad("archive: wrong checksum", both(without("."), tampered_download), ON_CIFAR10,
        r"images: cifar10 could not be downloaded .*corrupted.*; place cifar-10-python\.tar\.gz there"),
]

FLAGS = [
    bad("flag: unknown", nothing, "train.py --rate 1", "--rate.*; see train.py --help"),
    bad("flag: without value", nothing, "train.py --lr", "--lr: expected one argument; see train.py --help"),
    bad("flag: text for a number", nothing, "train.py --lr fast", "--lr: " + TYPE),
    bad("flag: fraction for a count", nothing, "train.py --epochs 1.5", "--epochs: " + TYPE),
    bad("flag: none of the choices", nothing, "train.py --model alexnet", "--model: .*resnet18.*; see train.py"),
    bad("flag: negative", nothing, "train.py --lr -1", "--lr -1.0: expected a number above 0"),
    bad("flag: more epochs than anybody has", nothing, "train.py --epochs 1" + "0" * 310,
        "--epochs 10*: expected 1 to 1000000"),
    bad("flag: a folder that is not UTF-8", nothing, os.fsdecode(b"train.py --runs-dir {here}/caf\xe9"),
        "its name is not in UTF-8; give another"),
    bad("flag: zero", nothing, "train.py --batch-size 0", "--batch-size 0: expected at least 1"),
    bad("flag: NaN", nothing, "train.py --weight-decay nan", "--weight-decay: " + TYPE),
    bad("flag: infinite", nothing, "train.py --warmup inf", "--warmup: " + TYPE),
    bad("flag: milestones unsorted", nothing, "train.py --milestones [60,30]",
        r"--milestones \[60, 30\]: .*ascending"),
    bad("flag: milestones repeated", nothing, "train.py --milestones [3,3]",
        r"--milestones \[3, 3\]: .*ascending"),
    bad("flag: name of a path", nothing, "train.py --name ../up", "--name ../up: expected letters, digits"),
    bad("flag: stem of another network", nothing, "train.py --model vgg16",
        "stem 'imagenet' .*vgg16: leave it at"),
    bad("flag: zero-init without BatchNorm", nothing, "train.py --model vgg16 --stem cifar --zero-init true",
        "zero_init does not apply to vgg16"),
    bad("flag: a factor without BatchNorm", nothing, "train.py --model vgg16 --stem cifar --norm-bias-lr 64",
        "--norm-bias-lr 64: vgg16 has no BatchNorm; leave it at 1"),
    bad("flag: name of 201 letters", nothing, "train.py --name " + "a" * 201, "--name a*: .*at most 200"),
    bad("flag: more than float32 holds", nothing, "train.py --lr 1e39",
        "--lr 1e.39: expected a number above 0 that float32"),
    bad("flag: decay of more than float32 holds", nothing, "train.py --weight-decay 1e39",
        "--weight-decay 1e.39: expected at least 0, a number"),
    bad("flag: rates that grow", nothing, "train.py --gamma 1e300", "--gamma 1e.300: expected a fraction"),
    bad("flag: a line break", nothing, "train.py --name 'a\nb'", "--name a.*b: expected letters"),
    bad("flag: batch not divisible", nothing, "train.py --accumulation 5",
        "-size 12 does not .*choose a multiple of 5"),
    bad("flag: one image at a time", nothing, "train.py --accumulation 12",
        "--batch-size 12 leaves one image at a"),
    bad("flag: batch of more than all", nothing, "train.py --batch-size 23",
        "--batch-size 23 .*the 22 training images"),
    bad("processes: batch not divisible", processes(5), TRAIN, "-size 12 does not divide by 5 .*a multiple of 5"),
    bad("processes: more than images", processes(3, kaggle(["cat", "dog"] * 2)), "train.py --batch-size 6",
        "--batch-size 6 is more than the 2 training images"),
    bad("device: out of memory", out_of_memory, TRAIN,
        "device is out of memory in training .*--batch-size 12: try --batch-size 6, or .*: --accumulation 2$",
        leaves=r"runs|runs/bad|runs/bad/(config\.yaml|config\.yaml\.sha256|metrics\.jsonl)"),
    bad("device: out of memory in evaluate.py", out_of_memory, EVALUATE, IN_EVALUATION),
    bad("device: out of memory in submit.py", both(images_for_submission("1.png"), out_of_memory), SUBMIT,
        IN_EVALUATION),
    bad("split: no test images", nothing, "train.py --split test", "--split test: .*no labelled test.*; use"),
]

RECIPES = [
    bad("recipe: absent", nothing, RECIPE, r"mine\.yaml: no such file; expected a YAML file"),
    bad("recipe: a folder", nothing, "train.py --recipe {here}/images",
        "images: no such file; expected a YAML file"),
    bad("recipe: empty", recipe(""), RECIPE, r"mine\.yaml: expected lines such as"),
    bad("recipe: unknown key", recipe("lr: 0.1\nrate: 3\n"), RECIPE,
        r"mine\.yaml: .*'rate' .*; see train.py --help"),
    bad("recipe: a key twice", recipe("lr: 0.1\nepochs: 2\nlr: 0.2\n"), RECIPE,
        r"mine\.yaml: --lr stands there twice; remove one"),
    bad("recipe: wrong type", recipe("epochs: many\n"), RECIPE, r"mine\.yaml: --epochs: " + TYPE),
    bad("recipe: a list", recipe("- lr\n- 0.1\n"), RECIPE, r"mine\.yaml: expected lines such as"),
    bad("recipe: YAML error", recipe("lr: [1\n"), RECIPE, r"mine\.yaml: .*line 2.*; see train.py --help"),
    bad("recipe: not text", recipe(b"\xff\xfe\0\1"), RECIPE, r"mine\.yaml: .*utf-8.*; see train.py --help"),
    bad("recipe: a Python object", recipe("lr: !!python/object/apply:os.abort []\n"), RECIPE,
        r"mine\.yaml: .*tag"),
    bad("recipe: negative", recipe("epochs: -3\n"), RECIPE, r"mine\.yaml: --epochs -3: expected 1 to 1000000"),
    bad("recipe: zero", recipe("lr: 0.0\n"), RECIPE,
        r"mine\.yaml: --lr 0.0: expected a number above 0"),
    bad("recipe: NaN", recipe("lr: .nan\n"), RECIPE, r"mine\.yaml: --lr nan: expected a finite number"),
    bad("recipe: milestones unsorted", recipe("milestones: [5, 3]\n"), RECIPE,
        r"mine\.yaml: --milestones \[5, 3\]: .*ascending"),
    bad("recipe: the last word", recipe("seed: -1\n"), "train.py --seed 3 --recipe {here}/mine.yaml",
        r"mine\.yaml: --seed -1: expected 0"),
    bad("recipe: not the last word", recipe("seed: 3\n"), "train.py --recipe {here}/mine.yaml --seed -1",
        r"(?<!mine\.yaml: )--seed -1: expected 0"),
    bad("recipe: batch not divisible", recipe("accumulation: 5\n"), RECIPE,
        "-size 12 does not divide .*multiple of 5"),
    bad("recipe: value missing", recipe("lr:\n"), RECIPE, "--lr"),
]

RUNS = [
    bad("run: another network", nothing, RESUME + " --model resnet34",
        "--model resnet18 -> resnet34.*another --name"),
    bad("run: another stem", nothing, RESUME + " --stem keras",
        "--stem imagenet -> keras.*; use its .*another --name"),
    bad("run: another class count", nothing, "train.py --name tiny",
        r"\(classes 10 -> 2, data .* -> .*\); use .*or another --name"),
    bad("run: another recipe", recipe("lr: 0.5\nseed: 3\n"), RESUME + " --recipe {here}/mine.yaml",
        "--lr 0.02 -> 0.5, --seed 0 -> 3.*; use its .*another --name"),
    bad("run: exists", nothing, RESUME + " --resume never", "--resume never: .*tiny exists; give another --name"),
    bad("run: does not exist", nothing, "train.py --resume must",
        "--resume must: there is no run .*; check --name"),
    bad("run: damaged checkpoints", damaged_checkpoints, RESUME, "no checkpoint is whole; remove"),
    bad("run: a checkpoint of another program", checkpoint({"epoch": 3, "weight": torch.zeros(3)}), RESUME,
        "checkpoint"),
    bad("weights: absent", nothing, WEIGHTS, r"other\.pth"),
    bad("weights: not weights", file("other.pth", b"nonsense"), WEIGHTS, r"other\.pth is not a file of tensors"),
    bad("weights: of another network", weights("other.pth", "resnet34"), WEIGHTS,
        r"other\.pth does not fit the net"),
    bad("weights: of another stem", weights("other.pth", "torchvision-resnet18"), WEIGHTS + " --stem cifar",
        r"other\.pth does not fit the network of --model and --stem: conv1\.weight is .*7, 7\), needs"),
    bad("weights: a checkpoint", nothing, "train.py --weights {here}/runs/tiny/checkpoints/step-00000022.pt",
        r"step-00000022\.pt is not a state dict"),
]

EVALUATIONS = [
    bad("evaluate: no such run", nothing, "evaluate.py {here}/runs/none", "runs/none: no such file; train a run"),
    bad("evaluate: no weights yet", without("../runs/tiny/best.safetensors"), EVALUATE,
        "best.*: no such file; train"),
    bad("evaluate: unknown split", nothing, EVALUATE + " --split all",
        "--split: .*'all'.*; see evaluate.py --help"),
    bad("evaluate: no run named", nothing, "evaluate.py", "required: run; see evaluate.py --help"),
    bad("evaluate: no test images", nothing, EVALUATE + " --data-dir {here}/images",
        "--split test: .*; use --split"),
    bad("evaluate: another class count", kaggle(LABELS, ["cat", "dog"]), EVALUATE + " --data-dir {here}/images",
        r"best\.safetensors: trained on other classes .*; give the right --data-dir"),
    bad("evaluate: other images", nothing, EVALUATE + " --split val --data-dir {here}/images",
        "tiny: trained on other images than those in .*images; give --data-dir the right ones"),
    bad("evaluate: damaged weights", file("runs/tiny/best.safetensors", b"\x08\0\0\0\0\0\0\0{}      "), EVALUATE,
        r"best\.safetensors: not a weights file of train\.py, or damaged"),
    bad("evaluate: a checkpoint", nothing, EVALUATE + "/checkpoints/step-00000022.pt",
        r"step-00000022\.pt: not a weights file of train\.py, or damaged"),
    bad("evaluate: weights of another network", recorded_weights(["cat", "dog"], model="resnet34"),
        "evaluate.py {here}/other.safetensors",
        r"other\.safetensors: not a weights file of train\.py, or damaged"),
    bad("evaluate: weights of another class count", recorded_weights(["cat", "dog", "elk"]),
        "evaluate.py {here}/other.safetensors",
        r"other\.safetensors: not a weights file of train\.py, or damaged"),
    bad("evaluate: weights of another version", recorded_weights(["cat", "dog"], rate=3),
        "evaluate.py {here}/other.safetensors", r"other\.safetensors: recorded by another version"),
    bad("evaluate: damaged metrics", file("runs/tiny/metrics.jsonl", b'{"kind": "epoch", \n'), EVALUATE,
        r"runs/tiny/metrics\.jsonl: damaged; .*mends it", r"runs/tiny/(evaluation\.json|\w+\.png)"),
    bad("evaluate: a bad image", truncated, EVALUATE + " --data-dir {here}/images",
        r"train/5\.png: not a readable image .*; replace or remove it"),
]

SUBMISSIONS = [
    bad("submit: no such folder", nothing, SUBMIT, "here/test: cannot be read: No such file.*; check its name"),
    bad("submit: empty folder", images_for_submission(), SUBMIT,
        r"here/test: no images \(\.png, .*\) in this folder; add"),
    bad("submit: not a number", images_for_submission("1.png", "x.png"), SUBMIT,
        r"/x\.png: .*not a number; expected"),
    bad("submit: unreadable folder", forbidden("test", images_for_submission("1.png")), SUBMIT,
        "here/test: cannot be read: Permission denied; check its"),
    bad("submit: a bad image",
        both(images_for_submission("1.png"), file("test/2.png", b""), file("out.csv", b"former")), SUBMIT,
        r"test/2\.png: not a readable image .*; replace or remove it"),
    bad("submit: an image missing",
        both(images_for_submission("1.png"), file("sampleSubmission.csv", b"id,label\n1,cat\n2,cat\n")), SUBMIT,
        r"test: no image for id 2 of .*sampleSubmission\.csv \(1 missing in all\)"),
    bad("submit: a bad sample",
        both(images_for_submission("1.png"), file("sampleSubmission.csv", b"id,label\n1,cat\n1,cat\n")), SUBMIT,
        r"sampleSubmission\.csv, row 3: the id 1 occurs twice; remove"),
    bad("submit: no such run", images_for_submission("1.png"), SUBMIT.replace("tiny", "none"),
        "none: no such file; tr"),
    bad("submit: out is a folder", images_for_submission("1.png"), SUBMIT + " --out {here}",
        "--out .*: is a folder; expected a"),
    bad("submit: no out", nothing, SUBMIT.split(" --out")[0], "required: --out; see submit.py --help"),
]
# fmt: on

ALL = [*LABEL_FILES, *IMAGES, *FOLDERS, *FLAGS, *RECIPES, *RUNS, *EVALUATIONS, *SUBMISSIONS]


# Running them -----------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    write_kaggle(folder / "images", LABELS)
    return folder


@pytest.fixture(autouse=True)
def capabilities_as_they_were(process_as_it_was: None) -> Iterator[None]:
    capabilities = own_capabilities()
    yield
    set_capabilities(capabilities)


# Root may read what nobody may. Capabilities (Linux's capget(2)) belong to a thread, which may do without some.
_CAPABILITY_VERSION_3 = (ctypes.c_uint32 * 2)(0x20080522, 0)
_DAC_OVERRIDE_AND_READ_SEARCH = 0b110


def own_capabilities() -> "ctypes.Array[ctypes.c_uint32]":
    found = (ctypes.c_uint32 * 6)()
    if sys.platform == "linux":
        assert ctypes.CDLL(None).capget(_CAPABILITY_VERSION_3, found) == 0
    return found


def set_capabilities(wanted: "ctypes.Array[ctypes.c_uint32]") -> None:
    if sys.platform == "linux":
        assert ctypes.CDLL(None).capset(_CAPABILITY_VERSION_3, wanted) == 0


def obey_permissions() -> None:
    """Until the end of the test, even as root."""
    fewer = own_capabilities()
    fewer[0] &= ~_DAC_OVERRIDE_AND_READ_SEARCH
    set_capabilities(fewer)


def arguments_of(line: str, here: Path, shapes: Path) -> list[str]:
    script, *given = [word.format(here=here, shapes=shapes) for word in shlex.split(line)]
    if script == "train.py":
        where = ["--runs-dir", here / "runs", "--cache-dir", here / "cache", "--name", "bad"]
        given = [*TINY, "--data-dir", str(here / "images"), *map(str, where), *given]
    return [script, *given]


def add_trained_run(line: str, tiny: Callable[[], Path], here: Path) -> None:
    """Where the command asks for the run: its files, by links, as a refused command writes to none of them."""
    if "/runs/tiny" in line or "--name tiny" in line:
        shutil.copytree(tiny(), here / "runs" / "tiny", copy_function=os.link)


def remains(here: Path) -> dict[str, tuple[int, ...]]:
    """All files and folders, less locks and whole caches: what a failed command must leave as it was."""
    found = {}
    for folder, folders, files in os.walk(here):
        if Path(folder) == here / "cache":
            folders[:] = [name for name in folders if not is_whole_cache(here / "cache" / name)]
        for name in [*folders, *files]:
            path = Path(folder) / name
            status = path.lstat()
            described = (status.st_mode, status.st_size, status.st_mtime_ns) if name in files else ()
            if not name.endswith(".lock") and path != here / "cache":
                found[str(path.relative_to(here))] = described
    return found


def is_whole_cache(folder: Path) -> bool:
    expected = {"images.npy", "labels.npy", "meta.json"}
    return {path.name for path in folder.iterdir()} == expected and preparation._whole(folder) is not None


def call(arguments: list[str]) -> object:
    """Run a script in this process; returns its exit code. Warnings go to stderr, as they would for a user."""
    script, *rest = arguments
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)  # as Python does
        code = call_main(importlib.import_module(script.removesuffix(".py")).main, *rest)
    for warning in caught:
        print(f"{warning.category.__name__}: {warning.message}", file=sys.stderr)
    return code


@pytest.mark.parametrize(("spoil", "line", "says", "leaves"), ALL)
def test_bad_input_ends_with_code_2_and_one_line_and_leaves_nothing(
    spoil: Spoil,
    line: str,
    says: str,
    leaves: str,
    here: Path,
    images: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    add_trained_run(line, lambda: request.getfixturevalue("tiny_run"), here)
    spoil(here, monkeypatch)
    before = remains(here)
    capfd.readouterr()
    code = call(arguments_of(line, here, images))
    told = capfd.readouterr().err.splitlines()
    assert code == 2, told
    assert len(told) == 1, told
    assert re.match("error: .*" + says, told[0]), told
    after = remains(here)
    assert {path: after[path] for path in after if path in before or not re.fullmatch(leaves, path)} == before


def case(name: str) -> tuple[Spoil, str, str]:
    return next(entry.values[:3] for entry in ALL if entry.id == name)


@pytest.mark.parametrize("name", ["recipe: YAML error", "submit: a bad image"])
def test_so_it_is_told_by_a_process_of_its_own(
    name: str, here: Path, images: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, line, says = case(name)
    add_trained_run(line, lambda: request.getfixturevalue("tiny_run"), here)
    spoil(here, monkeypatch)
    before = remains(here)
    done = run_script(*arguments_of(line, here, images))
    assert done.returncode == 2
    assert re.fullmatch(f"error: .*{says}.*\n", done.stderr)
    assert done.stdout == ""
    assert remains(here) == before


def test_an_image_that_another_process_refuses_is_told_alike(here: Path) -> None:
    """More images than one process decodes alone."""
    for name in ("cat", "dog"):
        (here / "many" / name).mkdir(parents=True)
        for number in range(800):
            os.link(here / "images" / "train" / "1.png", here / "many" / name / f"{number}.png")
    spoilt = here / "many" / "dog" / "700.png"
    spoilt.unlink()
    spoilt.write_bytes(png(8, 2, b"", 10000, 10000))
    before = remains(here)
    done = run_script(*arguments_of(f"train.py --data-dir {here}/many", here, here))
    assert done.returncode == 2
    assert done.stderr == f"error: {spoilt}: 10000x10000 pixels; expected 32x32: resize it\n"
    assert remains(here) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="would take the GPUs of this machine instead")
def test_more_processes_than_images_are_told_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kaggle(["cat", "dog"])(here, monkeypatch)
    before = remains(here)
    done = run_script(*arguments_of("train.py --split none --batch-size 4", here, here), processes=2)
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if "--batch-size 4" in line]
    assert len(told) == 1
    assert "error: --batch-size 4 is more than the 2 training images" in told[0]
    assert remains(here) == before


# Accepted, and how it is read -------------------------------------------------------------------------------

PIXELS: Pixels = random_images(1)[0]
PALETTE = random_images(1, seed=1)[0, 0, :16]
INDICES = PIXELS[..., 0] % 16


def with_palette() -> Image.Image:
    made = Image.frombytes("P", (32, 32), INDICES.tobytes())
    made.putpalette(PALETTE.tobytes())
    return made


def with_alpha(channels: int) -> Image.Image:
    return Image.fromarray(np.concatenate([PIXELS[..., :channels], PIXELS[..., :1]], axis=2))


GREY = np.repeat(PIXELS[..., :1], 3, axis=2)
FOUR_BITS = png(4, 0, bytes(range(16)))  # two pixels a byte, 0 0 0 1 0 2 ...

GOOD_IMAGES = {
    "RGB": (image(Image.fromarray(PIXELS)), PIXELS),
    "RGB with a transparent colour": (image(Image.fromarray(PIXELS), transparency=(3, 4, 5)), PIXELS),
    "RGBA: alpha is dropped": (image(with_alpha(3)), PIXELS),
    "greyscale": (image(Image.fromarray(PIXELS[..., 0])), GREY),
    "greyscale with alpha": (
        image(with_alpha(1)),
        GREY,
    ),
    "greyscale of 4 bits": (
        image(FOUR_BITS),
        np.broadcast_to(np.ravel([(0, low * 17) for low in range(16)])[None, :, None], (32, 32, 3)),
    ),
    "black and white": (
        image(Image.fromarray(INDICES > 7)),
        np.where(INDICES > 7, 255, 0)[..., None].repeat(3, 2),
    ),
    "palette": (image(with_palette()), PALETTE[INDICES]),
    "palette with a transparent colour": (image(with_palette(), transparency=3), PALETTE[INDICES]),
    "palette with alpha": (image(with_palette(), transparency=bytes(range(16))), PALETTE[INDICES]),
    "PNG in capitals": (image(Image.fromarray(PIXELS), "5.PNG"), PIXELS),
    "BMP": (image(Image.fromarray(PIXELS), "5.bmp"), PIXELS),
    "WebP without loss": (image(Image.fromarray(PIXELS), "5.webp", lossless=True), PIXELS),
}

GOOD_TABLES = {
    "byte order mark": "\ufeff" + TABLE,
    "CRLF": TABLE.replace("\n", "\r\n"),
    "CR": TABLE.replace("\n", "\r"),
    "quoted fields": re.sub(r"(\w+),(\w+)", r'"\1","\2"', TABLE),
    "some quoted fields": TABLE.replace("cat", '"cat"'),
    "empty lines": TABLE.replace("\n5,", "\n\n5,") + "\n\n",
    "no end of line": TABLE.removesuffix("\n"),
    "rows in another order": TABLE.replace("\n1,cat", "") + "1,cat\n",
    "ids with zeros": TABLE.replace("\n1,", "\n0001,"),
    "all of them": "\ufeff" + re.sub(r"(\w+),(\w+)", r'"\1","\2"', TABLE).replace("\n", "\r\n\r\n"),
}


@pytest.mark.parametrize(("write", "expected"), GOOD_IMAGES.values(), ids=GOOD_IMAGES)
def test_images_that_are_read_as_8_bit_rgb(
    write: Spoil, expected: Pixels, here: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    (here / "images" / "train" / "5.png").unlink()
    write(here, monkeypatch)
    prepared = prepare(find_source("folder", here / "images"), here / "cache")
    np.testing.assert_array_equal(prepared.images[4], expected)
    assert len(prepared.images) == 24
    assert not recwarn.list


@pytest.mark.parametrize("content", GOOD_TABLES.values(), ids=GOOD_TABLES)
def test_tables_that_are_read_as_written(content: str, here: Path) -> None:
    (here / "images" / "trainLabels.csv").write_bytes(content.encode())
    prepared = prepare(find_source("folder", here / "images"), here / "cache")
    assert prepared.classes == ("cat", "dog")
    assert prepared.labels.tolist() == [0, 1] * 12


def test_all_that_is_accepted_trains_without_a_word(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "images" / "trainLabels.csv").write_bytes(GOOD_TABLES["all of them"].encode())
    for number, (write, _) in enumerate(GOOD_IMAGES.values(), start=6):
        (here / "images" / "train" / "5.png").unlink(missing_ok=True)
        write(here, monkeypatch)
        (written,) = (here / "images" / "train").glob("5.*")
        (here / "images" / "train" / f"{number}.png").unlink()
        written.rename(written.with_stem(str(number)))
    Image.fromarray(PIXELS).save(here / "images" / "train" / "5.png")
    capfd.readouterr()
    assert call(arguments_of("train.py --epochs 1", here, here)) == 0
    assert capfd.readouterr().err == ""
    assert (here / "runs" / "bad" / "best.safetensors").exists()
