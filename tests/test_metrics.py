"""Metrics against scikit-learn."""

import pytest
import torch
from accelerate import Accelerator
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss, top_k_accuracy_score
from torch.profiler import ProfilerActivity, profile

from training.metrics import EvaluationMetrics, TrainingMetrics, f1_scores

CPU = torch.device("cpu")


@pytest.fixture
def predictions():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (257,), generator=generator)
    logits = torch.randn(257, 10, generator=generator) + 2 * torch.nn.functional.one_hot(labels, 10)
    return logits, labels


def test_evaluation_equals_scikit_learn_for_uneven_batches(predictions):
    logits, labels = predictions
    metrics = EvaluationMetrics(10, CPU, everywhere=False)
    for part in torch.arange(257).split(100):  # 100, 100 and 57
        metrics.update(logits[part], labels[part])
    found = metrics.read()
    assert found["count"] == 257
    assert found["loss"] == pytest.approx(log_loss(labels, logits.softmax(1).numpy()), rel=1e-5)
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    assert found["top5"] == pytest.approx(top_k_accuracy_score(labels, logits.numpy(), k=5))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, logits.argmax(1), average="macro"))
    assert found["micro_f1"] == pytest.approx(f1_score(labels, logits.argmax(1), average="micro"))
    expected = f1_score(labels, logits.argmax(1), average=None).tolist()
    assert f1_scores(found["confusion"]).tolist() == pytest.approx(expected)
    assert (found["confusion"].numpy() == confusion_matrix(labels, logits.argmax(1))).all()


def test_the_memory_of_an_evaluation_does_not_grow_with_the_classes_squared_times_the_images():
    metrics = EvaluationMetrics(300, CPU, everywhere=False)
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            metrics.update(torch.eye(300), torch.arange(300))
    finally:
        torch.use_deterministic_algorithms(deterministic)
    assert max(entry.cpu_memory_usage for entry in profiled.key_averages()) < 20 * 300 * 300 * 8
    assert torch.equal(metrics.read()["confusion"], torch.eye(300, dtype=torch.int64))


@pytest.mark.parametrize("logit", [float("inf"), float("nan")])
def test_a_loss_that_is_not_finite_is_none_and_the_rest_is_counted(logit):
    metrics = EvaluationMetrics(10, CPU, everywhere=False)
    metrics.update(torch.eye(10).index_fill(0, torch.tensor([3]), logit), torch.arange(10))
    found = metrics.read()
    assert (found["loss"], found["accuracy"], found["count"]) == (None, 0.9, 10)


def test_macro_f1_counts_a_class_that_never_occurs_as_scikit_learn_does():
    labels, predicted = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
    metrics = EvaluationMetrics(3, CPU, everywhere=False)
    metrics.update(torch.nn.functional.one_hot(predicted, 3).float(), labels)
    expected = f1_score(labels, predicted, average="macro", labels=[0, 1, 2], zero_division=0)
    assert metrics.read()["macro_f1"] == pytest.approx(expected)


def test_training_metrics_weigh_batches_by_their_size(predictions):
    logits, labels = predictions
    metrics = TrainingMetrics(Accelerator(cpu=True))
    for part in torch.arange(257).split(100):
        loss = torch.nn.functional.cross_entropy(logits[part], labels[part])
        metrics.update(loss, logits[part], labels[part])
    found = metrics.read()
    assert found["train_loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-6)
    assert found["train_accuracy"] == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    metrics.reset()
    assert metrics.sums.tolist() == [0, 0, 0]
