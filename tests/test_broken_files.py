"""Every file that is read again, cut at 20 lengths and with 200 flipped bits: noticed each time, never loaded."""

import functools
import json
import os
import random
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from data.errors import InputError
from data.prepared import Prepared, prepare
from tests.images import pixel_source, prepared_pixels
from training import checkpoint, config
from training.checkpoint import load_newest_checkpoint, load_weights, take_checkpoint, take_weights, weights_sha256
from training.config import Config, parse_config
from training.recorder import Recorder
from training.tracking import MetricsFile

CUTS, FLIPS = 20, 200


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of files are written here, and none has to outlast a power cut."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def damages(whole: bytes, headers: Iterable[range] = ()) -> Iterator[tuple[str, bytes]]:
    """A name and the damaged content for each damage.

    headers: where a format says what is where; half of the flips go there, evenly spread.
    """
    for number in range(CUTS):
        length = number * (len(whole) - 1) // (CUTS - 1)
        yield f"cut to {length} of {len(whole)} bytes", whole[:length]
    for bit in flipped_bits(len(whole), [place for header in headers for place in header]):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        yield f"byte {bit // 8} of {len(whole)}: {whole[bit // 8]:#x} -> {content[bit // 8]:#x}", bytes(content)


def flipped_bits(size: int, header: list[int]) -> list[int]:
    """FLIPS distinct bits of a file of `size` bytes, in the first and the last byte in any case."""
    generator = random.Random(0)
    chosen = {8 * place + generator.randrange(8) for place in (0, size - 1)}
    for number in range(min(FLIPS // 2, len(header))):
        chosen.add(8 * header[number * len(header) // min(FLIPS // 2, len(header))] + generator.randrange(8))
    rest = [bit for bit in generator.sample(range(8 * size), min(2 * FLIPS, 8 * size)) if bit not in chosen]
    return sorted(chosen | set(rest[: FLIPS - len(chosen)]))


def assert_all_noticed(whole: bytes, noticed: Callable[[bytes], bool], headers: Iterable[range] = ()) -> None:
    """Hand each damaged content to `noticed`, which tries to use it."""
    found = {name: noticed(content) for name, content in damages(whole, headers)}
    assert len(found) == CUTS + FLIPS
    assert [name for name in found if not found[name]] == []


# Checkpoints ------------------------------------------------------------------------------------------------


def zip_headers(whole: bytes) -> list[range]:
    """All of a zip archive but what is stored in it."""
    with zipfile.ZipFile(BytesIO(whole)) as archive:
        starts = [entry.header_offset for entry in archive.infolist()]
        ends = [start + 30 + len(entry.filename) for start, entry in zip(starts, archive.infolist(), strict=True)]
        return [*map(range, starts, ends), range(archive.start_dir, len(whole))]


@pytest.mark.parametrize("suffix", ["", ".sha256"], ids=["content", "digest"])
def test_a_damaged_checkpoint_gives_way_to_the_older_one(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        take_checkpoint(tmp_path, step, {"progress": {"step": step}, "weight": torch.full((20,), float(step))})()
    older, newer = (tmp_path / f"step-0000000{step}.pt{suffix}" for step in (1, 2))
    whole, checkpoint = newer.read_bytes(), tmp_path / "step-00000002.pt"
    kept = checkpoint.read_bytes()

    def noticed(content: bytes) -> bool:
        checkpoint.write_bytes(kept)
        newer.write_bytes(content)
        state = load_newest_checkpoint(tmp_path)
        assert state is not None
        warned = f"warning: {checkpoint} is damaged, removed; going on from" in capsys.readouterr().err
        assert not checkpoint.exists()  # or it would count as one of the two that are kept
        return warned and state["progress"] == {"step": 1} and torch.equal(state["weight"], torch.ones(20))

    assert_all_noticed(whole, noticed, zip_headers(whole) if not suffix else ())
    checkpoint.write_bytes(kept)
    newer.write_bytes(whole)
    assert load_newest_checkpoint(tmp_path)["progress"] == {"step": 2}  # type: ignore[index]
    older.write_bytes(b"")
    newer.write_bytes(b"")
    assert_nothing_is_left(tmp_path)


def assert_nothing_is_left(folder: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint is whole; remove the run's folder to start it again"):
        load_newest_checkpoint(folder)


@pytest.mark.parametrize("suffix", ["", ".sha256"], ids=["content", "digest"])
def test_a_damaged_only_checkpoint_is_an_error(suffix: str, tmp_path: Path) -> None:
    take_checkpoint(tmp_path, 1, {"weight": torch.ones(20)})()
    path = tmp_path / f"step-00000001.pt{suffix}"
    whole = path.read_bytes()

    def noticed(content: bytes) -> bool:
        path.write_bytes(content)
        assert_nothing_is_left(tmp_path)
        return True

    assert_all_noticed(whole, noticed, zip_headers(whole) if not suffix else ())


# Weights ----------------------------------------------------------------------------------------------------

ABOUT = {"config": {"model": "resnet18", "stem": "cifar", "init": "default"}, "classes": ["cat", "dög"]}
ABOUT |= {"data": "0123456789abcdef", "mean": [0.5, 0.25, 0.125], "std": [0.1, 0.2, 0.3], "precision": "no"}


def test_damaged_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    monkeypatch.setattr(checkpoint, "build_model", lambda *_: nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)))
    path = tmp_path / "best.safetensors"
    take_weights(path, network, ABOUT)()
    whole = path.read_bytes()

    def noticed(content: bytes) -> bool:
        path.write_bytes(content)
        try:
            load_weights(path)
        except InputError as error:
            return str(error).startswith(f"{path}: ") and "damaged" in str(error)
        return False

    assert_all_noticed(whole, noticed, [range(8 + int.from_bytes(whole[:8], "little"))])
    path.write_bytes(whole)
    loaded, about = load_weights(path)
    assert weights_sha256(loaded.state_dict()) == weights_sha256(network.state_dict())
    assert about["classes"] == ABOUT["classes"]


# The run's record -------------------------------------------------------------------------------------------


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    """Of a run whose config.yaml is written."""
    recorder = Recorder(Config(name="mine", runs_dir=str(tmp_path)), None, None)  # type: ignore[arg-type]
    recorder._write_config()
    return recorder


@pytest.mark.parametrize("name", ["config.yaml", "config.yaml.sha256"])
def test_a_damaged_config_is_refused_as_a_recipe(
    recorder: Recorder, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, path = recorder.folder / "config.yaml", recorder.folder / name
    whole = path.read_bytes()
    if path != recipe:  # then the recipe stays as it is, and to parse it once is enough
        parsed = config.make_parser().parse_args(["--recipe", str(recipe)])
        monkeypatch.setattr(config, "make_parser", lambda: SimpleNamespace(parse_args=lambda arguments: parsed))

    def noticed(content: bytes) -> bool:
        path.write_bytes(content)
        try:
            parse_config(["--recipe", str(recipe)])
        except InputError as error:
            return str(recipe) in str(error) and "\n" not in str(error)
        return False

    assert_all_noticed(whole, noticed)
    path.write_bytes(whole)
    assert asdict(parse_config(["--recipe", str(recipe)])) == asdict(recorder.config) | {"recipe": "config"}


@pytest.mark.parametrize("name", ["config.yaml", "config.yaml.sha256"])
def test_a_damaged_config_is_written_anew_when_its_run_goes_on(
    recorder: Recorder, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recorder.folder / name
    files = {path.name: path.read_bytes() for path in recorder.folder.iterdir()}

    def noticed(content: bytes) -> bool:
        path.write_bytes(content)
        recorder._write_config()
        assert {path.name: path.read_bytes() for path in recorder.folder.iterdir()} == files
        return f"warning: {recorder.folder}/config.yaml is not as it was written" in capsys.readouterr().err

    assert_all_noticed(files[name], noticed)
    recorder._write_config()
    assert capsys.readouterr().err == ""
    assert yaml.safe_load(files["config.yaml"])["name"] == "mine"


def test_damaged_metrics_are_restored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"kind": "epoch", "epoch": epoch, "train_loss": 1 / epoch}) for epoch in range(1, 9)]
    MetricsFile(path, lines)
    whole = path.read_bytes()
    capsys.readouterr()

    def noticed(content: bytes) -> bool:
        path.write_bytes(content)
        assert MetricsFile(path, lines).lines == lines
        assert path.read_bytes() == whole
        return f"warning: {path} is damaged; restored from the checkpoint" in capsys.readouterr().err

    assert_all_noticed(whole, noticed)
    MetricsFile(path, lines)
    assert capsys.readouterr().err == ""


# The prepared images ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "meta.json"])
def test_a_damaged_cache_is_built_anew(name: str, tmp_path: Path) -> None:
    source = pixel_source(11, 3)
    source.classes = ("cat", "dög", "eel")
    folder = prepare(source, tmp_path).folder
    path, files = folder / name, {path.name: path.read_bytes() for path in folder.iterdir()}

    def noticed(content: bytes) -> bool:
        path.write_bytes(content)
        built = source.loads
        found = prepare(source, tmp_path)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
        np.testing.assert_array_equal(found.images, np.concatenate([source.train.images, source.test.images]))
        np.testing.assert_array_equal(found.labels, np.arange(14) % 3)
        assert (found.classes, found.train_count) == (source.classes, 11)
        return source.loads == built + 1

    assert_all_noticed(files[name], noticed, [range(128)] if name.endswith(".npy") else ())
    built = source.loads
    prepare(source, tmp_path)
    assert source.loads == built


@pytest.fixture
def written(ffcv_loader: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[Prepared]:
    """What a .beton was written of. Pages are small: with FFCV's own the least file has 16 MiB."""
    import ffcv.writer

    page = 4096
    monkeypatch.setattr(ffcv.writer, "MIN_PAGE_SIZE", page)
    monkeypatch.setattr(ffcv_loader, "_Writer", functools.partial(ffcv_loader._Writer, page_size=page))
    written, write = [], ffcv_loader._write

    def recording(prepared: Prepared, path: Path) -> None:
        written.append(prepared)
        write(prepared, path)

    monkeypatch.setattr(ffcv_loader, "_write", recording)
    return written


def beton_headers(whole: bytes) -> list[range]:
    """FFCV's header, fields and samples, and the table of allocations at the end."""
    from ffcv.types import HeaderType

    header = np.frombuffer(whole[: HeaderType.itemsize], dtype=HeaderType)[0]
    return [range(1000), range(int(header["alloc_table_ptr"]), len(whole))]


@pytest.mark.parametrize("name", ["images.beton", "images.beton.json"])
def test_a_damaged_beton_is_written_anew(
    name: str, tmp_path: Path, ffcv_loader: ModuleType, written: list[Prepared]
) -> None:
    prepared = prepared_pixels(tmp_path, 3)
    beton = ffcv_loader.whole_beton(prepared)
    path = beton.with_name(name)
    files = {path.name: path.read_bytes() for path in beton.parent.glob("images.beton*")}

    def noticed(content: bytes) -> bool:
        path.write_bytes(content)
        written.clear()
        ffcv_loader.whole_beton(prepared)
        assert {path.name: path.read_bytes() for path in beton.parent.glob("images.beton*")} == files
        return len(written) == 1

    assert_all_noticed(files[name], noticed, beton_headers(files[name]) if name == beton.name else ())
    written.clear()
    loader = ffcv_loader.FFCVLoader(prepared, torch.device("cpu"), 1)
    (batch,) = loader.read([torch.arange(3)])
    assert written == []
    np.testing.assert_array_equal(batch.images.permute(0, 2, 3, 1).numpy(), prepared.images)
