"""Several machines: network namespaces, each with its own address on one network, started as machines are.

The namespaces share this machine's disk, as machines of a cluster share theirs.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator

import psutil
import pytest
import torch

from tests.conftest import ROOT, TINY, command, family, wait_until
from tests.test_train import assert_same_run

TIMEOUT_S = 20  # --peer-timeout; as long as a busy machine may make a process wait
ENDING_S = 60  # what a busy machine may take besides: for the work before it waits for others, and for its end


def ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True, capture_output=True)


def on_own_cores(number: int, count: int) -> list[str]:
    """As many cores as a process has when `count` share this machine: another number gives other bits."""
    cores, each = sorted(os.sched_getaffinity(0)), max(1, len(os.sched_getaffinity(0)) // count)
    own = [cores[(number * each + offset) % len(cores)] for offset in range(each)]
    return ["taskset", "--cpu-list", ",".join(map(str, own))]


class Machines:
    """Namespaces <name>1, <name>2, ... with the addresses 10.77.0.1, 10.77.0.2, ..., joined by a bridge."""

    def __init__(self, count: int):
        self.name, self.count = f"m{os.getpid()}-", count
        self.switch = f"{self.name}s"

    def add(self) -> None:
        ip(f"netns add {self.switch}")
        ip(f"-n {self.switch} link add bridge type bridge")
        ip(f"-n {self.switch} link set bridge up")
        for number in range(1, self.count + 1):
            host = f"{self.name}{number}"
            ip(f"netns add {host}")
            ip(f"-n {host} link add eth0 type veth peer name port{number} netns {self.switch}")
            ip(f"-n {host} address add 10.77.0.{number}/24 dev eth0")
            ip(f"-n {host} link set lo up")
            ip(f"-n {host} link set eth0 up")
            ip(f"-n {self.switch} link set port{number} master bridge up")

    def start(self, *arguments: object) -> list["subprocess.Popen[str]"]:
        """The job's command on each machine: one process a machine."""
        jobs = []
        for number in range(1, self.count + 1):
            launch = ["--num_machines", self.count, "--machine_rank", number - 1, "--same_network"]
            launch += ["--main_process_ip", "10.77.0.1"]
            job = command(*arguments, processes=self.count, launch=launch)
            job[job.index("--main_process_port") + 1] = "29500"
            job = ["ip", "netns", "exec", f"{self.name}{number}", *on_own_cores(number, self.count), *job]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            jobs.append(subprocess.Popen(job, cwd=ROOT, **pipes))
        return jobs

    def kill(self, number: int) -> None:
        """Everything that runs on a machine."""
        found = subprocess.run(["ip", "netns", "pids", f"{self.name}{number}"], capture_output=True, text=True)
        for pid in map(int, found.stdout.split()):
            if psutil.pid_exists(pid):
                psutil.Process(pid).kill()

    def cut_off(self, number: int, cut: bool) -> None:
        ip(f"-n {self.switch} link set port{number} {'down' if cut else 'up'}")

    def remove(self) -> None:
        """What there is of them: `add` may have failed half-way."""
        there = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout.split()
        for number in range(1, self.count + 1):
            if f"{self.name}{number}" in there:
                self.kill(number)
                ip(f"netns delete {self.name}{number}")
        if self.switch in there:
            ip(f"netns delete {self.switch}")


@pytest.fixture
def machines(request: pytest.FixtureRequest) -> Iterator[Machines]:
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    if torch.cuda.is_available():
        pytest.skip("would take the GPUs of this machine instead")
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        pytest.skip("this root may not make network namespaces (no CAP_SYS_ADMIN)")
    made = Machines(request.param)
    try:
        made.add()
        yield made
    finally:
        made.remove()


def ranks_of(job: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The training processes of a launcher."""
    return [process for process in family(job)[:-1] if "RANK" in process.environ()]


@pytest.mark.parametrize(("machines", "how", "lost"), [(2, "cut off", 2), (3, "killed", 1)], indirect=["machines"])
def test_machines_that_lose_one_end_and_go_on_later_to_the_bits_of_one_machine(
    request, images, tmp_path, machines, how, lost
):
    whole = request.getfixturevalue({2: "pair", 3: "three"}[machines.count])
    where = ["--data-dir", images, "--runs-dir", tmp_path, "--cache-dir", tmp_path / "cache", "--name", "run"]
    options = ["--log-every", 1, "--checkpoint-every-steps", 4, "--peer-timeout", TIMEOUT_S]
    arguments = ["train.py", *TINY, *where, *options]
    jobs = machines.start(*arguments)
    wait_until((tmp_path / "run/checkpoints/step-00000004.pt").exists, jobs[0])
    others = [job for number, job in enumerate(jobs, start=1) if number != lost]
    left = [process for job in others for process in ranks_of(job)]
    assert len(left) == machines.count - 1
    if how == "killed":
        machines.kill(lost)
    else:
        machines.cut_off(lost, True)
    assert not psutil.wait_procs(left, timeout=TIMEOUT_S + ENDING_S)[1], "not within --peer-timeout"
    for job in others:
        _, told = job.communicate(timeout=60)  # the launcher, which takes seconds of its own
        assert job.returncode != 0
        assert "lost contact with another process" in told
        assert "goes on from the newest checkpoint" in told
    machines.kill(lost)
    jobs[lost - 1].communicate()
    machines.cut_off(lost, False)
    assert not (tmp_path / "run/summary.json").exists()

    jobs = machines.start(*arguments)
    said = []
    for job in jobs:
        out, told = job.communicate(timeout=600)
        assert job.returncode == 0, told
        said.append(out)
    assert "resuming after step" in said[0]
    assert_same_run(tmp_path / "run", whole)
