"""Repeat the experiments of the two studies: `python reproduce.py cifar10-study`.

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
from training.config import parse_config
from training.jobs import ROOT, is_finished, shortened, split_arguments, train
from training.studies import STUDIES, Experiment, Study

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
    parser.add_argument("study", choices=(*STUDIES, "all"))
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path("datasets"),
        help="has cifar10 and cifar100 in it (default: datasets)",
    )
    parser.add_argument("--out", type=Path, help="folder of the runs and the report (default: runs/reproduce)")
    parser.add_argument("--only", default="", help="names of experiments, such as exp3,exp6")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each experiment (default: 1)")
    parser.add_argument("--processes", type=int, default=1, help="processes of each training (default: 1)")
    parser.add_argument("--epochs-scale", type=float, default=1.0, help="share of the epochs, above 0 to 1")
    parser.add_argument("--subset", type=float, default=1.0, help="share of the training images, above 0 to 1")
    parser.add_argument("--weights", type=Path, help="resnet18-f37072fd.pth, for exp9 (default: downloaded)")
    return parser


def reproduce(arguments: argparse.Namespace, extra: list[str]) -> int:
    """Train, evaluate, report; returns the exit code."""
    for name, low in (("seeds", 1), ("processes", 1)):
        if getattr(arguments, name) < low:
            raise InputError(f"--{name} {getattr(arguments, name)}: expected at least {low}")
    if not 0 < arguments.epochs_scale <= 1:
        raise InputError(f"--epochs-scale {arguments.epochs_scale}: expected a fraction above 0, at most 1")
    studies = list(STUDIES) if arguments.study == "all" else [arguments.study]
    chosen = choose_experiments(studies, arguments.only)

    # Imported here: torch takes seconds, and --help or a mistaken flag should not wait for it.
    from training.report import Block, Heading, Outcome, environment, study_report, write_report

    scaled = scale_in_words(arguments)
    out = arguments.out or Path(
        "runs/reproduce" + (f"-{arguments.epochs_scale}-{arguments.subset}" if scaled else "")
    )
    outcomes: dict[str, list[Outcome]] = {}
    for name in studies:
        outcomes[name] = [Outcome(experiment) for experiment in STUDIES[name].experiments]
        for outcome in outcomes[name]:
            if outcome.experiment in chosen[name]:
                run_experiment(outcome, name, out, arguments, extra)
            else:
                outcome.reason = "not chosen"
    command = shlex.join(["python", "reproduce.py", *sys.argv[1:]])
    results = [result for study in outcomes.values() for outcome in study for result in outcome.results]
    blocks: list[Block] = [
        Heading("The studies' experiments, repeated" + (f" ({scaled})" if scaled else ""), 1),
        f"`{command}`",
        environment(results),
    ]
    for name, of_study in outcomes.items():
        blocks += study_report(STUDIES[name], of_study, scaled, out / "pictures")
    write_report(blocks, out)
    print(f"{out}/report.md and report.html: {len(results)} runs")
    return int(any(outcome.reason.startswith("failed") for study in outcomes.values() for outcome in study))


def choose_experiments(studies: Sequence[str], only: str) -> dict[str, list[Experiment]]:
    """By study the experiments to run: those named in `only`, or all."""
    known = [experiment.name for study in studies for experiment in STUDIES[study].experiments]
    wanted = only.split(",") if only else known
    for name in wanted:
        if name not in known:
            raise InputError(f"--only {name}: no such experiment; expected some of {', '.join(known)}")
    return {study: [e for e in STUDIES[study].experiments if e.name in wanted] for study in studies}


def scale_in_words(arguments: argparse.Namespace) -> str:
    parts = [
        f"{share:g} of the {of}"
        for share, of in ((arguments.epochs_scale, "epochs"), (arguments.subset, "training images"))
        if share != 1
    ]
    return f"scaled: {', '.join(parts)}" if parts else ""


def run_experiment(
    outcome: "Outcome", study_name: str, out: Path, arguments: argparse.Namespace, extra: list[str]
) -> None:
    """Train and evaluate the runs that are not yet done; leaves their results, or a reason, in `outcome`."""
    from training.report import read_result

    study, name = STUDIES[study_name], outcome.experiment.name
    recipe = ["--recipe", str(ROOT / "recipes" / study_name / f"{name}.yaml")]
    first_seed = parse_config([*recipe, *extra]).seed
    for seed in range(first_seed, first_seed + arguments.seeds):
        run = out / study_name / f"{name}-seed{seed}"
        flags = [*recipe, "--tracker", "none", "--data-dir", str(data_folder(study, arguments)), *extra]
        flags += ["--name", run.name, "--runs-dir", str(run.parent), "--seed", str(seed)]
        flags += shortened(parse_config(flags), arguments.epochs_scale, arguments.subset)
        if not is_finished(run, parse_config(flags), {"weights"}):
            if name == "exp9" and not (weights := imagenet_weights(arguments.weights)):
                outcome.reason = "no ImageNet weights; give --weights resnet18-f37072fd.pth"
                print(f"{name}: {outcome.reason}")
                continue
            flags += ["--weights", str(weights)] if name == "exp9" else []
            if code := train(flags, arguments.processes):
                if code != 1 or not (run / "config.yaml").exists():  # stopped, or refused
                    raise SystemExit(code)
                outcome.reason = f"failed: training with seed {seed} ended with exit code {code}"
                continue
        evaluate(run)
        outcome.results.append(read_result(run))


def data_folder(study: Study, arguments: argparse.Namespace) -> Path:
    """<data-dir>/<data set>; for a single study also <data-dir> itself, where it has no such folder."""
    given: Path = arguments.data_dir
    inside = given / study.dataset
    return given if arguments.study != "all" and given.is_dir() and not inside.exists() else inside


def imagenet_weights(given: Path | None) -> Path | None:
    """torchvision's file for ResNet-18: the given one, or downloaded by torchvision; None where that fails."""
    if given:
        if not given.is_file():
            raise InputError(f"--weights {given}: no such file; give torchvision's resnet18-f37072fd.pth")
        return given
    import torch
    from torchvision.models import ResNet18_Weights

    choice = ResNet18_Weights.IMAGENET1K_V1
    try:
        choice.get_state_dict(progress=sys.stderr.isatty(), check_hash=True)
    except (OSError, RuntimeError) as error:
        print(f"warning: ImageNet weights: {' '.join(str(error).split())}", file=sys.stderr)
        return None
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(choice.url).name


def evaluate(run: Path) -> None:
    """Evaluate a run on the test set, unless it has been done for these weights."""
    from training.checkpoint import load_weights
    from training.evaluation import evaluate_run

    report = run / "evaluation.json"
    weights = load_weights(run / "best.safetensors")[1]["weights_sha256"]
    found = json.loads(report.read_text()) if report.exists() else {}
    if (found.get("split"), found.get("tta"), found.get("weights_sha256")) != ("test", "none", weights):
        found = evaluate_run(run, "test", None, flip=False)
    print(f"{run}: test accuracy {100 * found['accuracy']:.2f} %", flush=True)


if __name__ == "__main__":
    main()
