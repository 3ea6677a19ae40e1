"""The advice where a device is out of memory: it must be what train.py would take."""

import pytest

from training.config import Config
from training.memory import training_advice


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
