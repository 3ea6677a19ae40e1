"""The advice where a device is out of memory: it must be what train.py would take."""

import pytest
import torch

from data.errors import InputError
from training.cli import one_line_errors
from training.config import Config
from training.memory import out_of_memory_told, training_advice

OUT_OF_MEMORY = "error (rank 1): the device is out of memory in training\n"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError(), OUT_OF_MEMORY),
        (RuntimeError("CUDA error: out of memory"), OUT_OF_MEMORY),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), OUT_OF_MEMORY),
        (InputError("--lr -1"), ""),  # the machine's first process tells
    ],
)
def test_a_device_that_is_out_of_memory_is_told_by_its_own_process(monkeypatch, capsys, error, told):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with (
        pytest.raises(SystemExit) as ended,
        one_line_errors(quiet_ranks=True),
        out_of_memory_told(lambda: "training"),
    ):
        raise error
    assert (ended.value.code, capsys.readouterr().err) == (2, told)


def test_advice_is_asked_for_only_where_it_is_needed():
    """Of absurd batch sizes, which are refused for other reasons, it would take minutes."""
    asked = []
    with out_of_memory_told(lambda: asked.append("asked") or "training"):
        pass
    assert asked == []


def test_what_else_goes_wrong_on_a_device_is_not_taken_for_it():
    with pytest.raises(RuntimeError, match="device-side assert"), out_of_memory_told(lambda: "training"):
        raise RuntimeError("CUDA error: device-side assert triggered")


@pytest.mark.parametrize(
    ("processes", "batch_size", "accumulation", "advice"),
    [
        (1, 128, 1, "try --batch-size 64, or the same in smaller parts: --accumulation 2"),
        (1, 126, 2, "try --batch-size 62, or the same in smaller parts: --accumulation 3"),
        (8, 1000, 1, "try --batch-size 496, or the same in smaller parts: --accumulation 5"),
        (3, 9, 1, "try more processes, or a smaller network"),  # 3 images each do not divide, and 1 is too few
        (1, 4, 1, "try --batch-size 2, or the same in smaller parts: --accumulation 2"),
        (1, 2, 1, "try more processes, or a smaller network"),
    ],
)
def test_the_advice_divides_by_the_processes(monkeypatch, processes, batch_size, accumulation, advice):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    config = Config(batch_size=batch_size, accumulation=accumulation)
    assert training_advice(config) == f"training with --batch-size {batch_size}: {advice}"
