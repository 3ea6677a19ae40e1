"""The exponential moving average of a network's weights (Polyak and Juditsky, 1992; Tarvainen and Valpola, 2017,
arXiv:1703.01780), which is validated and saved in their place."""

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

Tensors = tuple[Tensor, ...] | list[Tensor]


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
        super().__init__(model, multi_avg_fn=self._move, use_buffers=True)
        self.decay = decay

    def _move(self, averages: Tensors, values: Tensors, count: Tensor | int) -> None:
        """`averages` and `values` are of one dtype."""
        if not averages[0].is_floating_point():
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)
            return
        steps = int(self.n_averaged)  # on the CPU: the device is not waited for
        get_ema_multi_avg_fn(min(self.decay, (1 + steps) / (10 + steps)))(averages, values, count)
