"""The search over a sweep's space: what is drawn, who goes on, what is left alone."""

import json
import math
from types import SimpleNamespace

import pytest
import yaml

from tests.conftest import ROOT, call_main, run_script
from training import jobs, parts, search
from training.config import parse_config

SWEEP = ROOT / "recipes/sweep.yaml"


def sweep_of(space: dict, recipe: object = ROOT / "recipes/cifar100-study/v5.yaml", *more: str) -> str:
    command = ["${env}", "python", "train.py", "--recipe", str(recipe), *more, "${args}"]
    return yaml.safe_dump({"command": command, "parameters": space})


@pytest.mark.parametrize(("name", "dataset"), [("sweep", "cifar100"), ("sweep-budgets", "cifar10")])
def test_a_sweep_starts_train_py_through_accelerate_with_flags_that_exist(name, dataset):
    sweep = ROOT / f"recipes/{name}.yaml"
    content = yaml.safe_load(sweep.read_text())
    launch = content["command"]
    assert launch[1:4] == ["accelerate", "launch", "train.py"]
    fixed, space = search.read_sweep(sweep)
    for number in range(5):
        settings = [f"--{name}={value}" for name, value in search.draw(space, 0, number).items()]  # W&B's ${args}
        config = parse_config([*fixed, *settings])
        jobs.require_validation(config)
        assert config.dataset == dataset
    assert content["metric"] == {"name": "val/accuracy", "goal": "maximize"}


def test_draws_are_a_function_of_seed_and_trial_and_keep_to_their_distribution():
    space = {
        "lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-1},
        "momentum": {"min": 0.5, "max": 0.9},
        "decay": {"values": [1, 2, 3]},
        "cutout": {"value": 8},
    }
    drawn = [search.draw(space, 0, number) for number in range(400)]
    assert drawn[7] == search.draw(space, 0, 7) != search.draw(space, 1, 7)
    exponents = [math.log10(settings["lr"]) for settings in drawn]
    assert -4 <= min(exponents) < -3.9
    assert -1.1 < max(exponents) <= -1
    assert sum(exponents) / 400 == pytest.approx(-2.5, abs=0.15)
    assert all(0.5 <= settings["momentum"] <= 0.9 for settings in drawn)
    assert {settings["decay"] for settings in drawn} == {1, 2, 3}
    assert {settings["cutout"] for settings in drawn} == {8}


@pytest.fixture
def trained(monkeypatch):
    """In place of train.py: the smaller the learning rate the better, above 0.05 it fails. Returns the starts."""
    started = []

    def start(flags, processes):
        config = parse_config(flags)
        started.append(config)
        config.run_folder.mkdir(parents=True)
        (config.run_folder / "config.yaml").write_text("{}")
        if config.lr > 0.05:
            return 1
        found = {"val_accuracy": 1 - config.lr, "data": "of these images"}
        (config.run_folder / "summary.json").write_text(json.dumps(found))
        return 0

    monkeypatch.setattr(jobs, "start", start)
    return started


def test_a_third_of_the_trials_goes_on_for_three_times_as_long(trained, tmp_path, capsys):
    assert call_main(search.main, SWEEP, "--trials", 9, "--out", tmp_path) == 0
    rounds = [trained[:9], trained[9:12], trained[12:]]
    assert [len(configs) for configs in rounds] == [9, 3, 1]
    assert [configs[0].epochs for configs in rounds] == [17, 50, 150]
    best = sorted(config.lr for config in rounds[0])
    assert sorted(config.lr for config in rounds[1]) == best[:3]
    assert rounds[2][0].lr == best[0]
    assert f"validation accuracy {1 - best[0]:.4f}: --lr={best[0]!r}" in capsys.readouterr().out
    recorded = json.loads((tmp_path / "search.json").read_text())
    assert sorted(len(trial["accuracy"]) for trial in recorded) == [1] * 6 + [2, 2, 3]
    assert all((trial["accuracy"][0] == -1) == (trial["settings"]["lr"] > 0.05) for trial in recorded)


def test_all_of_the_sweeps_command_counts_and_a_value_may_be_a_list(trained, tmp_path):
    sweep, recipe = tmp_path / "sweep.yaml", SWEEP.parent / "cifar10.yaml"
    sweep.write_text(sweep_of({"milestones": {"value": [30, 50]}}, recipe, "--stem=imagenet"))
    assert call_main(search.main, sweep, "--trials", 1, "--out", tmp_path / "out", "--", "--lr", 0.02) == 0
    (config,) = trained
    assert (config.dataset, config.stem, config.milestones, config.lr) == ("cifar10", "imagenet", [30, 50], 0.02)


def test_where_the_images_are_and_the_seed_of_training_may_be_given(trained, tmp_path):
    given = ["--", "--data-dir", tmp_path, "--seed", 3]
    assert call_main(search.main, SWEEP, "--trials", 1, "--out", tmp_path / "out", *given) == 0
    assert (trained[0].data_dir, trained[0].seed) == (str(tmp_path), 3)


