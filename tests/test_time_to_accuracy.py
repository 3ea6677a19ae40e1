"""Recipes against wall time: what is read from the runs that were started."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import time_to_accuracy
from benchmarks.processes import Finished
from data.errors import InputError
from tests.conftest import ROOT
from training.config import Config, parse_config


@pytest.mark.parametrize(
    ("dataset", "full", "count"),
    [
        ("cifar10", True, 3),
        ("cifar100", True, 3),
        ("cifar10", False, 1),
        ("cifar100", False, 1),
        ("shapes", True, 1),
    ],
)
def test_the_default_recipes_are_of_the_one_data_set(dataset, full, count):
    recipes = time_to_accuracy.default_recipes(dataset, full)
    assert [parse_config(["--recipe", str(ROOT / recipe)]).dataset for recipe in recipes] == [dataset] * count


@pytest.mark.parametrize(
    ("val_accuracy", "test_ids", "expected"),
    [
        (0.5, [], {"validation accuracy %": 50.0}),
        (None, [3, 4], {"test accuracy %": 75.0}),  # --split none: trained on all, nothing to validate
    ],
)
def test_a_run_is_measured_by_what_it_could_be_evaluated_on(
    monkeypatch, tmp_path, val_accuracy, test_ids, expected
):
    def run_command(command):
        folder = tmp_path / "mine-2"
        if "train.py" in command:
            assert command[command.index("--seed") + 1] == "2"
            folder.mkdir()
            found = {"train_seconds": 7.0, "images_per_second": 9.0, "val_accuracy": val_accuracy}
            (folder / "summary.json").write_text(json.dumps(found))
        else:
            assert Path(command[-1]) == folder
            (folder / "evaluation.json").write_text(json.dumps({"accuracy": 0.75}))
        return Finished(seconds=8.0, printed="")

    monkeypatch.setattr(time_to_accuracy, "run_command", run_command)
    monkeypatch.setattr(time_to_accuracy, "open_prepared", lambda config: SimpleNamespace(test_ids=test_ids))
    measured = time_to_accuracy.train(Config(recipe="mine"), [], tmp_path, seed=2)
    assert measured == {"seconds": 8.0, "training s": 7.0, "images/s": 9.0} | expected


def test_a_recipe_that_could_be_evaluated_on_nothing_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(time_to_accuracy, "open_prepared", lambda config: SimpleNamespace(test_ids=[]))
    arguments = SimpleNamespace(full=True, cache_dir="cache", data_dir="")
    with pytest.raises(
        InputError, match=r"c10-22\.yaml holds no images out, and there are no labelled test images"
    ):
        time_to_accuracy.contender(arguments, "recipes/cifar10-speed/c10-22.yaml", Path("runs"))
