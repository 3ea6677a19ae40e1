"""What only a GPU can show."""

import shutil

import pytest
import torch

from resnet import build_model
from tests.conftest import TINY, import_ffcv_loader, run_script
from tests.ranks_job import AUGMENTED, TECHNIQUES
from tests.test_train import summary
from training.config import as_flags
from training.graphs import capture_passes
from training.sam import SAM

pytestmark = [
    pytest.mark.usefixtures("full_width"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_the_same_command_gives_the_same_bits(train_tiny, precision):
    flags = ["--precision", precision, "--stem", "cifar", "--cutout", "8", "--deterministic", "true"]
    first, second = (summary(train_tiny(f"{precision}-{time}", *flags)) for time in (1, 2))
    assert first["device"] == torch.cuda.get_device_name()
    assert first["weights_sha256"] == second["weights_sha256"]


def test_all_techniques_together_give_the_same_bits_in_fp16(train_tiny):
    flags = as_flags(AUGMENTED | TECHNIQUES | {"precision": "fp16"})
    first, second = (summary(train_tiny(f"techniques-{time}", *flags)) for time in (1, 2))
    assert first["weights_sha256"] == second["weights_sha256"]


def test_the_stream_is_that_of_the_cpu(images, tmp_path, monkeypatch):
    where = ["--dataset", "folder", "--data-dir", images, "--cache-dir", tmp_path / "cache"]
    flags = ["--batch-size", 48, "--precision", "no", "--loader", "resident", "--epochs", 2]
    flags += [*as_flags(AUGMENTED), *where]
    on_gpu = run_script("-m", "data.stream", *flags)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    on_cpu = run_script("-m", "data.stream", *flags)
    assert on_gpu.stdout.count("epoch") == 2, on_gpu.stderr
    assert on_gpu.stdout == on_cpu.stdout, on_cpu.stderr


def test_both_loaders_train_to_the_same_bits(train_tiny):
    import_ffcv_loader()
    digests = {
        summary(train_tiny(f"cuda-{kind}", "--loader", kind))["weights_sha256"] for kind in ("resident", "ffcv")
    }
    assert len(digests) == 1


EAGER = """
import train
from training import engine
engine.capture_passes = lambda model, *others: (model, model)
train.main()
"""
"""train.py with nothing captured in CUDA graphs."""


@pytest.mark.parametrize(
    "flags",
    [
        ["--precision", "no", "--stem", "cifar"],
        ["--precision", "bf16", "--sam", "0.1", "--ema", "0.9", "--optimizer", "adam"],
        ["--precision", "fp16", "--mixup", "0.2", "--optimizer", "nesterov"],
        ["--precision", "fp16", "--optimizer", "adam"],
    ],
    ids=["fp32", "bf16 with SAM", "fp16", "fp16 with Adam"],
)
def test_graphs_give_the_bits_of_single_operations(train_tiny, images, tmp_path, flags):
    graphed = train_tiny(f"graphed-{flags[1]}-{flags[-1]}", *flags)
    where = ["--data-dir", images, "--runs-dir", tmp_path, "--cache-dir", tmp_path / "cache", "--name", "eager"]
    done = run_script("-c", EAGER, *TINY, *where, *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert summary(graphed)["weights_sha256"] == summary(tmp_path / "eager")["weights_sha256"]


@pytest.mark.parametrize(
    "settings",
    [
        ["--precision", "bf16", "--sam", "0.1", "--ema", "0.9", "--optimizer", "adam"],
        ["--precision", "fp16", "--loader", "auto"],
    ],
    ids=["bf16", "fp16"],
)
def test_a_run_goes_on_from_its_checkpoint_to_the_same_bits(images, tmp_path, settings):
    flags = [*TINY, "--data-dir", images, "--runs-dir", tmp_path, "--cache-dir", tmp_path / "cache", *settings]
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert run_script("train.py", *flags, "--name", "whole").returncode == 0
    shutil.copytree(whole, again)
    for path in (again / "summary.json", *(again / "checkpoints").glob("step-00000022*")):
        path.unlink()
    done = run_script("train.py", *flags, "--name", "again")
    assert "resuming after step 11 of 22" in done.stdout, done.stderr
    assert summary(again)["weights_sha256"] == summary(whole)["weights_sha256"]


@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_training_warns_of_nothing(images, tmp_path, precision):
    """torch has warnings for the streams of a captured pass."""
    where = ["--data-dir", images, "--runs-dir", tmp_path, "--cache-dir", tmp_path / "cache", "--name", "run"]
    done = run_script("train.py", *TINY, *where, "--precision", precision)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_state_before_a_network_is_captured_is_the_state_after():
    """Capturing runs the network, which must leave no trace in BatchNorm's statistics."""
    device = torch.device("cuda")
    model = build_model("resnet18", 10, "cifar").to(device, memory_format=torch.channels_last)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    capture_passes(model, SAM(model, 0.1, adaptive=False), 8, torch.float32)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_compiled_network_trains(train_tiny):
    assert summary(train_tiny("compiled", "--compile", "true", "--precision", "bf16"))["steps"] == 22


def test_a_launchers_only_process_trains_to_the_same_bits(train_tiny):
    """Over NCCL, and in CUDA graphs, too."""
    alone, launched = (train_tiny(f"launched-by-{count}", processes=count) for count in (0, 1))
    assert summary(launched)["weights_sha256"] == summary(alone)["weights_sha256"]
