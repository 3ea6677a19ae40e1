"""The networks against torchvision's and against Keras' rules spelled out in NumPy; shapes, counts, files."""

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from resnet import INITS, MODELS, STEMS, build_model, load_pretrained
from resnet.resnet import Conv3x3

pytestmark = pytest.mark.usefixtures("full_width")

OURS = ("resnet18", "resnet34")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Maps this small gain nothing from threads, and lose minutes to them where other work has the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def randomise_norms(model: nn.Module) -> None:
    """Give each BatchNorm weights and running statistics that a fresh one does not have."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)


# Counts, shapes, names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "classes", "stem", "parameters"),
    [
        ("resnet18", 10, "cifar", 11_173_962),
        ("resnet18", 10, "cifar-pool", 11_173_962),
        ("resnet18", 10, "imagenet", 11_181_642),
        (
            "resnet18",
            100,
            "keras",
            11_224_932,
        ),  # trainable parameters of the CIFAR-100 study's model in Keras
        ("resnet34", 10, "cifar", 21_282_122),
        ("torchvision-resnet18", 10, "cifar", 11_181_642),
        ("vgg16", 10, "cifar", 134_301_514),
    ],
)
def test_parameter_counts(name: str, classes: int, stem: str, parameters: int) -> None:
    with torch.device("meta"):
        assert count_parameters(build_model(name, classes, stem)) == parameters


@pytest.mark.parametrize(
    ("stem", "sides"),
    [
        ("imagenet", [8, 8, 4, 2, 1]),
        ("cifar", [32, 32, 16, 8, 4]),
        ("cifar-pool", [16, 16, 8, 4, 2]),
        ("keras", [30, 30, 15, 8, 4]),
    ],
)
@pytest.mark.parametrize("name", OURS)
def test_stem_decides_the_size_of_every_map(name: str, stem: str, sides: list[int]) -> None:
    with torch.device("meta"):  # shapes without numbers
        model = build_model(name, 10, stem)
    shapes: list[tuple[int, ...]] = []
    for part in ("maxpool", "layer1", "layer2", "layer3", "layer4"):
        model.get_submodule(part).register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
    logits = model(torch.empty(2, 3, 32, 32, device="meta"))
    channels = [64, 64, 128, 256, 512]
    assert shapes == [(2, c, side, side) for c, side in zip(channels, sides, strict=True)]
    assert logits.shape == (2, 10)


@pytest.mark.parametrize("stem", STEMS)
def test_any_height_and_width(stem: str) -> None:
    with torch.device("meta"):
        assert build_model("resnet18", 7, stem)(torch.empty(2, 3, 37, 22)).shape == (2, 7)


def test_vgg16_classifies_small_images() -> None:
    model = build_model("vgg16", 7).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 2), (2, 3), (14, 14)])
def test_vgg16_pools_as_torchvisions(height: int, width: int) -> None:
    with torch.device("meta"):
        ours, theirs = build_model("vgg16", 10).get_submodule("avgpool"), models.vgg16().avgpool
    ours_in = torch.randn(2, 5, height, width, requires_grad=True)
    theirs_in = ours_in.detach().clone().requires_grad_()
    maps, expected = ours(ours_in), theirs(theirs_in)
    torch.testing.assert_close(maps, expected)
    slopes = torch.randn(2, 5, 7, 7)
    torch.autograd.backward([maps, expected], [slopes, slopes])
    torch.testing.assert_close(ours_in.grad, theirs_in.grad)


def test_vgg16_has_a_deterministic_gradient_for_small_images() -> None:
    """CUDA's adaptive pooling has none: what a 32x32 image leaves must not pass through it."""
    with torch.device("meta"):
        model = build_model("vgg16", 10)
        maps = model.get_submodule("avgpool")(model.get_submodule("features")(torch.empty(2, 3, 32, 32)))
    assert maps.shape == (2, 512, 7, 7)
    assert maps.grad_fn.name().startswith("ExpandBackward")


@pytest.mark.parametrize("stem", STEMS)
def test_channels_last_gives_the_same_logits(stem: str) -> None:
    model = build_model("resnet18", 10, stem, "kaiming").eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        model.to(memory_format=torch.channels_last)
        maps: list[Tensor] = []
        for module in model.modules():
            module.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
        logits = model(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    maps = [x for x in maps if x.ndim == 4]
    assert len(maps) > 50
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in maps)  # no conversion on the way


