"""metrics.jsonl, W&B offline, TensorBoard, and trackers that fail."""

import json
import os
import struct
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from tests.conftest import ROOT, TINY, free_port
from training.config import Config
from training.tracking import MetricsFile, Tracking

pytestmark = pytest.mark.usefixtures("wandb_offline")

ROW = {"kind": "epoch", "epoch": 1, "step": 24, "lr": 0.1, "val_accuracy": 0.75}


def wandb_records(folder):
    """The records of .wandb files: LevelDB's log format, 32 KiB blocks of fragments, after a header of 7 bytes."""
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


def test_wandb_records_offline_without_a_key_and_says_how_to_upload(tmp_path):
    said = []
    tracking = Tracking(Config(name="mine"), tmp_path, said.append)
    tracking.log(ROW)
    tracking.finish()
    assert said == [f"W&B records offline; to upload: wandb sync {tmp_path}/wandb/offline-*"]
    records = list(wandb_records(tmp_path))
    (row,) = logged(records)
    assert {name: row[name] for name in ("epoch", "step", "lr", "val_accuracy")} == {
        name: ROW[name] for name in ("epoch", "step", "lr", "val_accuracy")
    }
    config = {item.key for record in records for item in record.config.update}
    assert {"lr", "batch_size", "seed"} <= config | {item.key for r in records for item in r.run.config.update}


def test_a_resumed_run_continues_the_same_wandb_run(tmp_path):
    for _ in range(2):
        tracking = Tracking(Config(), tmp_path, lambda line: None)
        tracking.log(ROW)
        tracking.finish()
    ids = {record.run.run_id for record in wandb_records(tmp_path) if record.WhichOneof("record_type") == "run"}
    assert ids == {(tmp_path / "wandb-id").read_text()}


def test_tensorboard_has_every_number(tmp_path):
    tracking = Tracking(Config(tracker="tensorboard"), tmp_path, print)
    tracking.log(ROW)
    tracking.finish()
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(events.parent))
    accumulator.Reload()
    (scalar,) = accumulator.Scalars("val_accuracy")
    assert (scalar.step, scalar.value) == (24, 0.75)


def test_a_failing_tracker_is_a_warning_and_metrics_go_on(tmp_path, capsys):
    tracking = Tracking(Config(tracker="tensorboard"), tmp_path, print)

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


@pytest.mark.parametrize("damage", ["changed", "cut", "removed"])
def test_damaged_metrics_are_restored_from_the_checkpoint_with_a_warning(tmp_path, capsys, damage):
    metrics = MetricsFile(tmp_path / "metrics.jsonl", [])
    for step in (10, 20):
        metrics.append(ROW | {"step": step})
    whole = metrics.path.read_bytes()
    if damage == "removed":
        metrics.path.unlink()
    else:
        metrics.path.write_bytes(whole.replace(b"0.75", b"0.95") if damage == "changed" else whole[:-9])
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
tracking = Tracking(Config(), Path(sys.argv[1]), print)
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
