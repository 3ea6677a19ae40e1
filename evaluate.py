"""Evaluate a run on one device: `python evaluate.py runs/NAME`.

Prints a table, and writes evaluation.json, confusion.png, predictions.png and mistakes.png beside the weights,
replacing those of a former evaluation; and curves.png, of the epochs that the run has trained so far.
"""

import argparse
from pathlib import Path
from typing import Any

from training.cli import METRICS, TTA, TTA_HELP, OneLineParser, one_line_errors, shown, tell


def main() -> None:
    parser = OneLineParser(prog="evaluate.py", description=__doc__)
    parser.add_argument("run", type=Path, help="a run's folder, or its best.safetensors")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="which images (default: test)")
    parser.add_argument("--data-dir", type=Path, help="folder of the images (default: where the run found them)")
    parser.add_argument("--cache-dir", type=Path, help="folder of the decoded images (default: the run's)")
    parser.add_argument("--tta", choices=TTA, default="none", help=f"also report the mean over {TTA_HELP}")
    with one_line_errors():
        evaluate(parser.parse_args())


def evaluate(arguments: argparse.Namespace) -> None:
    # Imported here: torch takes seconds, and --help or a mistaken flag should not wait for it.
    from training.evaluation import evaluate_run

    evaluate_run(
        arguments.run,
        arguments.split,
        arguments.data_dir,
        arguments.cache_dir,
        arguments.tta,
        show=lambda report: print_table(arguments.run, report),
    )


def print_table(run: Path, report: dict[str, Any]) -> None:
    from training.evaluation import coarse_in_words

    width = max(len(row["class"]) for row in report["per_class"])
    tell(f"{'class':{width}}  images  recall  precision      f1")
    for row in report["per_class"]:
        numbers = f"{row['images']:6}  {row['recall']:6.4f}  {row['precision']:9.4f}  {row['f1']:6.4f}"
        tell(f"{row['class']:{width}}  {numbers}")
    tell(f"{run}, {report['split']}: {report['count']} images, {metrics(report)}")
    if report["tta"] != "none":
        tell(f"with --tta {report['tta']}: {metrics(report, 'tta_')}")
    if words := coarse_in_words(report):
        tell(words)


def metrics(report: dict[str, Any], prefix: str = "") -> str:
    return ", ".join(f"{title} {shown(report[prefix + name])}" for name, title in METRICS.items())


if __name__ == "__main__":
    main()
