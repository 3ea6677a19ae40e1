"""Processes, precision and threads: what a script asks of the machine before it starts; and what it ran on."""

import ctypes
import ipaddress
import os
import platform
import shutil
import socket
import subprocess
import warnings
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    TorchDynamoPlugin,
    parse_flag_from_env,
)

from data.decode import allowed_cores
from data.errors import InputError
from training.config import ROOT, Config

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def make_accelerator(config: Config) -> Accelerator:
    """The Accelerator of this process: all of the launcher's GPUs, or the CPU where there is none."""
    for name in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise InputError(
                f"accelerate's configuration asks for {name}: not supported; give accelerate launch "
                "--config_file accelerate_config.yaml, or choose none of it in `accelerate config`"
            )
    use_cpu = not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")  # launch --cpu
    if not use_cpu and local_processes() > torch.cuda.device_count():
        raise InputError(
            f"--num_processes: {local_processes()} processes on this machine, which has "
            f"{torch.cuda.device_count()} GPUs; start one for each GPU at most"
        )
    # torch 2.15 renames the option used below; its successor is not in the versions before, nor in accelerate
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    if use_cpu:
        # For Accelerate, which would otherwise choose for torchrun's processes, by the machine's cores.
        os.environ.setdefault("OMP_NUM_THREADS", str(threads_per_process()))
    set_up_process(use_cpu, config.deterministic, config.compile)
    precision = choose_precision(config.precision, use_cpu)
    timeout = timedelta(seconds=config.peer_timeout)
    _choose_network()
    _meet_after_a_restart("gloo" if use_cpu else "nccl", timeout)
    return Accelerator(
        cpu=use_cpu,
        mixed_precision=precision,
        # The flags say both, whatever the user's `accelerate config` does.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_plugin=TorchDynamoPlugin(backend="no"),
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timeout),
            # Running statistics do not enter training: rank 0's are broadcast before each evaluation instead.
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
        ],
    )


def _choose_network() -> None:
    """Let gloo, on several machines, use the network that the first machine's address is in.

    It would take the address of the machine's own name, which on many is 127.0.1.1: nothing that others can reach.
    """
    several_machines = int(os.environ.get("WORLD_SIZE", "1")) > local_processes()
    if not several_machines or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    with suppress(OSError, ValueError):  # an unknown name, or no IPv4 address: then gloo's own choice stands
        first = ipaddress.IPv4Address(socket.gethostbyname(os.environ["MASTER_ADDR"]))
        for name, addresses in psutil.net_if_addrs().items():
            own = [each for each in addresses if each.family == socket.AF_INET and each.netmask]
            networks = [ipaddress.IPv4Network(f"{each.address}/{each.netmask}", strict=False) for each in own]
            if any(first in network for network in networks) and not first.is_loopback:
                os.environ["GLOO_SOCKET_IFNAME"] = name


def _meet_after_a_restart(backend: str, timeout: timedelta) -> None:
    """Form the process group under names of its own when torchrun has restarted the processes.

    They meet in a store of torchrun's agent that outlives them. It still holds the addresses of the processes
    before: the new ones would try to reach those (pytorch/pytorch#135712).
    """
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if not restarts or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.PrefixStore(f"restart-{restarts}", dist.TCPStore(address, port, timeout=timeout))
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def choose_precision(wanted: str, use_cpu: bool) -> str:
    """ "no", "fp16" or "bf16".

    `accelerate launch` says "no" both when it was told so and when it was told nothing, so that "auto" takes
    only its fp16 and bf16 as a choice.
    """
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if wanted == "auto" and launcher in ("fp16", "bf16"):
        wanted = launcher
    if wanted == "auto":
        return "bf16" if has_bf16(use_cpu) else "no"
    if wanted == "fp16" and use_cpu:
        raise InputError("--precision fp16: the CPU does not train in fp16; use --precision bf16 or no")
    if wanted == "bf16" and not use_cpu and not has_bf16(use_cpu):  # emulated it is slower than fp32
        raise InputError("--precision bf16: this GPU has no bf16; use --precision fp16 or no")
    return wanted


def has_bf16(use_cpu: bool) -> bool:
    """Whether the hardware multiplies in bf16, rather than emulating it."""
    if not use_cpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def local_processes() -> int:
    """The processes of this job on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def threads_per_process() -> int:
    return max(1, allowed_cores() // local_processes())


def set_up_process(use_cpu: bool, deterministic: bool, compiles: bool) -> None:
    """What a process that trains or evaluates asks of torch and the system."""
    set_threads(use_cpu)
    if use_cpu:
        keep_freed_memory()
    set_determinism(deterministic, compiles)


def set_threads(use_cpu: bool) -> None:
    """Give torch this process' share of the allowed cores; `accelerate launch` would leave it one thread.

    Where a GPU computes one is enough: to sort the order of an epoch, most of what is left to the CPU, takes it
    2 ms, and several threads, where cores are busy, up to a hundred times that.

    Where nothing is said of threads the user's OMP_NUM_THREADS cannot be told from the launcher's, so that the
    cores allowed to the process (taskset, a container's cpuset) are what limits it.
    """
    torch.set_num_threads(threads_per_process() if use_cpu else 1)


def keep_freed_memory() -> None:
    """Let glibc keep for the next tensors what freed ones leave; other C libraries are left as they are.

    By itself it returns each large block to the system, which clears its pages anew when they are next written: a
    third of the time of reading and augmenting images (python -m benchmarks.defaults).
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
        ctypes.CDLL(None).mallopt(trim_threshold, 2**31 - 1)
        ctypes.CDLL(None).mallopt(mmap_threshold, 2**30)


def set_determinism(deterministic: bool, compiles: bool) -> None:
    """The same bits again, or the fastest algorithms.

    compiles: whether a network is to be compiled. torch.compile is told then, too, for which torch imports it.
    """
    if compiles:
        torch.use_deterministic_algorithms(deterministic)
    else:
        torch.set_deterministic_debug_mode("error" if deterministic else "default")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Sums in NVSwitch are not the same twice (NVIDIA/nccl#1497). torch forbids NVLS alone, not NVLSTree.
        os.environ.setdefault("NCCL_NVLS_ENABLE", "0")


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor_name()}, {torch.get_num_threads()} threads"


def _processor_name() -> str:
    """With family and model where Linux tells them: of a virtual machine's "AMD EPYC" there are many."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
        found = {name.strip(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
        return "{model name} (family {cpu family}, model {model})".format(**found)
    except (OSError, ValueError, KeyError):
        return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of what the results depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "accelerate", "numpy", "ffcv"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> dict[str, Any]:
    """The checkout's commit, and whether anything but results differs from it; None outside of a checkout."""

    if shutil.which("git") is None:
        return {"commit": None, "dirty": None}

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    changes = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}
