"""What reproduce.py writes of finished runs: report.md with its pictures, and report.html, all in one file."""

import base64
import html
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev, variance
from typing import Any

from scipy.stats import t

from data.errors import InputError
from data.files import sha256_of, write_atomically
from training.figures import Curve, draw_comparison
from training.jobs import read_summary
from training.studies import Comparison, Experiment, Study
from training.tracking import read_epochs


@dataclass(frozen=True)
class Result:
    """One finished run: its summary.json, evaluation.json, and the rows of its epochs."""

    summary: dict[str, Any]
    evaluation: dict[str, Any]
    epochs: list[dict[str, Any]]

    @property
    def test_accuracy(self) -> float | None:
        """None where there are no labelled test images, and the evaluation is of the validation images."""
        return self.evaluation["accuracy"] if self.evaluation["split"] == "test" else None


def read_result(run: Path) -> Result:
    """What a finished and evaluated run has come to.

    Raises:
        InputError: metrics.jsonl is not the one that the run ended with, or summary.json is damaged.
    """
    summary, metrics = read_summary(run), run / "metrics.jsonl"
    evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    if not metrics.exists() or sha256_of(metrics) != summary.get("metrics_sha256"):
        raise InputError(f"{run}/metrics.jsonl: not as the run wrote it; remove the run, or restore the file")
    return Result(summary, evaluation, read_epochs(run))


@dataclass
class Outcome:
    """An experiment's finished runs, one for each seed; or why there are none, "" where they are still to come."""

    experiment: Experiment
    results: list[Result] = field(default_factory=list)
    reason: str = ""


