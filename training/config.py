"""The one description of a run: flags, --help, recipes, config.yaml and the tracker's record derive from it.

Nothing here imports torch, so that --help and a mistaken flag answer at once.
"""

import functools
import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml
from docstring_parser import parse_from_object
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

from data.errors import InputError
from data.files import check_digest

ROOT = Path(__file__).resolve().parent.parent
"""The folder of train.py and recipes/."""

HELD_OUT = ("stratified", "last")
"""The splits that hold validation images out of the training set, so that the best epoch may be chosen by them."""


@dataclass(frozen=True)
class Config:
    """Trains a ResNet on CIFAR-10, CIFAR-100 or a folder of images."""

    recipe: str = ""
    """Name of the recipe's file, without its ending; --recipe sets it."""
    name: str = ""
    """The run's name: its folder is <runs-dir>/<name>. Empty: the recipe's name, or <dataset>-<model>."""
    runs_dir: str = "runs"
    """Folder of all runs."""
    dataset: Literal["cifar10", "cifar100", "shapes", "folder"] = "cifar10"
    """The data set; shapes is built in, folder is any set of class folders with images of 32x32 pixels."""
    data_dir: str = ""
    """Folder of the images; its layout is recognised. Empty: datasets/<dataset>. CIFAR is downloaded if absent."""
    cache_dir: str = "cache"
    """Folder of the decoded images."""
    loader: Literal["auto", "ffcv", "resident"] = "auto"
    """ffcv reads a .beton file, resident keeps all images on the device; auto: ffcv where installed."""
    workers: int = 1
    """FFCV's threads in each process: one is as fast as two in batches of 128, and starts sooner. 0: one for each
    core that this process may use, shared among the machine's processes."""

    subset: float = 1.0
    """Share of the training images to use at all, of each class, above 0 to 1; the seed chooses them."""
    split: Literal["stratified", "last", "none", "test"] = "stratified"
    """Validation images: of each class a share by the seed, or its last; none; or the test set, as a yardstick."""
    val_fraction: float = 0.1
    """Share of the training images held out by split stratified and last, between 0 and 1."""
    crop_padding: int = 4
    """Pixels of padding before the random crop, 0 to 31. 0: no crop."""
    crop_mode: Literal["zero", "reflect", "edge"] = "zero"
    """What fills the padding; edge repeats the outermost pixels: Keras' shifts with fill_mode nearest."""
    flip: Literal["none", "random", "alternating"] = "random"
    """Mirror images left to right: none, random (half of them), or alternating (in each epoch the other half)."""
    cutout: int = 0
    """Side of a square hidden in each image, in pixels, 0 to 32."""
    trivial_augment: bool = False
    """One random operation of TrivialAugment on each image: geometric, of colour, or none."""
    erasing: float = 0.0
    """Share of the images in which a random rectangle is hidden (random erasing), 0 to 1."""
    mixup: float = 0.0
    """Alpha of mixup's Beta distribution: weighted means of two images and their losses, at least 0. 0: none."""
    cutmix: float = 0.0
    """Alpha of CutMix: a box of another image pasted in. 0: none. With mixup, each step draws one of the two."""
    mix_probability: float = 1.0
    """Share of the steps in which mixup or CutMix is done, 0 to 1."""
    normalize: bool = True
    """Normalise by the data set's mean and deviation; otherwise pixels are only scaled to 0..1."""

    model: Literal["resnet18", "resnet34", "torchvision-resnet18", "vgg16"] = "resnet18"
    """The network."""
    stem: Literal["imagenet", "cifar", "cifar-pool", "keras"] = "cifar"
    """First layers of resnet18 and resnet34: 7x7/2 + pool, 3x3, 3x3 + pool, or 3x3 valid + 2x2/1 pool."""
    init: Literal["default", "pytorch", "kaiming", "glorot"] = "default"
    """Initial weights: the network's own (PyTorch's for resnet18 and 34), PyTorch's, Kaiming or Keras' Glorot."""
    zero_init: bool = False
    """Begin with the last BatchNorm of each residual block at 0, so that the blocks begin as the identity."""
    weights: str = ""
    """File with torchvision's weights of this network (resnet18: stem imagenet), all but the last layer."""

    epochs: int = 100
    """Passes over the training images, 1 to 1000000."""
    batch_size: int = 128
    """Images of one optimizer step over all processes; divides by processes x accumulation."""
    accumulation: int = 1
    """Micro-batches of one step in each process."""
    optimizer: Literal["sgd", "nesterov", "adam", "adamw"] = "sgd"
    """The optimizer: SGD with momentum, the same with Nesterov's momentum, Adam or AdamW."""
    lr: float = 0.1
    """Peak learning rate, above 0. Never scaled by the number of processes."""
    momentum: float = 0.9
    """Momentum of sgd and nesterov, 0 to below 1."""
    weight_decay: float = 5e-4
    """Weight decay (decoupled in adamw, L2 in the others), at least 0."""
    decay_norm_and_bias: bool = True
    """Decay normalisation layers and biases too; without: He et al., 2018, arXiv:1812.01187."""
    norm_bias_lr: float = 1.0
    """Factor for the learning rate of BatchNorm's biases, above 0; SGD's decay of them stays as it was."""
    label_smoothing: float = 0.0
    """Label smoothing, 0 to below 1."""
    ema: float = 0.0
    """Decay of a moving average of the weights, validated and saved in their place, 0 to below 1. 0: none."""
    sam: float = 0.0
    """Rho of sharpness-aware minimisation: length of the step to the second gradient, at least 0. 0: none."""
    sam_adaptive: bool = False
    """Measure that step relative to each weight (ASAM)."""
    sync_batchnorm: bool = False
    """BatchNorm over the images of all processes: results then agree for any number of them, but for rounding."""
    schedule: Literal["multistep", "cosine", "triangle", "inverse-time", "constant"] = "multistep"
    """Learning rate: by milestones, cosine to 0, triangle 0.2 -> 1 -> 0, lr / (1 + decay x steps), constant."""
    milestones: list[float] = field(default_factory=lambda: [30, 60, 90])
    """Ascending epochs, or parts of them, after which multistep multiplies the rate by gamma: [30, 60.5], say."""
    gamma: float = 0.1
    """Factor of multistep, above 0 to 1."""
    decay: float = 0.0
    """Decay of inverse-time, per optimizer step, at least 0."""
    warmup: float = 0.0
    """Epochs over which the learning rate rises linearly from 0, 0 to all of them."""

    seed: int = 0
    """Seed of weights, split, order and augmentation, at least 0."""
    deterministic: bool = True
    """Use only algorithms that give the same bits again."""
    precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    """Mixed precision. auto: fp16 or bf16 if the launcher was told so, else bf16 where the hardware has it."""
    compile: bool = False
    """Compile the network with torch.compile."""
    peer_timeout: float = 600.0
    """Seconds that a process waits for the others before it gives them up, above 0."""

    tracker: Literal["wandb", "tensorboard", "none"] = "wandb"
    """Where metrics go besides metrics.jsonl. wandb works offline where no key is configured."""
    log_every: int = 50
    """Optimizer steps between readings of the training metrics, at least 1."""
    checkpoint_every_steps: int = 0
    """Optimizer steps between checkpoints, besides those at each epoch's end. 0: none."""
    resume: Literal["auto", "never", "must"] = "auto"
    """Continue the run of this name: if it exists; never (refuse an existing one); must (refuse a missing one)."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(Config).items():
            value = getattr(self, name)
            allowed = getattr(kind, "__args__", ())
            if getattr(kind, "__origin__", None) is Literal:
                if value not in allowed:
                    raise InputError(f"{flag(name)} {value}: expected one of {', '.join(allowed)}")
                continue
            if not _is_of_type(value, kind):
                raise InputError(f"{flag(name)} {value}: expected {_TYPES.get(kind, 'a text')}")
            if kind is float and not math.isfinite(value):
                raise InputError(f"{flag(name)} {value}: expected a finite number")
        for name, (low, high, meaning) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value < high:
                raise InputError(f"{flag(name)} {value}: expected {meaning}")
        if self.milestones != sorted(set(self.milestones)) or not all(0 < m < math.inf for m in self.milestones):
            shown = ", ".join(f"{milestone:g}" for milestone in self.milestones)
            raise InputError(f"--milestones [{shown}]: expected ascending epochs, the first above 0")
        if self.warmup > self.epochs:
            raise InputError(f"--warmup {self.warmup}: expected at most --epochs {self.epochs}")
        if self.dataset == "shapes" and self.data_dir:
            raise InputError(f"--data-dir {self.data_dir}: the shapes are built in; leave it away, or use folder")
        if self.optimizer == "nesterov" and not self.momentum:
            raise InputError("--optimizer nesterov: expected --momentum above 0 with it")
        factor = self.norm_bias_lr
        first_step = 10 if self.optimizer.startswith("adam") else 1  # Adam divides it by 1 - 0.9
        rate = self.lr * max(1, factor) * first_step
        if max(rate, self.weight_decay / min(1, factor)) >= _LARGEST:
            raise InputError(
                f"--lr {self.lr}: with --optimizer {self.optimizer}, --norm-bias-lr {factor} and --weight-decay "
                f"{self.weight_decay} there are numbers that float32 does not hold; choose smaller ones"
            )
        if self.sam_adaptive and not self.sam:
            raise InputError("--sam-adaptive true: expected --sam above 0 with it")
        if self.zero_init and self.weights:
            raise InputError("--zero-init true: --weights would take its place; leave one of the two away")
        if not set(self.name) <= _NAME_CHARACTERS or self.name.startswith(".") or len(self.name) > 200:
            raise InputError(
                f"--name {self.name}: expected letters, digits, dots, dashes and underscores, at most 200"
            )

        try:
            self.runs_dir.encode()
        except UnicodeEncodeError:  # safetensors opens no such file
            raise InputError(f"--runs-dir {self.runs_dir}: its name is not in UTF-8; give another") from None

    @property
    def run_folder(self) -> Path:
        return Path(self.runs_dir) / (self.name or self.recipe or f"{self.dataset}-{self.model}")

    @property
    def evaluated_on(self) -> str:
        """What the images are called on which each epoch is evaluated."""
        return "test" if self.split == "test" else "validation"

    @property
    def source_folder(self) -> Path:
        return Path(self.data_dir or f"datasets/{self.dataset}")

    def result_fields(self) -> dict[str, Any]:
        """The fields that change what is computed: a resumed run must agree in them."""
        return {name: value for name, value in asdict(self).items() if name not in _WITHOUT_EFFECT_ON_RESULTS}


_TYPES = {int: "a whole number", float: "a number", bool: "true or false", list[float]: "a list of numbers"}


def _is_of_type(value: object, kind: Any) -> bool:
    if kind == list[float]:
        return isinstance(value, list) and all(_is_of_type(entry, float) for entry in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind if isinstance(kind, type) else str)


_SMALLEST, _LARGEST = sys.float_info.min, 3.4e38
_RANGES: dict[str, tuple[float, float, str]] = {
    "workers": (0, math.inf, "at least 0"),
    "subset": (_SMALLEST, math.nextafter(1, 2), "a fraction above 0, at most 1"),
    "val_fraction": (_SMALLEST, 1, "a fraction above 0 and below 1"),
    "crop_padding": (0, 32, "0 to 31 pixels"),
    "cutout": (0, 33, "0 to 32 pixels"),
    "erasing": (0, math.nextafter(1, 2), "0 to 1"),
    "mixup": (0, math.inf, "at least 0"),
    "cutmix": (0, math.inf, "at least 0"),
    "mix_probability": (0, math.nextafter(1, 2), "0 to 1"),
    "epochs": (1, 1_000_001, "1 to 1000000"),
    "batch_size": (1, math.inf, "at least 1"),
    "accumulation": (1, math.inf, "at least 1"),
    "lr": (_SMALLEST, _LARGEST, "a number above 0 that float32 holds"),
    "momentum": (0, 1, "0 to below 1"),
    "weight_decay": (0, _LARGEST, "at least 0, a number that float32 holds"),
    "label_smoothing": (0, 1, "0 to below 1"),
    "norm_bias_lr": (1e-6, math.nextafter(1e6, 2e6), "0.000001 to 1000000"),
    "ema": (0, 1, "0 to below 1"),
    "sam": (0, math.inf, "at least 0"),
    "gamma": (_SMALLEST, math.nextafter(1, 2), "a fraction above 0, at most 1"),
    "decay": (0, math.inf, "at least 0"),
    "warmup": (0, math.inf, "at least 0 epochs"),
    "seed": (0, 2**63, "0 to 2**63 - 1"),
    "peer_timeout": (_SMALLEST, 2**31, "a number of seconds above 0"),
    "log_every": (1, math.inf, "at least 1"),
    "checkpoint_every_steps": (0, math.inf, "at least 0"),
}
"""Lowest allowed value, first value above the allowed ones, and the range in words."""

_WITHOUT_EFFECT_ON_RESULTS = {
    *("recipe", "name", "runs_dir", "data_dir", "cache_dir", "loader", "workers"),
    *("peer_timeout", "tracker", "log_every", "checkpoint_every_steps", "resume"),
}
_NAME_CHARACTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def as_flags(values: Mapping[str, Any]) -> list[str]:
    """train.py's command line for these fields."""
    return [part for name, value in values.items() for part in (flag(name), str(value))]


