"""metrics.jsonl, W&B offline, TensorBoard, and trackers that fail."""

import json
import os
import struct
import subprocess
import sys
from threading import Event, Thread
from types import SimpleNamespace

import pytest
import torch
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

import training.tracking
from data.spec import CIFAR100
from resnet import build_model
from tests.conftest import ROOT, TINY, free_port
from training.config import Config
from training.evaluation import coarse_report
from training.tracking import (
    COARSE,
    STEP_METRICS,
    TABLES,
    MetricsFile,
    Tracking,
    _has_wandb_key,
    read_epochs,
    tracked_names,
)

pytestmark = pytest.mark.usefixtures("wandb_offline")

ROW = {"kind": "epoch", "epoch": 1, "step": 24, "lr": 0.1, "val_accuracy": 0.75}


def wandb_records(folder):
    """The records of .wandb files: LevelDB's log format, 32 KiB blocks of fragments, after a header of 7 bytes."""
    wandb.teardown()  # a run's file is closed only after its finish has returned
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        data, position, whole = path.read_bytes(), 7, b""
        while position + 7 <= len(data):
            left_in_block = 32768 - position % 32768
            if left_in_block < 7:
                position += left_in_block
                continue
            _, length, kind = struct.unpack_from("<IHB", data, position)
            position += 7 + length
            whole += data[position - length : position]
            if kind in (1, 4):  # the only, or the last, fragment of a record
                record = Record()
                record.ParseFromString(whole)
                yield record
                whole = b""


def logged(records) -> list[dict]:
    found = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            found.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return found


def artifacts(records) -> dict[str, set[str]]:
    """By name the files in them."""
    found = [record.request.log_artifact.artifact for record in records] + [record.artifact for record in records]
    return {
        artifact.name: {entry.path for entry in artifact.manifest.contents} for artifact in found if artifact.name
    }


def test_wandb_records_offline_without_a_key_and_says_how_to_upload(tmp_path, capsys):
    tracking = Tracking(Config(name="mine"), tmp_path)
    tracking.log(ROW)
    tracking.finish()
    assert capsys.readouterr().out == f"W&B records offline; to upload: wandb sync {tmp_path}/wandb/offline-*\n"
    records = list(wandb_records(tmp_path))
    (row,) = logged(records)
    assert (row["epoch"], row["step"], row["lr"], row["val/accuracy"]) == (1, 24, 0.1, 0.75)
    config = {item.key for record in records for item in record.config.update}
    assert {"lr", "batch_size", "seed"} <= config | {item.key for r in records for item in r.run.config.update}


@pytest.mark.parametrize(
    ("how", "code"),
    [({}, 0), ({"failed": True}, 1), ({"stopped": True}, 1)],
    ids=["finished", "failed", "stopped"],
)
@pytest.mark.parametrize("sweep", ["", "abcdefgh"])
def test_wandb_is_told_how_a_run_ended(tmp_path, monkeypatch, how, code, sweep):
    """A sweep would start one that it has stopped itself again, were it said to be preempted."""
    tracking = Tracking(Config(), tmp_path)
    tracking.log(ROW)
    if sweep:
        monkeypatch.setenv("WANDB_SWEEP_ID", sweep)
    tracking.finish(**how)
    records = list(wandb_records(tmp_path))
    assert [record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"] == [code]
    preempting = [record for record in records if record.WhichOneof("record_type") == "preempting"]
    assert bool(preempting) == ("stopped" in how and not sweep)


@pytest.mark.parametrize("host", ["wandb.example.com", "api.wandb.ai"])
def test_the_key_is_that_of_the_server_in_wandbs_settings(tmp_path, host):
    """Where `wandb login --host https://wandb.example.com` has left it."""
    (tmp_path / "wandb-config").mkdir()
    (tmp_path / "wandb-config/settings").write_text("[default]\nbase_url = https://wandb.example.com\n")
    (tmp_path / "no-netrc").write_text(f"machine {host}\n  login user\n  password {'0' * 40}\n")
    assert _has_wandb_key() == (host == "wandb.example.com")


def test_a_resumed_run_continues_the_same_wandb_run(tmp_path):
    for _ in range(2):
        tracking = Tracking(Config(), tmp_path)
        tracking.log(ROW)
        tracking.finish()
    ids = {record.run.run_id for record in wandb_records(tmp_path) if record.WhichOneof("record_type") == "run"}
    assert ids == {(tmp_path / "wandb-id").read_text()}


def test_tensorboard_has_every_number(tmp_path):
    tracking = Tracking(Config(tracker="tensorboard"), tmp_path)
    tracking.log(ROW)
    tracking.log({"kind": "step", "epoch": 1, "step": 20, "train_loss": 2.5})
    tracking.finish()
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(events.parent))
    accumulator.Reload()
    (scalar,) = accumulator.Scalars("val/accuracy")
    assert (scalar.step, scalar.value) == (1, 0.75)
    (scalar,) = accumulator.Scalars("step/train_loss")
    assert (scalar.step, scalar.value) == (20, 2.5)