@pytest.mark.parametrize("stem", STEMS)
def test_every_parameter_has_a_gradient(stem: str) -> None:
    """DistributedDataParallel fails in the second step where the output ignores a parameter."""
    with torch.device("meta"):
        model = build_model("resnet18", 10, stem)
        torch.autograd.backward(model(torch.empty(2, 3, 32, 32)).sum())
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("stem", ["cifar", "keras"])
@pytest.mark.parametrize("training", [True, False], ids=["with gradients", "without"])
def test_compiles_to_one_graph(monkeypatch: pytest.MonkeyPatch, stem: str, training: bool) -> None:
    """Tracing alone, which is where a graph would break; generating code for it would take minutes here."""
    monkeypatch.setattr("resnet.resnet._AVX2_ALONE", True)
    model = build_model("resnet18", 10, stem).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.set_grad_enabled(training):
        logits = torch.compile(model, backend="eager", fullgraph=True)(images)
        torch.testing.assert_close(logits, model(images))


# Small maps on a CPU with AVX2 ------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "stride"), [(1, 1, 1), (2, 2, 1), (1, 4, 1), (2, 2, 2), (3, 4, 2)])
def test_small_maps_are_convolved_by_a_product_of_matrices(
    monkeypatch: pytest.MonkeyPatch, height: int, width: int, stride: int
) -> None:
    monkeypatch.setattr("resnet.resnet._AVX2_ALONE", True)
    convolution = Conv3x3(5, 6, stride, bias=True).to(memory_format=torch.channels_last)
    images = torch.randn(3, 5, height, width).to(memory_format=torch.channels_last).requires_grad_()
    inputs = [images, convolution.weight, convolution.bias]
    found = convolution(images)
    expected = nn.functional.conv2d(*inputs, stride=stride, padding=1)
    assert not is_of_convolution(found)
    assert is_of_convolution(expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected)
    downstream = torch.randn_like(found)
    gradients = (torch.autograd.grad(out, inputs, downstream) for out in (found, expected))
    for pair in zip(*gradients, strict=True):
        torch.testing.assert_close(*pair)


def is_of_convolution(out: Tensor) -> bool:
    return out.grad_fn is not None and out.grad_fn.name().startswith("ConvolutionBackward")


@pytest.mark.parametrize(
    ("avx2_alone", "width", "dtype", "training"),
    [
        (False, 4, torch.float32, True),
        (True, 5, torch.float32, True),
        (True, 4, torch.bfloat16, True),
        (True, 4, torch.float32, False),
    ],
    ids=["another processor", "a larger map", "bf16", "evaluation"],
)
def test_other_maps_are_convolved_as_torch_does(
    monkeypatch: pytest.MonkeyPatch, avx2_alone: bool, width: int, dtype: torch.dtype, training: bool
) -> None:
    monkeypatch.setattr("resnet.resnet._AVX2_ALONE", avx2_alone)
    monkeypatch.setattr("torch.nn.functional.unfold", None)  # what the product of matrices begins with
    convolution = Conv3x3(5, 6, 1, bias=True).to(dtype)
    with torch.set_grad_enabled(training):
        assert convolution(torch.randn(3, 5, 1, width, dtype=dtype)).shape == (3, 6, 1, width)


def test_another_device_convolves_as_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resnet.resnet._AVX2_ALONE", True)
    assert is_of_convolution(Conv3x3(5, 6, 1, bias=True).to("meta")(torch.empty(3, 5, 2, 2, device="meta")))


