"""SIGTERM, SIGINT and SIGHUP: a checkpoint at the next step boundary, the exit code, and nobody left behind."""

import functools
import os
import signal
import socket
import subprocess
import sys

import psutil
import pytest
import torch

from tests.conftest import ROOT, TINY, command, family, run_script, wait_until
from tests.test_tracking import logged, wandb_records
from training.checkpoint import load_newest_checkpoint

SECONDS = 10  # from the signal to the end


@pytest.fixture
def start(images, tmp_path):
    """Start a long run in a session of its own, wait until it trains; what it leaves over is killed."""
    started = []

    def run(*flags, processes=0, launcher=None, **how):
        where = ["--data-dir", images, "--runs-dir", tmp_path, "--cache-dir", tmp_path / "cache", "--name", "run"]
        arguments = ["train.py", *TINY, "--epochs", 100, "--log-every", 1, *where, *flags]
        job = command(*arguments, processes=processes)
        if launcher:
            job = [*launcher, *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(job, cwd=ROOT, start_new_session=True, **(pipes | how))
        started.append(process)
        wait_until((tmp_path / "run/metrics.jsonl").exists, process)
        return process

    yield run
    for process in started:
        for left in family(process) if process.poll() is None else []:
            left.kill()


def stopped_at(tmp_path) -> int:
    return load_newest_checkpoint(tmp_path / "run/checkpoints")["progress"]["step"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_with_a_checkpoint_and_the_records_of_wandb(start, tmp_path, number, code):
    process = start("--tracker", "wandb")
    process.send_signal(number)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == code
    step = stopped_at(tmp_path)
    assert f"stopped by {number.name} after step {step}; the same command goes on from there" in out
    assert "Traceback" not in err
    recorded = [row["step"] for row in logged(wandb_records(tmp_path / "run"))]
    assert recorded[-1] in (step, step - 1)  # the row of the last step, unless the signal came before it
    assert not (tmp_path / "run/.pid").exists()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="the system has no terminals that hang up")
def test_a_terminal_that_goes_away_ends_the_run_with_a_checkpoint(start, tmp_path):
    """As an ssh session that is cut off: SIGHUP, and nobody reads what the run says."""
    ours, terminal = os.openpty()
    taken = functools.partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)  # nohup may have started the tests
    process = start("--tracker", "none", stdout=terminal, stderr=terminal, preexec_fn=taken)
    os.close(terminal)
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=SECONDS) == 129
    assert stopped_at(tmp_path) > 0


NOHUP = """
import os, signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from training.stopping import StopRequest
request = StopRequest()
os.kill(os.getpid(), signal.SIGHUP)
request.defer()
os.kill(os.getpid(), signal.SIGHUP)
print(request.signal_number)
"""


STARTED_BY_ANOTHER = """
import os, signal, types
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from training import jobs
class Process:
    def __init__(self, *_, **how):
        os.kill(os.getpid(), signal.SIGHUP)
    def wait(self):
        return 0
jobs.subprocess = types.SimpleNamespace(Popen=Process)
print(jobs.start([], 1))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="the system has no terminals that hang up")
@pytest.mark.parametrize("code", [NOHUP, STARTED_BY_ANOTHER], ids=["train.py", "what reproduce.py starts"])
def test_nohup_is_respected(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_nothing_that_is_said_to_a_terminal_that_has_gone_is_an_error():
    ours, terminal = os.openpty()
    code = "import sys; input(); from training.cli import tell; tell('x'); print('y', file=sys.stderr, flush=True)"
    job = [sys.executable, "-c", code]
    with subprocess.Popen(job, cwd=ROOT, stdin=subprocess.PIPE, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        os.close(ours)
        process.communicate(b"\n", timeout=100)
    assert process.returncode == 0


def test_a_signal_while_wandb_waits_for_its_server_ends_the_run(images, tmp_path):
    """The server takes the call and never answers."""
    where = ["--data-dir", images, "--runs-dir", tmp_path, "--cache-dir", tmp_path / "cache", "--name", "run"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        silent = {"WANDB_BASE_URL": f"http://127.0.0.1:{server.getsockname()[1]}", "WANDB_API_KEY": "0" * 40}
        job = command("train.py", *TINY, *where, "--tracker", "wandb")
        with subprocess.Popen(
            job, cwd=ROOT, env=os.environ | silent, stderr=subprocess.PIPE, text=True
        ) as process:
            connection, _ = server.accept()
            started = family(process)
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=SECONDS)
            connection.close()
    assert process.returncode == 143, err
    assert "Traceback" not in err
    assert not psutil.wait_procs(started, timeout=SECONDS)[1]


TWICE = """
import os, signal, train
from training.engine import Trainer
train_step = Trainer.train_step
def signalled(trainer, batches):
    train_step(trainer, batches)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError("the second signal did not end the process")
