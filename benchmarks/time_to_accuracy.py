"""Recipes against wall time: how long each takes, and the accuracy that it comes to.

One run for each seed, from 0 on, through train.py and evaluate.py. Full length is for a GPU. On a CPU each recipe
gets one epoch of a tenth of the images, which shows that it runs and no more. "seconds" are those of the command:
start, training, validation, checkpoints; "training s" those of its training steps. Test accuracy needs labelled
test images, as torchvision's archives have them.
"""

import json
import tempfile
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import Contender, Row, by_seed, interleave, make_parser, mean_and_deviation, run
from benchmarks.processes import python, run_command
from data.errors import InputError
from training.config import ROOT, Config, parse_config
from training.parts import open_prepared


def train(config: Config, flags: list[object], folder: Path, seed: int) -> dict[str, float]:
    """Train with `flags` and a seed, in a run of its own, and evaluate it where there are labelled test images."""
    run_folder = folder / f"{config.recipe}-{seed}"
    where: list[object] = ["--runs-dir", folder, "--name", run_folder.name, "--seed", seed, "--tracker", "none"]
    finished = run_command(python("train.py", *flags, *where))
    summary = json.loads((run_folder / "summary.json").read_text())
    measured = {
        "seconds": finished.seconds,
        "training s": summary["train_seconds"],
        "images/s": summary["images_per_second"],
    }
    if summary["val_accuracy"] is not None:  # with --split none nothing is held out
        measured["validation accuracy %"] = 100 * summary["val_accuracy"]
    if open_prepared(config).test_ids:
        run_command(python("evaluate.py", run_folder))
        report = json.loads((run_folder / "evaluation.json").read_text())
        measured["test accuracy %"] = 100 * report["accuracy"]
    return measured


def recipe_flags(arguments: Namespace, recipe: str) -> list[object]:
    flags: list[object] = ["--recipe", ROOT / recipe, "--cache-dir", arguments.cache_dir]
    flags += ["--data-dir", arguments.data_dir] if arguments.data_dir else []
    return flags if arguments.full else [*flags, "--epochs", 1, "--subset", 0.1]


def contender(arguments: Namespace, recipe: str, folder: Path) -> Contender:
    flags = recipe_flags(arguments, recipe)
    config = parse_config([str(part) for part in flags])
    if config.split == "none" and not open_prepared(config).test_ids:
        raise InputError(
            f"{recipe} holds no images out, and there are no labelled test images; give torchvision's archives"
        )
    case: dict[str, Any] = {"recipe": config.recipe, "epochs": config.epochs, "share of images": config.subset}
    return by_seed(case, partial(train, config, flags, folder))


def default_recipes(dataset: str, full: bool) -> list[str]:
    """Those of one data set: all have the one folder of images."""
    if dataset == "shapes":
        return ["recipes/demo.yaml"]
    if not full:
        return [f"recipes/{dataset}-cpu.yaml"]
    short = {
        "cifar10": ["cifar10-speed/c10-26", "cifar10-speed/c10-80"],
        "cifar100": ["cifar100-budgets/c100-15", "cifar100-budgets/c100-30"],
    }
    return [f"recipes/{name}.yaml" for name in (*short[dataset], dataset)]


def benchmark(arguments: Namespace) -> list[Row]:
    default = default_recipes(arguments.dataset, arguments.full)
    with tempfile.TemporaryDirectory() as folder:
        contenders = [contender(arguments, recipe, Path(folder)) for recipe in arguments.recipes or default]
        rows = interleave(contenders, arguments.repeats, warmup=0)
    for row in rows:
        for accuracy in ("validation accuracy %", "test accuracy %"):
            if accuracy in row.measured:
                row.case[f"mean {accuracy}"] = mean_and_deviation(row.measured[accuracy])
    return rows


def main() -> None:
    parser = make_parser("time_to_accuracy", __doc__)
    parser.add_argument("--recipes", nargs="+", help="YAML files; default: three, on a CPU cifar10-cpu")
    run("time_to_accuracy", parser, benchmark)


if __name__ == "__main__":
    main()
