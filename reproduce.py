"""Repeat the experiments of the two studies, or train the recipes: `python reproduce.py cifar10-study`.

Trains what is not yet done, evaluates each run on the test set, and writes report.md and report.html. Stopped and
started again it goes on where it was. What comes after -- goes to train.py.
"""

import argparse
import bisect
import functools
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import InputError
from training.cli import OneLineParser, one_line_errors, tell, tell_error, warn
from training.config import ROOT, Config, flag, parse_config
from training.jobs import (
    add_flags,
    check_flags,
    evaluate,
    is_finished,
    require_validation,
    shortened,
    split_arguments,
    train,
)
from training.studies import GROUPS, STUDIES, Experiment, Study

if TYPE_CHECKING:
    from training.report import Outcome

ANY_WEIGHTS = {"weights"}
"""In which a finished run may differ from its recipe: the file with ImageNet weights lies anywhere."""


def main() -> None:
    own, extra = split_arguments(sys.argv[1:])
    with one_line_errors():
        raise SystemExit(reproduce(make_parser().parse_args(own), extra))


def make_parser() -> OneLineParser:
    parser = OneLineParser(prog="reproduce.py", description=__doc__)
    parser.add_argument("study", choices=tuple(GROUPS), help="all: both studies; recipes: those of both data sets")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path("datasets"),
        help="has cifar10 and cifar100 in it (default: datasets), or has the images of the one study",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of the runs and the report (default: runs/reproduce, and -EPOCHS_SCALE-SUBSET if shortened)",
    )
    parser.add_argument("--only", default="", help="names of experiments, such as exp3,exp6")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each experiment (default: 1)")
    parser.add_argument("--weights", type=Path, help="resnet18-f37072fd.pth, for exp9 (default: downloaded)")
    add_flags(parser)
    return parser


@dataclass(frozen=True)
class Job:
    """One run of an experiment: its folder, the flags and config of its training, and how it is evaluated.

    finished: it was trained before.
    """

    run: Path
    flags: list[str]
    config: Config
    split: str
    tta: str
    finished: bool


def reproduce(arguments: argparse.Namespace, extra: list[str]) -> int:
    """Check all that is asked for, then train, evaluate and report; returns the exit code."""
    own = ("recipe", "name", "runs_dir", "data_dir", "seed", "weights")
    check_flags(arguments, extra, own, lowest={"seeds": 1, "processes": 1})
    if arguments.weights and not arguments.weights.is_file():
        raise InputError(f"--weights {arguments.weights}: no such file; give torchvision's resnet18-f37072fd.pth")
    chosen = choose_experiments(arguments.study, arguments.only)

    # Imported here: torch takes seconds, and --help or a mistaken flag should not wait for it.
    from training.report import Outcome, write_study_reports

    scaled = scale_in_words(arguments)
    suffix = f"-{arguments.epochs_scale:g}-{arguments.subset:g}" if scaled else ""
    out = arguments.out or Path(f"runs/reproduce{suffix}")
    plan = {
        experiment: plan_jobs(experiment, name, out, arguments, extra)
        for name, study in STUDIES.items()
        for experiment in study.experiments
        if experiment in chosen
    }
    outcomes = {name: [Outcome(experiment) for experiment in study.experiments] for name, study in STUDIES.items()}
    for name, of_study in outcomes.items():
        for outcome in of_study:
            if outcome.experiment not in plan:
                read_finished(outcome, name, out, arguments, extra)
    shown = {
        STUDIES[name]: of_study
        for name, of_study in outcomes.items()
        if any(outcome.results or outcome.experiment in plan for outcome in of_study)
    }
    in_order = [outcome for of_study in shown.values() for outcome in of_study]
    command = shlex.join(["python", "reproduce.py", *sys.argv[1:]])
    changed = changes_in_words(chosen, extra)
    report = functools.partial(write_study_reports, shown, command, scaled, changed, out)
    jobs = [(job, outcome) for outcome in in_order for job in plan.get(outcome.experiment, [])]
    for job, outcome in sorted(jobs, key=lambda pair: not pair[0].finished):  # what was trained before comes first
        carry_out(job, outcome, arguments)
        if not job.finished:
            report()  # the others may take days
    if all(job.finished for job, _ in jobs):
        report()
    tell(f"{out}/report.md and report.html: {sum(len(outcome.results) for outcome in in_order)} runs")
    return int(any(outcome.reason.startswith("failed") for outcome in in_order))


