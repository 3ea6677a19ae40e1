"""Metrics over all processes, each sample once. They stay on the device until they are read."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather
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
        self.everywhere = everywhere
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.top5 = torch.zeros((), dtype=torch.int64, device=device)
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """logits float32 (n, classes); labels int64 (n,)."""
        num_classes = len(self.confusion)
        self.loss += torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        self.top5 += (logits.topk(min(5, num_classes)).indices == labels[:, None]).sum()
        # Not bincount, for which the CPU would wait for the device to tell the largest place.
        places = labels * num_classes + logits.argmax(1)
        self.confusion.view(-1).index_add_(0, places, torch.ones_like(places))

    def read(self) -> dict[str, Any]:
        """The results; `confusion` is int64 (true class, predicted class), on the CPU.

        The loss is None where it is not finite, which JSON has no number for.

        Micro F1 counts hits, false positives and false negatives over all classes; with one label and one
        prediction for each image it equals the accuracy.
        """
        loss, top5, confusion = (self._total(own).cpu() for own in (self.loss, self.top5, self.confusion))
        hits, count = int(confusion.diagonal().sum()), int(confusion.sum())
        return {
            "count": count,
            "loss": float(loss) / count if loss.isfinite() else None,
            "accuracy": hits / count,
            "top5": int(top5) / count,
            "macro_f1": float(f1_scores(confusion).mean()),
            "micro_f1": 2 * hits / float(confusion.sum(1).sum() + confusion.sum(0).sum()),
            "confusion": confusion,
        }

    def _total(self, own: Tensor) -> Tensor:
        return gather(own[None]).sum(0) if self.everywhere else own


def f1_scores(confusion: Tensor) -> Tensor:
    """Of each class, float64 (classes,), from int64 (true class, predicted class).

    That of a class that occurs neither among the labels nor among the predictions is 0, as in scikit-learn.
    """
    return 2 * confusion.diagonal().double() / (confusion.sum(0) + confusion.sum(1)).clamp(min=1)
