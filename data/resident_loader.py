"""The whole data set in the device's memory (CIFAR: 180 MB); on a CPU that is the cache file, mapped.

No compilation, no workers.
"""

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from data.loaders import Batch, ids_on_device
from data.prepared import Prepared


class ResidentLoader:
    name = "resident"

    def __init__(self, prepared: Prepared, device: torch.device):
        self.images = torch.from_numpy(prepared.images).to(device)
        self.labels = torch.from_numpy(prepared.labels).to(device)
        self.device = device

    def read(self, batches: Sequence[Tensor]) -> Generator[Batch]:
        for ids in ids_on_device(batches, self.device):
            images = self.images.index_select(0, ids).permute(0, 3, 1, 2)
            yield Batch(images, self.labels[ids], ids)