def _wobble(result: Result) -> float:
    last = [row["val_accuracy"] for row in result.epochs[-max(2, len(result.epochs) // 5) :]]
    return stdev(last) if len(last) > 1 else 0.0


QUANTITIES: dict[str, Callable[[Result], float]] = {
    "validation accuracy": lambda result: result.summary["val_accuracy"],
    "mean validation accuracy over all epochs": lambda result: mean(row["val_accuracy"] for row in result.epochs),
    "accuracy after the first epoch": lambda result: result.epochs[0]["val_accuracy"],
    "training less validation accuracy, last epoch": lambda result: (
        result.epochs[-1]["train_accuracy"] - result.epochs[-1]["val_accuracy"]
    ),
    "deviation of the validation accuracy over the last fifth of the epochs": _wobble,
}
"""What the findings of the studies compare."""


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    path: Path
    title: str


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


Block = str | Heading | Table | Picture | list[str]
"""A part of a report; a str is a paragraph, a list of them a list."""


def write_study_reports(
    outcomes: dict[Study, list[Outcome]], command: str, scaled: str, changed: str, folder: Path
) -> None:
    """Write report.md, report.html and the pictures of the studies, in the order in which they are given.

    scaled, changed: "" or how the runs were made shorter, and what else of the recipes was changed; that stands
    at every table and picture then.
    """
    results = [result for of_study in outcomes.values() for outcome in of_study for result in outcome.results]
    label = _label(scaled, changed)
    blocks: list[Block] = [
        Heading(f"Experiments beside their figures{label}", 1),
        f"`{command}`",
        environment(results),
    ]
    for study, of_study in outcomes.items():
        blocks += study_report(study, of_study, folder / "pictures", scaled, changed)
    write_report(blocks, folder)


def _label(scaled: str, changed: str) -> str:
    told = "; ".join(filter(None, (scaled, changed)))
    return f" ({told})" if told else ""


def study_report(
    study: Study, outcomes: Sequence[Outcome], pictures: Path, scaled: str = "", changed: str = ""
) -> list[Block]:
    """The section of one study; draws its comparisons into the folder `pictures`."""
    label = _label(scaled, changed)
    finished = {outcome.experiment.name: outcome.results for outcome in outcomes if outcome.results}
    blocks: list[Block] = [
        Heading(study.title + label),
        results_table(outcomes),
        "Accuracies and F1 are fractions; with several seeds mean and deviation. `ours` is what the "
        "figure is of: validation, or the test set where so marked. F1 is of the test set, or of the validation "
        "images where so marked." + (f" All runs are {scaled}." if scaled else ""),
        [*study.notes, *_twins(study, finished)],
    ]
    if coarse := _coarse(outcomes):
        blocks.append(coarse)
    for comparison in study.comparisons:
        title = f"{study.title}: {comparison.title}{label}"
        curves = _curves(study, comparison, finished)
        if len(curves) > 1:
            path = pictures / f"{study.title}-{comparison.title}.png".lower().replace(" ", "-")
            draw_comparison(curves, title, path)
            blocks.append(Picture(path, title))
        else:
            absent = [name for name in comparison.experiments if name not in finished]
            blocks.append(f"Not drawn: {title}. Not run: {', '.join(absent)}.")
    findings = [
        [finding.text, *verdict(finding.pairs, finding.quantity, finished, scaled)] for finding in study.findings
    ]
    if findings:
        blocks.append(Heading(f"{study.title}: its findings{label}", 3))
        blocks.append(Table(("finding", "our runs", "measured"), findings))
        blocks.append(HOW_DECIDED)
    return blocks


TO_THE_BIT = "they came to the same weights, to the bit"
APART = (
    "rounding took their weights apart, as on CPUs without AVX-512, where small maps of our network alone are "
    "convolved by a product of matrices"
)


def _twins(study: Study, finished: dict[str, list[Result]]) -> list[str]:
    """A sentence on each pair of twins that a seed has run both of."""
    told = []
    for pair in study.twins:
        first, second = (
            {result.summary["seed"]: result.summary["weights_sha256"] for result in finished.get(name, [])}
            for name in pair
        )
        if seeds := first.keys() & second.keys():
            outcome = TO_THE_BIT if all(first[seed] == second[seed] for seed in seeds) else APART
            told.append(f"{' and '.join(pair)} train one network from the same weights alike: {outcome}.")
    return told


def _curves(study: Study, comparison: Comparison, finished: dict[str, list[Result]]) -> list[Curve]:
    """Of the experiments that have finished runs."""
    what = {experiment.name: f"{experiment.name}: {experiment.what}" for experiment in study.experiments}
    return [
        Curve(what[name], [result.epochs for result in finished[name]], colour, dash)
        for colour, group in enumerate(comparison.groups)
        for dash, name in enumerate(group)
        if name in finished
    ]


def _coarse(outcomes: Sequence[Outcome]) -> str:
    """A sentence on CIFAR-100's coarse classes; "" for other data sets."""
    parts = []
    for outcome in outcomes:
        found = [result.evaluation for result in outcome.results if "coarse_accuracy" in result.evaluation]
        if found:
            accuracy = _spread([each["coarse_accuracy"] for each in found])
            inside = _spread([each["mistakes_within_coarse"] / max(1, each["mistakes"]) for each in found])
            parts.append(f"{outcome.experiment.name} {accuracy}, {inside}")
    if not parts:
        return ""
    return "Accuracy over the 20 coarse classes, and the share of mistakes inside the right one: " + "; ".join(
        parts
    )


def results_table(outcomes: Sequence[Outcome]) -> Table:
    header = "experiment, network and settings, figure, ours, difference, validation, test, macro F1, micro F1"
    header += ", epochs, seconds, seeds"
    return Table(header.split(", "), [_row(outcome) for outcome in outcomes])


def _row(outcome: Outcome) -> list[str]:
    experiment, results = outcome.experiment, outcome.results
    figure = (f"{experiment.figure} (test)" if experiment.on_test else experiment.figure) or "-"
    row = [experiment.name, experiment.what, figure]
    if not results:
        return [*row, outcome.reason or "not run yet", *["-"] * 8]
    validation = [result.summary["val_accuracy"] for result in results if result.summary["val_images"]]
    test = [result.test_accuracy for result in results if result.test_accuracy is not None]
    ours = test if experiment.on_test else validation
    six = [result.evaluation["tta_accuracy"] for result in results if result.evaluation["tta"] == "six"]
    of_f1 = "" if test else " (validation)"
    f1 = [_spread([result.evaluation[name] for result in results]) + of_f1 for name in ("macro_f1", "micro_f1")]
    return [
        *row,
        _spread(ours) + (" (test)" if experiment.on_test else ""),
        _difference(mean(ours), experiment) if experiment.figure and ours else "-",
        *(_spread(validation), _spread(test) + (f" (six views {_spread(six)})" if six else ""), *f1),
        str(results[0].summary["epochs"]),
        f"{mean(result.summary['seconds'] for result in results):.0f}",
        ", ".join(str(result.summary["seed"]) for result in results) + (outcome.reason and f"; {outcome.reason}"),
    ]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def _difference(ours: float, experiment: Experiment) -> str:
    ends = dict.fromkeys(f"{ours - end:+.3f}" for end in (experiment.low, experiment.high))
    return " to ".join(ends)


HOW_DECIDED = (
    "A finding is borne out, or not, where chance explains less than a twentieth of such differences, each of its "
    "comparisons taken alone; else it is undecided. With several seeds that is Welch's t-test between them. With "
    "one, only the counting error of an accuracy on so many images is known, and not how much seeds differ: there "
    "take a verdict for a hint."
)


def verdict(
    pairs: Sequence[tuple[str | float, str | float]],
    quantity: str,
    finished: dict[str, list[Result]],
    scaled: str = "",
) -> tuple[str, str]:
    """Whether in each pair the first side has the higher quantity, as HOW_DECIDED says; and the numbers.

    scaled: how the runs were made shorter: then they are not compared with a number, which is of whole ones.
    """
    if scaled and not all(isinstance(side, str) for pair in pairs for side in pair):
        return "not tested", "needs runs at full length"
    names = list(dict.fromkeys(name for pair in pairs for name in pair if isinstance(name, str)))
    if missing := sorted(set(names) - set(finished)):
        return "not tested", f"not run: {', '.join(missing)}"
    values = {name: [QUANTITIES[quantity](result) for result in finished[name]] for name in names}
    estimates = {name: _estimate(values[name], finished[name]) for name in names}
    verdicts = []
    for pair in pairs:
        sides = [estimates[side] if isinstance(side, str) else Estimate(side) for side in pair]
        difference, doubt = sides[0].mean - sides[1].mean, _doubt(*sides)
        verdicts.append(
            "borne out" if difference > doubt else "not borne out" if difference < -doubt else "undecided"
        )
    worst = max(verdicts, key=["borne out", "undecided", "not borne out"].index)
    numbers = ", ".join(f"{name} {_spread(found)}" for name, found in values.items())
    each = [f"{first} over {second} {found}" for (first, second), found in zip(pairs, verdicts, strict=True)]
    return worst, f"{quantity}: {numbers}" + (f" ({'; '.join(each)})" if len(set(verdicts)) > 1 else "")


@dataclass(frozen=True)
class Estimate:
    """A mean, the variance of it, and the degrees of freedom with which that is known."""

    mean: float
    variance: float = 0.0
    freedom: float = math.inf


def _estimate(values: Sequence[float], results: Sequence[Result]) -> Estimate:
    """Of one run: the variance of an accuracy counted on so many images, whatever the quantity.

    Several seeds know no less of chance than that: two that agree by accident are not without error.
    """
    images, runs = results[0].summary["val_images"], len(values)
    right = mean(result.summary["val_accuracy"] for result in results) * images
    share = (right + 2) / (images + 4)  # Agresti and Coull, 1998: at 0 and 1, too, it is not known exactly
    counting = share * (1 - share) / images
    if runs == 1:
        return Estimate(values[0], counting)
    return Estimate(mean(values), max(variance(values), counting) / runs, runs - 1)


def _doubt(first: Estimate, second: Estimate) -> float:
    """The difference that chance exceeds in a twentieth of all cases (Welch, 1947)."""
    total = first.variance + second.variance
    spread = sum(side.variance**2 / side.freedom for side in (first, second))
    freedom = total**2 / spread if spread else math.inf
    return float(t.ppf(0.975, freedom)) * math.sqrt(total)


def environment(results: Sequence[Result]) -> list[str]:
    """Device, processes, precision, loader and versions of the runs; more lines where they differ."""
    lines = dict.fromkeys(
        "{world_size} x {device}, precision {precision}, {loader} loader; ".format(**result.summary)
        + ", ".join(f"{name} {version}" for name, version in result.summary["versions"].items())
        for result in results
    )
    return list(lines)


def write_report(blocks: Sequence[Block], folder: Path) -> None:
    """report.md, whose pictures stay where they are in `folder`, and report.html, which contains them."""
    markdown = "\n\n".join(_markdown(block, folder) for block in blocks) + "\n"
    write_atomically(folder / "report.md", markdown.encode())
    body = "\n".join(_html(block) for block in blocks)
    write_atomically(folder / "report.html", _PAGE.format(body=body).encode())


def _markdown(block: Block, folder: Path) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}"
    if isinstance(block, Table):
        lines = [block.header, ["---"] * len(block.header), *block.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    if isinstance(block, Picture):
        return f"![{block.title}]({block.path.relative_to(folder).as_posix()})"
    return block if isinstance(block, str) else "\n".join(f"- {item}" for item in block)


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Table):
        lines = [_html_row(block.header, "th"), *(_html_row(row, "td") for row in block.rows)]
        return "<table>\n" + "\n".join(lines) + "\n</table>"
    if isinstance(block, Picture):
        content = base64.b64encode(block.path.read_bytes()).decode()
        return f'<img src="data:image/png;base64,{content}" alt="{html.escape(block.title)}">'
    if isinstance(block, str):
        return f"<p>{_text(block)}</p>"
    return "<ul>" + "".join(f"<li>{_text(item)}</li>" for item in block) + "</ul>"


def _text(markdown: str) -> str:
    return re.sub("`(.+?)`", r"<code>\1</code>", html.escape(markdown))


def _html_row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Report</title>
<style>
body {{ font-family: sans-serif; max-width: 78rem; margin: 2rem auto; padding: 0 1rem; line-height: 1.45; }}
table {{ border-collapse: collapse; font-size: 0.82rem; }}
th, td {{ border: 1px solid #bbb; padding: 0.3rem 0.5rem; text-align: left; vertical-align: top; }}
img {{ max-width: 100%; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
