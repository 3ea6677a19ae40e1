"""The recipes: what they set, against the studies' tables; their learning rates; and that each of them trains."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision import models

from data.spec import CIFAR10, CIFAR100
from tests.conftest import ROOT
from tests.images import write_kaggle
from training.config import Config, parse_config
from training.engine import Trainer
from training.hardware import make_accelerator
from training.optim import schedule_factor
from training.parts import choose_ids, initial_model, open_data
from training.stopping import StopRequest
from training.studies import STUDIES

pytestmark = pytest.mark.usefixtures("full_width")

RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if not path.stem.startswith("sweep"))

# recipe, network, stem, initial weights, ImageNet weights, lr, schedule, the study's validation accuracy
CIFAR10_TABLE = [
    ("exp1", "torchvision-resnet18", "cifar", "default", False, 0.01, "constant", 0.827),
    ("exp1-pytorch", "torchvision-resnet18", "cifar", "pytorch", False, 0.01, "constant", None),
    ("exp2", "resnet18", "imagenet", "default", False, 0.01, "constant", 0.846),
    ("exp2-kaiming", "resnet18", "imagenet", "kaiming", False, 0.01, "constant", None),
    ("exp3", "resnet18", "cifar", "default", False, 0.01, "constant", 0.919),
    ("exp3-pool", "resnet18", "cifar-pool", "default", False, 0.01, "constant", None),
    ("exp4", "resnet18", "cifar", "default", False, 0.1, "constant", 0.903),
    ("exp5", "resnet18", "cifar", "default", False, 0.001, "constant", 0.897),
    ("exp6", "resnet18", "cifar", "default", False, 0.01, "multistep", 0.923),
    ("exp7", "resnet18", "cifar", "default", False, 0.1, "multistep", 0.922),
    ("exp8", "resnet18", "cifar", "default", False, 0.001, "multistep", 0.893),
    ("exp9", "torchvision-resnet18", "cifar", "default", True, 0.01, "constant", 0.857),
]

# recipe, network, augmentation, learning rate, Keras' decay, L2, epochs, the study's figure, of the test set
CIFAR100_TABLE = [
    ("v1", "resnet18", False, 0.1, 0, 0, 50, (0.20, 0.20), False),
    ("vgg16", "vgg16", False, 0.1, 0, 0, 150, (0.11, 0.11), False),
    ("v2", "resnet18", True, 0.1, 0, 0, 200, (0.37, 0.37), False),
    ("v3", "resnet18", True, 0.001, 0, 0, 100, (0.49, 0.49), False),
    ("v4", "resnet18", True, 0.1, 0, 0, 50, (0.50, 0.50), False),
    ("resnet34", "resnet34", True, 0.1, 0, 0, 100, (0.56, 0.65), False),
    ("v5", "resnet18", True, 0.001, 0.004, 1e-4, 150, (0.6221, 0.6221), True),
]


# budget, network, epochs, learning rate, weight decay, schedule, CutMix; then for CIFAR-10 and CIFAR-100: cutout,
# rho of SAM, and the accuracy to reach
BUDGETS_TABLE = [
    ("30", "resnet18", 30, 0.1, 5e-4, "triangle", 0, (12, 8), (0, 0), (0.947, 0.755)),
    ("100", "resnet18", 100, 0.1, 5e-4, "cosine", 0, (16, 8), (0.1, 0.2), (0.962, 0.795)),
    ("15", "resnet18", 15, 0.1, 5e-4, "triangle", 0, (0, 0), (0, 0), (0.935, 0.72)),
    ("200", "resnet18", 200, 0.05, 1e-3, "cosine", 1, (0, 0), (0.1, 0.2), (0.973, 0.825)),
    ("r34", "resnet34", 200, 0.05, 1e-3, "cosine", 1, (0, 0), (0.1, 0.2), (0.975, 0.835)),
]


NOTHING_ELSE = {"cutout": 0, "erasing": 0, "trivial_augment": False, "mixup": 0, "cutmix": 0, "label_smoothing": 0}
NOTHING_ELSE |= {"ema": 0, "sam": 0, "zero_init": False, "norm_bias_lr": 1, "decay_norm_and_bias": True}
NOTHING_ELSE |= {"warmup": 0, "subset": 1, "accumulation": 1}
"""The techniques of later papers, none of which the studies have; and settings that would change a run."""


def read(study: str, name: str) -> Config:
    return parse_config(["--recipe", str(ROOT / "recipes" / study / f"{name}.yaml")])


@pytest.mark.parametrize("row", CIFAR10_TABLE, ids=lambda row: row[0])
def test_recipes_of_the_cifar10_study_are_its_table(row):
    """All else is as a default run has it: one that changed would change the experiments."""
    name, model, stem, init, pretrained, lr, schedule, figure = row
    config = read("cifar10-study", name)
    assert bool(config.weights) == pretrained
    images = {"dataset": "cifar10", "split": "stratified", "val_fraction": 0.2, "seed": 42}
    augmentation = {"crop_padding": 4, "crop_mode": "zero", "flip": "random", "normalize": True}
    training = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "epochs": 100, "batch_size": 128}
    training |= {"lr": lr, "schedule": schedule, "milestones": [30, 60, 90], "gamma": 0.1}
    network = {"model": model, "stem": stem, "init": init, "weights": config.weights}
    assert config == Config(recipe=config.recipe, **images, **augmentation, **training, **network, **NOTHING_ELSE)
    (experiment,) = (e for e in STUDIES["cifar10-study"].experiments if e.name == name)
    assert (experiment.low, experiment.high) == ((figure, figure) if figure else (0, 0))
    assert (experiment.figure == "") == (figure is None)
    assert not experiment.on_test


@pytest.mark.parametrize("row", CIFAR100_TABLE, ids=lambda row: row[0])
def test_recipes_of_the_cifar100_study_are_its_table(row):
    name, model, augmented, lr, decay, l2, epochs, figure, on_test = row
    config = read("cifar100-study", name)
    images = {"dataset": "cifar100", "split": "last", "val_fraction": 0.1, "normalize": False}
    shift = int(0.2 * 32)
    augmentation = {"crop_padding": 0, "flip": "none"}
    if augmented:
        augmentation = {"crop_padding": shift, "crop_mode": "edge", "flip": "random"}
    training = {"optimizer": "adam", "lr": lr, "weight_decay": l2, "epochs": epochs, "batch_size": 64}
    training |= {"schedule": "inverse-time" if decay else "constant", "decay": decay}
    stem, init = ("cifar", "default") if model == "vgg16" else ("keras", "glorot")
    network = {"model": model, "stem": stem, "init": init}
    assert config == Config(recipe=config.recipe, **images, **augmentation, **training, **network, **NOTHING_ELSE)
    (experiment,) = (e for e in STUDIES["cifar100-study"].experiments if e.name == name)
    assert ((experiment.low, experiment.high), experiment.on_test) == (figure, on_test)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
@pytest.mark.parametrize("row", BUDGETS_TABLE, ids=lambda row: row[0])
def test_recipes_for_budgets_are_their_table(row, dataset):
    budget, model, epochs, lr, decay, schedule, cutmix, *of_each = row
    cutout, rho, goal = (pair[dataset == "cifar100"] for pair in of_each)
    (experiment,) = (e for e in STUDIES[f"{dataset}-budgets"].experiments if e.name.endswith(f"-{budget}"))
    config = read(f"{dataset}-budgets", experiment.name)
    assert (config.dataset, config.split, config.subset) == (dataset, "none", 1)
    assert (config.model, config.stem, config.optimizer, config.batch_size) == (model, "cifar", "nesterov", 128)
    assert (config.epochs, config.lr, config.weight_decay, config.schedule) == (epochs, lr, decay, schedule)
    assert (config.cutmix, config.mix_probability) == (cutmix, 0.5 if cutmix else 1)
    assert (config.cutout, config.sam, config.trivial_augment) == (cutout, rho, epochs >= 100)
    assert (experiment.low, experiment.high, experiment.on_test) == (goal, goal, True)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_default_recipes_are_resnet_18_in_100_epochs(name):
    config = parse_config(["--recipe", str(ROOT / "recipes" / f"{name}.yaml")])
    assert (config.dataset, config.model, config.stem, config.epochs) == (name, "resnet18", "cifar", 100)
    assert config.split == "stratified"


def test_the_tables_have_every_experiment():
    for name, prefix in (("cifar10-budgets", "c10"), ("cifar100-budgets", "c100")):
        assert [f"{prefix}-{row[0]}" for row in BUDGETS_TABLE] == [e.name for e in STUDIES[name].experiments]
    assert [row[0] for row in CIFAR10_TABLE] == [e.name for e in STUDIES["cifar10-study"].experiments]
    assert [row[0] for row in CIFAR100_TABLE] == [e.name for e in STUDIES["cifar100-study"].experiments]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.stem}-{path.stem}")
def test_learning_rates_at_the_milestones(path):
    """Before, at and after each epoch at which a rate of this kind could change."""
    config, steps = parse_config(["--recipe", str(path)]), 10
    rates = [config.lr * schedule_factor(config, step, steps) for step in range(config.epochs * steps)]
    if config.schedule == "constant":
        assert set(rates) == {config.lr}
    elif config.schedule == "multistep":
        for number, milestone in enumerate(config.milestones):
            assert rates[int(milestone) * steps - 1] == pytest.approx(config.lr * 0.1**number)
            assert rates[int(milestone) * steps] == pytest.approx(config.lr * 0.1 ** (number + 1))
    elif config.schedule == "inverse-time":
        assert [rates[step] for step in (0, 250, 1000)] == pytest.approx([0.001, 0.0005, 0.0002])
    elif config.schedule == "cosine":
        assert config.warmup == 1
        middle = (10 + len(rates)) // 2
        expected = [config.lr * share for share in (0.1, 1, 1, 0.5)]
        assert [rates[step] for step in (0, 9, 10, middle)] == pytest.approx(expected)
        assert 0 < rates[-1] < 1e-4
    else:
        assert config.schedule == "triangle"
        peak = 0.2 * len(rates)
        assert rates[0] == pytest.approx(0.2 * config.lr)
        assert rates[int(peak)] == pytest.approx(config.lr)
        assert rates[-1] == pytest.approx(config.lr / (len(rates) - peak))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Noise in Kaggle's layout, with the names of the classes, and a file with ImageNet weights of noise."""
    folder = tmp_path_factory.mktemp("small")
    write_kaggle(folder / "cifar10", CIFAR10.classes * 3)
    write_kaggle(folder / "cifar100", CIFAR100.classes * 2)
    write_kaggle(folder / "shapes", [f"shape {number}" for number in range(10)] * 3)
    torch.save(models.resnet18(num_classes=1000).state_dict(), folder / "weights.pth")
    return folder


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.stem}-{path.stem}")
def test_every_recipe_builds_trains_two_steps_and_evaluates(path, small, process_as_it_was):
    config = parse_config(["--recipe", str(path)])
    folder = small / config.dataset
    config = replace(
        config,
        dataset="folder" if config.dataset == "shapes" else config.dataset,
        weights=str(small / "weights.pth") if config.weights else "",
        batch_size=8,
        lr=min(config.lr, 0.01),  # two of Adam's steps at 0.1 leave BatchNorm's running statistics far behind
        loader="resident",
        precision="no",
        data_dir=str(folder),
        cache_dir=str(small / "cache"),
    )
    accelerator = make_accelerator(config)
    prepared, loader, _ = open_data(config, accelerator)
    model = initial_model(config, len(prepared.classes))
    trainer = Trainer(config, accelerator, model, prepared, loader, StopRequest())
    before = [parameter.detach().clone() for parameter in trainer.network.parameters()]
    with closing(trainer.train_epoch()) as steps:
        for _ in range(2):
            next(steps)
    assert trainer.progress.step == 2
    after = list(trainer.network.parameters())
    assert sum(not torch.equal(*pair) for pair in zip(before, after, strict=True)) > len(before) / 2
    if config.split == "none":  # evaluated on its own images here: those of the test set have a test of their own
        assert len(trainer.val_ids) == 0
        trainer.val_ids = trainer.stream.ids[: len(prepared.classes)]
        assert trainer.validate()["count"] == len(prepared.classes)
        return
    result = trainer.validate()
    assert result["count"] == len(trainer.val_ids) == len(prepared.classes)
    assert result["accuracy"] == pytest.approx(result["micro_f1"])
    assert set(trainer.val_ids.tolist()).isdisjoint(trainer.stream.ids.tolist())


@pytest.mark.parametrize(("split", "share"), [("stratified", 0.5), ("last", 0.5), ("last", 1.0)])
def test_a_subset_is_split_into_images_of_its_own(split, share, small, process_as_it_was):
    write_kaggle(small / "more", CIFAR100.classes[:3] * 8)
    where = {"dataset": "folder", "data_dir": str(small / "more"), "cache_dir": str(small / "cache")}
    config = Config(split=split, subset=share, val_fraction=0.5, seed=1, loader="resident", **where)
    prepared, _, _ = open_data(config, make_accelerator(config))
    train, held_out = choose_ids(config, prepared)
    labels = torch.from_numpy(prepared.labels[: prepared.train_count])
    kept = sorted([*train.tolist(), *held_out.tolist()])
    assert len(set(kept)) == len(kept) == 24 * share
    for ids in (train, held_out):
        assert torch.bincount(labels[ids]).tolist() == [round(8 * share / 2)] * 3
    for label in range(3):
        last_trained = max(id for id in train.tolist() if labels[id] == label)
        first_held_out = min(id for id in held_out.tolist() if labels[id] == label)
        assert (last_trained < first_held_out) or split == "stratified"
