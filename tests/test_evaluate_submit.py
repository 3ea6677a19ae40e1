"""evaluate.py and submit.py on a finished run."""

import errno
import importlib
import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import torch

from data.shapes import write_kaggle
from tests.conftest import call_main, run_script
from training import evaluation
from training.checkpoint import load_weights
from training.cli import METRICS


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of the run's weights alone: no other file of the run is needed."""
    shutil.copy(tiny_run / "best.safetensors", tmp_path / "best.safetensors")
    return tmp_path


@pytest.fixture
def call(process_as_it_was, capsys):
    """Runs a script as `run_script` does, but in this process: most of a second process' time are its imports."""

    def run(script, *arguments):
        capsys.readouterr()
        code = call_main(importlib.import_module(script.removesuffix(".py")).main, *arguments)
        return subprocess.CompletedProcess([script, *arguments], code, *capsys.readouterr())

    return run


def test_evaluation_of_the_test_set(run):
    done = run_script("evaluate.py", run)
    assert (done.returncode, done.stderr) == (0, "")  # no progress bar where there is no terminal
    report = json.loads((run / "evaluation.json").read_text())
    assert (report["split"], report["count"], report["tta"]) == ("test", 41, "none")
    assert {"loss", "accuracy", "top5", "macro_f1", "per_class"} <= set(report)
    assert sum(row["images"] for row in report["per_class"]) == 41
    recalled = sum(row["images"] * row["recall"] for row in report["per_class"])
    assert recalled == pytest.approx(41 * report["accuracy"])
    assert np.mean([row["f1"] for row in report["per_class"]]) == pytest.approx(report["macro_f1"])
    assert f"accuracy {report['accuracy']:.4f}" in done.stdout
    assert (run / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert (report["precision"], report["versions"]["torch"]) == ("no", torch.__version__.partition("+")[0])
    assert report["device"]


def test_the_curves_of_a_run_that_has_not_ended_are_drawn_with_its_evaluation(call, run, tiny_run):
    epochs = [line for line in (tiny_run / "metrics.jsonl").read_text().splitlines() if '"epoch", ' in line]
    (run / "metrics.jsonl").write_text(epochs[0] + "\n" + epochs[1][:40])
    assert call("evaluate.py", run).returncode == 0
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "curves.png").read_bytes() != (tiny_run / "curves.png").read_bytes()


def test_the_decoded_images_may_be_kept_elsewhere_than_the_run_kept_them(call, run, tmp_path):
    assert call("evaluate.py", run, "--cache-dir", tmp_path / "elsewhere").returncode == 0
    assert list((tmp_path / "elsewhere").glob("*/images.npy"))


def test_validation_split_is_the_one_of_training(call, run, tiny_run):
    assert call("evaluate.py", run, "--split", "val").returncode == 0
    report = json.loads((run / "evaluation.json").read_text())
    assert report["accuracy"] == json.loads((tiny_run / "summary.json").read_text())["val_accuracy"]


def test_validation_images_of_other_data_are_refused(call, run, images, tmp_path):
    """The split of other images could put images that were trained on into validation."""
    shutil.copytree(images, tmp_path / "more")
    table = (tmp_path / "more" / "trainLabels.csv").read_text()
    shutil.copy(images / "train" / "1.png", tmp_path / "more" / "train" / "161.png")
    (tmp_path / "more" / "trainLabels.csv").write_text(table + f"161,{table.splitlines()[1].split(',')[1]}\n")
    done = call("evaluate.py", run, "--split", "val", "--data-dir", tmp_path / "more")
    assert done.returncode == 2
    assert "trained on other images than those in" in done.stderr


@pytest.fixture
def project(train_here, images, tmp_path, monkeypatch):
    """A folder in which a run was trained on images that its config names as seen from there."""
    folder = tmp_path / "project"
    shutil.copytree(images, folder / "images")
    monkeypatch.chdir(folder)
    train_here("run", "--epochs", 1, "--data-dir", "images", "--cache-dir", "cache", "--runs-dir", "runs")
    return folder


def test_a_run_finds_its_images_from_any_folder(call, project, tmp_path, monkeypatch):
    write_kaggle(tmp_path / "elsewhere/images", seed=1, train_count=20, test_count=10)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert call("evaluate.py", project / "runs/run").returncode == 0
    assert json.loads((project / "runs/run/evaluation.json").read_text())["count"] == 41
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["images"]


