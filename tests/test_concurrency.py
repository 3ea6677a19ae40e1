"""Trainings that start together: on one cold cache, and under one name."""

import signal
import subprocess
from collections.abc import Callable
from threading import Event
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import ROOT, TINY, command, run_script, wait_until
from tests.test_train import summary
from training import recorder
from training.checkpoint import BackgroundWriter
from training.config import Config

PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def test_four_trainings_on_one_cold_cache(images, tmp_path):
    """One of them builds it (test_prepared.py counts the builders), all go on to the same result."""
    where = ["--data-dir", images, "--runs-dir", tmp_path / "runs", "--cache-dir", tmp_path / "cache"]
    flags = [*TINY, "--epochs", 1, *where]
    jobs = [
        subprocess.Popen(
            command("train.py", *flags, "--loader", loader, "--name", f"run{number}"), cwd=ROOT, **PIPES
        )
        for number, loader in enumerate(["auto", "resident", "auto", "resident"])  # auto: with a .beton, too
    ]
    for job in jobs:
        _, told = job.communicate(timeout=300)
        assert (job.returncode, told) == (0, "")
    assert len({summary(run)["weights_sha256"] for run in (tmp_path / "runs").iterdir()}) == 1
    (cache,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    assert not [path for path in cache.iterdir() if "tmp" in path.name]


@pytest.mark.parametrize("processes", [0, 2])
def test_a_name_in_use_is_refused_and_that_of_a_dead_process_taken_over(images, tmp_path, processes):
    where = ["--data-dir", images, "--runs-dir", tmp_path, "--cache-dir", tmp_path / "cache", "--name", "run"]
    arguments = ["train.py", *TINY, "--checkpoint-every-steps", 2, *where]
    first = subprocess.Popen(command(*arguments), cwd=ROOT, **PIPES)
    wait_until((tmp_path / "run/checkpoints/step-00000002.pt").exists, first)
    first.send_signal(signal.SIGSTOP)  # it holds the name for as long as the second takes
    second = run_script(*arguments, processes=processes)
    assert second.returncode == (1 if processes else 2)
    refusals = [line for line in second.stderr.splitlines() if line.startswith("error")]
    assert len(refusals) == 1
    assert f"--name run: pid {first.pid} on " in refusals[0]

    first.kill()
    first.communicate()
    if processes:
        return
    assert (tmp_path / "run/.pid").exists()  # of the dead process
    third = run_script(*arguments)
    assert third.returncode == 0, third.stderr
    assert "resuming after step" in third.stdout
    assert not (tmp_path / "run/.pid").exists()


@pytest.fixture
def happened(monkeypatch) -> list[str]:
    """What a run does, and that a checkpoint was written: it is, as soon as somebody waits for it."""
    found, asked = [], Event()

    def take(*_) -> Callable[[], None]:
        def write() -> None:
            asked.wait(10)
            found.append("written")

        return write

    wait = BackgroundWriter.wait

    def wait_for_it(writer) -> None:
        if writer._written:
            asked.set()
        wait(writer)

    monkeypatch.setattr(recorder, "take_checkpoint", take)
    monkeypatch.setattr(BackgroundWriter, "wait", wait_for_it)
    yield found
    asked.set()


TRAINER = SimpleNamespace(progress=SimpleNamespace(step=1))


@pytest.fixture
def run(tmp_path, happened) -> recorder.Recorder:
    """With one checkpoint that is being written."""
    on_cpu = SimpleNamespace(device=torch.device("cpu"))
    run = recorder.Recorder(Config(name="mine", runs_dir=str(tmp_path)), None, on_cpu)
    file = SimpleNamespace(lines=[])
    run.tracking = SimpleNamespace(file=file, log=lambda *_: happened.append("logged"), finish=lambda **_: None)
    run.checkpoint(TRAINER, {})
    return run


def test_a_run_that_fails_holds_its_name_until_its_last_checkpoint_is_written(run, happened, monkeypatch):
    run._take_lock()
    monkeypatch.setattr(run.lock, "release", lambda: happened.append("released"))
    run.close()
    assert happened == ["written", "released"]


def test_the_best_weights_are_on_disk_before_the_checkpoint_that_names_them(run, happened):
    run.best = lambda: happened.append("best weights written")
    run.checkpoint(TRAINER, {})
    run.checkpoint(TRAINER, {})
    run.close()
    assert happened == ["written", "best weights written", "written", "written"]


@pytest.mark.parametrize(("kind", "expected"), [("epoch", ["written", "logged"]), ("step", ["logged"])])
def test_an_epoch_has_its_row_when_the_one_before_has_its_checkpoint(run, happened, kind, expected):
    """Or the run could end with two epochs' rows and no checkpoint, as one whose checkpoints were removed."""
    run.log(
        {"kind": kind, "epoch": 2, "train_loss": 1, "train_accuracy": 0.5, "images_per_second": 1, "seconds": 1}
    )
    assert happened == expected
