"""Learning rates at exact steps, and parameter groups."""

import math

import pytest
import torch

from data.errors import InputError
from resnet import build_model
from training.config import Config
from training.optim import make_optimizer, parameter_groups, restore_optimizer, schedule_factor, set_lr, uncompiled


def factors(steps_per_epoch: int = 10, **fields) -> list[float]:
    config = Config(**fields)
    return [schedule_factor(config, step, steps_per_epoch) for step in range(config.epochs * steps_per_epoch)]


def torch_factors(make, total: int) -> list[float]:
    """What a scheduler of torch does to a learning rate of 1, stepping once a step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, found = make(optimizer), []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_multistep_changes_exactly_at_its_milestones():
    found = factors(epochs=100, schedule="multistep", milestones=[30, 60, 90], gamma=0.1)
    assert [found[step] for step in (0, 299, 300, 599, 600, 899, 900, 999)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )


def test_a_milestone_of_whole_steps_is_not_a_step_late():
    """0.28 x 25 is 7.000000000000001."""
    found = factors(steps_per_epoch=25, epochs=1, schedule="multistep", milestones=[0.28])
    assert found.index(pytest.approx(0.1)) == 7


def test_multistep_is_torchs_multisteplr():
    def make(optimizer):
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, [20, 50], gamma=0.2)

    assert factors(epochs=8, schedule="multistep", milestones=[2, 5], gamma=0.2) == pytest.approx(
        torch_factors(make, 80)
    )


def test_cosine_is_torchs_cosineannealinglr():
    found = torch_factors(lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 80), 80)
    assert factors(epochs=8, schedule="cosine") == pytest.approx(found)


def test_cosine_begins_after_the_warm_up():
    found = factors(epochs=10, schedule="cosine", warmup=2)
    assert found[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert found[20] == pytest.approx(1)
    assert found[60] == pytest.approx(0.5)
    assert 0 < found[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 79 / 80)))


def test_triangle_rises_for_a_fifth_of_the_steps_and_falls_to_zero():
    found = factors(epochs=10, schedule="triangle")
    assert found[0] == pytest.approx(0.2)
    assert found[10] == pytest.approx(0.6)
    assert found[20] == pytest.approx(1)
    assert found[60] == pytest.approx(0.5)
    assert found[99] == pytest.approx(1 / 80)


def test_inverse_time_is_keras_decay():
    found = factors(epochs=10, schedule="inverse-time", decay=0.004)
    assert found == pytest.approx([1 / (1 + 0.004 * step) for step in range(100)])


@pytest.mark.parametrize("schedule", ["multistep", "triangle", "inverse-time", "constant"])
def test_warm_up_multiplies_every_schedule(schedule):
    with_warmup = factors(epochs=10, schedule=schedule, decay=0.01, milestones=[1], warmup=3)
    without = factors(epochs=10, schedule=schedule, decay=0.01, milestones=[1])
    ramp = [min(1, (step + 1) / 30) for step in range(100)]
    assert with_warmup == pytest.approx([a * b for a, b in zip(ramp, without, strict=True)])


def test_groups_are_by_module_type():
    model = build_model("resnet18", 10, "imagenet")
    weights, norms_and_biases, norm_biases = parameter_groups(model)
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    names = {by_id[id(parameter)] for parameter in norms_and_biases}
    assert {"bn1.weight", "layer2.0.downsample.1.weight", "fc.bias"} <= names
    assert {"bn1.bias", "layer2.0.downsample.1.bias"} <= {by_id[id(p)] for p in norm_biases}
    assert {"conv1.weight", "layer2.0.downsample.0.weight", "fc.weight"} <= {by_id[id(p)] for p in weights}
    assert len(weights) + len(norms_and_biases) + len(norm_biases) == len(by_id)
    assert (len(weights), len(norms_and_biases), len(norm_biases)) == (21, 21, 20)


@pytest.mark.parametrize("kind", ["sgd", "nesterov", "adam", "adamw"])
@pytest.mark.parametrize("decayed", [True, False])
def test_weight_decay_with_and_without_norms_and_biases(kind, decayed):
    config = Config(optimizer=kind, weight_decay=0.02, decay_norm_and_bias=decayed)
    optimizer = make_optimizer(config, build_model("resnet18", 10))
    assert {"sgd": "SGD", "nesterov": "SGD", "adam": "Adam", "adamw": "AdamW"}[kind] == type(optimizer).__name__
    assert [group["weight_decay"] for group in optimizer.param_groups] == ([0.02] if decayed else [0.02, 0.0])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 62
    if kind in ("sgd", "nesterov"):
        nesterov = kind == "nesterov"
        assert all(g["nesterov"] == nesterov and g["momentum"] == 0.9 for g in optimizer.param_groups)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_batchnorms_biases_learn_faster_and_are_decayed_as_before(kind):
    """A step from zero momentum: the gradient's part is 64 times as large, the decay's the same."""
    moved = {}
    for factor, decay in ((1.0, 0.0), (64.0, 0.0), (1.0, 0.1), (64.0, 0.1)):
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).double()
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, 0.5)
            parameter.grad = torch.full_like(parameter, 0.25)
        optimizer = make_optimizer(Config(optimizer=kind, weight_decay=decay, norm_bias_lr=factor), model)
        set_lr(optimizer, 0.01)
        optimizer.step()
        moved[factor, decay] = {name: float(p.detach().mean()) - 0.5 for name, p in model.named_parameters()}
    assert moved[64.0, 0.0]["1.bias"] == pytest.approx(64 * moved[1.0, 0.0]["1.bias"])
    decayed = [moved[factor, 0.1]["1.bias"] - moved[factor, 0.0]["1.bias"] for factor in (1.0, 64.0)]
    assert decayed == pytest.approx([-0.01 * 0.1 * 0.5] * 2)
    for name in ("0.weight", "0.bias", "1.weight"):
        assert moved[64.0, 0.1][name] == moved[1.0, 0.1][name]


def test_a_factor_for_a_network_without_batchnorm_is_refused():
    with pytest.raises(InputError, match="^--norm-bias-lr 64: vgg16 has no BatchNorm"):
        make_optimizer(Config(model="vgg16", norm_bias_lr=64), torch.nn.Linear(2, 2))


def test_a_checkpoint_of_a_gpu_does_not_bring_its_kernels_to_a_cpu():
    """On a GPU Adam is fused, which is recorded in its state_dict."""
    model = torch.nn.Linear(2, 2)
    own, other = (make_optimizer(Config(optimizer="adam"), model) for _ in range(2))
    model(torch.ones(1, 2)).sum().backward()
    other.step()
    state = other.state_dict()
    for group in state["param_groups"]:
        group |= {"fused": True, "lr": 0.25}
    restore_optimizer(own, state)
    assert [(group["fused"], group["lr"]) for group in own.param_groups] == [(None, 0.25)]
    assert all(state["step"] == 1 for state in own.state.values())


def test_a_checkpoint_with_more_groups_of_the_same_parameters_is_gone_on_with():
    """As former versions made them."""
    steps = []
    for restored in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
        three = [{"params": group, "lr_factor": 1.0} for group in parameter_groups(model)]
        optimizer = torch.optim.SGD(three, lr=0.1, momentum=0.9, weight_decay=5e-4)
        for step in range(2):
            if step and restored:
                former, optimizer = optimizer, make_optimizer(Config(lr=0.7), model)
                restore_optimizer(optimizer, former.state_dict())
            model(torch.arange(8.0).view(4, 2)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        steps.append([parameter.detach().clone() for parameter in model.parameters()])
    assert len(optimizer.param_groups) == 1
    assert all(map(torch.equal, *steps))


@pytest.mark.parametrize(
    ("optimizer", "lr", "weight_decay", "factor"),
    [("sgd", 3e32, 3e38, 1e6), ("sgd", 3e38, 3e32, 1e-6), ("adam", 3e37, 3e38, 1), ("adamw", 3e31, 3e38, 1e6)],
)
def test_the_largest_settings_that_are_allowed_are_numbers_to_the_optimizer(optimizer, lr, weight_decay, factor):
    config = Config(optimizer=optimizer, lr=lr, weight_decay=weight_decay, norm_bias_lr=factor)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    made = make_optimizer(config, model)
    set_lr(made, config.lr)
    model(torch.randn(4, 2)).sum().backward()
    made.step()
    assert made.param_groups[-1]["lr"] == lr * factor
    assert len(made.state) == 4


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        (torch.optim.Adam, {"weight_decay": 0.1}),
        (torch.optim.AdamW, {}),
    ],
)
def test_without_its_decorators_an_optimizer_takes_the_same_steps(kind, settings):
    states = []
    for each in (kind, uncompiled(kind)):
        weight = torch.nn.Parameter(torch.arange(4.0))
        optimizer = each([weight], lr=0.1, **settings)
        for _ in range(3):
            optimizer.zero_grad()
            weight.pow(3).sum().backward()
            optimizer.step()
            again = each([weight], lr=0.1, **settings)
            again.load_state_dict(optimizer.state_dict())
            optimizer = again
        states.append((weight.detach(), optimizer.state_dict()["state"][0]))
    (weight, state), (other, other_state) = states
    assert torch.equal(weight, other)
    assert state.keys() == other_state.keys()
    assert all(torch.equal(state[name], other_state[name]) for name in state)
