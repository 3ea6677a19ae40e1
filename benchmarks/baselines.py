"""Four baselines, written from the documented practice of the field. They train the suite's own networks.

B1  the most copied CIFAR script (kuangliu/pytorch-cifar): torchvision's transforms of PIL images in DataLoader's
    workers, fp32, contiguous, cudnn.benchmark, `.item()` in every step
B2  FFCV's CIFAR example (docs.ffcv.io, examples/cifar): all transforms in FFCV's threads
B3  the shape of the fastest scripts (KellerJordan/cifar10-loader and cifar10-airbench), with ResNet-18: the whole
    set on the device, augmented once an epoch, half precision but for BatchNorm, channels_last, batches of 500
B4  Accelerate's example (huggingface/accelerate, examples/cv_example.py): a prepared DataLoader, OneCycleLR
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from data.prepared import Prepared
from data.spec import IMAGE_SIZE
from training.hardware import choose_precision

PADDING = 4
RESIDENT_BATCH = 500
"""Batch size of B3."""


def half(device: str) -> str:
    """B3's precision: fp16, of which CPUs have no fast one: there bf16, or fp32 where that is emulated, too."""
    return "fp16" if device == "cuda" else choose_precision("auto", use_cpu=True)


Images = tuple[Tensor, Tensor]
"""Images (n, 3, 32, 32) and labels (n,)."""


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """One image at a time, through PIL and torchvision's transforms.

    Args:
        images: uint8 (n, 32, 32, 3), as torchvision's CIFAR10 keeps them, or paths of image files.
        labels: (n,).
    """

    def __init__(self, images: Any, labels: Any, transform: Callable[[Image.Image], Tensor]):
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        if isinstance(image, str):
            with Image.open(image) as file:
                return self.transform(file.convert("RGB")), int(self.labels[index])
        return self.transform(Image.fromarray(image)), int(self.labels[index])


def pil_transform(mean: Sequence[float], std: Sequence[float], normalize: bool = True) -> transforms.Compose:
    """Random crop, random flip, to float and normalised: torchvision's, in the order of B1."""
    random = [transforms.RandomCrop(IMAGE_SIZE, padding=PADDING), transforms.RandomHorizontalFlip()]
    last = [transforms.Normalize(mean, std)] if normalize else []
    return transforms.Compose([*random, transforms.ToTensor(), *last])


def pil_loader(dataset: Dataset[tuple[Tensor, int]], batch_size: int, workers: int) -> "DataLoader[Any]":
    return DataLoader(dataset, batch_size=batch_size, shuffle=True, num_workers=workers)


def ffcv_loader(
    prepared: Prepared, count: int, batch_size: int, workers: int, device: torch.device, cutout: bool
) -> Any:
    """B2: batches of (images, labels) of the first `count` images; half precision on a GPU, as published."""
    import ffcv.transforms as ops
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    from data.ffcv_loader import whole_beton

    mean, std = ([255 * value for value in values] for values in (prepared.mean, prepared.std))
    colour = tuple(map(int, mean))
    to_device = [ops.ToDevice(device, non_blocking=True)] if device.type == "cuda" else []
    hidden = [ops.Cutout(4, colour)] if cutout else []
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    image = [SimpleRGBImageDecoder(), ops.RandomHorizontalFlip(), ops.RandomTranslate(PADDING, colour), *hidden]
    image += [ops.ToTensor(), *to_device, ops.ToTorchImage(), ops.Convert(dtype), transforms.Normalize(mean, std)]
    return Loader(
        str(whole_beton(prepared)),
        batch_size=batch_size,
        num_workers=workers,
        order=OrderOption.RANDOM,
        drop_last=True,
        indices=range(count),
        pipelines={"image": image, "label": [IntDecoder(), ops.ToTensor(), *to_device, ops.Squeeze(1)]},
    )


def fp32_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, loader: Any, device: torch.device
) -> Iterator[None]:
    """B1's training loop; yields after each step."""
    torch.backends.cudnn.benchmark = True
    criterion = nn.CrossEntropyLoss()
    train_loss, correct, total = 0.0, 0, 0
    model.train()
    for inputs, targets in loader:
        inputs, targets = inputs.to(device), targets.to(device)
        optimizer.zero_grad()
        outputs = model(inputs)
        loss = criterion(outputs, targets)
        loss.backward()
        optimizer.step()
        train_loss += loss.item()
        _, predicted = outputs.max(1)
        total += targets.size(0)
        correct += predicted.eq(targets).sum().item()
        yield


def resident_images(prepared: Prepared, count: int, device: torch.device, dtype: torch.dtype) -> Images:
    """The first `count` images on the device, normalised once, in half precision and channels_last."""
    images = torch.from_numpy(prepared.images[:count].copy()).to(device).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (prepared.mean, prepared.std))
    floats = ((images / 255 - mean) / std).to(dtype, memory_format=torch.channels_last)
    return floats, torch.from_numpy(prepared.labels[:count].copy()).to(device)


def augment_whole_set(images: Tensor) -> Tensor:
    """Random flip and random crop of all images (n, 3, 32, 32) at once: one mask for each of the shifts."""
    flipped = torch.rand(len(images), device=images.device) < 0.5
    images = torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)
    padded = F.pad(images, (PADDING,) * 4, "reflect")
    shifts = torch.randint(0, 2 * PADDING + 1, (len(images), 2), device=images.device)
    rows = torch.empty_like(padded[:, :, :IMAGE_SIZE])
    cropped = torch.empty_like(images)
    for shift in range(2 * PADDING + 1):
        mask = shifts[:, 0] == shift
        rows[mask] = padded[mask, :, shift : shift + IMAGE_SIZE]
    for shift in range(2 * PADDING + 1):
        mask = shifts[:, 1] == shift
        cropped[mask] = rows[mask, :, :, shift : shift + IMAGE_SIZE]
    return cropped.contiguous(memory_format=torch.channels_last)


def resident_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> Iterator[None]:
    """B3's training loop over a set augmented beforehand; yields after each step."""
    torch.backends.cudnn.benchmark = True
    model.train()
    augmented = augment_whole_set(images)
    order = torch.randperm(len(images), device=images.device)
    for ids in order.split(RESIDENT_BATCH):
        loss = F.cross_entropy(model(augmented[ids]), labels[ids], label_smoothing=0.2)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        yield


class AccelerateLoop:
    """B4: model, optimizer, DataLoader and scheduler prepared by Accelerate."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        loader: "DataLoader[Any]",
        prepared: Prepared,
    ):
        self.accelerator = accelerator
        mean, std = torch.tensor(prepared.mean), torch.tensor(prepared.std)
        self.mean, self.std = (values.view(1, 3, 1, 1).to(accelerator.device) for values in (mean, std))
        model = model.to(accelerator.device)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-2 / 25)
        # Its length does not enter the time of a step; the example's is that of its epochs.
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-2, total_steps=10**6)
        parts = accelerator.prepare(model, optimizer, loader, scheduler)
        self.model, self.optimizer, self.loader, self.scheduler = parts

    def epoch(self) -> Iterator[None]:
        """Yields after each step. Images are normalised here, on the device, as in the example."""
        self.model.train()
        for images, labels in self.loader:
            inputs = (images - self.mean) / self.std
            loss = F.cross_entropy(self.model(inputs), labels)
            self.accelerator.backward(loss)
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
            yield
