"""Evaluate a run on one device: `python evaluate.py runs/NAME`.

Prints a table, and writes evaluation.json and confusion.png beside the weights.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import InputError
from training.cli import OneLineParser, one_line_errors

if TYPE_CHECKING:
    from torch import Tensor


def main() -> None:
    parser = OneLineParser(prog="evaluate.py", description=__doc__)
    parser.add_argument("run", type=Path, help="a run's folder, or its best.safetensors")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="which images (default: test)")
    parser.add_argument("--data-dir", type=Path, help="folder of the images (default: where the run found them)")
    parser.add_argument("--tta", choices=("none", "flip"), default="none", help="flip: average over mirror images")
    with one_line_errors():
        evaluate(parser.parse_args())


def evaluate(arguments: argparse.Namespace) -> None:
    # Imported here: torch takes seconds, and --help or a mistaken flag should not wait for it.
    from data.files import write_json
    from data.resident_loader import ResidentLoader
    from data.sampling import evaluation_batches
    from training.config import recorded_config
    from training.figures import draw_confusion
    from training.inference import EVALUATION_BATCH, open_predictor

    predictor, about, weights = open_predictor(arguments.run, flip=arguments.tta == "flip")
    config = recorded_config(about["config"], weights)
    prepared, ids = images_of(config, arguments.split, arguments.data_dir)
    if arguments.split == "val" and prepared.digest != about["data"]:
        raise InputError(
            "--split val: these are not the images that the run held some out of; give its --data-dir"
        )
    if list(prepared.classes) != about["classes"]:
        raise InputError(
            f"{weights}: trained on other classes than those of the images; give the right --data-dir"
        )

    batches = ResidentLoader(prepared, predictor.device).read(evaluation_batches(ids, EVALUATION_BATCH))
    result = predictor.evaluate(batches, len(prepared.classes))
    confusion = result.pop("confusion")
    report = {
        "split": arguments.split,
        "tta": arguments.tta,
        **result,
        "per_class": class_table(confusion, result.pop("f1"), prepared.classes),
    }
    print_table(arguments.run, report)
    title = f"{weights.parent.name}: {arguments.split}, accuracy {100 * report['accuracy']:.2f} %"
    draw_confusion(confusion, prepared.classes, title, weights.with_name("confusion.png"))
    write_json(weights.with_name("evaluation.json"), report)


def images_of(config: Any, split: str, data_dir: Path | None) -> tuple[Any, "Tensor"]:
    """The prepared data set of a run, and the ids of one split."""
    import torch

    from data.prepared import prepare
    from data.sources import find_source
    from training.engine import choose_ids

    prepared = prepare(find_source(config.dataset, data_dir or config.source_folder), Path(config.cache_dir))
    if split == "test":
        if not prepared.test_ids:
            raise InputError("--split test: there are no labelled test images; use --split val")
        return prepared, torch.tensor(prepared.test_ids)
    if config.split != "stratified":
        raise InputError(f"--split val: the run held out no validation images (--split {config.split})")
    return prepared, choose_ids(config, prepared)[1]


def class_table(confusion: "Tensor", f1: list[float], classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """For each class its number of images, recall (its accuracy), precision and F1."""
    hits, images, predicted = (
        confusion.diagonal().tolist(),
        confusion.sum(1).tolist(),
        confusion.sum(0).tolist(),
    )
    return [
        {
            "class": name,
            "images": images[i],
            "recall": hits[i] / max(images[i], 1),
            "precision": hits[i] / max(predicted[i], 1),
            "f1": f1[i],
        }
        for i, name in enumerate(classes)
    ]


def print_table(run: Path, report: dict[str, Any]) -> None:
    width = max(len(row["class"]) for row in report["per_class"])
    print(f"{'class':{width}}  images  recall  precision      f1")
    for row in report["per_class"]:
        numbers = f"{row['images']:6}  {row['recall']:6.4f}  {row['precision']:9.4f}  {row['f1']:6.4f}"
        print(f"{row['class']:{width}}  {numbers}")
    flip = ", with flip" if report["tta"] == "flip" else ""
    print(
        f"{run}, {report['split']}{flip}: {report['count']} images, loss {report['loss']:.4f}, accuracy "
        f"{report['accuracy']:.4f}, top-5 {report['top5']:.4f}, macro F1 {report['macro_f1']:.4f}"
    )


if __name__ == "__main__":
    main()
