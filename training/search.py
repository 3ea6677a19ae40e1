"""The search of a W&B sweep's file, without W&B's server: `python -m training.search recipes/sweep.yaml`.

Successive halving (Jamieson and Talwalkar, 2016, arXiv:1502.07943): all trials are trained for a short time, the
best of them for `eta` times as long, until the last ones train in full. What comes after -- goes to train.py.
"""

import argparse
import math
import shlex
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data.errors import InputError
from data.files import write_json
from training.cli import OneLineParser, RunError, one_line_errors, tell
from training.config import Config, parse_config
from training.jobs import (
    add_flags,
    check_flags,
    is_finished,
    read_summary,
    require_validation,
    shortened,
    split_arguments,
    train,
)

FAILED = -1.0
"""The accuracy of a trial whose training failed."""


@dataclass
class Trial:
    """settings: values of flags. accuracy: on the validation images, by round, or FAILED."""

    number: int
    settings: dict[str, Any]
    accuracy: list[float] = field(default_factory=list)

    @property
    def flags(self) -> list[str]:
        """As a command line has them; W&B's agents write them in the same way."""
        return [f"--{name}={value}" for name, value in self.settings.items()]


def main() -> None:
    own, extra = split_arguments(sys.argv[1:])
    parser = OneLineParser(prog="python -m training.search", description=__doc__)
    parser.add_argument("sweep", type=Path, help="a sweep's YAML file, such as recipes/sweep.yaml")
    parser.add_argument("--trials", type=int, default=9, help="settings to try (default: 9)")
    parser.add_argument("--eta", type=int, default=3, help="one in so many trials goes on (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="draws the settings (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("runs/search"), help="folder (default: runs/search)")
    add_flags(parser)
    with one_line_errors():
        search(parser.parse_args(own), extra)


def search(arguments: argparse.Namespace, extra: list[str]) -> None:
    """Train the trials, round by round; writes search.json after each training."""
    lowest = {"trials": 1, "eta": 2, "seed": 0, "processes": 1}
    check_flags(arguments, extra, ("name", "runs_dir"), lowest)
    fixed, space = read_sweep(arguments.sweep)
    trials = [Trial(number, draw(space, arguments.seed, number)) for number in range(arguments.trials)]
    given = [*fixed, "--tracker", "none", *extra]
    for trial in trials:  # a mistake in the last one would else be found after hours
        require_validation(parse_config([*given, *trial.flags]))
    rounds = 1
    while arguments.eta**rounds <= arguments.trials:
        rounds += 1
    left = trials
    for number in range(rounds):
        share = arguments.epochs_scale * arguments.eta ** (number + 1 - rounds)
        for trial in left:
            trial.accuracy.append(train_trial(trial, number, share, given, arguments))
            write_json(arguments.out / "search.json", [asdict(trial) for trial in trials])
        for trial in sorted(left, key=lambda trial: -trial.accuracy[-1]):
            tell(f"round {number + 1}/{rounds}: {described(trial)}")
        succeeded = [trial for trial in left if trial.accuracy[-1] != FAILED]
        if not succeeded:
            raise RunError(
                "the training of every trial failed, as told above; where losses were not finite, a sweep with "
                "smaller learning rates may help"
            )
        left = sorted(succeeded, key=lambda trial: -trial.accuracy[-1])[: max(1, len(left) // arguments.eta)]
    tell(f"best: {described(left[0])}")


def described(trial: Trial) -> str:
    accuracy = trial.accuracy[-1]
    outcome = "failed" if accuracy == FAILED else f"validation accuracy {accuracy:.4f}"
    return f"trial {trial.number}, {outcome}: {shlex.join(trial.flags)}"


def train_trial(trial: Trial, number: int, share: float, given: list[str], arguments: argparse.Namespace) -> float:
    """Train one trial for a share of its epochs, unless that is done; returns its validation accuracy.

    given: flags that all trials have in common.
    """
    run = arguments.out / f"trial{trial.number:02}-round{number + 1}"
    flags = [*given, *trial.flags, "--name", run.name, "--runs-dir", str(run.parent)]
    flags += shortened(parse_config(flags), share, arguments.subset)
    wanted = parse_config(flags)
    if is_finished(run, wanted):
        _require_the_same_images(run, wanted)
    elif train(flags, arguments.processes):
        return FAILED
    return float(read_summary(run)["val_accuracy"])


def _require_the_same_images(run: Path, wanted: Config) -> None:
    from training.parts import open_prepared  # torch takes seconds, and a mistaken flag should not wait for it

    if read_summary(run).get("data") != open_prepared(wanted).digest:
        raise InputError(
            f"{run}: trained on other images than those in {wanted.source_folder}; remove it or give another --out"
        )


def read_sweep(path: Path) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The flags that a sweep's command gives to train.py in every trial, and its parameters.

    Raises:
        InputError: what is missing or cannot be drawn from.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        command, space = content["command"], dict(content["parameters"])
        given = map(str, command[command.index("train.py") + 1 :])
        fixed = [part for part in given if not part.startswith("${")]  # there W&B's agent puts what it has drawn
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; expected a sweep's file such as recipes/sweep.yaml"
        ) from error
    except (yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: expected a sweep with parameters, and a command with train.py, as in recipes/sweep.yaml"
        ) from error
    draw(space, seed=0, number=0)
    return fixed, space


def draw(space: dict[str, dict[str, Any]], seed: int, number: int) -> dict[str, Any]:
    """One trial's settings: a function of seed and number.

    Raises:
        InputError: a distribution of W&B's that is not known here, or limits that are none.
    """
    random = np.random.default_rng([seed, number])
    return {name: _draw_one(name, about, random) for name, about in space.items()}


def _draw_one(name: str, about: Any, random: np.random.Generator) -> Any:
    about = about if isinstance(about, dict) else {}
    kind = about.get("distribution", "uniform")
    if "value" in about:
        return about["value"]
    if about.get("values"):
        return about["values"][int(random.integers(len(about["values"])))]
    low, high = about.get("min"), about.get("max")
    if isinstance(low, (int, float)) and isinstance(high, (int, float)) and low < high:
        if kind == "uniform":
            return float(random.uniform(low, high))
        if kind == "log_uniform_values" and low > 0:
            return math.exp(random.uniform(math.log(low), math.log(high)))
    raise InputError(
        f"parameter {name} of the sweep: expected value, values, or min below max with distribution uniform or "
        "log_uniform_values (there min above 0)"
    )


if __name__ == "__main__":
    main()
