"""The ablation: its pairs, and that every technique is what train.py takes."""

import json
from argparse import Namespace
from functools import partial
from pathlib import Path

import pytest

from benchmarks import ablation
from benchmarks.common import Row, by_seed
from training.config import Config, parse_config


def test_differences_are_of_runs_with_one_seed():
    with_it, without = {"validation accuracy %": [80.0, 91.0]}, {"validation accuracy %": [79.0, 88.0]}
    tta = {"difference": [0.5, 0.7]}
    rows = [Row({"technique": name}, found) for name, found in ((ablation.BASELINE, without), ("EMA", with_it))]
    rows.append(Row({"technique": "flip TTA"}, tta))
    ablation.add_differences(rows)
    assert "difference" not in rows[0].measured
    assert rows[1].measured["difference"] == [1.0, 3.0]
    assert [row.case["mean ± deviation"] for row in rows] == ["83.50 ± 6.36", "+2.00 ± 1.41", "+0.60 ± 0.14"]


@pytest.mark.parametrize("name", [name for name in ablation.TECHNIQUES if name != ablation.BASELINE])
def test_every_technique_changes_the_run_in_its_own_fields_alone(name):
    changed = {
        field
        for field, value in vars(parse_config(ablation.TECHNIQUES[name])).items()
        if value != getattr(Config(), field)
    }
    flags = {flag.removeprefix("--").replace("-", "_") for flag in ablation.TECHNIQUES[name] if flag[:2] == "--"}
    assert changed == flags != set()


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_the_recipe_is_the_committed_ones_techniques(dataset):
    prefix = "c100" if dataset == "cifar100" else "c10"
    whole = parse_config(["--recipe", f"recipes/{dataset}-budgets/{prefix}-15.yaml"])
    common = Namespace(dataset=dataset, cache_dir="cache", data_dir="", quick=False, full=False)
    shared = ablation.shared_flags(common)
    found = parse_config([*map(str, shared), *ablation.recipe_flags(dataset)])
    differing = {name for name, value in vars(whole).items() if getattr(found, name) != value}
    of_the_machine = {"loader", "tracker", "stem", "subset", "val_fraction"}
    assert differing <= {"recipe", "name", *of_the_machine, *ablation.BUDGET}
    assert (found.ema, found.flip, found.label_smoothing) == (0.998, "alternating", 0.1)


def test_each_round_is_the_next_seed(monkeypatch, tmp_path):
    """A run's accuracy is that of its last epoch, not its best."""
    started = []

    def run_command(command):
        started.append(command)
        name, folder = command[command.index("--name") + 1], Path(command[command.index("--runs-dir") + 1])
        rows = [{"kind": "epoch", "val_accuracy": accuracy} for accuracy in (0.9, 0.8)]
        (folder / name).mkdir(parents=True)
        (folder / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / name / "summary.json").write_text(json.dumps({"images_per_second": 5.0}))

    monkeypatch.setattr(ablation, "run_command", run_command)
    measure = by_seed({}, partial(ablation.train, ["--ema", 0.99], tmp_path)).measure
    assert [measure()["validation accuracy %"] for _ in range(2)] == [80.0, 80.0]
    assert [command[command.index("--seed") + 1] for command in started] == ["0", "1"]