Trainer.train_step = signalled
train.main()
"""


def test_a_second_signal_ends_the_run_at_once(images, tmp_path):
    where = ["--data-dir", images, "--runs-dir", tmp_path, "--cache-dir", tmp_path / "cache", "--name", "run"]
    job = [sys.executable, "-c", TWICE, *map(str, [*TINY, *where])]
    done = subprocess.run(job, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 143
    assert load_newest_checkpoint(tmp_path / "run/checkpoints") is None


THREE_TIMES = """
import os, signal, sys, time, types
sys.path.insert(0, os.getcwd())
import train
from training import stopping
from training.engine import Trainer
def signalled(trainer, batches):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    print("two at the same time are one", flush=True)
    stopping.time = types.SimpleNamespace(monotonic=lambda: time.monotonic() + 1)
    os.kill(os.getpid(), signal.SIGINT)
    print("the second signal did not end the process", flush=True)
Trainer.train_step = signalled
train.main()
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="would take the GPUs of this machine instead")
def test_a_second_signal_a_second_later_ends_launched_processes_at_once(images, tmp_path):
    script = tmp_path / "signalled.py"
    script.write_text(THREE_TIMES)
    where = ["--data-dir", images, "--runs-dir", tmp_path, "--cache-dir", tmp_path / "cache"]
    done = run_script(script, *TINY, *where, processes=2)
    assert done.returncode == 1  # the launcher's
    assert "(exitcode: 130)" in done.stderr
    assert "two at the same time are one" in done.stdout
    assert "did not end" not in done.stdout
    assert not list(tmp_path.rglob("*.pt"))


def test_a_signal_before_training_ends_in_order(images, tmp_path):
    """While the images are decoded: the exit code, and no half-built cache."""
    code = "import os, signal, data.prepared as p, train\n"
    code += "def decode(*_):\n    os.kill(os.getpid(), signal.SIGTERM); yield\n"
    code += "p.decode_stream = decode\ntrain.main()"
    where = ["--data-dir", images, "--runs-dir", tmp_path / "runs", "--cache-dir", tmp_path / "cache"]
    job = [sys.executable, "-c", code, *map(str, [*TINY, *where])]
    done = subprocess.run(job, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (143, "")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="would take the GPUs of this machine instead")
@pytest.mark.parametrize("processes", [1, 2])
def test_the_end_of_the_launcher_ends_its_processes_with_a_checkpoint(start, tmp_path, processes):
    """One process: the launcher dies of SIGTERM at once, without a word to its process."""
    if processes == 1:
        launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
        process = start("--epochs", 100, launcher=launcher)
    else:
        process = start(processes=processes)
    trainers = [found for found in family(process) if found.pid != process.pid]
    assert len(trainers) == processes
    process.terminate()
    _, alive = psutil.wait_procs(trainers, timeout=SECONDS)
    assert not alive
    out, _ = process.communicate(timeout=SECONDS)
    assert f"stopped by SIGTERM after step {stopped_at(tmp_path)}" in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="would take the GPUs of this machine instead")
def test_ctrl_c_on_several_processes_is_one_signal_though_it_reaches_them_twice(start, tmp_path):
    """From the terminal, and passed on by the launcher."""
    process = start(processes=2)
    trainers = family(process)
    os.killpg(process.pid, signal.SIGINT)
    _, alive = psutil.wait_procs(trainers[:-1], timeout=SECONDS)
    assert not alive
    out, _ = process.communicate(timeout=SECONDS)
    assert f"stopped by SIGINT after step {stopped_at(tmp_path)}" in out


TOGETHER = """
import os, signal
from training.stopping import StopRequest
request = StopRequest()
request.defer()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR2])
os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGUSR2)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGUSR2])
print(request.signal_number)
"""


def test_a_signal_and_the_launchers_death_by_it_are_one_signal():
    environment = os.environ | {"ACCELERATE_MIXED_PRECISION": "no"}
    job = [sys.executable, "-c", TOGETHER]
    done = subprocess.run(job, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, f"{signal.SIGTERM:d}\n"), done.stderr


LATE = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    pass
from training.stopping import StopRequest
try:
    StopRequest()
except SystemExit as ended:
    print(ended.code)
"""
SHORT_LIVED = "import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())])"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process of its parent's death")
def test_a_process_whose_launcher_has_died_before_it_could_ask_to_be_told_ends():
    environment = os.environ | {"ACCELERATE_MIXED_PRECISION": "no"}
    job = [sys.executable, "-c", SHORT_LIVED, LATE]
    done = subprocess.run(job, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert done.stdout == "143\n", done.stderr  # the pipe is open until the orphan has ended
    assert done.stderr == "error: what has launched this process has ended\n"
