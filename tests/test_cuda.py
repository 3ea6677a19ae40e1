"""What only a GPU can show."""

import pytest
import torch

from tests.conftest import run_script
from tests.ranks_job import AUGMENTED, TECHNIQUES
from tests.test_train import summary
from training.config import as_flags

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


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
    pytest.importorskip("ffcv")
    digests = {
        summary(train_tiny(f"cuda-{kind}", "--loader", kind))["weights_sha256"] for kind in ("resident", "ffcv")
    }
    assert len(digests) == 1


def test_a_compiled_network_trains(train_tiny):
    assert summary(train_tiny("compiled", "--compile", "true", "--precision", "bf16"))["steps"] == 22
