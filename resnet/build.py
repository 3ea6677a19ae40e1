"""Networks by name, and weights from a file in torchvision's format."""

from os import PathLike

import torch
from torch import Tensor, nn

from resnet.resnet import BLOCKS, INITS, STEMS, BasicBlock, ResNet, initialise

MODELS = (*BLOCKS, "torchvision-resnet18", "vgg16")

# The last layer of torchvision's ResNets and of its VGGs: its shape follows the classes, so no file fits it.
HEADS = ("fc.", "classifier.6.")


def build_model(
    name: str, num_classes: int, stem: str = "cifar", init: str = "default", zero_init: bool = False
) -> nn.Module:
    """A network with fresh weights: images (N, 3, H, W) -> logits (N, num_classes).

    `stem` and `init` shape `resnet18` and `resnet34`. The comparison networks are torchvision's own code with
    its own stem: `torchvision-resnet18` begins by default as `resnet18` with stem `imagenet` and init `kaiming`
    does; `vgg16` has no BatchNorm, and repeats the 1x1 map that a 32x32 image leaves 7x7 times for its first
    linear layer, and it has torchvision's initial weights. What would have no effect on them is refused.

    With `zero_init` the last BatchNorm of each residual block begins with weight 0.

    ValueError for a name that is not in MODELS, STEMS or INITS, and for a stem, init or zero_init that does not
    apply.
    """
    for field, value, allowed in (("model", name, MODELS), ("stem", stem, STEMS), ("init", init, INITS)):
        if value not in allowed:
            raise ValueError(f"{field} {value!r} is unknown: allowed are {', '.join(allowed)}")
    if name in BLOCKS:
        network: nn.Module = ResNet(BLOCKS[name], num_classes, stem, init)
        if zero_init:
            zero_last_batchnorms(network)
        return network

    from torchvision import models  # seconds to import, and needed only here

    if stem != "cifar":
        raise ValueError(f"stem {stem!r} does not apply to {name}: leave it at 'cifar'")
    if name == "torchvision-resnet18":
        network = models.resnet18(weights=None, num_classes=num_classes, zero_init_residual=zero_init)
        initialise(network, init)
        return network
    if init != "default":
        raise ValueError(f"init {init!r} does not apply to {name}: leave it at 'default'")
    if zero_init:
        raise ValueError("zero_init does not apply to vgg16, which has no BatchNorm: leave it at false")
    network = models.vgg16(weights=None, num_classes=num_classes)
    network.avgpool = RepeatOrPool7x7()
    return network


def zero_last_batchnorms(model: nn.Module) -> None:
    """Set the weight of the last BatchNorm in each of our basic blocks to 0: it begins as its shortcut alone.

    Goyal et al. 2017, arXiv:1706.02677, as torchvision's zero_init_residual. It draws no random number.
    """
    for module in model.modules():
        if isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)


class RepeatOrPool7x7(nn.Module):
    """VGG's AdaptiveAvgPool2d((7, 7)), which CUDA cannot differentiate deterministically.

    A 1x1 map, what a 32x32 image leaves, is repeated, which gives the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] == (1, 1):
            return x.expand(-1, -1, 7, 7)
        return nn.functional.adaptive_avg_pool2d(x, (7, 7))


def load_pretrained(model: nn.Module, path: str | PathLike[str]) -> None:
    """Load a state dict file in torchvision's format into `model`; the head keeps its fresh weights.

    For a model as `build_model` returns it, before it is compiled or distributed. torchvision's files for its
    ResNet-18 and ResNet-34 fit ours with the `imagenet` stem. ValueError, with the model untouched, if the
    file is not a state dict or does not fit; OSError if it cannot be read.
    """
    weights = {key: value for key, value in read_state_dict(path).items() if not key.startswith(HEADS)}
    own = {key: value for key, value in model.state_dict().items() if not key.startswith(HEADS)}

    problems = [f"{key} missing" for key in own if key not in weights and not is_counter(key)]
    problems += [f"{key} unexpected" for key in weights if key not in own]
    problems += [
        f"{key} is {tuple(weights[key].shape)}, needs {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    problems += [
        f"{key} has other values than finite numbers"
        for key, value in weights.items()
        if not is_counter(key) and not (value.is_floating_point() and bool(value.isfinite().all()))
    ]
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ValueError(f"{path} does not fit the network of --model and --stem: {'; '.join(problems[:4])}{more}")
    model.load_state_dict(weights, strict=False)


def is_counter(key: str) -> bool:
    """BatchNorm's count of batches: files older than PyTorch 0.4.1 have none, and nothing here reads it."""
    return key.endswith("num_batches_tracked")


def read_state_dict(path: str | PathLike[str]) -> dict[str, Tensor]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # on a file that is no such thing torch raises nearly anything, in many lines
        raise ValueError(f"{path} is not a file of tensors written by torch.save, or is damaged") from error
    named = isinstance(weights, dict) and all(isinstance(key, str) for key in weights)
    if not (named and all(isinstance(value, Tensor) for value in weights.values())):
        raise ValueError(f"{path} is not a state dict: it holds more, or other things, than named tensors")
    return weights
