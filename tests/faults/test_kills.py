"""A run that is killed again and again, at any moment, ends as one that was left alone."""

import os
import random
import shutil
import subprocess
import sys
import uuid

import psutil
import pytest
import torch

from tests.conftest import ROOT, TINY, command, import_ffcv_loader, run_script
from tests.jobs import kill_job, nobodys_shared_memory, processes_of
from tests.test_train import assert_same_run

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="would take the GPUs of this machine instead")

KILLS = int(os.environ.get("KILLS", "4"))  # make test-faults: 25
MOMENTS = [  # the moment, how often it may pass, who is killed; make test sees the first four
    ("decode", 3, "all"),
    ("weights", 1, "first"),
    ("second", 12, "launcher"),  # a moment of the clock, from outside; the others have to end by themselves
    ("step", 4, "all"),
    ("beton", 1, "all"),
    ("checkpoint", 2, "all"),
    ("validation", 1, "last"),
    ("step", 4, "last"),
    ("second", 12, "all"),
    ("cache", 3, "all"),
    ("file", 4, "all"),
    ("checkpoint", 1, "first"),
    ("step", 4, "first"),
    ("validation", 1, "all"),
]
BUILDING = ("decode", "cache", "beton")


def start(arguments: list[object], kill: str | None = None) -> "subprocess.CompletedProcess[str]":
    """Run the job to its end, or to the moment and count of `kill`; no process of it is left then."""
    mark = str(uuid.uuid4())
    environment = os.environ | {"JOB": mark} | ({"KILL": kill} if kill else {})
    job = subprocess.Popen(
        command("tests/faults/killed_train.py", *arguments, processes=2),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    moment, count, scope = kill.split() if kill else ("", "0", "")
    try:
        out, err = job.communicate(timeout=float(count) if moment == "second" else 300)
    except subprocess.TimeoutExpired:
        if scope == "launcher":
            job.kill()
        else:
            kill_job(mark)
        out, err = job.communicate(timeout=60)
        err += f"killed {moment}"
    assert not psutil.wait_procs(processes_of(mark), timeout=60)[1], "a process outlived its job"
    return subprocess.CompletedProcess(job.args, job.returncode, out, err)


def test_a_run_killed_many_times_ends_as_one_left_alone(images, tmp_path):
    import_ffcv_loader()
    epochs = 2 + KILLS // 2
    flags = [*TINY, "--epochs", epochs, "--log-every", 1, "--checkpoint-every-steps", 3, "--data-dir", images]
    flags += ["--loader", "ffcv"]
    whole = ["--runs-dir", tmp_path / "whole", "--cache-dir", tmp_path / "whole-cache", "--name", "run"]
    done = run_script("train.py", *flags, *whole, processes=2)
    assert done.returncode == 0, done.stderr
    shared_memory = nobodys_shared_memory()

    choice = random.Random(KILLS)
    killed, cache = tmp_path / "killed", tmp_path / "cache"
    arguments = [*flags, "--runs-dir", killed, "--cache-dir", cache, "--name", "run"]
    for number in range(KILLS):
        moment, most, scope = MOMENTS[number % len(MOMENTS)]
        if moment in BUILDING:
            shutil.rmtree(cache, ignore_errors=True)
        kill = f"{moment} {choice.randint(1, most)} {scope}"
        ended = start(arguments, kill)
        print(f"{number + 1}: {kill}", file=sys.stderr)
        assert ended.returncode != 0, "the run ended before it could be killed"
        assert f"killed {moment}" in ended.stderr, ended.stderr
        assert "damaged" not in ended.stderr

    ended = start(arguments)
    assert ended.returncode == 0, ended.stderr
    assert "damaged" not in ended.stderr
    assert "resuming after step" in ended.stdout
    assert_same_run(killed / "run", tmp_path / "whole/run")
    assert [path for folder in (killed, cache) for path in folder.rglob("*.tmp")] == []
    assert nobodys_shared_memory() <= shared_memory
    names = {path.relative_to(killed) for path in killed.rglob("*")}
    assert names == {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*")}