def test_images_that_are_not_the_runs_have_to_be_named(call, project, tmp_path, monkeypatch):
    """Its own are gone; what lies where they would be, seen from here, may be anything."""
    write_kaggle(tmp_path / "elsewhere/images", seed=1, train_count=20, test_count=10)
    monkeypatch.chdir(tmp_path / "elsewhere")
    shutil.rmtree(project / "images")
    done = call("evaluate.py", project / "runs/run")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "run: trained on other images than those in images; give --data-dir" in done.stderr
    assert call("evaluate.py", project / "runs/run", "--data-dir", "images").returncode == 0


def test_test_labels_that_come_or_go_leave_the_training_images_what_they_are(call, project, train_here):
    (project / "images/testLabels.csv").unlink()
    assert call("evaluate.py", "runs/run", "--split", "val").returncode == 0
    where = ["--data-dir", "images", "--cache-dir", "cache", "--runs-dir", "runs"]
    train_here("run", "--epochs", 1, *where)  # finished before, and not refused


def test_test_time_augmentation_is_reported_beside_the_plain_result(call, run):
    assert call("evaluate.py", run).returncode == 0
    plain = json.loads((run / "evaluation.json").read_text())
    done = call("evaluate.py", run / "best.safetensors", "--tta", "six")
    assert done.returncode == 0
    report = json.loads((run / "evaluation.json").read_text())
    assert {name: value for name, value in report.items() if not name.startswith("tta")} == {
        name: value for name, value in plain.items() if name != "tta"
    }
    assert report["tta"] == "six"
    assert {name for name in report if name.startswith("tta_")} == {f"tta_{name}" for name in METRICS}
    assert report["tta_loss"] != plain["loss"]
    assert f"with --tta six: loss {report['tta_loss']:.4f}" in done.stdout


def test_a_submission_scores_what_evaluation_found(call, run, images):
    assert call("evaluate.py", run).returncode == 0
    out = run / "new" / "submission.csv"
    done = call("submit.py", run, "--images", images / "test", "--out", out)
    assert done.returncode == 0, done.stderr
    table, truth = pd.read_csv(out), pd.read_csv(images / "testLabels.csv")
    assert list(table.columns) == ["id", "label"]
    assert table["id"].tolist() == list(range(1, 42))
    accuracy = (table["label"] == truth.set_index("id")["label"].loc[table["id"]].to_numpy()).mean()
    assert accuracy == pytest.approx(json.loads((run / "evaluation.json").read_text())["accuracy"])
    assert set(table["label"]) <= set(load_weights(run / "best.safetensors")[1]["classes"])


def test_a_submission_that_does_not_match_the_sample_is_refused(call, run, images, tmp_path):
    folder = tmp_path / "kaggle"
    shutil.copytree(images / "test", folder / "test")
    shutil.copy(images / "sampleSubmission.csv", folder)
    (folder / "test" / "7.png").unlink()
    done = call("submit.py", run, "--images", folder / "test", "--out", run / "s.csv")
    assert done.returncode == 2
    assert "no image for id 7" in done.stderr
    shutil.copy(images / "test" / "7.png", folder / "test")
    shutil.copy(images / "test" / "7.png", folder / "test" / "99.png")
    done = call("submit.py", run, "--images", folder / "test", "--out", run / "s.csv")
    assert done.returncode == 2
    assert "image 99" in done.stderr
    assert not (run / "s.csv").exists()


def test_the_numbers_are_there_when_a_picture_cannot_be_drawn(call, run, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "confusion.png")

    monkeypatch.setattr(evaluation, "draw_evaluation", fail)
    assert call("evaluate.py", run).returncode == 1
    assert json.loads((run / "evaluation.json").read_text())["count"] == 41


def test_a_submission_that_cannot_be_written_is_refused_before_all_is_predicted(call, run, images, monkeypatch):
    monkeypatch.setattr("submit.predict", lambda *_: pytest.fail("predicted"))
    done = call("submit.py", run, "--images", images / "test", "--out", run / "best.safetensors/s.csv")
    assert (done.returncode, done.stderr) == (2, f"error: {run}/best.safetensors/s.csv: Not a directory\n")


def test_a_submission_of_other_classes_is_refused(call, run, images, tmp_path):
    folder = tmp_path / "kaggle"
    shutil.copytree(images / "test", folder / "test")
    sample = (images / "sampleSubmission.csv").read_text()
    (folder / "sampleSubmission.csv").write_text(re.sub("([0-9]+),.+", r"\1,unicorn", sample))
    done = call("submit.py", run, "--images", folder / "test", "--out", run / "s.csv")
    assert done.returncode == 2
    assert "trained on other classes than sampleSubmission.csv's, which has 'unicorn'" in done.stderr
    assert not (run / "s.csv").exists()
