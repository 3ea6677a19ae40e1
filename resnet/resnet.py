"""ResNet-18 and ResNet-34 (He et al. 2015, arXiv:1512.03385) with four stems.

Every variant has the same four layers of basic blocks and torchvision's parameter names; the stems differ in
what comes before layer1. Side lengths of a 32x32 image's maps, after the stem and after each of the layers:

    stem         convolution    max-pool          sizes            source
    imagenet     7x7/2 pad 3    3x3/2 pad 1       8   8   4  2 1   the paper
    cifar        3x3/1 pad 1    none              32  32 16  8 4   the CIFAR-10 study's text
    cifar-pool   3x3/1 pad 1    3x3/2 pad 1       16  16  8  4 2   the CIFAR-10 study's code
    keras        3x3/1 no pad   2x2/1 pad 'same'  30  30 15  8 4   the CIFAR-100 study's code

With `keras` the whole network is as Keras builds it, since the CIFAR-100 study left these to its defaults:

- every convolution has a bias;
- how 'same' pads a 3x3 convolution with stride 2 depends on the size of its input (`SameConv2d`);
- BatchNorm has eps 1e-3, and a decay of 0.99, which PyTorch writes as momentum 0.01.

Keras' initial weights are chosen apart from it, with the init `glorot`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEMS = ("imagenet", "cifar", "cifar-pool", "keras")
INITS = ("default", "pytorch", "kaiming", "glorot")

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}

WIDTHS = (64, 128, 256, 512)
"""Channels of each of the four layers; the stem has as many as the first."""


_AVX2_ALONE = torch.backends.cpu.get_cpu_capability() == "AVX2"
"""Whether PyTorch finds AVX2 here and not AVX-512."""


class Conv3x3(nn.Conv2d):
    """3x3 convolution with padding 1: (N, C, H, W) -> (N, C', ceil(H/stride), ceil(W/stride)).

    On a CPU without AVX-512 oneDNN goes through the whole fp32 gradient of the weights, up to 2.4 million numbers,
    for each image. Where the output has four pixels at most, one product of matrices over all images is faster: a
    step of ResNet-18, 128 images, takes 0.57 of the time with the stem `imagenet` and 0.67 with `cifar-pool`
    (python -m benchmarks.defaults). The product's output is channels_last. Without gradients nothing is gained.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, bias: bool) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        adds_by_image = _AVX2_ALONE and x.device.type == "cpu" and x.dtype == torch.float32
        if not (adds_by_image and torch.is_grad_enabled()):
            return super().forward(x)
        stride = self.stride[0]
        height, width = ((side + stride - 1) // stride for side in x.shape[-2:])
        if height * width > 4:
            return super().forward(x)
        patches = F.unfold(x, kernel_size=3, padding=1, stride=stride)  # (N, 9 C, H' W')
        out = F.linear(patches.transpose(1, 2), self.weight.flatten(1), self.bias)
        return out.transpose(1, 2).unflatten(2, (height, width))


class SameConv2d(nn.Conv2d):
    """3x3 convolution with stride 2 and padding 'same' as TensorFlow defines it.

    (N, C, H, W) -> (N, C', ceil(H/2), ceil(W/2)). The padding is the least that gives this size, and an odd
    pixel of it goes to the bottom and the right: an even side is padded by (0, 1), an odd side by (1, 1).
    PyTorch's padding=1 gives the same size, but on even sides its windows lie one pixel further up and left.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return super().forward(F.pad(x, (width % 2, 1, height % 2, 1)))


def conv3x3(in_channels: int, out_channels: int, stride: int, keras: bool) -> nn.Conv2d:
    if keras and stride == 2:
        return SameConv2d(in_channels, out_channels)
    return Conv3x3(in_channels, out_channels, stride, bias=keras)


def batch_norm(channels: int, keras: bool) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01) if keras else nn.BatchNorm2d(channels)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, C, H, W) -> (N, C', ceil(H/stride), ceil(W/stride)).

    The shortcut is the identity where the shape stays, else a 1x1 convolution (option B of the paper).
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1, keras: bool = False) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride, keras)
        self.bn1 = batch_norm(channels, keras)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(channels, channels, 1, keras)
        self.bn2 = batch_norm(channels, keras)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, kernel_size=1, stride=stride, bias=keras),
                batch_norm(channels, keras),
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += shortcut
        out = self.relu(out)
        return out


class ResNet(nn.Module):
    """Images (N, 3, H, W) -> logits (N, num_classes), for any H and W that the stem leaves a pixel of.

    `blocks` is the number of basic blocks in each layer; `stem` is one of STEMS, `init` one of INITS.
    """

    def __init__(self, blocks: tuple[int, int, int, int], num_classes: int, stem: str, init: str) -> None:
        super().__init__()
        keras = stem == "keras"
        first, second, third, last = WIDTHS
        self.conv1, self.maxpool = stem_layers(stem, first)
        self.bn1 = batch_norm(first, keras)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = layer(first, first, blocks[0], 1, keras)
        self.layer2 = layer(first, second, blocks[1], 2, keras)
        self.layer3 = layer(second, third, blocks[2], 2, keras)
        self.layer4 = layer(third, last, blocks[3], 2, keras)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(last, num_classes)
        initialise(self, init)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def stem_layers(stem: str, channels: int) -> tuple[nn.Conv2d, nn.Module]:
    """The first convolution, 3 -> `channels`, and the pooling that follows its BatchNorm and ReLU."""
    if stem == "imagenet":
        return nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False), nn.MaxPool2d(3, stride=2, padding=1)
    if stem == "cifar":
        return nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.Identity()
    if stem == "cifar-pool":
        return nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.MaxPool2d(3, stride=2, padding=1)
    # keras: 'same' adds a row at the bottom and a column at the right; -inf, as padding never wins a maximum.
    pool = nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), float("-inf")), nn.MaxPool2d(2, stride=1))
    return nn.Conv2d(3, channels, 3), pool


def layer(in_channels: int, channels: int, blocks: int, stride: int, keras: bool) -> nn.Sequential:
    """`blocks` basic blocks, of which only the first changes the shape."""
    first = BasicBlock(in_channels, channels, stride, keras)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1, keras) for _ in range(blocks - 1)))


def initialise(model: nn.Module, init: str) -> None:
    """Draw the initial weights anew, in place, from PyTorch's global generator.

    - `default`: what the network drew when it was built. Of ours that is `pytorch`, of torchvision's `kaiming`.
    - `pytorch`: PyTorch's layers' own, uniform within 1 / sqrt(fan_in) (the CIFAR-10 study's own network).
    - `kaiming`: convolutions normal with the deviation sqrt(2 / fan_out) (He et al. 2015, arXiv:1502.01852),
      the linear layer PyTorch's default: as torchvision's ResNet.
    - `glorot`: convolutions and the linear layer uniform within sqrt(6 / (fan_in + fan_out)), the linear
      layer's bias zero: Keras' default (the CIFAR-100 study).

    In the last two the biases of convolutions, which only the `keras` stem has, are zero. BatchNorm begins
    with weight 1 and bias 0 in all of them; `zero_last_batchnorms` may change that afterwards.
    """
    if init == "default":
        return
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            if init == "pytorch":
                module.reset_parameters()
                continue
            if init == "kaiming":
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:
                nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and init == "glorot":
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
