"""Trained weights on the images of one split: metrics, predictions, and the files that show them."""

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data.errors import InputError
from data.files import write_json
from data.loaders import Batch
from data.prepared import Prepared
from data.resident_loader import ResidentLoader
from data.sampling import evaluation_batches
from data.spec import SPECS
from training.cli import METRICS
from training.config import HELD_OUT, Config, recorded_config
from training.hardware import device_name, versions
from training.inference import EVALUATION_BATCH, Predictor, open_predictor
from training.metrics import f1_scores
from training.parts import choose_ids, open_prepared


@dataclass(frozen=True)
class Predictions:
    """Of n images, in the order of their ids: int64 ids, labels and predicted classes; the predicted class'
    probability; and the cross-entropy. Each (n,)."""

    ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float32]
    loss: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Evaluation:
    """report: the content of evaluation.json. confusion: int64 (true class, predicted class)."""

    report: dict[str, Any]
    confusion: Tensor
    predictions: Predictions


def evaluate_images(predictor: Predictor, prepared: Prepared, ids: Tensor, tta: str = "none") -> Evaluation:
    """Evaluate on the images of `ids`, in this process alone.

    With test-time augmentation the report has its metrics too, under names of their own: `tta_accuracy` and so on.
    """
    parts: list[list[Tensor]] = []

    def keep(batch: Batch, logits: Tensor) -> None:
        confidence, predicted = logits.softmax(1).max(1)
        loss = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none")
        parts.append([batch.ids, batch.labels, predicted, confidence, loss])

    loader, batches = ResidentLoader(prepared, predictor.device), evaluation_batches(ids, EVALUATION_BATCH)
    alone = functools.partial(predictor.evaluate, num_classes=len(prepared.classes), everywhere=False)
    report = alone(loader.read(batches), visit=keep)
    report["tta"] = tta
    if tta != "none":
        augmented = alone(loader.read(batches), tta=tta)
        report |= {f"tta_{name}": augmented[name] for name in METRICS}
    confusion = report.pop("confusion")
    report |= coarse_report(confusion, prepared.classes)
    report["per_class"] = class_table(confusion, prepared.classes)
    columns = [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]
    return Evaluation(report, confusion, Predictions(*columns))


def coarse_names(classes: tuple[str, ...]) -> list[str]:
    """The coarse class of each class; empty for classes other than CIFAR-100's."""
    spec = SPECS["cifar100"]
    return [spec.coarse_classes[index] for index in spec.coarse_of] if classes == spec.classes else []


def coarse_report(confusion: Tensor, classes: tuple[str, ...]) -> dict[str, Any]:
    """Accuracy over coarse classes, mistakes that stay inside the right one, and a table; empty without them."""
    if not coarse_names(classes):
        return {}
    spec = SPECS["cifar100"]
    codes = torch.nn.functional.one_hot(torch.tensor(spec.coarse_of))
    coarse = codes.T @ confusion @ codes
    inside, right, count = (int(of.sum()) for of in (coarse.diagonal(), confusion.diagonal(), confusion))
    return {
        "coarse_accuracy": inside / count,
        "mistakes": count - right,
        "mistakes_within_coarse": inside - right,
        "per_coarse_class": class_table(coarse, spec.coarse_classes),
    }


def coarse_in_words(report: dict[str, Any]) -> str:
    """What a report says of coarse classes, but for the table; "" without them."""
    if "coarse_accuracy" not in report:
        return ""
    return (
        f"accuracy over the 20 coarse classes {report['coarse_accuracy']:.4f}; of {report['mistakes']} "
        f"mistakes {report['mistakes_within_coarse']} stay inside the right one"
    )