@functools.cache  # reproduce.py and the search parse hundreds of command lines
def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="train.py", description=Config.__doc__, exit_on_error=False, allow_abbrev=False)
    parser.add_argument(
        "--recipe", action=ActionConfigFile, help="YAML file with values for any of the flags below."
    )
    kinds, defaults = get_type_hints(Config), asdict(Config())
    help_of = {entry.arg_name: entry.description or "" for entry in parse_from_object(Config).params}
    del defaults["recipe"]
    for name in defaults:
        text = help_of[name].replace("%", "%%")
        parser.add_argument(flag(name), type=kinds[name], default=defaults[name], help=text)
    return parser


def parse_config(arguments: list[str]) -> Config:
    """The config of a command line.

    Raises:
        InputError: naming the flag, or the recipe's file and field.
    """
    parser, recipes = make_parser(), _recipes(arguments)
    for recipe in recipes:
        _check_recipe(Path(recipe))
    try:
        values = parser.parse_args(arguments).as_dict()
    except _UNPARSABLE as error:
        raise InputError(f"{_faulty_recipe(parser, recipes)}{_one_line(error)}; see train.py --help") from error
    del values["recipe"]
    if sweep := os.environ.get("WANDB_SWEEP_ID"):  # its agent starts one command again and again: a run for each
        values["name"] = values["name"] or f"sweep-{sweep}-{os.environ.get('WANDB_RUN_ID', '')}"
    try:
        return Config(**values, recipe=Path(recipes[-1]).stem if recipes else "")
    except InputError as error:
        where = _source_of(str(error).split()[0], arguments)
        raise InputError(f"{where}{error}") from error


