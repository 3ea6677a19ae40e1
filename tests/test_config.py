"""Flags, recipes and their messages."""

import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import resnet
from data.errors import InputError
from tests.conftest import ROOT
from training.config import Config, make_parser, parse_config

RELIED_ON = (
    "recipe name runs_dir dataset data_dir loader model stem epochs batch_size lr seed precision tracker resume"
)


def test_flags_that_users_rely_on_exist():
    assert set(RELIED_ON.split()) <= {field.name for field in fields(Config)}


def test_fewer_than_55_fields():
    assert len(fields(Config)) < 55


def test_every_field_is_explained_in_the_help():
    text = make_parser().format_help()
    for action in make_parser()._actions:
        assert action.help, action
    assert "--data-dir" in text
    assert "Peak learning rate" in text


def test_recipe_then_flags(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("lr: 0.3\nbatch_size: 64\nmilestones: [5, 7]\n")
    config = parse_config(["--recipe", str(recipe), "--lr", "0.05"])
    assert (config.lr, config.batch_size, config.milestones) == (0.05, 64, [5, 7])
    assert config.recipe == "mine"
    assert config.run_folder == Path("runs/mine")


def test_a_command_line_leaves_nothing_to_the_next(tmp_path):
    """They share a parser."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("lr: 0.3\nmilestones: [5, 7]\n")
    parse_config(["--recipe", str(recipe), "--seed", "3"]).milestones.append(9)
    with pytest.raises(InputError):
        parse_config(["--lr", "0.5", "--batch-size", "none"])
    parse_config([]).milestones.append(11)
    assert parse_config([]) == Config()


def test_choices_are_those_of_the_networks():
    hints = get_type_hints(Config)
    assert get_args(hints["model"]) == resnet.MODELS
    assert get_args(hints["stem"]) == resnet.STEMS
    assert get_args(hints["init"]) == resnet.INITS


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--lr", "abc"], "--lr"),
        (["--lr", "nan"], "--lr"),
        (["--lr", "inf"], "--lr"),
        (["--lr", "0"], "--lr"),
        (["--lr", "-1"], "--lr"),
        (["--batch-size", "0"], "--batch-size"),
        (["--batch-size", "1.5"], "--batch-size"),
        (["--epochs", "-3"], "--epochs"),
        (["--accumulation", "0"], "--accumulation"),
        (["--seed", "-1"], "--seed"),
        (["--val-fraction", "0"], "--val-fraction"),
        (["--val-fraction", "1"], "--val-fraction"),
        (["--momentum", "1"], "--momentum"),
        (["--label-smoothing", "1"], "--label-smoothing"),
        (["--ema", "1"], "--ema"),
        (["--norm-bias-lr", "0"], "--norm-bias-lr"),
        (["--norm-bias-lr", "1e7"], "--norm-bias-lr"),
        (["--norm-bias-lr", "1e-7"], "--norm-bias-lr"),
        (["--norm-bias-lr", "1e6", "--lr", "1e33"], "--lr"),
        (["--norm-bias-lr", "1e-6", "--weight-decay", "1e33"], "--weight-decay 1e+33"),
        (["--optimizer", "adamw", "--lr", "1e38"], "--optimizer adamw"),
        (["--zero-init", "true", "--weights", "w.pth"], "--zero-init"),
        (["--flip", "true"], "--flip"),
        (["--erasing", "1.1"], "--erasing"),
        (["--sam", "-0.1"], "--sam"),
        (["--sam-adaptive", "true"], "--sam-adaptive"),
        (["--mixup", "-0.1"], "--mixup"),
        (["--cutmix", "-1"], "--cutmix"),
        (["--subset", "0"], "--subset"),
        (["--subset", "1.1"], "--subset"),
        (["--cutout", "33"], "--cutout"),
        (["--milestones", "[60, 30]"], "--milestones"),
        (["--milestones", "[0, 30]"], "--milestones"),
        (["--optimizer", "nesterov", "--momentum", "0"], "--optimizer nesterov"),
        (["--model", "alexnet"], "--model"),
        (["--name", "../up"], "--name"),
        (["--bogus", "1"], "--bogus"),
        (["--epoch", "1"], "--epoch 1"),  # no abbreviations: --seed could be --seeds of another version
        (["--epochs", "3", "--warmup", "3.5"], "--warmup 3.5"),
        (["--recipe", "no-such-file.yaml"], "no-such-file.yaml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_values_are_refused_in_one_line_that_names_the_flag(arguments, named):
    with pytest.raises(InputError) as caught:
        parse_config(arguments)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_of_two_recipes_the_last_one_names_the_run_however_they_are_written(tmp_path):
    for name, lr in (("a", 0.1), ("b", 0.2)):
        (tmp_path / f"{name}.yaml").write_text(f"lr: {lr}\n")
    config = parse_config(["--recipe", f"{tmp_path}/a.yaml", f"--recipe={tmp_path}/b.yaml"])
    assert (config.recipe, config.lr) == ("b", 0.2)


@pytest.mark.parametrize(
    ("text", "named"), [("lr: 0.1\nrate: 3\n", "rate"), ("lr: [1\n", "mine.yaml"), ("epochs: many\n", "epochs")]
)
def test_a_faulty_recipe_is_named(tmp_path, text, named):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(text)
    with pytest.raises(InputError) as caught:
        parse_config(["--recipe", str(recipe)])
    assert named in str(caught.value)
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_each_run_of_a_wandb_sweep_has_a_name_of_its_own(monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "r2")
    assert parse_config(["--lr", "0.3"]).name == "sweep-s1-r2"
    assert parse_config(["--name", "mine"]).name == "mine"


def test_config_is_parsed_without_importing_torch():
    code = (
        "import sys; from training.config import parse_config; parse_config([]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_only_fields_that_change_the_result_count_for_resuming():
    config = Config()
    same = replace(config, name="b", runs_dir="x", data_dir="y", loader="resident", tracker="none", log_every=1)
    assert same.result_fields() == config.result_fields()
    for name in set(asdict(config)) & {"lr", "seed", "epochs", "batch_size", "flip", "model", "precision"}:
        assert name in config.result_fields()
