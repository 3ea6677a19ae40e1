"""The same bits on 1, 2, 3 and 4 processes: the stream, runs that are stopped and resumed, SyncBatchNorm."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from resnet import build_model
from tests.conftest import ROOT, command, import_ffcv_loader, run_script
from tests.ranks_job import RESUMED
from tests.test_train import assert_same_run, rows, summary

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="would take the GPUs of this machine instead")

SGD, ADAM, EVERYTHING = "sgd-no-resident", "adam-bf16-ffcv", "everything"
CASES = {1: [SGD, EVERYTHING], 2: [EVERYTHING], 3: [ADAM], 4: [SGD]}
if os.environ.get("ALL_CASES"):  # make test-faults
    CASES = dict.fromkeys((1, 2, 3, 4), list(RESUMED))


@pytest.fixture(scope="module")
def done(images, made_once):
    """The folder that N processes left, by N; they are started when it is first asked for."""
    import_ffcv_loader()

    def leave(processes: int) -> Path:
        def run(folder: Path) -> None:
            folder.mkdir()
            job = command("tests/ranks_job.py", folder, images, ",".join(CASES[processes]), processes=processes)
            ended = subprocess.run(job, cwd=ROOT, capture_output=True, text=True)
            assert ended.returncode == 0, ended.stderr

        return made_once(f"ranks-{processes}", run)

    return leave


def digests(folder: Path) -> dict[str, list[str]]:
    return json.loads((folder / "digests.json").read_text())


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["plain", "augmented"])
def test_the_stream_does_not_depend_on_loader_processes_workers_or_accumulation(done, processes, kind):
    """augmented: with everything that changes images, mixing among it."""
    first = digests(done(1))[f"{kind}, resident, 1 workers, accumulation 1"]
    found = {name: value for name, value in digests(done(processes)).items() if name.startswith(kind)}
    assert len(found) == 9
    assert first[0] != first[1]
    assert set(map(tuple, found.values())) == {tuple(first)}


@pytest.mark.parametrize(("processes", "case"), [(n, case) for n in CASES for case in CASES[n]])
def test_a_run_stopped_and_resumed_ends_as_an_uninterrupted_one(done, processes, case):
    whole, resumed = (done(processes) / f"{case}-{kind}" for kind in ("whole", "resumed"))
    found = summary(whole)
    assert (found["steps"], found["world_size"]) == (10, processes)
    # in mid-epoch; and after its last step, the validation not begun, or begun
    stops = [[2, 0], [5, 0], [8, 1]] if processes == 1 else [[3, 0], [5, 0], [10, 1]]
    assert json.loads((resumed / "stops.json").read_text()) == stops
    assert_same_run(resumed, whole)


def test_the_command_prints_the_streams_digests(done, images):
    where = ["--dataset", "folder", "--data-dir", images, "--cache-dir", done(1) / "cache"]
    flags = ["--batch-size", 48, "--cutout", 8, "--epochs", 2, "--loader", "resident", *where]
    printed = run_script("-m", "data.stream", *flags, processes=2)
    expected = digests(done(1))["plain, resident, 1 workers, accumulation 1"]
    lines = [f"epoch {number}  {digest}" for number, digest in enumerate(expected, start=1)]
    assert printed.stdout.splitlines() == lines, printed.stderr


def test_the_same_command_gives_the_same_bits_on_4_processes(done, images, tmp_path):
    """As in the run without interruption, which other processes trained."""
    where = ["--data-dir", images, "--runs-dir", tmp_path, "--cache-dir", done(4) / "cache", "--name", "again"]
    settings = ["--dataset", "folder", "--stem", "imagenet", "--lr", 0.005, "--epochs", 2, "--batch-size", 24]
    flags = [*settings, "--precision", "no", "--loader", "resident", "--tracker", "none", *where]
    ended = run_script("train.py", *flags, processes=4)
    assert ended.returncode == 0, ended.stderr
    assert summary(tmp_path / "again")["weights_sha256"] == summary(done(4) / f"{SGD}-whole")["weights_sha256"]


@pytest.mark.parametrize("processes", [2, 4])
def test_synchronized_batchnorm_makes_the_number_of_processes_a_matter_of_rounding(done, processes):
    """After 20 steps in fp32 losses agree to 1e-3, weights to 1e-4, and what they moved by to a tenth.

    Sums over shares round otherwise than the sum over all, and training amplifies it with every step: 1 and 2
    threads of one process come apart by 1e-4, 1e-5 and 3 %.
    """
    alone, several = done(1) / "synchronized", done(processes) / "synchronized"
    losses = [
        [row["train_loss"] for kind in ("step", "epoch") for row in rows(run, kind)] for run in (alone, several)
    ]
    assert len(losses[0]) == 20
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)

    torch.manual_seed(0)
    initial = build_model("resnet18", 10, "cifar-pool", "kaiming").state_dict()
    one, other = (load_file(run / "best.safetensors") for run in (alone, several))
    names = [name for name in initial if "running" not in name and "num_batches" not in name]
    first, second, start = (
        torch.cat([weights[name].flatten() for name in names]) for weights in (one, other, initial)
    )
    assert (first - second).norm() < 1e-4 * first.norm()
    assert (first - second).norm() < 0.1 * (first - start).norm()
    for name in initial:
        if "running" in name:
            assert (one[name] - other[name]).norm() < 1e-3 * one[name].norm()


def test_sam_climbs_along_the_gradient_of_all_processes(done):
    """As when one process takes both shares one after the other, but for rounding.

    It sets the weights apart by an eighth of what they moved by; an e for each process would, by six eighths.
    """
    torch.manual_seed(0)
    start = build_model("resnet18", 10, "cifar-pool", "kaiming").state_dict()
    one, other = (load_file(done(processes) / "sam" / "best.safetensors") for processes in (1, 2))
    names = [name for name in start if "running" not in name and "num_batches" not in name]
    moved, apart = (
        torch.cat([(one[name] - weights[name]).flatten() for name in names]).norm() for weights in (start, other)
    )
    assert apart < 0.3 * moved