def class_table(confusion: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    """For each class its number of images, recall (its accuracy), precision and F1."""
    columns = [confusion.diagonal(), confusion.sum(1), confusion.sum(0), f1_scores(confusion)]
    return [
        {
            "class": name,
            "images": images,
            "recall": hits / max(images, 1),
            "precision": hits / max(predicted, 1),
            "f1": score,
        }
        for name, hits, images, predicted, score in zip(
            classes, *(column.tolist() for column in columns), strict=True
        )
    ]


def draw_evaluation(evaluation: Evaluation, prepared: Prepared, title: str, folder: Path) -> list[Path]:
    """Write confusion.png, predictions.png and mistakes.png; returns their paths."""
    from training.figures import draw_confusion
    from training.pictures import draw_mistakes, draw_predictions

    paths = [folder / name for name in ("confusion.png", "predictions.png", "mistakes.png")]
    classes, predictions = prepared.classes, evaluation.predictions
    words = coarse_in_words(evaluation.report)
    draw_confusion(
        evaluation.confusion, classes, f"{title}\n{words}" if words else title, paths[0], coarse_names(classes)
    )
    draw_predictions(prepared.images, predictions, classes, f"{title}: images by predicted class", paths[1])
    draw_mistakes(
        prepared.images,
        predictions,
        classes,
        f"{title}: worst mistakes (white: the predicted class and its probability)",
        paths[2],
    )
    return paths


def evaluate_run(
    run: Path,
    split: str,
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
    tta: str = "none",
    show: Callable[[dict[str, Any]], object] = lambda report: None,
) -> dict[str, Any]:
    """Evaluate a run's weights; writes evaluation.json and the pictures beside them, and returns the report.

    Args:
        run: a run's folder, or a weights file.
        split: "test" or "val".
        data_dir: folder of the images; None: where the run found them.
        cache_dir: folder of the decoded images; None: where the run kept them.
        tta: test-time augmentation, reported besides the plain result; the pictures show that one.
        show: is given the report before anything is written: a full disk does not take it away.

    Raises:
        InputError: no whole weights, images that do not go with them, or a damaged metrics.jsonl.
    """
    predictor, about, weights = open_predictor(run)
    config = with_folders(recorded_config(about["config"], weights), about, data_dir, cache_dir)
    prepared, ids = images_of(config, split)
    # Test images may have changed. An older file has no digest of the training images alone.
    same = prepared.digest == about["data"] or prepared.train_digest == about.get("train_data")
    if not same and (data_dir is None or split == "val"):
        folder = config.source_folder
        raise InputError(f"{run}: trained on other images than those in {folder}; give --data-dir the right ones")
    if list(prepared.classes) != about["classes"]:
        raise InputError(
            f"{weights}: trained on other classes than those of the images; give the right --data-dir"
        )
    evaluation = evaluate_images(predictor, prepared, ids, tta)
    report = {
        "split": split,
        "weights_sha256": about["weights_sha256"],
        "data": prepared.digest,
        **evaluation.report,
        "precision": predictor.precision,
        "versions": versions(),
        "device": device_name(predictor.device),
    }
    show(report)
    title = f"{weights.resolve().parent.name}: {split}, accuracy {100 * report['accuracy']:.2f} %"
    write_json(weights.with_name("evaluation.json"), report)
    draw_evaluation(evaluation, prepared, title, weights.parent)
    draw_curves_so_far(config, weights.parent)
    return report


def with_folders(config: Config, about: dict[str, Any], data_dir: Path | None, cache_dir: Path | None) -> Config:
    """A run's config with the given folders; or its own, as they are called from anywhere, where they remain."""

    def chosen(name: str, given: Path | None) -> str:
        if given is not None:
            return str(given)
        recorded: str = about.get("folders", {}).get(name, "")
        return recorded if os.path.isdir(recorded) else getattr(config, name)

    return replace(config, data_dir=chosen("data_dir", data_dir), cache_dir=chosen("cache_dir", cache_dir))


def draw_curves_so_far(config: Config, folder: Path) -> None:
    """Write curves.png, unless the weights stand alone: train.py draws it only at the end of a run."""
    from training.figures import draw_curves
    from training.tracking import read_epochs

    if (folder / "metrics.jsonl").exists():
        draw_curves(read_epochs(folder), config, folder)


def images_of(config: Config, split: str) -> tuple[Prepared, Tensor]:
    """The prepared data set of a run, and the ids of one split."""
    prepared = open_prepared(config)
    if split == "test":
        if not prepared.test_ids:
            raise InputError("--split test: there are no labelled test images; use --split val")
        return prepared, torch.tensor(prepared.test_ids)
    if config.split not in HELD_OUT:
        raise InputError(f"--split val: the run held out no validation images (--split {config.split})")
    return prepared, choose_ids(config, prepared)[1]
