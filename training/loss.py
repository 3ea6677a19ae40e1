"""The loss that training minimises."""

import torch.nn.functional as F
from torch import Tensor

from data.loaders import Batch


def training_loss(logits: Tensor, batch: Batch, smoothing: float) -> Tensor:
    """Mean cross-entropy with label smoothing (Szegedy et al., 2015, arXiv:1512.00567), a scalar.

    Of mixed images it is lam x that of their own labels + (1 - lam) x that of their partners', both smoothed.
    """
    loss = F.cross_entropy(logits, batch.labels, label_smoothing=smoothing)
    if batch.partner_labels is None:
        return loss
    partners = F.cross_entropy(logits, batch.partner_labels, label_smoothing=smoothing)
    return batch.lam * loss + (1 - batch.lam) * partners
