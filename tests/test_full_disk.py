"""A disk that fills up, and a folder that may not be written: one line, nothing half done, nothing lost.

The full disk is a small tmpfs. It takes whole pages, so that "one page more" reaches every place in turn.
"""

import errno
import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import evaluate
import submit
import train
from data.files import check_digest, write_atomically, write_json, written_atomically
from data.prepared import Prepared, prepare
from data.sources import find_source
from tests.conftest import TINY, call_main, run_script
from tests.images import pixel_source, prepared_pixels, write_kaggle
from training import checkpoint, figures, parts, pictures
from training.checkpoint import load_newest_checkpoint, load_weights, take_checkpoint, take_weights
from training.cli import one_line_errors
from training.config import Config, parse_config
from training.recorder import Recorder
from training.tracking import MetricsFile, Tracking

PAGE = os.sysconf("SC_PAGE_SIZE")
NOBODY = 65534

pytestmark = pytest.mark.usefixtures("process_as_it_was")


class Disk:
    """A file system of its own, of `size` bytes."""

    def __init__(self, folder: Path, size: int):
        self.folder, self.filler = folder, folder / "filler"
        self._mount("-t", "tmpfs", "-o", f"size={size},mode=0755", "tmpfs")

    def _mount(self, *options: str) -> None:
        done = subprocess.run(["mount", *options, str(self.folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no small disk here: {done.stderr.strip()}")

    def room(self) -> int:
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_bsize

    def fill(self, leaving: int = 0) -> None:
        """Leave so many bytes of room, rounded down to pages."""
        self.filler.unlink(missing_ok=True)
        with open(self.filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, self.room() - leaving // PAGE * PAGE)

    def free(self) -> None:
        self.filler.unlink()

    def make_read_only(self) -> None:
        self._mount("-o", "remount,ro")

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], capture_output=True)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may read; pytest's own are closed to them."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def make_disk(open_folder: Path) -> Iterator[Callable[[int], Disk]]:
    disks = []

    def make(size: int) -> Disk:
        folder = open_folder / f"disk{len(disks)}"
        folder.mkdir()
        disks.append(Disk(folder, size))
        return disks[-1]

    yield make
    for disk in disks:
        disk.unmount()


def tiny_network(name: str, classes: int, *_: object) -> nn.Module:
    """In place of a ResNet: its files have a page or two."""
    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, classes))


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files, less locks, and what fills the disk."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in ("filler", ".lock"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.suffix != ".lock"}


# Each writer ------------------------------------------------------------------------------------------------
# Takes a folder and which version to write: 0 or 1.


def write_config(folder: Path, version: int) -> None:
    config = Config(runs_dir=str(folder), name="mine", log_every=50 + version)
    Recorder(config, None, None)._write_config()  # type: ignore[arg-type]


def take_run(folder: Path, version: int) -> None:
    recorder = Recorder(Config(runs_dir=str(folder), name="mine"), None, None)  # type: ignore[arg-type]
    try:
        recorder.open()
    finally:
        recorder.close()


def restore_metrics(folder: Path, version: int) -> None:
    MetricsFile(folder / "metrics.jsonl", [json.dumps({"kind": "step", "step": version})] * 400)


def write_checkpoint(folder: Path, version: int) -> None:
    take_checkpoint(folder, 7, {"progress": {"step": 7}, "weight": torch.full((4000,), float(version))})()


def write_weights(folder: Path, version: int) -> None:
    about = {"config": asdict(Config()), "classes": list("abcdefghij"), "version": version}
    take_weights(folder / "best.safetensors", tiny_network("", 10), about)()


def write_figure(folder: Path, version: int) -> None:
    figures.save(Figure(figsize=(2 + version, 2)), folder / "curves.png")


def write_summary(folder: Path, version: int) -> None:
    write_json(folder / "summary.json", {"seconds": version, "versions": ["1.2.3"] * 1000})


def write_cache(folder: Path, version: int) -> None:
    source = pixel_source(30, 3, seed=version)
    source.version = str(version)  # the former cache is out of date, and whole
    prepare(source, folder)


