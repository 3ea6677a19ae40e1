"""Repeat the experiments of the two studies, or train the recipes: `python reproduce.py cifar10-study`.

Trains what is not yet done, evaluates each run on the test set, and writes report.md and report.html. Stopped and
started again it goes on where it was. What comes after -- goes to train.py.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import InputError
from training.cli import OneLineParser, one_line_errors
from training.config import Config, parse_config
from training.jobs import (
    ROOT,
    add_flags,
    check_flags,
    complete,
    is_finished,
    require_validation,
    split_arguments,
    train,
)
from training.studies import GROUPS, STUDIES, Experiment, Study

if TYPE_CHECKING:
    from training.report import Outcome


def main() -> None:
    own, extra = split_arguments(sys.argv[1:])
    try:
        with one_line_errors():
            raise SystemExit(reproduce(make_parser().parse_args(own), extra))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def make_parser() -> OneLineParser:
    parser = OneLineParser(prog="reproduce.py", description=__doc__)
    parser.add_argument("study", choices=tuple(GROUPS), help="all: both studies; recipes: both budgets")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path("datasets"),
        help="has cifar10 and cifar100 in it (default: datasets), or has the images of the one study",
    )
    parser.add_argument("--out", type=Path, help="folder of the runs and the report (default: runs/reproduce)")
    parser.add_argument("--only", default="", help="names of experiments, such as exp3,exp6")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each experiment (default: 1)")
    parser.add_argument("--weights", type=Path, help="resnet18-f37072fd.pth, for exp9 (default: downloaded)")
    add_flags(parser)
    return parser


def reproduce(arguments: argparse.Namespace, extra: list[str]) -> int:
    """Train, evaluate, report; returns the exit code."""
    check_flags(arguments, extra, lowest={"seeds": 1, "processes": 1})
    if arguments.weights and not arguments.weights.is_file():
        raise InputError(f"--weights {arguments.weights}: no such file; give torchvision's resnet18-f37072fd.pth")
    chosen = choose_experiments(arguments.study, arguments.only)

    # Imported here: torch takes seconds, and --help or a mistaken flag should not wait for it.
    from training.report import Block, Heading, Outcome, environment, study_report, write_report

    scaled = scale_in_words(arguments)
    suffix = f"-{arguments.epochs_scale:g}-{arguments.subset:g}" if scaled else ""
    out = arguments.out or Path(f"runs/reproduce{suffix}")
    outcomes = {name: [Outcome(experiment) for experiment in study.experiments] for name, study in STUDIES.items()}
    for name, of_study in outcomes.items():
        for outcome in of_study:
            repeat(outcome, name, out, arguments, extra, may_train=outcome.experiment in chosen)
    results = [result for of_study in outcomes.values() for outcome in of_study for result in outcome.results]
    blocks: list[Block] = [
        Heading("Experiments beside their figures" + (f" ({scaled})" if scaled else ""), 1),
        f"`{shlex.join(['python', 'reproduce.py', *sys.argv[1:]])}`",
        environment(results),
    ]
    for name, of_study in outcomes.items():
        if any(outcome.results or outcome.experiment in chosen for outcome in of_study):
            blocks += study_report(STUDIES[name], of_study, scaled, out / "pictures")
    write_report(blocks, out)
    print(f"{out}/report.md and report.html: {len(results)} runs")
    return int(any(outcome.reason.startswith("failed") for of_study in outcomes.values() for outcome in of_study))


def choose_experiments(study: str, only: str) -> list[Experiment]:
    """The experiments to run: all of the study, or of the group of studies, or those named in `only`."""
    known = {experiment.name: experiment for each in GROUPS[study] for experiment in STUDIES[each].experiments}
    wanted = only.split(",") if only else list(known)
    for name in wanted:
        if name not in known:
            raise InputError(f"--only {name}: no such experiment; expected some of {', '.join(known)}")
    return [known[name] for name in wanted]


def scale_in_words(arguments: argparse.Namespace) -> str:
    parts = [
        f"{share:g} of the {of}"
        for share, of in (
            (arguments.epochs_scale, "epochs"),
            (arguments.subset, "images but those of the test set"),
        )
        if share != 1
    ]
    return f"scaled: {', '.join(parts)}" if parts else ""


def repeat(
    outcome: "Outcome",
    study_name: str,
    out: Path,
    arguments: argparse.Namespace,
    extra: Sequence[str],
    may_train: bool,
) -> None:
    """Train and evaluate the runs that are not yet done; leaves their results, or a reason, in `outcome`.

    may_train: otherwise only what is done is read.
    """
    from training.report import read_result

    name, folder = outcome.experiment.name, data_folder(STUDIES[study_name], arguments)
    given = ["--recipe", str(ROOT / "recipes" / study_name / f"{name}.yaml"), "--tracker", "none", *extra]
    first_seed = parse_config(given).seed
    for seed in range(first_seed, first_seed + arguments.seeds):
        run = out / study_name / (f"{name}-seed{seed}" + ("-scaled" if scale_in_words(arguments) else ""))
        flags = [*given, "--name", run.name, "--runs-dir", str(run.parent), "--seed", str(seed)]
        flags += ["--data-dir", str(folder)]
        flags, config = complete(flags, arguments.epochs_scale, arguments.subset)
        if STUDIES[study_name].validates:
            require_validation(config)
        split = evaluated_split(config, STUDIES[study_name]) if may_train else ""
        if may_train and not is_finished(run, config, {"weights"}):
            if config.weights:
                weights = imagenet_weights(arguments.weights or Path(config.weights))
                if weights is None:
                    outcome.reason = "not run: no ImageNet weights; give --weights resnet18-f37072fd.pth"
                    continue
                flags += ["--weights", str(weights)]
            if failure := train(flags, arguments.processes):
                outcome.reason = failure
                continue
        if may_train:
            evaluate(run, config, split)
        elif not (run / "evaluation.json").exists() or not is_finished(run, config, {"weights"}):
            outcome.reason = "not chosen, not run yet"
            continue
        outcome.results.append(read_result(run))


def evaluated_split(config: Config, study: Study) -> str:
    """The images that a run is evaluated on: "test"; or "val", where there are no labelled test images.

    Kaggle publishes no test labels.

    Raises:
        InputError, before anything is trained: the study has nothing but figures of the test set.
    """
    from training.engine import open_prepared

    if open_prepared(config).test_ids:
        return "test"
    if not study.validates:
        raise InputError(
            f"{config.source_folder}: no labelled test images; use CIFAR's archives, or class folders"
        )
    return "val"


def data_folder(study: Study, arguments: argparse.Namespace) -> Path:
    """<data-dir>/<data set>; or <data-dir> itself, where it has the images of the study."""
    from data.sources import TorchvisionArchive, find_source

    given: Path = arguments.data_dir
    inside = given / study.dataset
    if len(GROUPS[arguments.study]) > 1 or inside.exists() or not given.is_dir():
        return inside
    try:
        source = find_source(study.dataset, given)
    except InputError:
        return inside
    return inside if isinstance(source, TorchvisionArchive) and not any(given.iterdir()) else given


def imagenet_weights(path: Path) -> Path | None:
    """torchvision's file for ResNet-18: the given one if it is there, else downloaded; None where that fails."""
    if path.is_file():
        return path
    import torch
    from torchvision.models import ResNet18_Weights

    url = ResNet18_Weights.IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            digest = path.stem.split("-")[1]
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digest, progress=sys.stderr.isatty())
        except (OSError, RuntimeError) as error:
            print(f"warning: {url}: {' '.join(str(error).split())}; not running exp9", file=sys.stderr)
            return None
    return path


def evaluate(run: Path, config: Config, split: str) -> None:
    """Evaluate a run, unless it has been done for these weights and this split."""
    from training.checkpoint import load_weights
    from training.evaluation import evaluate_run

    report = run / "evaluation.json"
    weights = load_weights(run / "best.safetensors")[1]["weights_sha256"]
    found = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    if (found.get("split"), found.get("tta"), found.get("weights_sha256")) != (split, "none", weights):
        found = evaluate_run(run, split, config.source_folder)
    print(f"{run}: {split} accuracy {100 * found['accuracy']:.2f} %", flush=True)


if __name__ == "__main__":
    main()
