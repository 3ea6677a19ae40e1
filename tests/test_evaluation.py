"""Reports over coarse classes, and predictions image by image."""

import numpy as np
import pytest
import torch

from data.augment import BatchTransform
from data.spec import CIFAR10, CIFAR100
from tests.images import prepared_pixels
from training.evaluation import coarse_in_words, coarse_names, coarse_report, evaluate_images
from training.inference import Predictor


def test_coarse_accuracy_counts_mistakes_inside_the_right_coarse_class():
    confusion = torch.zeros(100, 100, dtype=torch.int64)
    beaver, dolphin, bed = (CIFAR100.classes.index(name) for name in ("beaver", "dolphin", "bed"))
    confusion[beaver, beaver], confusion[beaver, dolphin], confusion[beaver, bed], confusion[bed, bed] = 5, 2, 1, 2
    report = coarse_report(confusion, CIFAR100.classes)
    table = {row.pop("class"): row for row in report.pop("per_coarse_class")}
    assert report == {"coarse_accuracy": 0.9, "mistakes": 3, "mistakes_within_coarse": 2}
    assert coarse_in_words(report) == (
        "accuracy over the 20 coarse classes 0.9000; of 3 mistakes 2 stay inside the right one"
    )
    assert tuple(table) == CIFAR100.coarse_classes
    assert table["aquatic_mammals"] == {"images": 8, "recall": 7 / 8, "precision": 1.0, "f1": 14 / 15}
    assert table["household_furniture"] == {"images": 2, "recall": 1.0, "precision": 2 / 3, "f1": 4 / 5}
    assert table["fish"] == {"images": 0, "recall": 0.0, "precision": 0.0, "f1": 0.0}


def test_other_classes_have_no_coarse_ones():
    assert coarse_names(CIFAR10.classes) == []
    assert coarse_report(torch.eye(10), CIFAR10.classes) == {}
    assert coarse_in_words({"accuracy": 1.0}) == ""
    assert coarse_names(CIFAR100.classes)[CIFAR100.classes.index("bed")] == "household_furniture"


def test_predictions_are_those_of_each_image(tmp_path):
    prepared = prepared_pixels(tmp_path, 7)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.AvgPool2d(16), torch.nn.Flatten(), torch.nn.Linear(12, 3))
    predictor = Predictor(model, BatchTransform((0.5,) * 3, (0.2,) * 3), torch.device("cpu"), "no")
    ids = torch.tensor([5, 0, 3])
    found = evaluate_images(predictor, prepared, ids)
    images = torch.from_numpy(np.asarray(prepared.images)[ids]).permute(0, 3, 1, 2)
    logits = predictor.logits(images)
    labels = torch.from_numpy(prepared.labels)[ids]
    assert found.predictions.ids.tolist() == [5, 0, 3]
    assert found.predictions.labels.tolist() == labels.tolist()
    assert found.predictions.predicted.tolist() == logits.argmax(1).tolist()
    assert found.predictions.confidence.tolist() == pytest.approx(logits.softmax(1).max(1).values.tolist())
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert found.predictions.loss.tolist() == pytest.approx(losses.tolist())
    assert found.report["accuracy"] == (logits.argmax(1) == labels).double().mean()
    assert [row["images"] for row in found.report["per_class"]] == torch.bincount(labels, minlength=3).tolist()
