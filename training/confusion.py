"""The confusion matrix, as a metric of torchmetrics."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class ConfusionMatrix(Metric):
    """int64 (true class, predicted class), over all processes.

    torchmetrics' own needs images x classes^2 numbers of memory, where algorithms are to be deterministic.
    """

    counts: Tensor

    def __init__(self, num_classes: int, **settings: Any):
        super().__init__(**settings)
        self.add_state("counts", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Both int64 (n,)."""
        places = labels * len(self.counts) + predicted
        self.counts.view(-1).index_add_(0, places, torch.ones_like(places))

    def compute(self) -> Tensor:
        return self.counts