def test_tensorboard_has_the_graph_of_the_network(tmp_path, monkeypatch, capsys, recwarn):
    monkeypatch.setattr("resnet.resnet._AVX2_ALONE", True)  # where a graph with gradients is not one without
    tracking = Tracking(Config(tracker="tensorboard"), tmp_path)
    network = build_model("resnet18", 10, "imagenet")
    tracking.log_graph(network)
    tracking.finish()
    assert capsys.readouterr().err == ""
    assert [str(warning.message) for warning in recwarn] == []
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(events.parent))
    accumulator.Reload()
    nodes = {node.name for node in accumulator.Graph().node}
    assert any("layer4" in name for name in nodes)
    assert network.training


def test_epochs_are_read_while_a_row_is_being_written(tmp_path):
    rows = [{"kind": "step", "step": 1}, {"kind": "epoch", "epoch": 1}, {"kind": "epoch", "epoch": 2}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(lines + '{"kind": "epoch", "epoch": 3}')
    assert read_epochs(tmp_path) == rows[1:]


def test_every_number_of_a_run_has_a_documented_name(tiny_run):
    """docs/tracking.md has all names; those that W&B draws against the epoch are declared."""
    documented = (ROOT / "docs/tracking.md").read_text(encoding="utf-8")
    lines = (tiny_run / "metrics.jsonl").read_text().splitlines()
    names = {name for line in lines for name in tracked_names(json.loads(line))} | {"gpu_memory_gib"}
    assert all(f"`{name}`" in documented for name in (*COARSE, *TABLES))
    assert {"train/loss", "val/micro_f1", "step/lr", "lr", "images_per_second"} <= names
    for name in names:
        assert f"`{name}`" in documented
    families = {name.split("/")[0] + "/*" if "/" in name else name for name in names}
    assert families - {"epoch", "step"} == set(STEP_METRICS)


def test_wandb_is_told_to_draw_epochs_against_the_epoch_and_steps_against_the_step(tmp_path):
    tracking = Tracking(Config(), tmp_path)
    tracking.log(ROW)
    tracking.finish()
    metrics = [record.metric for record in wandb_records(tmp_path) if record.WhichOneof("record_type") == "metric"]
    axes = {metric.glob_name or metric.name: metric.step_metric for metric in metrics}
    assert {axes[name] for name in ("val/*", "train/*", "lr", "images_per_second")} == {"epoch"}
    assert axes["step/*"] == "step"


def test_a_loss_that_is_not_finite_is_not_shown_to_the_tracker():
    assert tracked_names(ROW | {"val_loss": None}) == tracked_names(ROW)


def test_a_failing_tracker_is_a_warning_and_metrics_go_on(tmp_path, capsys):
    tracking = Tracking(Config(tracker="tensorboard"), tmp_path)

    def fail(*_, **__):
        raise OSError("the server is gone")

    tracking.tracker.log = fail
    tracking.log(ROW)
    tracking.log(ROW | {"step": 48})
    tracking.finish()
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1
    assert "the server is gone" in warnings[0]
    assert steps(tmp_path / "metrics.jsonl") == [24, 48]


def test_a_tracker_that_starts_too_late_stays_given_up(tmp_path, monkeypatch, capsys):
    released, threads, finished = Event(), [], []

    class ImpatientThread(Thread):
        def join(self, timeout=None):
            threads.append(self)
            super().join(None if timeout is None else 0)

    def start(config, folder):
        released.wait()
        return SimpleNamespace(finish=lambda: finished.append(True))

    monkeypatch.setattr(training.tracking, "Thread", ImpatientThread)
    monkeypatch.setattr(training.tracking, "_start", start)
    tracking = Tracking(Config(tracker="tensorboard"), tmp_path)
    released.set()
    threads[0].join()
    assert tracking.tracker is None
    assert finished == [True]
    assert capsys.readouterr().err.count("warning: the tracker failed") == 1


@pytest.mark.parametrize("tracker", ["wandb", "tensorboard"])
def test_a_finished_run_shows_its_best_weights_to_the_tracker(train_tiny, tracker):
    processes = 2 if tracker == "tensorboard" else 0  # of several, the first does it alone
    run = train_tiny(f"best-{tracker}", "--tracker", tracker, "--epochs", 1, processes=processes)
    names = {"curves", "confusion", "predictions", "mistakes"}
    if tracker == "tensorboard":
        (events,) = run.rglob("events.out.tfevents.*")
        accumulator = EventAccumulator(str(events.parent))
        accumulator.Reload()
        assert set(accumulator.Tags()["images"]) == {f"pictures/{name}" for name in names}
        assert accumulator.Tags()["graph"]
        return
    records = list(wandb_records(run))
    keys = {key for row in logged(records) for key in row}
    for name in ("per_class", *(f"pictures/{name}" for name in names)):
        assert any(key.startswith(f"{name}/") for key in keys), name
    assert artifacts(records)["best-wandb-weights"] == {"best.safetensors", "config.yaml"}


def test_wandb_and_tensorboard_get_what_a_report_says_of_coarse_classes(tmp_path, wandb_offline):
    report = coarse_report(torch.eye(100, dtype=torch.int64).roll(1, 0), CIFAR100.classes)
    report["per_class"] = [{"class": "apple", "recall": 0.0}]
    inside = report["mistakes_within_coarse"]
    expected = {"coarse/accuracy": inside / 100, "coarse/mistakes": 100, "coarse/mistakes_within": inside}
    for kind in ("wandb", "tensorboard"):
        tracking = Tracking(Config(tracker=kind), tmp_path / kind)
        tracking.log_best([], report, [])
        tracking.finish()
    rows = logged(list(wandb_records(tmp_path / "wandb")))
    found = {key: value for row in rows for key, value in row.items() if key.startswith("coarse/")}
    assert found == expected
    tables = {key.split("/")[0] for row in rows for key in row if key.startswith("per_")}
    assert tables == {"per_class", "per_coarse_class"}
    (events,) = (tmp_path / "tensorboard").rglob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(events.parent))
    accumulator.Reload()
    scalars = {name: accumulator.Scalars(name)[0].value for name in expected}
    assert scalars == pytest.approx(expected)


