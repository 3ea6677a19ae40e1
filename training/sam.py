"""Sharpness-aware minimisation (Foret et al., 2020, arXiv:2010.01412), and its adaptive form (Kwon et al., 2021,
arXiv:2102.11600)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

ETA = 0.01
"""Kwon et al.'s eta: what is added to |w|, so that weights near 0 are perturbed too."""


class SAM:
    """A step descends along the gradient at w + e, the weights perturbed towards a higher loss:

        e = rho x g / ||g||                 g the gradient at w, of the whole global batch
        e = rho x T^2 g / ||T g||           adaptive: T = |w| + eta, elementwise; 1 for biases

    g is averaged over all processes and micro-batches, as a step's gradient always is: so e is the same in every
    process, and does not depend on how the global batch is cut. (The paper's m-sharpness, an e of its own for
    each share, would.) Both are free of the scale of g, so that fp16's scaled gradients serve as they are; where
    one has overflowed, e and the second gradient are not finite, and the scaler leaves the step out.

    Args:
        network: not distributed; its parameters' gradients are used.
        rho: length of the perturbation, above 0.
        adaptive: the second form.
    """

    def __init__(self, network: nn.Module, rho: float, adaptive: bool):
        self.rho, self.adaptive = rho, adaptive
        # Listed once: to walk the network takes tenths of a millisecond.
        self._parameters = list(network.parameters())
        norms = (module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
        tracking = [module for module in norms if module.track_running_stats]
        # torch's, over all processes, fails in bf16 and fp16 where it is to track nothing (pytorch/pytorch#98332).
        self._tracking = [module for module in tracking if not isinstance(module, nn.SyncBatchNorm)]
        others = (module for module in tracking if isinstance(module, nn.SyncBatchNorm))
        self._put_back = [buffer for module in others for buffer in module.buffers()]
        self._biases = {id(getattr(module, "bias", None)) for module in network.modules()}

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Go from w to w + e and forget the gradients; at the end w is back to the bit.

        BatchNorm's running statistics stay: they are those of w, which is kept.
        """
        parameters: list[Tensor] = [parameter for parameter in self._parameters if parameter.grad is not None]
        weights = [parameter.detach().clone() for parameter in parameters]
        with torch.no_grad():
            torch._foreach_add_(parameters, self._steps(parameters))
        for parameter in parameters:
            parameter.grad = None
        try:
            with self.statistics_kept():
                yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(parameters, weights)

    @contextmanager
    def statistics_kept(self) -> Iterator[None]:
        """Forward passes leave BatchNorm's running statistics alone."""
        former = [buffer.clone() for buffer in self._put_back]
        for module in self._tracking:
            module.track_running_stats = False
        try:
            yield
        finally:
            for module in self._tracking:
                module.track_running_stats = True
            for buffer, value in zip(self._put_back, former, strict=True):
                buffer.copy_(value)

    def _steps(self, parameters: list[Tensor]) -> list[Tensor]:
        """e, of each parameter's shape."""
        steps = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.adaptive:
            # As in the authors' code: a bias near 0, as all begin, would hardly be perturbed.
            scales = [torch.ones_like(p) if id(p) in self._biases else p.abs() + ETA for p in parameters]
            steps = list(torch._foreach_mul(steps, scales))
        length = self.rho / (get_total_norm(steps) + 1e-12)  # no step where the gradient is 0
        if self.adaptive:
            steps = list(torch._foreach_mul(steps, scales))
        return list(torch._foreach_mul(steps, length))
