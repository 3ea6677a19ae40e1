"""Sharpness-aware minimisation against its formula, written out with autograd, through the trainer's own step."""

from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.loaders import Batch
from data.prepared import Prepared
from data.resident_loader import ResidentLoader
from tests.images import prepared_pixels
from training.batchnorm import synchronize_batchnorm
from training.config import Config
from training.engine import Trainer
from training.hardware import make_accelerator
from training.sam import ETA, SAM
from training.stopping import StopRequest

pytestmark = pytest.mark.usefixtures("process_as_it_was")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared_pixels(tmp_path_factory.mktemp("cache"), 80)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 64, 10)
    return nn.Sequential(*layers)


def trainer_of(prepared: Prepared, model: nn.Module, **settings: object) -> Trainer:
    chosen = {"batch_size": 12, "precision": "no", "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0}
    config = Config(**(chosen | {"schedule": "constant"} | settings))  # type: ignore[arg-type]
    accelerator = make_accelerator(config)
    loader = ResidentLoader(prepared, accelerator.device)
    return Trainer(config, accelerator, model, prepared, loader, StopRequest())


def climbed(
    names: list[str], weights: list[Tensor], gradients: tuple[Tensor, ...], rho: float, adaptive: bool
) -> list[Tensor]:
    """w + e, one number of it after the other; each of `names` is the name of a weight or a bias."""
    w, g = (torch.cat([tensor.flatten() for tensor in tensors]).tolist() for tensors in (weights, gradients))
    scale = [
        abs(number) + ETA if adaptive and "bias" not in name else 1.0
        for name, tensor in zip(names, weights, strict=True)
        for number in tensor.flatten().tolist()
    ]
    norm = sum((t * number) ** 2 for t, number in zip(scale, g, strict=True)) ** 0.5
    moved = torch.tensor([x + rho * t * t * y / norm for x, t, y in zip(w, scale, g, strict=True)])
    parts = moved.split([tensor.numel() for tensor in weights])
    return [part.view_as(tensor) for part, tensor in zip(parts, weights, strict=True)]


def reference_step(model: nn.Module, batches: list[Batch], lr: float, rho: float, adaptive: bool) -> list[Tensor]:
    """The weights after one step of SGD from the gradient at w + e."""
    names = [name for name, _ in model.named_parameters()]
    weights = [parameter.detach().clone() for parameter in model.parameters()]

    def gradient(point: list[Tensor]) -> tuple[Tensor, ...]:
        leaves = [tensor.clone().requires_grad_() for tensor in point]
        values = dict(zip(names, leaves, strict=True))
        losses = []
        for batch in batches:
            logits = torch.func.functional_call(model, values, batch.images)
            losses.append(F.cross_entropy(logits, batch.labels))
        return torch.autograd.grad(sum(losses) / len(batches), leaves)  # type: ignore[arg-type]

    second = gradient(climbed(names, weights, gradient(weights), rho, adaptive))
    return [weight - lr * g for weight, g in zip(weights, second, strict=True)]


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize(("rho", "adaptive"), [(0.3, False), (2.0, True)], ids=["SAM", "ASAM"])
def test_a_step_follows_the_gradient_at_the_perturbed_weights(
    prepared: Prepared, accumulation: int, rho: float, adaptive: bool
) -> None:
    trainer = trainer_of(prepared, network(), sam=rho, sam_adaptive=adaptive, accumulation=accumulation)
    for batches in islice(trainer.stream.epoch(0), 2):
        assert len(batches) == accumulation
        expected = reference_step(network_like(trainer.network), batches, 0.5, rho, adaptive)
        plain = reference_step(network_like(trainer.network), batches, 0.5, 0.0, adaptive)
        trainer.train_step(batches)
        for found, wanted in zip(trainer.network.parameters(), expected, strict=True):
            torch.testing.assert_close(found.detach(), wanted, atol=2e-5, rtol=1e-4)
        assert (expected[0] - plain[0]).abs().max() > 1e-3


def network_like(model: nn.Module) -> nn.Module:
    """A copy in training mode, whose buffers may change."""
    copy = network()
    copy.load_state_dict(model.state_dict())
    return copy.train()


def test_running_statistics_and_metrics_are_those_of_the_first_pass(prepared: Prepared) -> None:
    plain, sharpness_aware = (trainer_of(prepared, network(), sam=rho) for rho in (0.0, 5.0))
    for trainer in (plain, sharpness_aware):
        trainer.train_step(next(trainer.stream.epoch(0)))
    for wanted, found in zip(plain.network.buffers(), sharpness_aware.network.buffers(), strict=True):
        assert torch.equal(wanted, found)
    assert plain.metrics.read() == sharpness_aware.metrics.read()


class Masks(nn.Module):
    """Dropout that keeps what it has drawn."""

    def __init__(self, drawn: list[Tensor]):
        super().__init__()
        self.drawn, self.dropout = drawn, nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        self.drawn.append(self.dropout(torch.ones_like(x)))
        return x * self.drawn[-1]


def test_both_passes_have_the_same_dropout_masks_and_the_next_step_others(prepared: Prepared) -> None:
    drawn: list[Tensor] = []
    trainer = trainer_of(prepared, nn.Sequential(network(), Masks(drawn)), sam=0.1, accumulation=2)
    steps = trainer.stream.epoch(0)
    for _ in range(2):
        trainer.train_step(next(steps))
    one, two, *second_pass = drawn[:4]
    assert torch.equal(one, second_pass[0])
    assert torch.equal(two, second_pass[1])
    assert not torch.equal(one, two)
    assert not torch.equal(one, drawn[4])


@pytest.mark.parametrize("adaptive", [False, True], ids=["SAM", "ASAM"])
def test_the_scale_of_fp16s_gradients_does_not_matter(adaptive: bool) -> None:
    images, points = torch.randn(2, 3, 32, 32), []
    for scale in (1.0, 2.0**16):
        model = network()
        (F.cross_entropy(model(images), torch.tensor([3, 4])) * scale).backward()
        with SAM(model, 0.5, adaptive).perturbed():
            points.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
            assert all(parameter.grad is None for parameter in model.parameters())
    torch.testing.assert_close(points[0], points[1], atol=1e-7, rtol=1e-6)


def test_a_step_whose_gradients_overflow_is_left_out_and_the_weights_are_as_before() -> None:
    """As with fp16 on a GPU, where the scaler tells the optimizer to leave a step out."""
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items() if "num_batches" not in name}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    images = torch.randn(4, 3, 32, 32)
    scaler.scale(model.eval()(images).sum() * 1e3).backward()
    assert not all(
        bool(parameter.grad.isfinite().all()) for parameter in model.parameters() if parameter.grad is not None
    )
    with SAM(model, 0.5, adaptive=False).perturbed():
        scaler.scale(model.train()(images).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**126
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), name


