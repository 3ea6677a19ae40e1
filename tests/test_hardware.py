"""Precision and threads."""

import os
import platform
import subprocess
import sys

import psutil
import pytest
import torch

from data.errors import InputError
from tests.conftest import ROOT, free_port
from tests.test_train import assert_same_run
from training import hardware
from training.config import Config
from training.engine import Trainer
from training.hardware import choose_precision


@pytest.mark.parametrize(
    ("wanted", "launcher", "has_bf16", "expected"),
    [
        ("auto", None, True, "bf16"),
        ("auto", None, False, "no"),
        ("auto", "no", True, "bf16"),  # what the launcher says also when it was told nothing
        ("auto", "fp16", True, "fp16"),
        ("auto", "bf16", True, "bf16"),
        ("no", "bf16", True, "no"),
        ("fp16", "bf16", True, "fp16"),
    ],
)
def test_precision(monkeypatch, wanted, launcher, has_bf16, expected):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launcher:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    monkeypatch.setattr(hardware, "has_bf16", lambda use_cpu: has_bf16)
    assert choose_precision(wanted, use_cpu=False) == expected


@pytest.mark.parametrize("launcher", ["no", "bf16"])
def test_bf16_on_a_gpu_without_it_is_refused_wherever_it_was_asked_for(monkeypatch, launcher):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    monkeypatch.setattr(hardware, "has_bf16", lambda use_cpu: False)
    wanted = "bf16" if launcher == "no" else "auto"
    with pytest.raises(InputError, match="--precision bf16: this GPU has no bf16"):
        choose_precision(wanted, use_cpu=False)
    assert choose_precision(wanted, use_cpu=True) == "bf16"


def test_what_accelerate_config_says_of_the_training_does_not_count(monkeypatch, process_as_it_was):
    """As its default_config.yaml reaches a process."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    accelerator = hardware.make_accelerator(Config(precision="no"))
    model = accelerator.prepare(torch.nn.Linear(1, 1))
    assert isinstance(model, torch.nn.Linear)
    accelerator.backward(model(torch.ones(1, 1)).sum())
    assert model.weight.grad.item() == 1


@pytest.mark.parametrize("name", ["DEEPSPEED", "FSDP", "MEGATRON_LM"])
def test_what_the_trainer_cannot_do_with_accelerate_is_refused(monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(InputError, match=f"asks for {name}: not supported; .*--config_file"):
        hardware.make_accelerator(Config())


def test_a_cpu_that_the_launcher_asks_for_counts_where_there_is_a_gpu(monkeypatch, process_as_it_was):
    """accelerate launch --cpu, or use_cpu in the user's configuration."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(InputError, match="--precision fp16"):
        hardware.make_accelerator(Config(precision="fp16"))


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 processes on this machine, which has 1 GPUs"):
        hardware.make_accelerator(Config())


@pytest.mark.parametrize("launcher", ["no", "fp16"])
def test_fp16_on_a_cpu_is_refused_wherever_it_was_asked_for(monkeypatch, launcher):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    with pytest.raises(InputError, match="--precision fp16"):
        choose_precision("fp16" if launcher == "no" else "auto", use_cpu=True)


def printed_by_a_process(code: str, **environment: str) -> int:
    """The number that `code` prints last, in a process that has made its Accelerator."""
    before = (
        "import torch; from training.config import Config; from training.hardware import make_accelerator;"
        "make_accelerator(Config());"
    )
    done = subprocess.run(
        [sys.executable, "-c", before + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    return int(done.stdout.split()[-1])


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system does not tell the allowed cores")
@pytest.mark.skipif(torch.cuda.is_available(), reason="of a CPU")
def test_threads_are_the_allowed_cores_not_the_launchers_one():
    printed = printed_by_a_process("print(torch.get_num_threads())", OMP_NUM_THREADS="1")
    assert printed == len(os.sched_getaffinity(0))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
@pytest.mark.skipif(torch.cuda.is_available(), reason="of a CPU")
def test_the_memory_of_a_freed_tensor_is_kept_for_the_next():
    code = (
        "import psutil; own = psutil.Process(); tensor = torch.ones(2**28, dtype=torch.uint8);"
        "held = own.memory_info().rss; del tensor; print(held - own.memory_info().rss)"
    )
    assert printed_by_a_process(code) < 2**20


def test_a_gpu_leaves_the_cpu_no_work_for_several_threads(monkeypatch, process_as_it_was):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(hardware, "Accelerator", lambda **settings: settings)
    torch.set_num_threads(2)
    hardware.make_accelerator(Config(precision="no"))
    assert torch.get_num_threads() == 1


@pytest.fixture
def only_process(monkeypatch, process_as_it_was):
    """As torchrun starts one process alone."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        **where,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a CPU")
def test_threads_are_the_allowed_cores_also_in_torchruns_only_process(only_process, monkeypatch):
    monkeypatch.setattr(hardware, "allowed_cores", lambda: 3)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: None)  # on some systems it does not know
    accelerator = hardware.make_accelerator(Config(precision="no"))
    assert (accelerator.num_processes, accelerator.distributed_type) == (1, "MULTI_CPU")
    assert torch.get_num_threads() == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a CPU")
def test_a_launchers_only_process_trains_without_ddp(only_process, tiny_run, train_here, monkeypatch):
    """Which could not be captured as a CUDA graph; and to the same bits as without a launcher."""
    trained = []
    monkeypatch.setattr(
        Trainer, "lr", lambda trainer, step, lr=Trainer.lr: trained.append(trainer) or lr(trainer, step)
    )
    run = train_here("run", "--log-every", 1)
    assert trained[0].accelerator.distributed_type == "MULTI_CPU"
    assert trained[0].model is trained[0].network
    assert_same_run(run, tiny_run)


def test_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr(hardware, "allowed_cores", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert hardware.threads_per_process() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert hardware.threads_per_process() == 1


def test_deterministic_runs_keep_nccl_from_adding_in_the_switch(process_as_it_was):
    os.environ.pop("NCCL_NVLS_ENABLE", None)
    hardware.set_determinism(False, compiles=False)
    assert "NCCL_NVLS_ENABLE" not in os.environ
    hardware.set_determinism(True, compiles=False)
    assert os.environ["NCCL_NVLS_ENABLE"] == "0"


def test_determinism_is_told_to_torch_and_its_compiler(process_as_it_was):
    for deterministic in (True, False):
        hardware.set_determinism(deterministic, compiles=False)
        assert torch.are_deterministic_algorithms_enabled() == deterministic
    for deterministic in (True, False):
        hardware.set_determinism(deterministic, compiles=True)
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        assert torch._inductor.config.deterministic == deterministic
