"""A trained network applied to batches of images: the one path of validation, evaluate.py and submit.py."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.augment import BatchTransform
from data.loaders import Batch
from training.checkpoint import load_weights
from training.hardware import DTYPES, has_bf16, set_threads
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
        flip: average the logits of each image and its mirror image (test-time augmentation).
    """

    def __init__(
        self,
        model: nn.Module,
        transform: BatchTransform,
        device: torch.device,
        precision: str,
        flip: bool = False,
    ):
        self.model, self.transform, self.device, self.flip = model, transform, device, flip
        self.dtype = DTYPES[precision]

    @out_of_memory_told(_IN_EVALUATION)
    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, h, w) -> float32 (n, classes)."""
        self.model.eval()
        inputs = self.transform.normalize(images)
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            logits = self.model(inputs).float()
            if self.flip:
                logits = (logits + self.model(inputs.flip(-1)).float()) / 2
        return logits

    def evaluate(
        self,
        batches: Iterable[Batch],
        num_classes: int,
        everywhere: bool = True,
        visit: Callable[[Batch, Tensor], object] = lambda batch, logits: None,
    ) -> dict[str, Any]:
        """The metrics of EvaluationMetrics over the batches.

        everywhere: over those of all processes, which must all call this.
        visit: is shown each batch of this process with its logits.
        """
        metrics = EvaluationMetrics(num_classes, self.device, everywhere)
        for batch in batches:
            logits = self.logits(batch.images)
            metrics.update(logits, batch.labels)
            visit(batch, logits)
        return metrics.read()


def open_predictor(run: Path, flip: bool) -> tuple[Predictor, dict[str, Any], Path]:
    """The network of a run on the first GPU, or the CPU; what was recorded with it; and its weights file.

    Args:
        run: a run's folder, or a weights file.
        flip: test-time augmentation.

    Raises:
        InputError: there are no whole weights.
    """
    path = run / "best.safetensors" if run.is_dir() else run
    model, about = load_weights(path)
    set_threads()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = about["precision"]
    if device.type == "cpu" and (precision == "fp16" or not has_bf16(use_cpu=True)):
        precision = "no"
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    transform = BatchTransform(about["mean"], about["std"], device=device, dtype=DTYPES[precision])
    return Predictor(model, transform, device, precision, flip), about, path
