"""The moving average of the weights, against its formula."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from training.averaging import MovingAverage
from training.checkpoint import load_newest_checkpoint, weights_sha256
from training.config import Config
from training.engine import Trainer
from training.hardware import make_accelerator
from training.parts import initial_model, open_data
from training.stopping import StopRequest


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))


def test_weights_and_running_statistics_follow_the_formula_and_counts_are_copied():
    network = small_network()
    average = MovingAverage(network, decay=0.3)  # which the ramp passes in step 3
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    expected: dict[str, torch.Tensor] = {}
    for step in range(12):
        optimizer.zero_grad()
        network(torch.randn(5, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        average.update_parameters(network)
        decay = min(0.3, (1 + step) / (10 + step)) if step else 0.0  # the first update takes the weights over
        for name, value in network.state_dict().items():
            former = expected.get(name, torch.zeros(()))
            if value.is_floating_point():
                expected[name] = decay * former + (1 - decay) * value.double()
            else:
                expected[name] = value.clone()
        found = average.module.state_dict()
        for name, value in expected.items():
            torch.testing.assert_close(found[name].double(), value.double(), atol=1e-6, rtol=1e-5)
    assert found["1.num_batches_tracked"] == 12
    assert not torch.allclose(found["1.running_var"], network[1].running_var)


def test_its_state_is_restored_to_the_same_bits():
    network = small_network()
    one, other = (MovingAverage(network, decay=0.9) for _ in range(2))
    for step in range(4):
        with torch.no_grad():
            network[0].weight += step
        one.update_parameters(network)
        if step == 1:
            other.load_state_dict(one.state_dict())
        if step > 1:
            other.update_parameters(network)
    restored = other.state_dict()
    assert all(torch.equal(value, restored[name]) for name, value in one.state_dict().items())


def test_a_run_saves_the_average_and_goes_on_with_both(train_here: Callable[..., Path]) -> None:
    run = train_here("averaged", "--epochs", 1, "--batch-size", 32, "--ema", 0.9, "--split", "none")
    saved = load_file(run / "best.safetensors")
    state = load_newest_checkpoint(run / "checkpoints")
    assert state is not None
    assert state["average"]["n_averaged"] == 5
    assert saved.keys() == state["model"].keys()
    for name, value in saved.items():
        assert torch.equal(value, state["average"][f"module.{name}"])
    assert not torch.equal(saved["conv1.weight"], state["model"]["conv1.weight"])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["weights_sha256"] == weights_sha256(saved)


def test_validation_is_of_the_average(images: Path, tmp_path: Path, process_as_it_was: None) -> None:
    """An average that has not moved yet, while the weights are no longer finite."""
    where = {"data_dir": str(images), "cache_dir": str(tmp_path / "cache"), "dataset": "folder"}
    config = Config(ema=0.9, stem="imagenet", precision="no", loader="resident", **where)  # type: ignore[arg-type]
    accelerator = make_accelerator(config)
    prepared, loader, _ = open_data(config, accelerator)
    trainer = Trainer(config, accelerator, initial_model(config, 10), prepared, loader, StopRequest())
    before = trainer.validate()["loss"]
    with torch.no_grad():
        trainer.network.conv1.weight.fill_(torch.inf)  # type: ignore[operator, union-attr]
    assert trainer.validate()["loss"] == before
