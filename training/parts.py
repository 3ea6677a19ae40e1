"""The parts of a run, built as its config says: the data set and its loader, the network, the training stream."""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from data.augment import Augmentation, BatchTransform
from data.errors import InputError
from data.loaders import Loader, make_loader
from data.mixing import Mixing
from data.prepared import Prepared, prepare
from data.sampling import split, split_last, subset
from data.sources import find_source
from data.stream import Stream
from resnet import build_model, load_pretrained
from training.config import HELD_OUT, Config
from training.hardware import DTYPES, threads_per_process

GPU_CHUNK = 2048
"""Images (and as many partners) that a GPU reads and augments together, as the CPU asks for each operation."""


def open_prepared(config: Config) -> Prepared:
    return prepare(find_source(config.dataset, config.source_folder), Path(config.cache_dir))


def open_data(config: Config, accelerator: Accelerator) -> tuple[Prepared, Loader, str]:
    """The prepared data set, its loader, and one line for the user where `auto` had to do without FFCV."""
    prepared = open_prepared(config)
    workers = config.workers or threads_per_process()
    return prepared, *make_loader(config.loader, prepared, accelerator.device, workers)


def choose_ids(config: Config, prepared: Prepared) -> tuple[Tensor, Tensor]:
    """Ids to train on, and ids to evaluate after each epoch (with --split none: empty)."""
    labels = torch.from_numpy(prepared.labels[: prepared.train_count])
    ids = torch.arange(prepared.train_count)
    if config.subset < 1:
        ids = subset(labels, config.subset, config.seed)
    if config.split in HELD_OUT:
        hold_out = split if config.split == "stratified" else split_last
        kept, held_out = hold_out(labels[ids], config.val_fraction, config.seed, prepared.classes)
        return ids[kept], ids[held_out]
    if config.split == "test":
        if not prepared.test_ids:
            raise InputError("--split test: this data set has no labelled test images; use stratified or none")
        return ids, torch.tensor(prepared.test_ids)
    return ids, ids[:0]


def initial_model(config: Config, num_classes: int) -> nn.Module:
    """The network with its first weights: drawn from the seed, or all but the head from --weights."""
    torch.manual_seed(config.seed)
    try:
        model = build_model(config.model, num_classes, config.stem, config.init, config.zero_init)
        if config.weights:
            load_pretrained(model, config.weights)
    except OSError as error:
        raise InputError(f"--weights {config.weights}: {error.strerror}; give torchvision's file") from error
    except ValueError as error:
        raise InputError(str(error)) from error
    return model


def make_transform(config: Config, prepared: Prepared, device: torch.device, precision: str) -> BatchTransform:
    augmentation = Augmentation(
        crop_padding=config.crop_padding,
        crop_mode=config.crop_mode,
        flip=config.flip,
        cutout=config.cutout,
        erasing=config.erasing,
        trivial=config.trivial_augment,
    )
    mean, std = pixel_statistics(config, prepared)
    return BatchTransform(mean, std, augmentation, config.seed, device, DTYPES[precision])


def make_stream(
    config: Config, accelerator: Accelerator, prepared: Prepared, loader: Loader
) -> tuple[Stream, Tensor]:
    """This process' training stream, and the ids to evaluate after each epoch."""
    train_ids, val_ids = choose_ids(config, prepared)
    transform = make_transform(config, prepared, accelerator.device, accelerator.mixed_precision)
    share = (config.accumulation, accelerator.process_index, accelerator.num_processes)
    mixing = Mixing(config.mixup, config.cutmix, config.mix_probability)
    on_gpu = accelerator.device.type == "cuda"
    at_once = max(1, GPU_CHUNK * accelerator.num_processes // config.batch_size) if on_gpu else 1
    return Stream(loader, transform, train_ids, config.batch_size, config.seed, *share, mixing, at_once), val_ids


def pixel_statistics(config: Config, prepared: Prepared) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What normalisation subtracts and divides by: mean 0 and deviation 1 where pixels are only scaled."""
    return (prepared.mean, prepared.std) if config.normalize else ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
