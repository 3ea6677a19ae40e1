"""Metrics over all processes, each sample once. They stay on the device until they are read."""

import warnings
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


class TrainingMetrics:
    """Mean loss and top-1 accuracy of the epoch so far; of mixed images by their own label, not the partner's."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.sums = torch.zeros(3, dtype=torch.float64, device=accelerator.device)

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """loss: mean over the batch, scalar; logits (n, classes); labels (n,)."""
        count = len(labels)
        self.sums[0] += loss.double() * count
        self.sums[1] += (logits.argmax(1) == labels).sum()
        self.sums[2] += count

    def reset(self) -> None:
        self.sums.zero_()

    def of_every_process(self) -> Tensor:
        """The sums of each process, (processes, 3). Kept apart: added in another order they could differ."""
        gathered: Tensor = self.accelerator.gather(self.sums[None])
        return gathered

    def restore(self, sums: Tensor) -> None:
        self.sums.copy_(sums[self.accelerator.process_index])

    def read(self) -> dict[str, float]:
        """Waits for the device and for all processes. Zeros where the epoch has had no step yet."""
        loss, correct, count = self.of_every_process().sum(0).tolist()
        return {"train_loss": loss / max(count, 1), "train_accuracy": correct / max(count, 1)}


class EvaluationMetrics:
    """Loss, top-1, top-5, macro and micro F1 and the confusion matrix.

    everywhere: over the batches of all processes, which must all read it; otherwise of this one alone.
    """

    def __init__(self, num_classes: int, device: torch.device, everywhere: bool = True):
        # Imported here: it takes longer than the first training steps, which need not wait for it.
        from torchmetrics import SumMetric
        from torchmetrics.classification import MulticlassAccuracy

        from training.confusion import ConfusionMatrix

        loss = SumMetric(nan_strategy="disable", sync_on_compute=everywhere)
        self.loss = loss.set_dtype(torch.float64).to(device)
        self.confusion = ConfusionMatrix(num_classes, sync_on_compute=everywhere).to(device)
        top5 = MulticlassAccuracy(
            num_classes, min(5, num_classes), average="micro", validate_args=False, sync_on_compute=everywhere
        )
        self.top5 = top5.to(device)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """logits float32 (n, classes); labels int64 (n,)."""
        self.loss.update(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        self.confusion.update(logits.argmax(1), labels)
        self.top5.update(logits, labels)

    def read(self) -> dict[str, Any]:
        """The results; `confusion` is int64 (true class, predicted class), on the CPU.

        The loss is None where it is not finite, which JSON has no number for.

        Micro F1 counts hits, false positives and false negatives over all classes; with one label and one
        prediction for each image it equals the accuracy.
        """
        with warnings.catch_warnings():  # with few images a process may have had none to update with
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
            warnings.filterwarnings("ignore", message=r"barrier\(\): using the device")  # NCCL's
            loss, confusion, top5 = (metric.compute() for metric in (self.loss, self.confusion, self.top5))
        confusion = confusion.cpu()
        hits, count = float(confusion.diagonal().sum()), int(confusion.sum())
        return {
            "count": count,
            "loss": float(loss) / count if loss.isfinite() else None,
            "accuracy": hits / count,
            "top5": float(top5),
            "macro_f1": float(f1_scores(confusion).mean()),
            "micro_f1": 2 * hits / float(confusion.sum(1).sum() + confusion.sum(0).sum()),
            "confusion": confusion,
        }


def f1_scores(confusion: Tensor) -> Tensor:
    """Of each class, float64 (classes,), from int64 (true class, predicted class).

    That of a class that occurs neither among the labels nor among the predictions is 0, as in scikit-learn.
    """
    return 2 * confusion.diagonal().double() / (confusion.sum(0) + confusion.sum(1)).clamp(min=1)
