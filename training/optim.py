"""Optimizers, and the learning rate as a function of the step."""

import math

import torch
from torch import nn

from training.config import Config


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW over all parameters, with one group that is decayed and one that may not be."""
    decayed, plain = parameter_groups(model)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": config.weight_decay if config.decay_norm_and_bias else 0.0},
    ]
    if config.optimizer in ("sgd", "nesterov"):
        nesterov = config.optimizer == "nesterov"
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.lr)


def parameter_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Weights of convolutions and linear layers; and normalisation layers' parameters with all biases."""
    weights: list[nn.Parameter] = []
    norms_and_biases: list[nn.Parameter] = []
    for module in model.modules():
        is_norm = isinstance(module, nn.modules.batchnorm._NormBase)
        for name, parameter in module.named_parameters(recurse=False):
            (norms_and_biases if is_norm or name == "bias" else weights).append(parameter)
    return weights, norms_and_biases


def lr_factor(config: Config, step: int, steps_per_epoch: int) -> float:
    """What the peak learning rate is multiplied by for optimizer step `step`, counted from 0.

    multistep changes at its milestones; the others, and the warm-up, change with every step. A function of the
    step alone: it is the same on any number of processes, and a resumed run has nothing to restore. (Accelerate
    would step a prepared scheduler once for each process.)
    """
    total = config.epochs * steps_per_epoch
    warmup = config.warmup * steps_per_epoch
    ramp = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if config.schedule == "multistep":
        passed = sum(step >= milestone * steps_per_epoch for milestone in config.milestones)
        return ramp * config.gamma**passed
    if config.schedule == "cosine":  # Loshchilov and Hutter, 2017, arXiv:1608.03983, one period, after the warm-up
        progress = max(0.0, step - warmup) / max(1.0, total - warmup)
        return ramp * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if config.schedule == "triangle":  # Jordan, 2024, arXiv:2404.00498: 0.2 -> 1 in a fifth of the steps, -> 0
        peak = 0.2 * total
        return ramp * (0.2 + 0.8 * step / peak if step < peak else (total - step) / (total - peak))
    if config.schedule == "inverse-time":  # Keras' `decay`
        return ramp / (1 + config.decay * step)
    return ramp
