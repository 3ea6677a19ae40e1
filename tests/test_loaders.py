"""The contract of a loader, held by the resident one, and the choice between the two."""

import sys

import numpy as np
import pytest
import torch

from data.errors import InputError
from data.loaders import make_loader
from data.prepared import Prepared
from data.resident_loader import ResidentLoader
from tests.images import prepared_pixels

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared_pixels(tmp_path_factory.mktemp("cache"), 30, 7)


class Unimportable:
    """Stands before the importers and fails the FFCV loader's module with `reason`."""

    def __init__(self, reason: str):
        self.reason = reason
        self.asked = False

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name == "data.ffcv_loader":
            self.asked = True
            raise ImportError(self.reason)


def without_ffcv(monkeypatch: pytest.MonkeyPatch, reason: str) -> Unimportable:
    finder = Unimportable(reason)
    monkeypatch.delitem(sys.modules, "data.ffcv_loader", raising=False)
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    return finder


REASONS = pytest.mark.parametrize(
    "reason",
    [
        "No module named 'ffcv'",
        "libturbojpeg.so.0: cannot open shared object file: No such file or directory",
        "Numba could not be imported.\nIf you are seeing this message and are undertaking Numba development",
    ],
    ids=["not installed", "without its library", "without its compiler"],
)


@pytest.mark.parametrize(
    "sizes", [[1], [5, 5, 5], [7, 7, 3], [4, 1], [37]], ids=["one", "whole", "odd", "last of one", "all"]
)
def test_batches_hold_the_images_labels_and_ids_asked_for_in_order(prepared: Prepared, sizes: list[int]) -> None:
    ids = torch.randperm(37, generator=torch.Generator().manual_seed(0))[: sum(sizes)]
    batches = list(ids.split(sizes))
    read = list(ResidentLoader(prepared, CPU).read(batches))
    assert len(read) == len(batches)
    for wanted, batch in zip(batches, read, strict=True):
        assert torch.equal(batch.ids, wanted)
        assert batch.ids.dtype == batch.labels.dtype == torch.int64
        assert batch.labels.tolist() == prepared.labels[wanted.numpy()].tolist()
        assert batch.labels.shape == (len(wanted),)
        assert batch.images.dtype == torch.uint8
        np.testing.assert_array_equal(batch.images.permute(0, 2, 3, 1).numpy(), prepared.images[wanted.numpy()])
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_ids_may_repeat(prepared: Prepared) -> None:
    ids = torch.tensor([3, 3, 36, 0, 3])
    (batch,) = ResidentLoader(prepared, CPU).read([ids])
    np.testing.assert_array_equal(batch.images.permute(0, 2, 3, 1).numpy(), prepared.images[ids.numpy()])


def test_no_batches_are_read_as_none(prepared: Prepared) -> None:
    assert list(ResidentLoader(prepared, CPU).read([])) == []


def test_a_kept_batch_stays_valid_and_belongs_to_its_keeper(prepared: Prepared) -> None:
    loader = ResidentLoader(prepared, CPU)
    batches = list(torch.arange(36).split(4))
    kept = list(loader.read(batches))
    for batch in kept:
        batch.images.zero_()
        batch.labels.zero_()
    for wanted, batch in zip(batches, loader.read(batches), strict=True):
        assert torch.equal(batch.labels, torch.from_numpy(prepared.labels)[wanted])
        assert torch.equal(batch.images.permute(0, 2, 3, 1), torch.from_numpy(prepared.images[wanted.numpy()]))


@REASONS
def test_without_ffcv_auto_takes_the_resident_loader_and_says_why_in_one_line(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    without_ffcv(monkeypatch, reason)
    loader, note = make_loader("auto", prepared, CPU, workers=2)
    assert isinstance(loader, ResidentLoader)
    assert "using the resident loader" in note
    assert reason.splitlines()[0] in note
    assert "\n" not in note


@REASONS
def test_ffcv_asked_for_and_not_there_is_refused_in_one_line(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    without_ffcv(monkeypatch, reason)
    with pytest.raises(InputError, match=r"^--loader ffcv: [^\n]*--loader resident$") as caught:
        make_loader("ffcv", prepared, CPU, workers=2)
    assert reason.splitlines()[0] in str(caught.value)


def test_the_resident_loader_asked_for_is_taken_without_a_word_and_without_ffcv(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    finder = without_ffcv(monkeypatch, "imported for nothing")
    loader, note = make_loader("resident", prepared, CPU, workers=2)
    assert isinstance(loader, ResidentLoader)
    assert note == ""
    assert not finder.asked


def test_on_a_cpu_the_images_are_the_caches_own_and_reading_leaves_it_alone(prepared: Prepared) -> None:
    """Processes of one machine share them then, and none waits for a copy."""
    loader, before = ResidentLoader(prepared, CPU), (prepared.folder / "images.npy").read_bytes()
    assert np.shares_memory(loader.images.numpy(), prepared.images)
    (batch,) = loader.read([torch.arange(5)])
    batch.images.zero_()
    assert loader.images[:5].any()
    assert (prepared.folder / "images.npy").read_bytes() == before