_UNPARSABLE = (ArgumentError, UnicodeDecodeError, RecursionError)


def _recipes(arguments: list[str]) -> list[str]:
    """The values of --recipe on a command line."""
    found = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, joined, value = argument.partition("=")
        if name == "--recipe":
            found.append(value if joined else following)
    return found


def _source_of(wanted: str, arguments: list[str]) -> str:
    """The recipe that a flag's value is from, as a message begins with it; nothing where it is not from one.

    The last word counts: a recipe's, where the flag comes before it.
    """
    for number in reversed(range(len(arguments))):
        name, _, value = arguments[number].partition("=")
        if name == wanted:
            break
        if name == "--recipe":
            recipe = value or arguments[number + 1]
            if any(flag(str(key)) == wanted for key in yaml.safe_load(Path(recipe).read_text(encoding="utf-8"))):
                return f"{recipe}: "
    return ""


def _check_recipe(path: Path) -> None:
    """InputError for what the parser would take for something else, or tell in a way that helps nobody."""
    if not path.is_file():  # the parser would take it for YAML
        raise InputError(f"--recipe {path}: no such file; expected a YAML file as in recipes/")
    if path.with_name(f"{path.name}.sha256").exists() and not check_digest(path):
        raise InputError(f"{path}: not as the run wrote it; to use a changed copy, give it another name")
    try:
        text = path.read_text(encoding="utf-8")
        content, nodes = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError):
        return  # the parser tells where
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected lines such as `lr: 0.1`, as in recipes/")
    keys = [key.value for key, _ in nodes.value]
    for number, name in enumerate(keys):
        if name in keys[:number]:  # YAML would take the last one
            raise InputError(f"{path}: {flag(str(name))} stands there twice; remove one of its lines")
    for name, value in content.items():
        if value is None:
            raise InputError(f"{path}: {flag(str(name))} has no value; give it one, or remove the line")


def _faulty_recipe(parser: ArgumentParser, recipes: list[str]) -> str:
    """The recipe that cannot be parsed even alone, if one is to blame."""
    for recipe in recipes:
        try:
            parser.parse_args(["--recipe", recipe])
        except _UNPARSABLE:
            return f"{recipe}: "
    return ""


def _one_line(error: Exception) -> str:
    """jsonargparse's message with the flag as the user wrote it."""
    text = " ".join(str(error).split())
    return re.sub(r'^Parser key "(\w+)":', lambda match: f"{flag(match[1])}:", text)


def recorded_config(values: dict[str, Any], where: Path) -> Config:
    """The config that a run recorded in `where`; InputError if this version does not know its fields or values."""
    try:
        return Config(**values)
    except (TypeError, InputError) as error:
        raise InputError(f"{where}: recorded by another version of train.py ({error})") from error