def test_a_trial_that_was_trained_on_other_images_is_not_taken_for_one_of_these(
    trained, tmp_path, monkeypatch, capsys
):
    flags = [SWEEP, "--trials", 1, "--out", tmp_path]
    digests = ["of these images", "of others"]
    monkeypatch.setattr(search, "is_finished", lambda run, wanted: (run / "summary.json").exists())
    monkeypatch.setattr(parts, "open_prepared", lambda config: SimpleNamespace(digest=digests[0]))
    assert [call_main(search.main, *flags), call_main(search.main, *flags)] == [0, 0]
    del digests[0]
    assert call_main(search.main, *flags) == 2
    assert len(trained) == 1
    assert "trial00-round1: trained on other images than those in" in capsys.readouterr().err


def test_a_trial_that_was_begun_with_other_settings_is_not_dropped_for_it(monkeypatch, tmp_path, capsys):
    run = tmp_path / "trial00-round1"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("lr: 0.3\n")
    (run / "checkpoints/step-00000001.pt").touch()
    monkeypatch.setattr(jobs, "start", lambda *_: pytest.fail("trained"))
    assert call_main(search.main, SWEEP, "--trials", 2, "--out", tmp_path) == 2
    assert "trial00-round1: trained with another " in capsys.readouterr().err


def test_the_sweeps_own_subset_counts_in_every_round(trained, tmp_path):
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(sweep_of({"lr": {"values": [0.01]}}, SWEEP.parent / "cifar10.yaml", "--subset=0.5"))
    flags = [sweep, "--trials", 2, "--eta", 2, "--subset", 0.5, "--out", tmp_path / "out"]
    assert call_main(search.main, *flags) == 0
    assert [config.subset for config in trained] == [0.25] * 3


def test_a_trial_that_could_not_be_trained_is_found_before_any_is(trained, tmp_path, capsys):
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(sweep_of({"epochs": {"values": [1, 0]}}))
    assert call_main(search.main, sweep, "--trials", 9, "--out", tmp_path / "out") == 2
    assert trained == []
    assert "--epochs 0" in capsys.readouterr().err


def test_trials_that_fail_do_not_go_on_and_none_left_is_an_error(trained, tmp_path, capsys):
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(sweep_of({"lr": {"values": [0.1, 0.2]}, "optimizer": {"values": ["adam", "adamw"]}}))
    assert call_main(search.main, sweep, "--trials", 3, "--out", tmp_path / "out") == 1
    assert len(trained) == 3
    assert {config.optimizer for config in trained} <= {"adam", "adamw"}
    told, error = capsys.readouterr()
    assert told.count(", failed: --lr=") == 3
    assert "the training of every trial failed" in error


def test_a_search_trains_and_goes_on_where_it_was(images, tmp_path, monkeypatch):
    sweep, recipe = tmp_path / "sweep.yaml", tmp_path / "tiny.yaml"
    recipe.write_text(f"dataset: folder\nstem: imagenet\ndata_dir: {images}\nepochs: 2\nschedule: triangle\n")
    sweep.write_text(sweep_of({"lr": {"values": [0.01, 0.02]}}, recipe))
    where = ["--cache-dir", tmp_path / "cache", "--batch-size", 12, "--loader", "resident", "--precision", "no"]
    flags = [sweep, "--trials", 2, "--eta", 2, "--out", tmp_path / "out", "--", *where]
    done = run_script("-m", "training.search", *flags)
    assert done.returncode == 0, done.stderr
    best = json.loads((tmp_path / "out/search.json").read_text())
    assert sorted(len(trial["accuracy"]) for trial in best) == [1, 2]
    monkeypatch.setattr(jobs, "start", lambda *_: pytest.fail("trained again"))
    assert call_main(search.main, *flags) == 0
    assert json.loads((tmp_path / "out/search.json").read_text()) == best


@pytest.mark.parametrize(
    ("content", "flags", "named"),
    [
        (None, [], "no.yaml"),
        ("parameters: {}\n", [], "sweep.yaml"),
        ("[1, 2]\n", [], "sweep.yaml"),
        ("{", [], "sweep.yaml"),
        (sweep_of({"lr": 0.1}), [], "parameter lr"),
        (sweep_of({"lr": {"values": []}}), [], "parameter lr"),
        (sweep_of({"lr": {"min": 0, "max": 1, "distribution": "log_uniform_values"}}), [], "parameter lr"),
        (sweep_of({"lr": {"min": "a", "max": 1}}), [], "parameter lr"),
        (sweep_of({"lr": {"distribution": "q_beta"}}), [], "parameter lr"),
        (SWEEP.read_text(), ["--subset", "0"], "--subset 0"),
        (SWEEP.read_text(), ["--", "--epochs", "3"], "--epochs after --"),
        (SWEEP.read_text(), ["--trials", "0"], "--trials 0"),
        (SWEEP.read_text(), ["--eta", "1"], "--eta 1"),
    ],
)
def test_mistakes_are_one_line(content, flags, named, tmp_path, capsys):
    sweep = tmp_path / ("sweep.yaml" if content is not None else "no.yaml")
    if content is not None:
        sweep.write_text(content)
    assert call_main(search.main, "--out", tmp_path / "out", sweep, *flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
