"""What several test files share: a tiny run, and the scripts as a user starts them."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import psutil
import pytest
import torch
import wandb
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from filelock import FileLock

import resnet.resnet
from tests.light.sitecustomize import NARROW
from training.config import parse_config
from training.stopping import SIGNALS, StopRequest

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--dataset", "folder", "--stem", "imagenet", "--epochs", "2", "--batch-size", "12", "--lr", "0.02"]
TINY += ["--loader", "resident", "--precision", "no", "--tracker", "none", "--schedule", "triangle"]
"""Flags of a run of seconds on `images`."""

# For the processes that tests start. Those of pytest-xdist begin with what is set here.
LIGHT_FOLDER = str(ROOT / "tests" / "light")
PATHS = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", LIGHT_FOLDER)]
PATHS = list(dict.fromkeys([str(ROOT), *PATHS]))
os.environ["PYTHONPATH"] = os.pathsep.join([LIGHT_FOLDER, *PATHS])
resnet.resnet.WIDTHS = NARROW


def command(*arguments: object, processes: int = 0, launch: Sequence[object] = ()) -> list[str]:
    """The command line of a script as a user would start it; 0 processes: without a launcher.

    launch: more flags of the launcher.
    """
    launcher: list[object] = []
    if processes:
        launcher = ["-m", "accelerate.commands.accelerate_cli", "launch"]
        launcher += ["--config_file", "accelerate_config.yaml", "--num_processes", processes]
        launcher += ["--main_process_port", free_port(), *launch]
    return [sys.executable, *map(str, [*launcher, *arguments])]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    """Wait for what a running process is to bring about; fail when it ends before."""
    while not condition():
        assert process.poll() is None, "the process ended before"
        time.sleep(0.01)


def family(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """A process and all that descend from it, the youngest first."""
    parent = psutil.Process(process.pid)
    return [*reversed(parent.children(recursive=True)), parent]


def run_script(*arguments: object, processes: int = 0) -> "subprocess.CompletedProcess[str]":
    """Run a script of the suite in the repository, to its end."""
    return subprocess.run(
        command(*arguments, processes=processes), cwd=ROOT, capture_output=True, text=True, timeout=600
    )


def call_main(main: Callable[[], None], *arguments: object) -> object:
    """Call a script's main as if it had been started with these arguments; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{main.__module__}.py", *map(str, arguments)])
        try:
            main()
        except SystemExit as ended:
            return ended.code
    return 0


@pytest.fixture
def full_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the networks themselves: here and in the processes that are started, of the width they have."""
    monkeypatch.setattr(resnet.resnet, "WIDTHS", (64, 128, 256, 512))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(PATHS))


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Makes a folder of a name, which it gives to a function to fill, once for all of pytest-xdist's processes."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder, filled = shared / name, shared / f"{name}.filled"
        with FileLock(shared / f"{name}.lock"):
            if not filled.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what a fill that failed has left
                fill(folder)
                filled.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def images(made_once: Callable[..., Path]) -> Path:
    """The drawn shapes, few, in Kaggle's layout: 160 training and 41 test images, with test labels."""
    from data.shapes import write_kaggle

    return made_once("shapes", lambda folder: write_kaggle(folder, seed=0, train_count=160, test_count=41))


@pytest.fixture(scope="session")
def train_tiny(images: Path, made_once: Callable[..., Path]) -> Callable[..., Path]:
    """Train on `images` through train.py; returns the run's folder."""

    def train(name: str, *flags: object, processes: int = 0) -> Path:
        def run(folder: Path) -> None:
            where = ["--data-dir", images, "--cache-dir", images.with_name("cache")]
            where += ["--runs-dir", folder.parent, "--name", name]
            done = run_script("train.py", *TINY, *where, *flags, processes=processes)
            assert done.returncode == 0, done.stderr

        return made_once(name, run)

    return train


@pytest.fixture(scope="session")
def tiny_run(train_tiny: Callable[..., Path]) -> Path:
    """A finished run, for tests that only read it."""
    return train_tiny("tiny", "--log-every", 1)


@pytest.fixture(scope="session")
def pair(train_tiny: Callable[..., Path]) -> Path:
    """The same, finished, with two processes."""
    return train_tiny("pair", "--log-every", 1, processes=2)


@pytest.fixture(scope="session")
def three(train_tiny: Callable[..., Path]) -> Path:
    """The same, finished, with three processes and the loader that auto chooses."""
    return train_tiny("three", "--log-every", 1, "--loader", "auto", processes=3)


@pytest.fixture
def process_as_it_was() -> Iterator[None]:
    """For scripts called in this process, which they take for theirs.

    Threads, determinism, signals, environment and Accelerate's state are afterwards as they were.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    environment = os.environ.copy()
    signals = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGUSR2)}
    forget_accelerate()
    yield
    forget_accelerate()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    os.environ.clear()
    os.environ.update(environment)
    for number, handler in signals.items():
        signal.signal(number, handler)


def forget_accelerate() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def train_here(images: Path, tmp_path: Path, process_as_it_was: None) -> Callable[..., Path]:
    """Trains as `train_tiny` does, but in this process: most of a second one's time are its imports."""
    from train import train

    def run(name: str, *flags: object) -> Path:
        forget_accelerate()
        where = ["--data-dir", images, "--runs-dir", tmp_path, "--cache-dir", tmp_path / "cache", "--name", name]
        train(parse_config([*map(str, [*TINY, *where, *flags])]), StopRequest())
        return tmp_path / name

    return run


def import_ffcv_loader() -> ModuleType:
    """data/ffcv_loader.py. Without FFCV the test is skipped; that another module is missing fails it."""
    if find_spec("ffcv") is None:
        pytest.skip("FFCV is not installed", allow_module_level=True)
    from data import ffcv_loader

    return ffcv_loader


@pytest.fixture
def ffcv_loader() -> ModuleType:
    return import_ffcv_loader()


@pytest.fixture
def wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, and nothing of what another test did to W&B."""
    PartialState(cpu=True)  # Accelerate's trackers ask for it
    wandb.teardown()  # its service outlives a run, and what happened to it in another test; children would use it
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_SERVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