def test_a_run_without_validation_images_shows_its_curves_and_weights(train_tiny):
    run = train_tiny("split-none", "--tracker", "wandb", "--epochs", 1, "--split", "none")
    records = list(wandb_records(run))
    keys = {key.split("/")[1] for row in logged(records) for key in row if key.startswith("pictures/")}
    assert keys == {"curves"}
    assert artifacts(records)["split-none-weights"] == {"best.safetensors", "config.yaml"}


def steps(path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_metrics_after_the_checkpoint_are_dropped_and_a_cut_line_too(tmp_path, capsys):
    metrics = MetricsFile(tmp_path / "metrics.jsonl", [])
    for step in (10, 20, 30):
        metrics.append(ROW | {"step": step})
    with open(metrics.path, "a") as file:
        file.write('{"kind": "st')
    resumed = MetricsFile(metrics.path, metrics.lines[:2])
    assert [row["step"] for row in resumed.rows()] == steps(metrics.path) == [10, 20]
    assert metrics.path.read_text().endswith("}\n")
    resumed.append(ROW | {"step": 21})
    assert steps(metrics.path) == [10, 20, 21]
    assert capsys.readouterr().err == ""


def test_removed_metrics_are_restored_from_the_checkpoint_with_a_warning(tmp_path, capsys):
    metrics = MetricsFile(tmp_path / "metrics.jsonl", [])
    for step in (10, 20):
        metrics.append(ROW | {"step": step})
    whole = metrics.path.read_bytes()
    metrics.path.unlink()
    MetricsFile(metrics.path, metrics.lines)
    assert metrics.path.read_bytes() == whole
    assert "metrics.jsonl is damaged; restored from the checkpoint" in capsys.readouterr().err


def test_an_unreachable_wandb_server_is_a_warning_and_the_end_does_not_wait_for_it(tmp_path, images):
    where = ["--data-dir", images, "--runs-dir", tmp_path, "--cache-dir", tmp_path / "cache", "--name", "run"]
    flags = [*TINY, "--tracker", "wandb", "--epochs", 1, *where]
    server = {"WANDB_BASE_URL": f"http://127.0.0.1:{free_port()}", "WANDB_API_KEY": "0" * 40}
    job = [sys.executable, "train.py", *map(str, flags)]
    done = subprocess.run(job, cwd=ROOT, env=os.environ | server, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: the tracker failed, going on with metrics.jsonl alone") == 1
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run/summary.json").exists()


KILLED_WANDB = """
import sys, psutil
from pathlib import Path
from accelerate import PartialState
from training.config import Config
from training.tracking import Tracking
PartialState(cpu=True)
tracking = Tracking(Config(), Path(sys.argv[1]))
tracking.log({"kind": "epoch", "step": 24})
found = [child for child in psutil.Process().children(recursive=True) if "wandb-core" in child.name()]
assert found
for process in found:
    process.kill()
psutil.wait_procs(found)
for step in (48, 72):
    tracking.log({"kind": "epoch", "step": step})
tracking.finish()
"""


def test_a_killed_wandb_process_does_not_stop_or_hold_up_training(tmp_path):
    job = [sys.executable, "-c", KILLED_WANDB, tmp_path]
    done = subprocess.run(job, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert steps(tmp_path / "metrics.jsonl") == [24, 48, 72]
    assert done.stderr.count("warning: the tracker failed") == 1


HANGING_WANDB = """
import os, signal, sys, psutil, train, training.tracking
from training.engine import Trainer
training.tracking.FINISH_S = 1
train_step = Trainer.train_step
def suspended(trainer, batches):
    train_step(trainer, batches)
    if trainer.progress.step == 3:
        found = [child for child in psutil.Process().children(recursive=True) if "wandb-core" in child.name()]
        assert found
        for process in found:
            process.suspend()
        if "SIGNAL" in os.environ:
            os.kill(os.getpid(), signal.SIGTERM)
Trainer.train_step = suspended
train.main()
"""


@pytest.mark.parametrize(("environment", "code"), [({}, 0), ({"SIGNAL": "TERM"}, 143)], ids=["end", "SIGTERM"])
def test_a_wandb_process_that_hangs_does_not_hold_up_the_end(tmp_path, images, environment, code):
    where = ["--data-dir", images, "--runs-dir", tmp_path, "--cache-dir", tmp_path / "cache", "--name", "run"]
    job = [sys.executable, "-c", HANGING_WANDB, *map(str, [*TINY, "--tracker", "wandb", "--epochs", 1, *where])]
    done = subprocess.run(job, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("warning: the tracker failed") == 1
    assert (tmp_path / "run/summary.json").exists() == (code == 0)


LOGGING_TO_HANGING_WANDB = """
import sys, psutil, training.tracking
from pathlib import Path
from accelerate import PartialState
from training.config import Config
from training.tracking import Tracking
training.tracking.ANSWER_S = 1
PartialState(cpu=True)
tracking = Tracking(Config(), Path(sys.argv[1]))
for process in psutil.Process().children(recursive=True):
    if "wandb-core" in process.name():
        process.suspend()
for step in range(3000):  # more than a socket's buffer holds
    tracking.log({"kind": "epoch", "step": step})
    if tracking.tracker is None:
        break
print(step)
tracking.finish()
"""


def test_a_wandb_process_that_hangs_does_not_hold_up_training(tmp_path):
    job = [sys.executable, "-c", LOGGING_TO_HANGING_WANDB, tmp_path]
    done = subprocess.run(job, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    last = int(done.stdout.split()[-1])
    assert last < 2999
    assert steps(tmp_path / "metrics.jsonl") == list(range(last + 1))
    assert done.stderr.count("warning: the tracker failed") == 1