# torchvision's equals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_same_function_as_torchvision(name: str, training: bool) -> None:
    torch.manual_seed(1)
    theirs = getattr(models, name)(weights=None, num_classes=10)
    randomise_norms(theirs)
    ours = build_model(name, 10, "imagenet")
    ours.load_state_dict(theirs.state_dict())  # strict: the same names in both

    images = torch.randn(4, 3, 40, 40)
    labels = torch.tensor([0, 3, 3, 9])
    for model in (ours, theirs):
        model.train(training)
    our_logits, their_logits = ours(images), theirs(images)
    assert their_logits.std() > 0.1  # logits that hardly differ from image to image would prove nothing
    torch.testing.assert_close(our_logits, their_logits, atol=1e-5, rtol=0)

    for logits in (our_logits, their_logits):
        torch.autograd.backward(nn.functional.cross_entropy(logits, labels))
    for parameters in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(*(parameter.grad for parameter in parameters), atol=1e-5, rtol=0)
    for buffers in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(*buffers, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", OURS)
def test_kaiming_draws_torchvisions_weights(name: str) -> None:
    """To the bit from the same seed: runs of the two then differ by nothing at their start."""
    torch.manual_seed(5)
    theirs = getattr(models, name)(weights=None, num_classes=10).state_dict()
    torch.manual_seed(5)
    ours = build_model(name, 10, "imagenet", "kaiming").state_dict()
    assert list(ours) == list(theirs)
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "torchvision-resnet18"])
def test_zero_init_makes_each_block_its_shortcut_and_draws_nothing(name: str) -> None:
    torch.manual_seed(0)
    plain = build_model(name, 10).state_dict()
    torch.manual_seed(0)
    network = build_model(name, 10, zero_init=True).eval()
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, plain[key])}
    blocks = 16 if name == "resnet34" else 8
    assert changed == {key for key in plain if re.fullmatch(r"layer\d\.\d\.bn2\.weight", key)}
    assert len(changed) == blocks
    block = network.get_submodule("layer1.1")
    maps = torch.rand(2, 64, 8, 8)
    assert torch.equal(block(maps.clone()), maps)


def test_torchvisions_network_can_begin_with_pytorchs_weights() -> None:
    theirs = build_model("torchvision-resnet18", 10)
    redrawn = build_model("torchvision-resnet18", 10, init="pytorch")
    for before, module in zip(theirs.modules(), redrawn.modules(), strict=True):
        if isinstance(module, nn.Conv2d):
            assert before.weight.abs().max() > 1.05 * default_bound(module) >= module.weight.abs().max()


# Initial weights --------------------------------------------------------------------------------------------


def default_bound(module: nn.Conv2d | nn.Linear) -> float:
    return 1 / math.sqrt(module.weight[0].numel())  # uniform within 1 / sqrt(fan_in), for weights and biases


def glorot_bound(module: nn.Conv2d | nn.Linear) -> float:
    fan_in, fan_out = module.weight[0].numel(), module.weight[:, 0].numel()
    return math.sqrt(6 / (fan_in + fan_out))


@pytest.mark.parametrize(
    ("init", "bound"),
    [("default", default_bound), ("pytorch", default_bound), ("glorot", glorot_bound)],
    ids=["default", "pytorch", "glorot"],
)
def test_uniform_inits(init: str, bound: Callable[[nn.Conv2d | nn.Linear], float]) -> None:
    for module in build_model("resnet18", 100, "keras", init).modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            limit = bound(module)
            assert 0.98 * limit < module.weight.abs().max() <= limit * 1.0001
            assert module.weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.05)
            assert module.bias is not None
            assert bool((module.bias == 0).all()) == (init == "glorot")


@pytest.mark.parametrize("stem", STEMS)
def test_kaiming_init(stem: str) -> None:
    for module in build_model("resnet18", 100, stem, "kaiming").modules():
        if isinstance(module, nn.Conv2d):
            deviation = math.sqrt(2 / module.weight[:, 0].numel())
            assert module.weight.std().item() == pytest.approx(deviation, rel=0.05)
            assert module.weight.abs().max() > 2.5 * deviation  # normal: a uniform one ends at sqrt(3)
            assert module.bias is None or bool((module.bias == 0).all())
        elif isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all())
            assert bool((module.bias == 0).all())
        elif isinstance(module, nn.Linear):
            assert module.weight.abs().max() <= default_bound(module) * 1.0001


# The Keras network ------------------------------------------------------------------------------------------


