"""Several processes: started as on a multi-GPU machine, with accelerate_config.yaml, here over gloo."""

import re
import subprocess

import psutil
import pytest
import torch

from tests.conftest import ROOT, TINY, command, run_script, wait_until
from tests.test_train import assert_same_run, rows, summary
from training.checkpoint import load_newest_checkpoint
from training.evaluation import evaluate_run

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="would take the GPUs of this machine instead")


def test_two_processes_train_one_run(pair, tiny_run):
    found = summary(pair)
    assert found["world_size"] == 2
    assert found["steps"] == 22
    # the same images in the same order, but BatchNorm sees half a batch: near, and not equal
    assert found["weights_sha256"] != summary(tiny_run)["weights_sha256"]
    one, two = (rows(run, "step")[0]["train_loss"] for run in (tiny_run, pair))  # later, the runs go apart
    assert one != two
    assert abs(one - two) < 0.5


def test_learning_rates_do_not_depend_on_the_processes(pair, three, tiny_run):
    expected = [row["lr"] for row in rows(tiny_run, "step")]
    assert len(expected) == 20
    assert expected[0] == pytest.approx(0.02 * 0.2)
    assert expected[4] == pytest.approx(0.02 * (0.2 + 0.8 * 4 / 4.4))
    assert [row["lr"] for row in rows(pair, "step")] == expected
    assert [row["lr"] for row in rows(three, "step")] == expected


def test_multistep_milestones_do_not_come_early_with_processes(train_tiny):
    flags = ["--schedule", "multistep", "--milestones", "[1]", "--log-every", 1]
    run = train_tiny("multistep", *flags, processes=2)
    found = {row["step"]: row["lr"] for kind in ("step", "epoch") for row in rows(run, kind)}
    assert [found[step] for step in (1, 11, 12, 22)] == pytest.approx([0.02, 0.02, 0.002, 0.002])


def test_evaluation_counts_each_image_once_on_any_number_of_processes(pair, three, process_as_it_was):
    """20 validation images do not divide by 3: what training reported is what one process finds."""
    for run in (pair, three):
        alone, trained = evaluate_run(run, "val"), summary(run)
        assert alone["accuracy"] == trained["val_accuracy"]
        assert alone["macro_f1"] == pytest.approx(trained["val_macro_f1"])
        best = next(row for row in rows(run, "epoch") if row["epoch"] == trained["best_epoch"])
        assert alone["loss"] == pytest.approx(best["val_loss"], rel=1e-5)
        assert alone["top5"] == best["val_top5"]


@pytest.mark.parametrize("processes", [2, 3])
def test_a_lost_process_makes_the_job_restart_by_itself_to_the_same_bits(request, images, tmp_path, processes):
    """Under --max_restarts 3 the last process is killed, in mid-epoch; of two processes then the first one.

    The same command gives the same bits, then: it is another job that the run is compared with.
    """
    whole = request.getfixturevalue({2: "pair", 3: "three"}[processes])
    where = ["--data-dir", images, "--runs-dir", tmp_path, "--cache-dir", tmp_path / "cache", "--name", "killed"]
    arguments = ["train.py", *TINY, *where, "--log-every", 1, "--checkpoint-every-steps", 4]
    job = command(*arguments, processes=processes, launch=["--max_restarts", 3])
    checkpoints = tmp_path / "killed/checkpoints"
    process = subprocess.Popen(job, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    losses = {2: [(4, 1), (16, 0)], 3: [(4, 2)]}[processes]
    for step, rank in losses:
        wait_until((checkpoints / f"step-{step:08d}.pt").exists, process)
        ranks = {child.environ()["RANK"]: child for child in psutil.Process(process.pid).children()}
        ranks[str(rank)].kill()
    said, told = process.communicate(timeout=600)
    assert process.returncode == 0, told
    assert told.count("lost contact with another process") >= 1
    resumed = [int(step) for step in re.findall(r"resuming after step (\d+) of 22", said)]
    assert len(resumed) == len(losses)
    assert all(step >= kept for step, (kept, _) in zip(resumed, losses, strict=True))
    assert_same_run(tmp_path / "killed", whole)


def test_processes_and_accumulation_cut_a_batch_alike(pair, train_tiny):
    """Gradients averaged over processes, or accumulated over micro-batches, come from the same halves."""
    halves = train_tiny("halves", "--accumulation", 2, "--log-every", 1)
    # The first two: later, rounding that differs with the number of threads has grown.
    for one, two in zip(rows(halves, "step")[:2], rows(pair, "step")[:2], strict=True):
        assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)


def test_a_batch_that_does_not_divide_is_refused_by_all(images, tmp_path):
    flags = [*TINY, "--data-dir", images, "--runs-dir", tmp_path / "runs", "--cache-dir", tmp_path / "cache"]
    done = run_script("train.py", *flags, "--batch-size", "13", processes=2)
    assert done.returncode != 0
    assert "--batch-size 13 does not divide by 2 processes" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_only_the_first_process_writes(pair):
    assert len(rows(pair, "epoch")) == 2
    assert load_newest_checkpoint(pair / "checkpoints")["metrics"].shape == (2, 3)
