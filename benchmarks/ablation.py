"""Each training technique alone, and the recipe that has several, against the same run without: paired by seed.

Validation accuracy of the last epoch. A round is one seed, from 0 on, for each row; a row's difference is of the
two runs of one seed, which share initial weights, split, order, crops and flips but for what the technique is
about. On a CPU a run is short (without --full: 4 epochs of 10,000 images with the imagenet stem): regularisers
that pay off in hundreds of epochs hurt there, so that a technique which loses nothing is all that such a run can
show of them.
"""

import json
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import yaml

from benchmarks.common import Row, by_seed, interleave, make_parser, mean_and_deviation, run
from benchmarks.processes import python, run_command
from training.config import ROOT, Config, as_flags
from training.tracking import read_epochs

BASELINE = "without"
TECHNIQUES: dict[str, list[str]] = {
    BASELINE: [],
    "EMA 0.99": ["--ema", "0.99"],
    "alternating flip": ["--flip", "alternating"],
    "label smoothing 0.1": ["--label-smoothing", "0.1"],
    "cutout 8": ["--cutout", "8"],
    "random erasing 0.25": ["--erasing", "0.25"],
    "mixup 0.2": ["--mixup", "0.2"],
    "CutMix 1": ["--cutmix", "1"],
    "TrivialAugment": ["--trivial-augment", "true"],
    "SAM 0.05": ["--sam", "0.05"],
    "ASAM 0.5": ["--sam", "0.5", "--sam-adaptive", "true"],
    "BatchNorm bias lr x 16": ["--norm-bias-lr", "16"],
    "zero-init": ["--zero-init", "true"],
    "no decay of norms and biases": ["--decay-norm-and-bias", "false"],
}
RECIPE = "recipe of 15 epochs"
BUDGET = ("dataset", "split", "epochs", "batch_size", "optimizer", "lr", "schedule")
"""What a recipe says of the run and not of its techniques."""
TTA = {"flip TTA": "flip", "six-view TTA": "six"}
"""Of the weights without any technique."""


def recipe_flags(dataset: str) -> list[str]:
    """The techniques of the data set's recipe of 15 epochs, whose budget is the nearest to an ablation's."""
    name = "cifar100-budgets/c100-15.yaml" if dataset == "cifar100" else "cifar10-budgets/c10-15.yaml"
    recipe = yaml.safe_load((ROOT / "recipes" / name).read_text(encoding="utf-8"))
    # A padding that the recipe leaves at its default, too: the run without techniques has another.
    recipe.setdefault("crop_padding", Config.crop_padding)
    return as_flags({name: value for name, value in recipe.items() if name not in BUDGET})


def train(flags: Sequence[object], folder: Path, seed: int) -> dict[str, float]:
    """Train in a run of its own; the accuracy of its last epoch, in percent."""
    run_command(python("train.py", *flags, "--runs-dir", folder, "--name", f"seed{seed}", "--seed", seed))
    summary = json.loads((folder / f"seed{seed}/summary.json").read_text())
    last = read_epochs(folder / f"seed{seed}")[-1]
    return {"validation accuracy %": 100 * last["val_accuracy"], "images/s": summary["images_per_second"]}


def augmented(tta: str, folder: Path, seed: int) -> dict[str, float]:
    """The best epoch's validation accuracy with test-time augmentation, less that without."""
    run_command(python("evaluate.py", folder / f"seed{seed}", "--split", "val", "--tta", tta))
    report = json.loads((folder / f"seed{seed}/evaluation.json").read_text())
    return {"difference": 100 * (report["tta_accuracy"] - report["accuracy"])}


def add_differences(rows: Sequence[Row]) -> None:
    """To each row what it gains over the one without, seed by seed; and mean and deviation of that as text."""
    reference = next(row for row in rows if row.case["technique"] == BASELINE)
    rows = [row for row in rows if not row.failed and not reference.failed]
    for row in rows:
        if row is not reference and "difference" not in row.measured:
            pairs = zip(
                row.measured["validation accuracy %"], reference.measured["validation accuracy %"], strict=True
            )
            row.measured["difference"] = [own - other for own, other in pairs]
    for row in rows:
        name, sign = ("validation accuracy %", "") if row is reference else ("difference", "+")
        row.case["mean ± deviation"] = mean_and_deviation(row.measured[name], sign)


def shared_flags(arguments: Namespace) -> list[object]:
    """The run that all have in common."""
    flags: list[object] = ["--dataset", arguments.dataset, "--cache-dir", arguments.cache_dir, "--tracker", "none"]
    flags += ["--data-dir", arguments.data_dir] if arguments.data_dir else []
    flags += ["--optimizer", "nesterov", "--schedule", "triangle", "--loader", "resident"]
    if arguments.quick:
        return [*flags, "--stem", "imagenet", "--epochs", 1, "--subset", 0.05]
    if arguments.full:
        return [*flags, "--epochs", 30, "--lr", 0.2, "--batch-size", 500]
    small = ["--stem", "imagenet", "--crop-padding", 2, "--lr", 0.05, "--epochs", 4]
    return [*flags, *small, "--subset", 0.4, "--val-fraction", 0.5]


def benchmark(arguments: Namespace) -> list[Row]:
    techniques = TECHNIQUES | {RECIPE: recipe_flags(arguments.dataset)}
    chosen = arguments.only or [*techniques, *TTA]
    names = [BASELINE, *(name for name in chosen if name != BASELINE)]
    shared = shared_flags(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.runs_dir or Path(temporary)).resolve()
        contenders = []
        for name in names:
            if name in TTA:
                measure = partial(augmented, TTA[name], folder / BASELINE)
            else:
                measure = partial(train, [*shared, *techniques[name]], folder / name.replace(" ", "-"))
            contenders.append(by_seed({"technique": name}, measure))
        rows = interleave(contenders, arguments.repeats, warmup=0)
    add_differences(rows)
    return rows


def main() -> None:
    parser = make_parser("ablation", __doc__)
    parser.add_argument("--only", nargs="+", choices=(*TECHNIQUES, RECIPE, *TTA), help="these; default: all")
    parser.add_argument(
        "--runs-dir", type=Path, help="keep the runs, and go on from those that are there; default: keep none"
    )
    run("ablation", parser, benchmark)


if __name__ == "__main__":
    main()
