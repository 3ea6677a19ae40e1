"""Model FLOP utilisation: what a network's training step computes, against the device's own matrix rate."""

import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import synchronize
from data.spec import IMAGE_SIZE
from training.hardware import DTYPES


def training_flops(model: nn.Module) -> int:
    """Floating-point operations of one image's forward and backward pass: its convolutions and matrix products.

    Counted without computing, on the meta device. A multiplication with its addition counts as two.
    """
    count = 2
    model = model.to("meta").train()
    with FlopCounterMode(display=False) as counter:
        logits = model(torch.empty(count, 3, IMAGE_SIZE, IMAGE_SIZE, device="meta"))
        F.cross_entropy(logits, torch.empty(count, dtype=torch.int64, device="meta")).backward()
    return counter.get_total_flops() // count


def matrix_rate(device: torch.device, precision: str, size: int) -> float:
    """FLOP/s of the product of two square matrices, the best of five.

    Args:
        precision: "no", "fp16" or "bf16". With "no", TF32 where the device has it, as in cuDNN's convolutions.
        size: of the matrices.
    """
    former = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else former)
    try:
        left, right = torch.randn(2, size, size, device=device).to(DTYPES[precision])
        torch.mm(left, right)
        best = min(_seconds(left, right) for _ in range(5))
    finally:
        torch.set_float32_matmul_precision(former)
    return 2 * size**3 / best


def _seconds(left: torch.Tensor, right: torch.Tensor, products: int = 5) -> float:
    synchronize(left.device)
    started = time.perf_counter()
    for _ in range(products):
        torch.mm(left, right)
    synchronize(left.device)
    return (time.perf_counter() - started) / products