def choose_experiments(study: str, only: str) -> list[Experiment]:
    """The experiments to run: all of the study, or of the group of studies, or those named in `only`."""
    known = {experiment.name: experiment for each in GROUPS[study] for experiment in STUDIES[each].experiments}
    wanted = [name.strip() for name in only.split(",")] if only else list(known)
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


def changes_in_words(experiments: Sequence[Experiment], extra: Sequence[str]) -> str:
    """What the flags after -- change of the experiments' results; "" where they change nothing of it."""
    changed: set[str] = set()
    for name, study in STUDIES.items():
        for experiment in set(experiments) & set(study.experiments):
            recipe = recipe_of(name, experiment)
            fields, given = (parse_config([*recipe, *flags]).result_fields() for flags in ([], extra))
            changed |= {f"{flag(key)} {given[key]}" for key in fields if given[key] != fields[key]}
    return f"changed: {', '.join(sorted(changed))}" if changed else ""


def recipe_of(study_name: str, experiment: Experiment) -> list[str]:
    return ["--recipe", str(ROOT / "recipes" / study_name / f"{experiment.name}.yaml")]


def runs_of(
    experiment: Experiment, study_name: str, out: Path, arguments: argparse.Namespace, extra: Sequence[str]
) -> list[tuple[Path, list[str], Config]]:
    """Of each seed's run the folder, and the flags and config of its training.

    Raises:
        InputError: the recipe does not go with the flags after --.
    """
    name, study = experiment.name, STUDIES[study_name]
    given = [*recipe_of(study_name, experiment), "--tracker", "none", *extra]
    given += ["--data-dir", str(data_folder(study, arguments))]
    whole = parse_config(given)
    given += shortened(whole, arguments.epochs_scale, arguments.subset)
    runs = []
    for seed in range(whole.seed, whole.seed + arguments.seeds):
        run = out / study_name / (f"{name}-seed{seed}" + ("-scaled" if scale_in_words(arguments) else ""))
        flags = [*given, "--name", run.name, "--runs-dir", str(run.parent), "--seed", str(seed)]
        runs.append((run, flags, parse_config(flags)))
    return runs


def plan_jobs(
    experiment: Experiment, study_name: str, out: Path, arguments: argparse.Namespace, extra: Sequence[str]
) -> list[Job]:
    """The jobs of a chosen experiment, one for each seed.

    Raises:
        InputError: settings or images that could not be used, or a finished run that was trained otherwise.
    """
    jobs, study = [], STUDIES[study_name]
    for run, flags, config in runs_of(experiment, study_name, out, arguments, extra):
        require_split(config, study)
        finished = is_finished(run, config, ANY_WEIGHTS)
        # What has figures of the test set alone has test-time augmentation, too, beside the plain figure.
        tta = "none" if study.validates else "six"
        jobs.append(Job(run, flags, config, evaluated_split(config, study), tta, finished))
    return jobs


def carry_out(job: Job, outcome: "Outcome", arguments: argparse.Namespace) -> None:
    """Train and evaluate a run, unless that is done; leaves its result, or the reason why not, in `outcome`."""
    from training.report import read_result

    flags = job.flags
    try:
        if not job.finished:
            if job.config.weights:
                weights = imagenet_weights(arguments.weights or Path(job.config.weights))
                if weights is None:
                    outcome.reason = "not run: no ImageNet weights; give --weights resnet18-f37072fd.pth"
                    return
                flags = [*flags, "--weights", str(weights)]
            if code := train(flags, arguments.processes):
                outcome.reason = f"failed: the training of {job.run.name} ended with exit code {code}"
                return
        if code := ensure_evaluated(job):
            outcome.reason = f"failed: the evaluation of {job.run.name} ended with exit code {code}"
            return
        bisect.insort(outcome.results, read_result(job.run), key=lambda result: int(result.summary["seed"]))
    except InputError as error:  # a damaged file, say: the other experiments go on
        tell_error(str(error))
        outcome.reason = f"failed: {error}"


