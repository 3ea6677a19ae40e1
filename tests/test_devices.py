"""What a GPU would refuse, or be waited for, seen without one: with tensors that have a device and no values."""

import warnings
from itertools import islice

import pytest
import torch
from accelerate.state import PartialState
from torch._subclasses.fake_tensor import FakeTensorMode

from data.loaders import make_loader
from tests.conftest import TINY
from tests.ranks_job import AUGMENTED, TECHNIQUES
from training import engine, parts
from training.config import as_flags, parse_config
from training.hardware import make_accelerator
from training.metrics import EvaluationMetrics
from training.stopping import StopRequest

GPU = torch.device("cuda", 0)
# TrivialAugment is asked how many images each of its operations has: the one place where the CPU waits.
EVERYTHING = AUGMENTED | TECHNIQUES | {"trivial_augment": False}


@pytest.fixture
def trainer(request, images, tmp_path, monkeypatch, process_as_it_was):
    """On a GPU that is not there. Of a value that is asked for, and of two devices in one operation, torch raises.

    Backward passes are left out, as autograd would look for the GPU's streams; gradients are zeros instead.
    """
    where = ["--data-dir", images, "--runs-dir", tmp_path, "--cache-dir", tmp_path / "cache", "--precision", "no"]
    config = parse_config([*map(str, [*TINY, *where, *as_flags(request.param)])])
    accelerator = make_accelerator(config)
    PartialState._shared_state["device"] = accelerator.state.device = GPU
    accelerator.device_placement = False  # Trainer has placed the network before, which fake tensors allow once

    def backward(loss):
        assert loss.device == GPU
        for parameter in trainer.network.parameters():
            parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(accelerator, "backward", backward)
    monkeypatch.setattr(engine, "capture_passes", lambda model, *others: (model, model))
    # The split, and the first weights, are computed on the CPU, with values.
    prepared = parts.open_prepared(config)
    model, ids = parts.initial_model(config, len(prepared.classes)), parts.choose_ids(config, prepared)
    monkeypatch.setattr(parts, "choose_ids", lambda *arguments: ids)
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")  # by deepcopy
        loader, _ = make_loader("resident", prepared, accelerator.device, workers=1)
        trainer = engine.Trainer(config, accelerator, model, prepared, loader, StopRequest())
        yield trainer


@pytest.mark.parametrize(
    "trainer",
    [{}, {"optimizer": "adam", "stem": "keras"}, EVERYTHING],
    ids=["plain", "Adam", "all techniques"],
    indirect=True,
)
def test_a_step_is_all_on_the_gpu_and_waits_for_nothing(trainer):
    for batches in islice(trainer.stream.epoch(0), 2):
        assert {tensor.device for batch in batches for tensor in batch[:3]} == {GPU}
        trainer.train_step(batches)
    assert trainer.progress.step == 2
    assert {value.device for value in (*trainer.eval_network.state_dict().values(), trainer.metrics.sums)} == {GPU}


@pytest.mark.parametrize("trainer", [{"ema": 0.9}], indirect=True)
@pytest.mark.parametrize("tta", ["none", "six"])
def test_an_evaluation_is_all_on_the_gpu_and_waits_for_nothing(trainer, tta):
    metrics = EvaluationMetrics(trainer.num_classes, GPU)
    for batch in trainer._validation_batches():
        metrics.update(trainer.predictor.logits(batch.images, tta), batch.labels)
    assert {metrics.loss.device, metrics.top5.device, metrics.confusion.device} == {GPU}