def test_no_gradient_gives_no_step() -> None:
    model = network()
    (model(torch.ones(2, 3, 32, 32)).sum() * 0).backward()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with SAM(model, 0.5, adaptive=False).perturbed():
        for parameter, weight in zip(model.parameters(), before, strict=True):
            assert torch.equal(parameter, weight)


def test_batchnorm_over_all_processes_keeps_its_statistics_too() -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = synchronize_batchnorm(network(), torch.device("cpu"))
        images, labels = torch.randn(4, 3, 32, 32), torch.tensor([1, 2, 3, 4])
        F.cross_entropy(model(images), labels).backward()
        before = [buffer.clone() for buffer in model.buffers()]
        with SAM(model, 0.5, adaptive=False).perturbed():
            model(images)
        assert all(torch.equal(*pair) for pair in zip(model.buffers(), before, strict=True))
        model(images)
        assert not any(torch.equal(*pair) for pair in zip(model.buffers(), before, strict=True))
    finally:
        torch.distributed.destroy_process_group()


def test_torchs_batchnorm_over_all_processes_tracks_on_and_is_put_back() -> None:
    """On several GPUs it fails in bf16 where it is told to track nothing."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    sam, before = SAM(model, 0.1, adaptive=False), {name: value.clone() for name, value in model.named_buffers()}
    with sam.statistics_kept():
        model(torch.randn(4, 3, 32, 32))
        assert model[1].track_running_stats
        assert not torch.equal(model[1].running_mean, before["1.running_mean"])
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