WRITERS = {
    "config": (write_config, "mine/config.yaml(.sha256)?"),
    "pid": (take_run, r"mine/\.pid"),
    "metrics": (restore_metrics, "metrics.jsonl"),
    "checkpoint": (write_checkpoint, r"step-00000007\.pt(.sha256)?"),
    "weights": (write_weights, "best.safetensors"),
    "figure": (write_figure, "curves.png"),
    "summary": (write_summary, "summary.json"),
    "cache": (write_cache, "[0-9a-f]{16}"),
}
"""What writes, and the file that its error names."""
EVERY_WRITER = list(WRITERS)


def failure(write: Callable[[Path, int], None], folder: Path, version: int) -> OSError:
    with pytest.raises(OSError) as raised:  # noqa: PT011 - the callers look at its number and file
        write(folder, version)
    return raised.value


@pytest.mark.parametrize("name", EVERY_WRITER)
def test_a_full_disk_is_told_by_the_file_and_leaves_the_former_one(
    name: str, make_disk: Callable[[int], Disk], tmp_path: Path
) -> None:
    write, named = WRITERS[name]
    write(tmp_path, 0)
    pages = {path: -(-len(content) // PAGE) for path, content in contents(tmp_path).items()}
    needed = sum(pages.values()) or 1  # .pid is there while its run is
    for former in (False, True):
        disk = make_disk(4 << 20)
        if former:
            write(disk.folder, 0)
        before = contents(disk.folder)
        for room in {0, needed // 2, needed - 1}:
            disk.fill(leaving=room * PAGE)
            error = failure(write, disk.folder, 1)
            assert error.errno == errno.ENOSPC
            assert re.fullmatch(f"{disk.folder}/{named}", str(error.filename))
            assert contents(disk.folder) == before
            assert disk.room() == room * PAGE
        disk.free()
        write(disk.folder, 1)
        if former and before:
            assert contents(disk.folder).keys() == before.keys()
            assert contents(disk.folder) != before


@contextmanager
def without_rights(folder: Path, but: Path | None = None) -> Iterator[None]:
    """Make `folder` and all in it read-only, `but` open; root, who may write all the same, becomes nobody.

    Images stay as they are: a change would have them decoded anew.
    """
    paths = [folder, *(path for path in folder.rglob("*") if path.suffix != ".png")]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in paths}
    for path in paths:
        path.chmod((0o777 if path == but else 0o555) if path.is_dir() else 0o444)
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)
        for path, mode in modes.items():
            path.chmod(mode)


@pytest.mark.parametrize("former", [False, True], ids=["first", "again"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_without_write_permission_is_told_by_the_file(
    name: str, former: bool, open_folder: Path, tmp_path: Path
) -> None:
    write, _ = WRITERS[name]
    write(tmp_path, 0)  # what it imports is imported: nobody may not read that everywhere
    if former:
        write(open_folder, 0)
    before = contents(open_folder)
    with without_rights(open_folder):
        error = failure(write, open_folder, 1)
    assert error.errno == errno.EACCES
    assert str(error.filename).startswith(f"{open_folder}/")
    assert not str(error.filename).endswith(".tmp")
    assert contents(open_folder) == before


@pytest.mark.parametrize("name", WRITERS)
def test_a_read_only_disk_is_told_by_the_file(name: str, make_disk: Callable[[int], Disk]) -> None:
    write, _ = WRITERS[name]
    disk = make_disk(4 << 20)
    write(disk.folder, 0)
    before = contents(disk.folder)
    disk.make_read_only()
    error = failure(write, disk.folder, 1)
    assert error.errno == errno.EROFS
    assert str(error.filename).startswith(f"{disk.folder}/")
    assert not str(error.filename).endswith(".tmp")
    assert contents(disk.folder) == before


def test_a_line_of_metrics_that_finds_no_room_is_told_and_mended(
    make_disk: Callable[[int], Disk], capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines are appended, so that one may stay cut: the checkpoint has the whole ones."""
    disk = make_disk(1 << 20)
    metrics = MetricsFile(disk.folder / "metrics.jsonl", [])
    row = {"kind": "step", "loss": 0.123456789}
    metrics.append(row)
    kept, before = list(metrics.lines), metrics.path.read_bytes()
    disk.fill()
    with pytest.raises(OSError) as raised:  # noqa: PT011, PT012 - until the file's own page is full
        for _ in range(PAGE):
            metrics.append(row)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(metrics.path))
    assert metrics.path.stat().st_size == PAGE
    disk.free()
    assert MetricsFile(metrics.path, kept).lines == kept
    assert metrics.path.read_bytes() == before
    assert capsys.readouterr().err == ""


def test_an_error_without_a_number_is_told_by_its_message(
    make_disk: Callable[[int], Disk], capsys: pytest.CaptureFixture[str]
) -> None:
    disk = make_disk(1 << 20)
    path = disk.folder / "array"
    disk.fill()
    with pytest.raises(SystemExit) as raised, one_line_errors(), written_atomically(path) as temporary:
        np.zeros(PAGE).tofile(temporary)
    assert raised.value.code == 1
    assert capsys.readouterr().err == f"error: {path}: {PAGE} requested and 0 written\n"
    assert contents(disk.folder) == {}


# FFCV -------------------------------------------------------------------------------------------------------


def prepared_on(disk: Disk) -> Prepared:
    prepared = prepared_pixels(disk.folder, 3)
    assert whole_beton_size() <= disk.room()
    return prepared


def whole_beton_size() -> int:
    """Two of FFCV's pages of 8 MiB, the first for what it says of the images, and the table at the end."""
    return (16 << 20) + PAGE


@pytest.mark.parametrize("room", [0, 2 * PAGE, 8 << 20, 12 << 20, 16 << 20, whole_beton_size()])
def test_a_full_disk_leaves_no_beton_that_would_be_read(
    room: int, make_disk: Callable[[int], Disk], ffcv_loader: ModuleType
) -> None:
    disk = make_disk(40 << 20)
    prepared = prepared_on(disk)
    disk.fill(leaving=room)
    with pytest.raises(OSError) as raised:  # noqa: PT011
        ffcv_loader.whole_beton(prepared)
    assert raised.value.errno == errno.ENOSPC
    beton = prepared.folder / "images.beton"
    named = beton if room < whole_beton_size() else beton.with_name("images.beton.json")
    assert raised.value.filename == str(named)
    complete = set() if named == beton else {beton}  # for the record there was no room: it will be written again
    assert set(prepared.folder.glob("*beton*")) | set(prepared.folder.glob("*.tmp")) == complete
    assert complete or disk.room() == room  # nor is the removed file still open
    disk.free()
    assert_read(prepared, ffcv_loader)


def assert_read(prepared: Prepared, ffcv_loader: ModuleType) -> None:
    loader = ffcv_loader.FFCVLoader(prepared, torch.device("cpu"), 1)
    (batch,) = loader.read([torch.arange(3)])
    np.testing.assert_array_equal(batch.images.permute(0, 2, 3, 1).numpy(), prepared.images)


def test_a_page_that_was_written_in_part_is_an_error(
    make_disk: Callable[[int], Disk], ffcv_loader: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if there is room again for what follows: such a file would have a digest, and be read."""
    disk = make_disk(40 << 20)
    prepared = prepared_on(disk)
    finalize = ffcv_loader._Writer.finalize

    def room_again(writer: Any, allocations: Any) -> None:
        disk.free()
        finalize(writer, allocations)

    monkeypatch.setattr(ffcv_loader._Writer, "finalize", room_again)
    disk.fill(leaving=12 << 20)
    with pytest.raises(OSError, match="No space left"):
        ffcv_loader.whole_beton(prepared)
    monkeypatch.undo()
    disk.free()
    assert_read(prepared, ffcv_loader)


# Whole scripts, in this process -----------------------------------------------------------------------------

PNG = b"\x89PNG" + bytes(2 * PAGE)
"""In place of a figure: to draw them takes most of the time."""


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks and figures of a page or two."""
    monkeypatch.setattr(parts, "build_model", tiny_network)
    monkeypatch.setattr(checkpoint, "build_model", tiny_network)
    monkeypatch.setattr(
        figures, "draw_curves", lambda rows, config, folder: write_atomically(folder / "curves.png", PNG)
    )
    monkeypatch.setattr(
        figures, "draw_confusion", lambda confusion, classes, title, path, groups: write_atomically(path, PNG)
    )
    for name in ("draw_predictions", "draw_mistakes"):
        monkeypatch.setattr(pictures, name, lambda *arguments: write_atomically(arguments[-1], PNG))


def step_of_whole_run(run: Path) -> int:
    """Check that what stands under a final name is complete; the newest checkpoint's step, 0 without one."""
    found = contents(run)
    assert ".pid" not in found
    assert "summary.json" not in found
    assert [name for name in found if name.endswith(".tmp")] == []
    for name in found:
        if name.endswith(".sha256"):
            assert check_digest(run / name.removesuffix(".sha256"))
    if "config.yaml" in found:
        assert "config.yaml.sha256" in found
        parse_config(["--recipe", str(run / "config.yaml")])
    if "best.safetensors" in found:
        load_weights(run / "best.safetensors")
    assert found.get("curves.png", PNG) == PNG
    state = load_newest_checkpoint(run / "checkpoints")
    return state["progress"]["step"] if state else 0


@pytest.fixture
def shapes(open_folder: Path) -> Path:
    """Few images in Kaggle's layout, for a run of 2 epochs of 2 steps."""
    write_kaggle(open_folder / "images", ["cat", "dog"] * 14, ["cat", "dog"] * 4)
    return open_folder / "images"


def test_wherever_training_fills_the_disk_the_same_command_goes_on(
    shapes: Path,
    tmp_path: Path,
    make_disk: Callable[[int], Disk],
    small_files: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One page of room, then two, and so on to the end."""
    disk = make_disk(1 << 20)
    flags = [*TINY, "--log-every", 1, "--name", "run", "--data-dir", shapes, "--cache-dir", tmp_path / "cache"]
    assert call_main(train.main, *flags, "--runs-dir", tmp_path) == 0
    expected = result(tmp_path / "run")
    run = disk.folder / "run"
    named, steps, pages = set(), set(), 0
    capfd.readouterr()
    while pages := pages + 1:
        disk.fill(leaving=pages * PAGE)
        code = call_main(train.main, *flags, "--runs-dir", disk.folder)
        told = capfd.readouterr().err
        if code == 0:
            break
        match = re.fullmatch(f"error: {run}/(.+): No space left on device\n", told)
        assert (code, bool(match)) == (1, True), told
        named.add(match[1])  # type: ignore[index]
        steps.add(step_of_whole_run(run))
        disk.free()
        assert call_main(train.main, *flags, "--runs-dir", disk.folder) == 0
        assert capfd.readouterr().err == ""
        assert result(run) == expected
        shutil.rmtree(run)
    assert steps == {0, 2, 4}
    weights = {"best.safetensors", "checkpoints/step-00000002.pt", "checkpoints/step-00000004.pt"}
    assert named >= {"config.yaml", "metrics.jsonl", "curves.png", "summary.json"} | weights


def result(run: Path) -> tuple[str, list[tuple[Any, ...]]]:
    """The weights, and the metrics that do not depend on time."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    weights: str = json.loads((run / "summary.json").read_text())["weights_sha256"]
    return weights, [(row["kind"], row["step"], row["train_loss"]) for row in rows]


def test_no_room_for_the_prepared_images(
    shapes: Path, make_disk: Callable[[int], Disk], small_files: None, capfd: pytest.CaptureFixture[str]
) -> None:
    disk = make_disk(1 << 20)
    flags = [*TINY, "--name", "run", "--data-dir", shapes, "--cache-dir", disk.folder]
    for pages in (0, 1, 10, 27, 29):
        disk.fill(leaving=pages * PAGE)
        assert call_main(train.main, *flags, "--runs-dir", disk.folder.parent) == 1
        told = capfd.readouterr().err
        assert re.fullmatch(f"error: {disk.folder}/[0-9a-f]{{16}}: No space left on device\n", told)
        assert contents(disk.folder) == {}
        assert not (disk.folder.parent / "run").exists()
    disk.free()
    assert call_main(train.main, *flags, "--runs-dir", disk.folder.parent) == 0


@pytest.fixture
def trained(shapes: Path, small_files: None) -> Callable[[Path], Path]:
    """Writes the weights of a run into the folder given."""

    def write(run: Path) -> Path:
        cache = shapes.with_name("cache")
        config = Config(dataset="folder", data_dir=str(shapes), cache_dir=str(cache))
        prepared = prepare(find_source("folder", shapes), cache)
        about = {"config": asdict(config), "data": prepared.digest, "classes": prepared.classes}
        about |= {"mean": prepared.mean, "std": prepared.std, "precision": "no"}
        take_weights(run / "best.safetensors", tiny_network("", 2), about)()
        return run

    return write


def test_no_room_for_what_evaluation_writes(
    trained: Callable[[Path], Path], make_disk: Callable[[int], Disk], capfd: pytest.CaptureFixture[str]
) -> None:
    disk = make_disk(1 << 20)
    run = trained(disk.folder / "run")
    drawn = ("confusion.png", "predictions.png", "mistakes.png")  # each of three pages
    for pages, name in ((0, "evaluation.json"), (1, drawn[0]), (3, drawn[0]), (4, drawn[1]), (7, drawn[2])):
        disk.fill(leaving=pages * PAGE)
        assert call_main(evaluate.main, run) == 1
        said, told = capfd.readouterr()
        assert told == f"error: {run}/{name}: No space left on device\n"
        assert "8 images" in said  # the table was printed before
        written = {"evaluation.json", *drawn[: (pages - 1) // 3]} if pages else set()
        assert contents(run).keys() == {"best.safetensors"} | written
        for file in ("evaluation.json", *drawn):
            (run / file).unlink(missing_ok=True)
    disk.free()
    assert call_main(evaluate.main, run) == 0
    before = contents(run)
    disk.fill()
    assert call_main(evaluate.main, run, "--tta", "flip") == 1
    assert contents(run) == before


def test_no_room_for_a_submission(
    trained: Callable[[Path], Path],
    shapes: Path,
    tmp_path: Path,
    make_disk: Callable[[int], Disk],
    capfd: pytest.CaptureFixture[str],
) -> None:
    disk = make_disk(1 << 20)
    arguments = [trained(tmp_path), "--images", shapes / "test", "--out", disk.folder / "submission.csv"]
    for former in (b"", b"former"):
        if former:
            (disk.folder / "submission.csv").write_bytes(former)
        before = contents(disk.folder)
        disk.fill()
        assert call_main(submit.main, *arguments) == 1
        assert capfd.readouterr().err == f"error: {disk.folder}/submission.csv: No space left on device\n"
        assert contents(disk.folder) == before
        disk.free()
    assert call_main(submit.main, *arguments) == 0
    assert (disk.folder / "submission.csv").read_text().startswith("id,label\n1,")


def test_scripts_tell_of_a_folder_that_may_not_be_written(
    trained: Callable[[Path], Path], shapes: Path, open_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = trained(open_folder / "run")
    closed = open_folder / "closed"
    closed.mkdir()
    cache = open_folder / "cache"
    flags = [*TINY, "--data-dir", shapes, "--name", "mine"]
    scripts: list[tuple[Callable[[], None], list[object], Path]] = [
        (evaluate.main, [run], run / "evaluation.json"),
        (submit.main, [run, "--images", shapes / "test", "--out", closed / "s.csv"], closed / "s.csv"),
        (
            submit.main,
            [run, "--images", shapes / "test", "--out", closed / "new" / "s.csv"],
            closed / "new" / "s.csv",
        ),
        (train.main, [*flags, "--cache-dir", cache, "--runs-dir", closed], closed / "mine"),
        (train.main, [*flags, "--cache-dir", cache, "--runs-dir", closed / "new"], closed / "new"),
        (train.main, [*flags, "--cache-dir", cache, "--runs-dir", run.parent], run.parent / "mine"),
        (train.main, [*flags, "--cache-dir", closed, "--runs-dir", open_folder / "runs"], closed),
        (train.main, [*flags, "--cache-dir", closed / "new", "--runs-dir", open_folder / "runs"], closed / "new"),
    ]
    before = contents(open_folder)
    for main, arguments, named in scripts:
        for lock in cache.glob("*.lock"):  # of another user, and closed
            lock.unlink()
        with without_rights(open_folder, but=cache):
            code = call_main(main, *arguments)
        told = capfd.readouterr().err
        pattern = f"error: {re.escape(str(named))}(/[0-9a-f]{{16}}.lock)?: Permission denied\n"
        assert (code, bool(re.fullmatch(pattern, told))) == (1, True), told
        assert contents(open_folder) == before


# In processes of their own ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("full_width")
def test_a_run_whose_disk_fills_up_goes_on_when_there_is_room(
    shapes: Path, tmp_path: Path, make_disk: Callable[[int], Disk]
) -> None:
    """45 MB of weights and a checkpoint of 90 MB are there after an epoch, and no room for the next one."""
    disk = make_disk(450 << 20)
    disk.fill(leaving=200 << 20)
    flags = [*TINY, "--name", "run", "--data-dir", shapes, "--cache-dir", tmp_path, "--runs-dir", disk.folder]
    done = run_script("train.py", *flags)
    run = disk.folder / "run"
    newest = run / "checkpoints" / "step-00000004.pt"
    assert done.stderr == f"error: {newest}: No space left on device\n"
    assert done.returncode == 1
    assert sorted(contents(run / "checkpoints")) == ["step-00000002.pt", "step-00000002.pt.sha256"]
    assert load_newest_checkpoint(run / "checkpoints")["progress"]["step"] == 2  # type: ignore[index]
    assert list(disk.folder.rglob("*.tmp")) == []
    disk.free()
    done = run_script("train.py", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert "resuming after step 2 of 4" in done.stdout
    assert json.loads((run / "summary.json").read_text())["steps"] == 4


def test_a_full_cache_disk_is_one_line_of_the_process(
    shapes: Path, tmp_path: Path, make_disk: Callable[[int], Disk]
) -> None:
    """With FFCV, whose writer is the last to fill it."""
    disk = make_disk(20 << 20)
    flags = [*TINY, "--name", "run", "--data-dir", shapes, "--cache-dir", disk.folder, "--runs-dir", tmp_path]
    disk.fill(leaving=10 << 20)
    done = run_script("train.py", *flags, "--loader", "ffcv")
    (beton,) = (folder / "images.beton" for folder in disk.folder.iterdir() if folder.is_dir())
    assert (done.returncode, done.stderr) == (1, f"error: {beton}: No space left on device\n")
    assert sorted(path.name for path in beton.parent.iterdir()) == ["images.npy", "labels.npy", "meta.json"]
    assert not (tmp_path / "run").exists()


# The tracker ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_metrics_go_on_where_the_tracker_cannot_write(
    how: str,
    tmp_path: Path,
    make_disk: Callable[[int], Disk],
    wandb_offline: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    disk = make_disk(1 << 20)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wandb").symlink_to(disk.folder)
    if how == "full":
        disk.fill()
    else:
        disk.make_read_only()
    tracking = Tracking(Config(), tmp_path / "run")
    for step in (1, 2):
        tracking.log({"kind": "step", "step": step})
    tracking.finish()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    told = capfd.readouterr().err
    warnings = [line for line in told.splitlines() if line.startswith("warning: the tracker failed, going on")]
    assert len(warnings) == 1
    assert ("No space left" if how == "full" else "Read-only file system") in warnings[0]
    assert told.splitlines() == warnings


def test_a_disk_that_becomes_read_only_lets_the_run_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ended the run has been told by then: its end adds no error of its own."""
    recorder = Recorder(Config(name="run", runs_dir=str(tmp_path)), None, None)  # type: ignore[arg-type]
    assert recorder.open() is None

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as read_only:
        read_only.setattr(Path, "unlink", fail)
        recorder.close()
    assert not recorder.lock.is_locked
    assert recorder.open() is None
    recorder.close()
    assert not (tmp_path / "run/.pid").exists()