def read_finished(
    outcome: "Outcome", study_name: str, out: Path, arguments: argparse.Namespace, extra: Sequence[str]
) -> None:
    """The results of an experiment that was not chosen, from runs with these settings, if there are some."""
    from training.checkpoint import load_weights
    from training.report import read_result

    try:
        for run, _, config in runs_of(outcome.experiment, study_name, out, arguments, extra):
            if not is_finished(run, config, ANY_WEIGHTS):
                outcome.reason = "not chosen, not run yet"
            elif evaluation_of(run, load_weights(run / "best.safetensors")[1]) is None:
                outcome.reason = "not chosen, not evaluated yet"
            else:
                outcome.results.append(read_result(run))
    except InputError as error:
        outcome.reason = f"not chosen; {error}"


def require_split(config: Config, study: Study) -> None:
    """InputError for images that a study cannot be compared by."""
    if study.validates:
        require_validation(config)
    elif config.split != "none":
        raise InputError(
            f"--split {config.split}: the recipes are trained on all images and tested once; to choose settings "
            "by validation images: python -m training.search recipes/sweep-budgets.yaml"
        )


def evaluated_split(config: Config, study: Study) -> str:
    """The images that a run is evaluated on: "test"; or "val", where there are no labelled test images.

    Kaggle publishes no test labels.

    Raises:
        InputError, before anything is trained: the study has nothing but figures of the test set.
    """
    if has_test_images(config.dataset, config.source_folder, Path(config.cache_dir)):
        return "test"
    if not study.validates:
        raise InputError(
            f"{config.source_folder}: no labelled test images; use CIFAR's archives, or class folders"
        )
    return "val"


@functools.cache  # every run of a study has the same images
def has_test_images(dataset: str, folder: Path, cache_dir: Path) -> bool:
    from data.prepared import prepare
    from data.sources import find_source

    return bool(prepare(find_source(dataset, folder), cache_dir).test_ids)


def data_folder(study: Study, arguments: argparse.Namespace) -> Path:
    """<data-dir>/<data set>; or <data-dir> itself, where it has the images of the study."""
    from data.sources import TorchvisionArchive, find_source, is_empty

    given: Path = arguments.data_dir
    inside = given / study.dataset
    if len(GROUPS[arguments.study]) > 1 or inside.exists() or not given.is_dir():
        return inside
    try:
        source = find_source(study.dataset, given)
    except InputError:
        return inside
    return inside if isinstance(source, TorchvisionArchive) and is_empty(given) else given


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
            warn(f"{url}: {' '.join(str(error).split())}; not running exp9")
            return None
    return path


def evaluation_of(run: Path, about: dict[str, Any]) -> dict[str, Any] | None:
    """A finished run's evaluation.json, if it is of the weights that are there, on images of the run's own data.

    about: what is recorded with the weights.
    """
    try:
        found: dict[str, Any] = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # not evaluated yet; or damaged
        return None
    same = all(found.get(name) == about[name] for name in ("weights_sha256", "data"))
    return found if same else None


def ensure_evaluated(job: Job) -> int:
    """Evaluate a run, unless it has been done for these weights and this split; returns evaluate.py's exit code.

    Raises:
        InputError: the images are not those that it was trained on, or its weights are damaged.
    """
    from training.checkpoint import load_weights
    from training.parts import open_prepared

    about = load_weights(job.run / "best.safetensors")[1]
    found = evaluation_of(job.run, about)
    if found is None or found["split"] != job.split or job.tta not in ("none", found["tta"]):
        folder = job.config.source_folder
        others = f"{job.run}: trained on other images than those in {folder}; give --data-dir the right ones"
        if open_prepared(job.config).digest != about["data"]:
            raise InputError(others)
        flags = [str(job.run), "--split", job.split, "--data-dir", str(folder), "--tta", job.tta]
        if code := evaluate(flags):
            return code
        found = evaluation_of(job.run, about)
        if found is None:  # they have changed meanwhile
            raise InputError(others)
    tell(f"{job.run}: {job.split} accuracy {100 * found['accuracy']:.2f} %")
    return 0


if __name__ == "__main__":
    main()
