"""What only a GPU can show."""

import pytest
import torch

from tests.test_train import summary

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_the_same_command_gives_the_same_bits(train_tiny, precision):
    flags = ["--precision", precision, "--stem", "cifar", "--cutout", "8", "--deterministic", "true"]
    first, second = (summary(train_tiny(f"{precision}-{time}", *flags)) for time in (1, 2))
    assert first["device"] == torch.cuda.get_device_name()
    assert first["weights_sha256"] == second["weights_sha256"]


def test_both_loaders_train_to_the_same_bits(train_tiny):
    pytest.importorskip("ffcv")
    digests = {
        summary(train_tiny(f"cuda-{kind}", "--loader", kind))["weights_sha256"] for kind in ("resident", "ffcv")
    }
    assert len(digests) == 1


def test_a_compiled_network_trains(train_tiny):
    assert summary(train_tiny("compiled", "--compile", "true", "--precision", "bf16"))["steps"] == 22
