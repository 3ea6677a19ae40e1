"""Optimizers, and the learning rate as a function of the step."""

import inspect
import math
from typing import Any

import torch
from torch import nn

from data.errors import InputError
from training.config import Config


def uncompiled(kind: type[torch.optim.Optimizer]) -> type[Any]:
    """`kind` without the decorators that keep torch.compile out of it: they import all of it, in two seconds."""
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict", "step")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    methods["step"] = torch.no_grad()(methods["step"])  # as one of the decorators does
    return type(kind.__name__, (kind,), methods)


SGD, Adam, AdamW = map(uncompiled, (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW))


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW over all parameters. Those that are treated alike are one group, as each
    takes launches of its own.

    The biases of BatchNorm may learn faster than the rest, --norm-bias-lr times: Jordan, 2024, arXiv:2404.00498,
    where it is 64. As there, a step of sgd or adamw decays them as if they did not: their decay is divided by it.

    Raises:
        InputError: a factor for a network without BatchNorm.
    """
    weights, norms_and_biases, norm_biases = parameter_groups(model)
    factor = config.norm_bias_lr
    if factor != 1 and not norm_biases:
        raise InputError(f"--norm-bias-lr {factor:g}: {config.model} has no BatchNorm; leave it at 1")
    plain_decay = config.weight_decay if config.decay_norm_and_bias else 0.0
    alike: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameters, decay, lr_factor in (
        (weights, config.weight_decay, 1.0),
        (norms_and_biases, plain_decay, 1.0),
        (norm_biases, plain_decay / factor, factor),
    ):
        if parameters:
            alike.setdefault((decay, lr_factor), []).extend(parameters)
    groups = [
        {"params": parameters, "weight_decay": decay, "lr_factor": lr_factor}
        for (decay, lr_factor), parameters in alike.items()
    ]
    if config.optimizer in ("sgd", "nesterov"):
        nesterov = config.optimizer == "nesterov"
        return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov)
    kind = Adam if config.optimizer == "adam" else AdamW
    # On a GPU its own kernel: without it, the counts of steps are kept on the CPU, one by one. (SGD's would begin
    # with momentum out of uninitialised memory where fp16's first gradients overflow.)
    return kind(groups, lr=config.lr, fused=True if next(model.parameters()).is_cuda else None)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load what a state_dict has of each parameter, and the learning rate.

    The groups stay as the config has made them: those of the state_dict name the kernels of its device, which may
    have been another one, and former versions had the same parameters in more groups.
    """
    optimizer.load_state_dict({"state": state["state"], "param_groups": optimizer.state_dict()["param_groups"]})
    set_lr(optimizer, state["param_groups"][0]["lr"])  # that of the weights


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each group of parameters its learning rate, where that of the weights is `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def take_step(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> None:
    """Take a step and forget the gradients. With fp16 the scaler leaves the step out where one has overflowed."""
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    optimizer.zero_grad()


def parameter_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Weights of convolutions and linear layers; their biases with normalisation layers' weights; and the
    biases of normalisation layers."""
    weights: list[nn.Parameter] = []
    norms_and_biases: list[nn.Parameter] = []
    norm_biases: list[nn.Parameter] = []
    for module in model.modules():
        is_norm = isinstance(module, nn.modules.batchnorm._NormBase)
        for name, parameter in module.named_parameters(recurse=False):
            if is_norm:
                (norm_biases if name == "bias" else norms_and_biases).append(parameter)
            else:
                (norms_and_biases if name == "bias" else weights).append(parameter)
    return weights, norms_and_biases, norm_biases


def schedule_factor(config: Config, step: int, steps_per_epoch: int) -> float:
    """What the peak learning rate is multiplied by for optimizer step `step`, counted from 0.

    multistep changes at its milestones; the others, and the warm-up, change with every step. A function of the
    step alone: it is the same on any number of processes, and a resumed run has nothing to restore. (Accelerate
    would step a prepared scheduler once for each process.)
    """
    total = config.epochs * steps_per_epoch
    warmup = config.warmup * steps_per_epoch
    ramp = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if config.schedule == "multistep":
        # rounded: 0.28 x 25 is 7.000000000000001
        passed = sum(step >= round(milestone * steps_per_epoch, 6) for milestone in config.milestones)
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
