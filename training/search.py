"""The search of a W&B sweep's file, without W&B's server: `python -m training.search recipes/sweep.yaml`.

Successive halving (Jamieson and Talwalkar, 2016, arXiv:1502.07943): all trials are trained for a short time, the
best of them for `eta` times as long, until the last ones train in full. What comes after -- goes to train.py.
"""

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from data.errors import InputError
from data.files import write_json
from training.cli import OneLineParser, one_line_errors
from training.config import parse_config
from training.jobs import is_finished, shortened, split_arguments, train


@dataclass
class Trial:
    """settings: values of flags. accuracy: on the validation images, by round; -1 where training failed."""

    number: int
    settings: dict[str, Any]
    accuracy: list[float] = field(default_factory=list)


def main() -> None:
    own, extra = split_arguments(sys.argv[1:])
    parser = OneLineParser(prog="python -m training.search", description=__doc__)
    parser.add_argument("sweep", type=Path, help="a sweep's YAML file, such as recipes/sweep.yaml")
    parser.add_argument("--trials", type=int, default=9, help="settings to try (default: 9)")
    parser.add_argument("--eta", type=int, default=3, help="one in so many trials goes on (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="draws the settings (default: 0)")
    parser.add_argument("--processes", type=int, default=1, help="processes of each training (default: 1)")
    parser.add_argument("--epochs-scale", type=float, default=1.0, help="share of the epochs, above 0 to 1")
    parser.add_argument("--subset", type=float, default=1.0, help="share of the training images, above 0 to 1")
    parser.add_argument("--out", type=Path, default=Path("runs/search"), help="folder (default: runs/search)")
    with one_line_errors():
        search(parser.parse_args(own), extra)


def search(arguments: argparse.Namespace, extra: list[str]) -> None:
    """Train the trials, round by round; writes search.json after each training."""
    for name, low in (("trials", 1), ("eta", 2), ("seed", 0), ("processes", 1)):
        if getattr(arguments, name) < low:
            raise InputError(f"--{name} {getattr(arguments, name)}: expected at least {low}")
    if not 0 < arguments.epochs_scale <= 1:
        raise InputError(f"--epochs-scale {arguments.epochs_scale}: expected a fraction above 0, at most 1")
    recipe, space = read_sweep(arguments.sweep)
    trials = [Trial(number, draw(space, arguments.seed, number)) for number in range(arguments.trials)]
    rounds = 1
    while arguments.eta**rounds <= arguments.trials:
        rounds += 1
    left = trials
    for number in range(rounds):
        share = arguments.epochs_scale * arguments.eta ** (number + 1 - rounds)
        for trial in left:
            trial.accuracy.append(train_trial(trial, number, share, recipe, arguments, extra))
            write_json(arguments.out / "search.json", [asdict(trial) for trial in trials])
        left = sorted(left, key=lambda trial: -trial.accuracy[-1])
        for trial in left:
            settings = " ".join(f"--{name} {value:g}" for name, value in trial.settings.items())
            print(f"round {number + 1}/{rounds}, trial {trial.number}: {trial.accuracy[-1]:.4f}  {settings}")
        left = left[: max(1, len(left) // arguments.eta)]
    best = left[0]
    settings = " ".join(f"--{name} {value!r}" for name, value in best.settings.items())
    print(f"best: trial {best.number}, validation accuracy {best.accuracy[-1]:.4f}: {settings}")


def train_trial(
    trial: Trial, number: int, share: float, recipe: Path, arguments: argparse.Namespace, extra: list[str]
) -> float:
    """Train one trial for a share of its epochs, unless that is done; returns its validation accuracy."""
    run = arguments.out / f"trial{trial.number:02}-round{number + 1}"
    settings = [text for name, value in trial.settings.items() for text in (f"--{name}", repr(value))]
    flags = ["--recipe", str(recipe), "--tracker", "none", *extra, *settings]
    flags += ["--name", run.name, "--runs-dir", str(run.parent)]
    flags += shortened(parse_config(flags), share, arguments.subset)
    if not is_finished(run, parse_config(flags)) and (code := train(flags, arguments.processes)):
        if code != 1 or not (run / "config.yaml").exists():  # stopped, or refused
            raise SystemExit(code)
        return -1.0
    return float(json.loads((run / "summary.json").read_text())["val_accuracy"])


def read_sweep(path: Path) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The recipe that a sweep's command names, and its parameters."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        command, space = content["command"], content["parameters"]
        return Path(command[command.index("--recipe") + 1]), dict(space)
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; expected a sweep's file such as recipes/sweep.yaml"
        ) from error
    except (
        yaml.YAMLError,
        UnicodeDecodeError,
        KeyError,
        TypeError,
        ValueError,
        IndexError,
        AttributeError,
    ) as error:
        raise InputError(
            f"{path}: expected a sweep with parameters, and a command with --recipe, as in recipes/sweep.yaml"
        ) from error


def draw(space: dict[str, dict[str, Any]], seed: int, number: int) -> dict[str, Any]:
    """One trial's settings: a function of seed and number.

    Raises:
        InputError: a distribution of W&B's that is not known here.
    """
    import numpy as np

    random = np.random.default_rng([seed, number])
    settings: dict[str, Any] = {}
    for name, about in space.items():
        kind = about.get("distribution", "uniform")
        if "value" in about:
            settings[name] = about["value"]
        elif "values" in about:
            settings[name] = about["values"][int(random.integers(len(about["values"])))]
        elif kind == "uniform" and {"min", "max"} <= about.keys():
            settings[name] = float(random.uniform(about["min"], about["max"]))
        elif kind == "log_uniform_values" and {"min", "max"} <= about.keys():
            settings[name] = math.exp(random.uniform(math.log(about["min"]), math.log(about["max"])))
        else:
            raise InputError(
                f"parameter {name} of the sweep: expected value, values, or min and max with distribution uniform "
                "or log_uniform_values"
            )
    return settings


if __name__ == "__main__":
    main()
