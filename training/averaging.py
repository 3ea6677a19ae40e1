"""The exponential moving average of a network's weights (Polyak and Juditsky, 1992; Tarvainen and Valpola, 2017,
arXiv:1703.01780), which is validated and saved in their place."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class MovingAverage(AveragedModel):
    """average <- d x average + (1 - d) x weights, after each optimizer step; `module` is the averaged network.

    d is min(decay, (1 + t) / (10 + t)) after t steps: the first weights are soon forgotten, so that early epochs
    can be validated too. BatchNorm's running mean and variance are averaged as the weights are, since they
    belong to them; whole numbers, its count of batches, are copied.

    Args:
        model: fresh, on its device, neither compiled nor distributed.
        decay: 0 to below 1.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model, use_buffers=True)
        self.decay = decay
        self._tensors: list[tuple[list[Tensor], list[Tensor]]] = []

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in the weights of `model`, which has to be the same one each time.

        AveragedModel's own copies its counter to the device, and waits for it, at every step.
        """
        steps = int(self.n_averaged)  # on the CPU
        decay = min(self.decay, (1 + steps) / (10 + steps)) if steps else 0.0
        if not self._tensors:  # once: to walk both networks takes half a millisecond
            self._tensors = [_by_kind(network) for network in (self.module, model)]
        averages, values = self._tensors
        torch._foreach_lerp_(averages[0], values[0], 1 - decay)
        if averages[1]:
            torch._foreach_copy_(averages[1], values[1])
        self.n_averaged += 1


def _by_kind(network: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Its weights and statistics; its whole numbers."""
    tensors = [*network.parameters(), *network.buffers()]
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    return floats, [tensor for tensor in tensors if not tensor.is_floating_point()]