def same_windows(images: np.ndarray, kernel: int, stride: int, fill: float) -> np.ndarray:
    """(N, C, H, W) -> (N, C, ceil(H/s), ceil(W/s), kernel, kernel): TensorFlow's rule for 'same', in loops.

    In each dimension the padding is max((ceil(n / stride) - 1) * stride + kernel - n, 0) in total: half of
    it, rounded down, before, and the rest after.
    """
    sizes = [math.ceil(n / stride) for n in images.shape[2:]]
    totals = [max((out - 1) * stride + kernel - n, 0) for out, n in zip(sizes, images.shape[2:], strict=True)]
    pads = [(total // 2, total - total // 2) for total in totals]
    padded = np.pad(images, [(0, 0), (0, 0), *pads], constant_values=fill)
    windows = np.empty((*images.shape[:2], *sizes, kernel, kernel))
    for row in range(sizes[0]):
        for column in range(sizes[1]):
            top, left = row * stride, column * stride
            windows[:, :, row, column] = padded[:, :, top : top + kernel, left : left + kernel]
    return windows


@pytest.fixture(scope="module")
def keras_network() -> nn.Module:
    return build_model("resnet18", 10, "keras")


@pytest.mark.parametrize(("height", "width"), [(6, 7), (7, 6), (1, 2), (30, 15)])
@pytest.mark.parametrize("part", ["layer1.0.conv1", "layer2.0.conv1", "layer2.0.conv2", "layer4.0.conv1"])
def test_keras_convolutions_pad_as_tensorflow(
    keras_network: nn.Module, part: str, height: int, width: int
) -> None:
    conv = keras_network.get_submodule(part)
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    images = torch.randn(1, conv.in_channels, height, width)
    windows = same_windows(images.numpy(), kernel=3, stride=conv.stride[0], fill=0)
    expected = np.einsum("nihwyx,oiyx->nohw", windows, conv.weight.detach().numpy(), optimize=True)
    expected += conv.bias.detach().numpy()[:, None, None]
    np.testing.assert_allclose(conv(images).detach().numpy(), expected, atol=1e-4)


def test_keras_pooling_pads_as_tensorflow(keras_network: nn.Module) -> None:
    pool = keras_network.get_submodule("maxpool")
    images = -1 - torch.rand(2, 3, 5, 6)  # negative, or padding with zeros would pass
    expected = same_windows(images.numpy(), kernel=2, stride=1, fill=-np.inf).max(axis=(4, 5))
    np.testing.assert_array_equal(pool(images).numpy(), expected)


@pytest.mark.parametrize("stem", STEMS)
def test_biases_and_batch_norm_follow_the_framework(stem: str) -> None:
    keras = stem == "keras"
    modules = list(build_model("resnet34", 10, stem).modules())
    convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
    norms = [module for module in modules if isinstance(module, nn.BatchNorm2d)]
    assert len(convolutions) == len(norms) == 36
    assert {module.bias is not None for module in convolutions} == {keras}
    assert {(module.eps, module.momentum) for module in norms} == {(1e-3, 0.01) if keras else (1e-5, 0.1)}


# Names and files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet50"}, f"model 'resnet50' is unknown: allowed are {', '.join(MODELS)}"),
        ({"stem": "mnist"}, f"stem 'mnist' is unknown: allowed are {', '.join(STEMS)}"),
        ({"init": "zeros"}, f"init 'zeros' is unknown: allowed are {', '.join(INITS)}"),
        ({"name": "vgg16", "init": "zeros"}, f"init 'zeros' is unknown: allowed are {', '.join(INITS)}"),
        (
            {"name": "torchvision-resnet18", "stem": "imagenet"},
            "stem 'imagenet' does not apply to torchvision-resnet18: leave it at 'cifar'",
        ),
        (
            {"name": "vgg16", "init": "kaiming"},
            "init 'kaiming' does not apply to vgg16: leave it at 'default'",
        ),
        (
            {"name": "vgg16", "zero_init": True},
            "zero_init does not apply to vgg16, which has no BatchNorm: leave it at false",
        ),
    ],
)
def test_refused_names(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build_model(**{"name": "resnet18", **arguments}, num_classes=10)


@pytest.mark.parametrize("name", [*OURS, "torchvision-resnet18"])
@pytest.mark.parametrize("counters", [True, False], ids=["new", "before-0.4.1"])
def test_pretrained_weights_load_without_the_head(tmp_path: Path, name: str, counters: bool) -> None:
    pretrained = getattr(models, name.removeprefix("torchvision-"))(weights=None, num_classes=1000)
    randomise_norms(pretrained)
    weights = pretrained.state_dict()
    if not counters:
        weights = {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    torch.save(weights, tmp_path / "weights.pth")

    model = build_model(name, 10, "imagenet" if name in OURS else "cifar")
    head = model.get_submodule("fc")
    assert isinstance(head, nn.Linear)
    head_before = head.weight.clone()
    load_pretrained(model, tmp_path / "weights.pth")
    assert torch.equal(head.weight, head_before)
    state = model.state_dict()
    body = [key for key in weights if not key.startswith("fc.")]
    assert len(body) == len(weights) - 2
    assert [key for key in body if not torch.equal(state[key], weights[key])] == []


def test_pretrained_head_is_left_out_even_where_it_fits(tmp_path: Path) -> None:
    torch.save(build_model("torchvision-resnet18", 10).state_dict(), tmp_path / "weights.pth")
    model = build_model("resnet18", 10, "imagenet")
    head_before = model.state_dict()["fc.bias"].clone()
    load_pretrained(model, str(tmp_path / "weights.pth"))
    assert torch.equal(model.state_dict()["fc.bias"], head_before)


@pytest.mark.filterwarnings("ignore:.*to a meta parameter")
def test_pretrained_vgg16_loads_without_its_last_layer(tmp_path: Path) -> None:
    """Sizes and the choice of keys only, on the meta device: the real weights are half a gigabyte."""
    with torch.device("meta"):
        model = build_model("vgg16", 10)
    # A tensor that repeats one stored value has every size at the price of one number.
    weights = {key: torch.zeros(1).expand(value.shape) for key, value in model.state_dict().items()}
    weights["classifier.6.weight"] = torch.zeros(1).expand(1000, 4096)
    weights["classifier.6.bias"] = torch.zeros(1).expand(1000)
    torch.save(weights, tmp_path / "weights.pth")
    load_pretrained(model, tmp_path / "weights.pth")  # raises if the 1000 classes are compared with the 10
    del weights["classifier.3.bias"]
    torch.save(weights, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"classifier\.3\.bias missing$"):
        load_pretrained(model, tmp_path / "weights.pth")


def refusal_of(model: nn.Module, path: Path) -> str:
    """The one-line message of a refused file, after checking that the model is as it was."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(str(path))) as refusal:
        load_pretrained(model, path)
    assert [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])] == []
    message = str(refusal.value)
    assert "\n" not in message
    return message


def test_files_that_do_not_fit_name_key_and_shapes(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    weights = build_model("torchvision-resnet18", 1000).state_dict()
    torch.save(weights, path)

    message = refusal_of(build_model("resnet18", 10, "cifar"), path)
    assert message.startswith(f"{path} does not fit the network of --model and --stem: ")
    assert message.endswith(": conv1.weight is (64, 3, 7, 7), needs (64, 3, 3, 3)")
    message = refusal_of(build_model("resnet34", 10, "imagenet"), path)
    assert "layer1.2.conv1.weight missing" in message
    assert message.endswith(" more")
    assert len(message) < 400

    weights["layer5.0.conv1.weight"] = weights.pop("layer4.0.conv1.weight")
    torch.save(weights, path)
    message = refusal_of(build_model("resnet18", 10, "imagenet"), path)
    assert message.endswith(": layer4.0.conv1.weight missing; layer5.0.conv1.weight unexpected")


@pytest.mark.parametrize("value", [math.nan, math.inf, 1, True])
def test_weights_that_are_no_finite_numbers_are_refused(tmp_path: Path, value: object) -> None:
    weights = build_model("resnet18", 10, "imagenet").state_dict()
    weights["conv1.weight"] = torch.full((64, 3, 7, 7), value)
    torch.save(weights, tmp_path / "weights.pth")
    message = refusal_of(build_model("resnet18", 10, "imagenet"), tmp_path / "weights.pth")
    assert message.endswith(": conv1.weight has other values than finite numbers")


@pytest.mark.parametrize("kind", ["garbage", "empty", "truncated", "list", "numbers", "checkpoint"])
def test_files_that_are_no_state_dict(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights.pth"
    model = build_model("resnet18", 10, "imagenet")
    if kind == "list":
        torch.save([1, 2], path)
    elif kind == "numbers":
        torch.save({0: torch.zeros(10)}, path)
    elif kind == "checkpoint":
        torch.save({"model": {"fc.bias": torch.zeros(10)}, "step": 3}, path)
    else:
        torch.save(model.state_dict(), path)
        whole = path.read_bytes()
        path.write_bytes(
            {"garbage": b"not a file of weights\n" * 9, "empty": b"", "truncated": whole[:-999]}[kind]
        )
    expected = "is not a state dict" if kind in ("list", "numbers", "checkpoint") else "is not a file of tensors"
    assert expected in refusal_of(model, path)


def test_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        load_pretrained(build_model("resnet18", 10, "imagenet"), tmp_path / "nowhere.pth")
