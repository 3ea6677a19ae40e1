"""BatchNorm over the images of all processes."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def synchronize_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """Make every BatchNorm2d use the statistics of all processes: by torch's own, where it serves the device."""
    if device.type != "cpu":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return converted
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            synchronized = SyncBatchNorm2d(module.num_features, module.eps, module.momentum)
            synchronized.load_state_dict(module.state_dict())
            model.set_submodule(name, synchronized)
    return model


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over equal shares of a batch in all processes, on the CPU: nn.SyncBatchNorm refuses it."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        count = input.numel() // self.num_features * dist.get_world_size()
        images = input.float()
        mean = _SumOverProcesses.apply(images.sum((0, 2, 3))) / count
        centred = images - mean[:, None, None]
        variance = _SumOverProcesses.apply(centred.square().sum((0, 2, 3))) / count
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


class _SumOverProcesses(torch.autograd.Function):
    """Each process' loss depends on the sum, so that the gradient is summed over them too."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        return _summed(local)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _summed(gradients[0])


def _summed(local: Tensor) -> Tensor:
    total = local.clone()
    dist.all_reduce(total)
    return total
