"""A trained network applied to batches of images: the one path of validation, evaluate.py and submit.py."""

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.augment import BatchTransform
from data.loaders import Batch
from training.checkpoint import load_weights
from training.hardware import DTYPES, has_bf16, set_up_process
from training.memory import out_of_memory_told
from training.metrics import EvaluationMetrics

EVALUATION_BATCH = 500
"""Images of one forward pass in each process. Fixed: in low precision the batch size can change last bits."""
_IN_EVALUATION = (
    f"evaluation, {EVALUATION_BATCH} images at a time: free what other programs hold, or take another device"
)


class Predictor:
    """Logits of a network in evaluation mode.

    Args:
        model: on `device`.
        transform: normalises to the dtype that the network is fed.
        precision: "no", "fp16" or "bf16".
    """

    def __init__(
        self,
        model: nn.Module,
        transform: BatchTransform,
        device: torch.device,
        precision: str,
    ):
        self.model, self.transform, self.device = model, transform, device
        self.precision, self.dtype = precision, DTYPES[precision]

    @out_of_memory_told(lambda: _IN_EVALUATION)
    @torch.inference_mode()
    def logits(self, images: Tensor, tta: str = "none") -> Tensor:
        """uint8 (n, 3, h, w) -> float32 (n, classes): the mean over the views of test-time augmentation `tta`."""
        self.model.eval()
        inputs = self.transform.normalize(images)
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            weighted = (weight * self.model(view).float() for weight, view in views(inputs, tta))
            return functools.reduce(torch.add, weighted)

    def evaluate(
        self,
        batches: Iterable[Batch],
        num_classes: int,
        everywhere: bool = True,
        tta: str = "none",
        visit: Callable[[Batch, Tensor], object] = lambda batch, logits: None,
    ) -> dict[str, Any]:
        """The metrics of EvaluationMetrics over the batches.

        tta: test-time augmentation.
        everywhere: over those of all processes, which must all call this.
        visit: is shown each batch of this process with its logits.
        """
        metrics = EvaluationMetrics(num_classes, self.device, everywhere)
        for batch in batches:
            logits = self.logits(batch.images, tta)
            metrics.update(logits, batch.labels)
            visit(batch, logits)
        return metrics.read()


def views(inputs: Tensor, tta: str) -> Iterator[tuple[float, Tensor]]:
    """The inputs (n, 3, h, w) as test-time augmentation shows them, each with its weight; the weights add to 1.

    none: as they are. flip: and mirrored left to right (Krizhevsky et al., 2012, whose test-time average has each
    crop and its mirror image). six: both, and both of the inputs moved by one pixel up
    and left, and down and right, with what moves in reflected: half of the weight on the two that were not moved
    (Jordan, 2024, arXiv:2404.00498, "multi-crop").
    """
    if tta == "none":
        yield 1.0, inputs
        return
    weight = 0.5 if tta == "flip" else 0.25
    yield weight, inputs
    yield weight, inputs.flip(-1)
    if tta == "six":
        height, width = inputs.shape[2:]
        padded = F.pad(inputs, (1, 1, 1, 1), mode="reflect")
        for moved in (padded[:, :, :height, :width], padded[:, :, 2:, 2:]):
            yield 0.125, moved
            yield 0.125, moved.flip(-1)


def open_predictor(run: Path) -> tuple[Predictor, dict[str, Any], Path]:
    """The network of a run on the first GPU, or the CPU; what was recorded with it; and its weights file.

    Args:
        run: a run's folder, or a weights file.

    Raises:
        InputError: there are no whole weights.
    """
    path = run / "best.safetensors" if run.is_dir() else run
    model, about = load_weights(path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = about["precision"]
    on_cpu = device.type == "cpu"
    set_up_process(on_cpu, deterministic=True, compiles=False)  # whatever the training was: the same figures again
    if (precision == "fp16" and on_cpu) or (precision == "bf16" and not has_bf16(on_cpu)):
        precision = "no"
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    transform = BatchTransform(about["mean"], about["std"], device=device, dtype=DTYPES[precision])
    return Predictor(model, transform, device, precision), about, path
