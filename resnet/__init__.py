"""Networks for CIFAR: our ResNet-18 and ResNet-34, and torchvision's networks to compare them with."""

from resnet.build import MODELS, build_model, load_pretrained
from resnet.resnet import INITS, STEMS

__all__ = ["INITS", "MODELS", "STEMS", "build_model", "load_pretrained"]
