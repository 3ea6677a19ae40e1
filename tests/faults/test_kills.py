"""A run that is killed again and again, at any moment, ends as one that was left alone."""

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from tests.conftest import ROOT, TINY, command, run_script
from tests.test_train import rows, summary, without_times

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="would take the GPUs of this machine instead")

KILLS = int(os.environ.get("KILLS", "4"))  # make test-faults: 25
MOMENTS = [  # the moment, how often it may pass, who is killed
    ("step", 4, "all"),
    ("checkpoint", 2, "all"),
    ("cache", 3, "all"),
    ("validation", 1, "last"),
    ("second", 12, "all"),  # a moment of the clock, from outside
    ("step", 4, "last"),
    ("weights", 1, "first"),
    ("file", 4, "all"),
    ("checkpoint", 1, "first"),
    ("step", 4, "first"),
    ("validation", 1, "all"),
]


def start(arguments: list[object], kill: str | None = None) -> "subprocess.CompletedProcess[str]":
    """Run the job to its end, or to the moment and count of `kill`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | ({"KILL": kill} if kill else {})
    job = subprocess.Popen(
        command("tests/faults/killed_train.py", *arguments, processes=2),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that the whole group can be killed
    )
    moment, count = kill.split()[:2] if kill else ("", "0")
    try:
        out, err = job.communicate(timeout=float(count) if moment == "second" else 300)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        out, err = job.communicate()
        err += f"killed {moment}"
    return subprocess.CompletedProcess(job.args, job.returncode, out, err)


def processes_of(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if process.info["cmdline"] and any(str(folder) in part for part in process.info["cmdline"]):
            found.append(process)
    return found


def test_a_run_killed_many_times_ends_as_one_left_alone(images, tmp_path):
    epochs = 2 + KILLS // 2
    flags = [*TINY, "--epochs", epochs, "--log-every", 1, "--checkpoint-every-steps", 3, "--data-dir", images]
    whole = ["--runs-dir", tmp_path / "whole", "--cache-dir", tmp_path / "whole-cache", "--name", "run"]
    done = run_script("train.py", *flags, *whole, processes=2)
    assert done.returncode == 0, done.stderr
    shared_memory = set(os.listdir("/dev/shm"))

    choice = random.Random(KILLS)
    killed, cache = tmp_path / "killed", tmp_path / "cache"
    arguments = [*flags, "--runs-dir", killed, "--cache-dir", cache, "--name", "run"]
    for number in range(KILLS):
        moment, most, scope = MOMENTS[number % len(MOMENTS)]
        if moment == "cache":
            shutil.rmtree(cache, ignore_errors=True)
        kill = f"{moment} {choice.randint(1, most)} {scope}"
        ended = start(arguments, kill)
        print(f"{number + 1}: {kill}", file=sys.stderr)
        assert ended.returncode != 0, "the run ended before it could be killed"
        assert f"killed {moment}" in ended.stderr, ended.stderr
        assert "damaged" not in ended.stderr
        left = psutil.wait_procs(processes_of(killed), timeout=60)[1]
        assert not left, "a process outlived its job"

    ended = start(arguments)
    assert ended.returncode == 0, ended.stderr
    assert "damaged" not in ended.stderr
    assert summary(killed / "run")["weights_sha256"] == summary(tmp_path / "whole/run")["weights_sha256"]
    for kind in ("step", "epoch"):
        assert without_times(rows(killed / "run", kind)) == without_times(rows(tmp_path / "whole/run", kind))
    assert [path for folder in (killed, cache) for path in folder.rglob("*.tmp")] == []
    assert set(os.listdir("/dev/shm")) <= shared_memory
    names = {path.relative_to(killed) for path in killed.rglob("*")}
    assert names == {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*")}
