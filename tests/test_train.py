"""Whole runs of train.py: what they leave on disk, and that they can be stopped and repeated."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from PIL import Image
from safetensors.torch import load_file

from benchmarks.loops import make_trainer
from tests.conftest import ROOT, TINY, command, import_ffcv_loader, run_script, wait_until
from training import hardware, recorder
from training.checkpoint import load_newest_checkpoint, load_weights, take_weights
from training.config import parse_config
from training.engine import Trainer
from training.metrics import EvaluationMetrics
from training.tracking import Tracking

SUMMARY_KEYS = {
    *("recipe", "epochs", "steps", "train_images", "val_images", "best_epoch", "val_accuracy", "val_macro_f1"),
    *("seconds", "train_seconds", "images_per_second", "world_size", "precision", "loader", "seed"),
    *("weights_sha256", "metrics_sha256", "data", "versions", "device", "commit", "dirty"),
}


def rows(run: Path, kind: str) -> list[dict]:
    return [
        row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if row["kind"] == kind
    ]


def without_times(found: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in found]


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, metrics and summary are the same, bit for bit; times and the loader apart."""
    free = ("seconds", "train_seconds", "images_per_second", "metrics_sha256", "loader", "commit", "dirty")
    first, second = ({k: v for k, v in summary(run).items() if k not in free} for run in (one, other))
    assert first == second
    for kind in ("step", "epoch"):
        assert without_times(rows(one, kind)) == without_times(rows(other, kind))
    weights, others = (load_file(run / "best.safetensors") for run in (one, other))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_run_leaves_what_the_readme_promises(tiny_run):
    assert sorted(path.name for path in tiny_run.iterdir()) == [
        *(".lock", "best.safetensors", "checkpoints", "config.yaml", "config.yaml.sha256"),
        *("curves.png", "metrics.jsonl", "summary.json"),
    ]
    found = summary(tiny_run)
    assert set(found) == SUMMARY_KEYS
    assert (found["epochs"], found["steps"], found["world_size"], found["precision"]) == (2, 22, 1, "no")
    assert (found["train_images"], found["val_images"]) == (140, 20)
    assert len(list((tiny_run / "checkpoints").glob("*.pt"))) == 2
    assert (tiny_run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert yaml.safe_load((tiny_run / "config.yaml").read_text())["batch_size"] == 12


def test_metrics_have_a_row_for_each_reading_and_each_epoch(tiny_run):
    steps, epochs = rows(tiny_run, "step"), rows(tiny_run, "epoch")
    assert [row["step"] for row in steps] == [*range(1, 11), *range(12, 22)]
    assert [(row["epoch"], row["step"]) for row in epochs] == [(1, 11), (2, 22)]
    best = max(epochs, key=lambda row: row["val_accuracy"])
    found = summary(tiny_run)
    assert found["val_accuracy"] == best["val_accuracy"]
    assert found["best_epoch"] == best["epoch"]
    assert {"lr", "train_loss", "train_accuracy", "val_loss", "val_top5", "val_macro_f1"} <= set(epochs[0])


def test_the_same_command_gives_the_same_bits(tiny_run, train_tiny):
    assert_same_run(train_tiny("again", "--log-every", 1), tiny_run)


def test_nobody_waits_for_torch_compile_who_does_not_want_it(images, tmp_path):
    where = ["--data-dir", images, "--runs-dir", tmp_path, "--cache-dir", images.with_name("cache")]
    flags = [*TINY, *where, "--name", "run", "--epochs", 1, "--optimizer", "adam", "--ema", 0.9]
    code = f"import sys, train; sys.argv[1:] = {[*map(str, flags)]}; train.main()"
    code += "; print('torch._dynamo' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout.endswith("\nFalse\n"), ended.stderr


def test_another_seed_gives_other_bits(tiny_run, train_here):
    assert summary(train_here("run", "--seed", 1))["weights_sha256"] != summary(tiny_run)["weights_sha256"]


def test_both_loaders_train_to_the_same_bits(tiny_run, train_here):
    import_ffcv_loader()
    other = train_here("run", "--loader", "ffcv", "--log-every", 1)
    assert summary(other)["loader"] == "ffcv"
    assert_same_run(other, tiny_run)


def test_a_killed_run_resumes_in_mid_epoch_to_the_same_bits(tiny_run, images, tmp_path):
    """Killed by SIGKILL after the first checkpoint, which is in mid-epoch."""
    flags = [*TINY, "--data-dir", images, "--runs-dir", tmp_path, "--cache-dir", tmp_path / "cache"]
    arguments = ["train.py", *flags, "--name", "killed", "--log-every", 1, "--checkpoint-every-steps", 5]
    run = tmp_path / "killed"
    process = subprocess.Popen(command(*arguments), cwd=ROOT, stdout=subprocess.DEVNULL, text=True)
    wait_until((run / "checkpoints/step-00000005.pt").exists, process)
    process.kill()
    process.wait()
    assert not (run / "summary.json").exists()
    left_at = load_newest_checkpoint(run / "checkpoints")["progress"]["step"]
    assert 5 <= left_at < 22

    done = run_script(*arguments)
    assert done.returncode == 0, done.stderr
    assert f"resuming after step {left_at} of 22" in done.stdout
    assert_same_run(run, tiny_run)


@pytest.fixture
def again(tiny_run, tmp_path, train_here):
    """A copy of a run, as it was after an epoch but for best.safetensors, is spoilt and started again."""

    def start(after_epoch: int, spoil: Callable[[Path], object]) -> Path:
        run = shutil.copytree(tiny_run, tmp_path / "again")
        if after_epoch == 1:
            for path in (run / "summary.json", *(run / "checkpoints").glob("step-00000022*")):
                path.unlink()
        spoil(run / "best.safetensors")
        return train_here("again", "--log-every", 1)

    return start


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def of_epoch(epoch: int) -> Callable[[Path], object]:
    """Weights that are whole, and say that they are of another epoch."""

    def rewrite(path: Path) -> None:
        model, about = load_weights(path)
        take_weights(path, model, about | {"epoch": epoch})()

    return rewrite


@pytest.mark.parametrize("spoil", [flip_a_bit, Path.unlink, of_epoch(0)], ids=["damaged", "gone", "of epoch 0"])
def test_without_the_weights_of_the_best_epoch_the_best_that_is_left_takes_their_place(
    again, tiny_run, capsys, spoil
):
    run = again(1, spoil)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"warning: .*best\.safetensors: .*; the best of the epochs that are left takes its place", line
    )
    assert summary(run)["best_epoch"] == 2
    assert load_weights(run / "best.safetensors")[1]["epoch"] == 2
    assert summary(run)["weights_sha256"] == summary(tiny_run)["weights_sha256"]


def test_a_finished_run_whose_best_weights_are_missing_is_refused(again, capsys):
    with pytest.raises(SystemExit) as ended:
        again(2, Path.unlink)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"error: .*best\.safetensors: .*; the run is finished: train again under another --name", line
    )


def test_best_weights_of_an_epoch_that_is_repeated_do_not_outlive_their_place_in_the_summary(again, capsys):
    """The process was killed between the weights and the checkpoint; the epoch's repetition may come out worse."""
    run = again(1, of_epoch(2))
    assert capsys.readouterr().err == ""
    assert summary(run)["best_epoch"] == load_weights(run / "best.safetensors")[1]["epoch"] == 2


def test_a_run_does_not_go_on_with_other_images(tiny_run, images, tmp_path, train_here, capsys):
    """Not even where one pixel of one image is another."""
    shutil.copytree(tiny_run, tmp_path / "again")
    (tmp_path / "again/summary.json").unlink()
    others = shutil.copytree(images, tmp_path / "others")
    with Image.open(others / "train/1.png") as image:
        image.putpixel((0, 0), tuple(255 - value for value in image.getpixel((0, 0))))
        image.save(others / "train/1.png")
    with pytest.raises(SystemExit) as ended:
        train_here("again", "--log-every", 1, "--data-dir", others)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"error: the run was started otherwise \(data \w+ -> \w+\); use its values, or another --name", line
    )


def test_training_goes_on_when_nobody_reads_what_it_says(images, tmp_path):
    """As after `| head -1`."""
    where = ["--data-dir", images, "--runs-dir", tmp_path, "--cache-dir", tmp_path / "cache", "--name", "run"]
    job = command("train.py", *TINY, *where, "--epochs", 1)
    read_end, stdout = os.pipe()
    os.close(read_end)
    done = subprocess.run(job, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(stdout)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: stdout: ")
    assert (tmp_path / "run/summary.json").exists()


def test_a_finished_run_started_again_stays_as_it_is(again, tiny_run, capsys):
    """Also by other versions than those that computed it."""
    left = [(tiny_run / name).read_bytes() for name in ("summary.json", "metrics.jsonl", "best.safetensors")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "versions", lambda: hardware.versions() | {"torch": "9.9"})
        run = again(2, lambda weights: None)
    reached = summary(tiny_run)
    assert f"finished before; accuracy {100 * reached['val_accuracy']:.2f} %" in capsys.readouterr().out
    assert [(run / name).read_bytes() for name in ("summary.json", "metrics.jsonl", "best.safetensors")] == left


def test_a_finished_run_keeps_its_config(train_here, tiny_run, tmp_path, capsys):
    """Unless it is damaged."""
    run = shutil.copytree(tiny_run, tmp_path / "run")
    for name in ("config.yaml", "config.yaml.sha256"):
        assert (train_here("run", "--log-every", 7, "--workers", 2) / name).read_bytes() == (
            tiny_run / name
        ).read_bytes()
    (run / "config.yaml").write_text("lr: 3\n")
    train_here("run", "--log-every", 7)
    assert "config.yaml is not as it was written; written anew" in capsys.readouterr().err
    assert yaml.safe_load((run / "config.yaml").read_text())["log_every"] == 7


@pytest.mark.parametrize(("resume", "code"), [("never", 2), ("must", 0)])
def test_a_run_without_its_config_exists(again, tmp_path, train_here, tiny_run, resume, code):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / "config.yaml").unlink()
    if code:
        with pytest.raises(SystemExit) as ended:
            train_here("run", "--resume", resume)
        assert ended.value.code == code
    else:
        assert summary(train_here("run", "--resume", resume)) == summary(tiny_run)


def test_the_summary_marks_a_run_that_needs_nothing_more(train_here, tmp_path, monkeypatch):
    """Not one whose pictures and weights its tracker has not taken yet."""
    finished = []
    monkeypatch.setattr(
        Tracking, "finish", lambda *_, **how: finished.append((how, (tmp_path / "run/summary.json").exists()))
    )
    train_here("run", "--epochs", 1)
    assert finished == [({}, False), ({"failed": True}, True)]  # the second finds nothing left


def test_a_damaged_summary_is_written_anew(again, tiny_run):
    def cut_summary(weights: Path) -> None:
        (weights.parent / "summary.json").write_bytes((tiny_run / "summary.json").read_bytes()[:-9])

    run = again(2, cut_summary)
    assert summary(run)["weights_sha256"] == summary(tiny_run)["weights_sha256"]


@pytest.mark.parametrize("without", ["summary.json", "metrics.jsonl"])
def test_a_run_whose_checkpoints_are_gone_is_not_started_again(again, tiny_run, tmp_path, capsys, without):
    """What shows that it had some: its summary, or the rows of two epochs."""

    def remove(weights: Path) -> None:
        shutil.rmtree(weights.parent / "checkpoints")
        (weights.parent / without).unlink()

    with pytest.raises(SystemExit) as ended:
        again(2, remove)
    assert ended.value.code == 2
    assert re.fullmatch(r"error: .*again: no checkpoint to go on from; .*\n", capsys.readouterr().err)
    assert (tmp_path / "again/best.safetensors").read_bytes() == (tiny_run / "best.safetensors").read_bytes()


def test_a_run_killed_in_its_first_epoch_starts_again_unless_it_must_go_on(train_here, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").touch()
    (tmp_path / "run/metrics.jsonl").write_text('{"kind": "epoch"}\n')  # and its checkpoint did not follow
    with pytest.raises(SystemExit):
        train_here("run", "--epochs", 1, "--resume", "must")
    assert "run: no checkpoint to go on from" in capsys.readouterr().err
    assert summary(train_here("run", "--epochs", 1))["epochs"] == 1


def test_an_epoch_stopped_in_its_validation_has_the_rate_of_the_run_so_far(images, tmp_path, process_as_it_was):
    where = ["--data-dir", images, "--runs-dir", tmp_path, "--cache-dir", tmp_path / "cache", "--name", "run"]
    config = parse_config([*map(str, [*TINY, *where])])
    trainer = make_trainer(config)
    trainer.progress.step, trainer.progress.train_seconds = trainer.steps_per_epoch, 2000.0
    assert list(trainer.train_epoch()) == []
    expected = trainer.steps_per_epoch * config.batch_size / 2000
    assert trainer.images_per_second == pytest.approx(expected, rel=0.01)


def test_a_run_that_goes_on_with_other_versions_is_warned(again, tmp_path, capsys):
    again(2, lambda weights: None)
    assert capsys.readouterr().err == ""
    found = hardware.versions() | {"torch": "9.9"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "versions", lambda: found)
        shutil.rmtree(tmp_path / "again")
        again(2, lambda weights: None)
    former = hardware.versions()["torch"]
    assert capsys.readouterr().err == f"warning: going on with other than before: torch {former} -> 9.9\n"


@pytest.mark.parametrize(("milestones", "told"), [("[1]", False), ("[2,3]", True)])
def test_a_learning_rate_that_never_falls_is_told(train_here, capsys, milestones, told):
    train_here("run", "--subset", 0.5, "--schedule", "multistep", "--milestones", milestones)
    line = "no milestone lies within 2 epochs: the learning rate stays at 0.02"
    assert (line in capsys.readouterr().out.splitlines()) == told


@pytest.mark.parametrize(
    ("rates", "reason"),
    [
        (["--lr", "1e30"], "the loss is"),
        # The first step's loss is that of the first weights; the step overflows.
        (["--lr", "1e38", "--weight-decay", "100"], "a weight is not a finite number by step 1"),
    ],
)
def test_what_is_not_finite_stops_the_run_and_keeps_the_checkpoint(train_here, tmp_path, capsys, rates, reason):
    explode = [*rates, "--schedule", "constant", "--warmup", 0, "--log-every", 1]
    with pytest.raises(SystemExit) as ended:
        train_here("explodes", *explode, "--checkpoint-every-steps", 1)
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {reason}")
    kept = load_newest_checkpoint(tmp_path / "explodes" / "checkpoints")
    assert kept is None or all(weight.isfinite().all() for weight in kept["model"].values())
    assert not (tmp_path / "explodes" / "best.safetensors").exists()


def test_a_validation_loss_that_is_not_finite_is_null_and_the_run_goes_on(train_here, monkeypatch, capsys):
    update = EvaluationMetrics.update
    monkeypatch.setattr(
        EvaluationMetrics, "update", lambda metrics, logits, labels: update(metrics, logits / 0, labels)
    )
    run = train_here("run")
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("validation loss not finite, accuracy") == 2
    assert [row["val_loss"] for row in rows(run, "epoch")] == [None, None]


def test_split_none_trains_on_all_and_keeps_the_last_weights(train_here):
    run = train_here("run", "--split", "none")
    found = summary(run)
    assert (found["val_accuracy"], found["best_epoch"], found["steps"]) == (None, 2, 26)
    assert "val_accuracy" not in rows(run, "epoch")[0]


def test_split_test_is_a_yardstick_that_chooses_nothing(train_here, monkeypatch):
    accuracies, validate = iter([0.9, 0.1]), Trainer.validate
    monkeypatch.setattr(Trainer, "validate", lambda trainer: validate(trainer) | {"accuracy": next(accuracies)})
    found = summary(train_here("run", "--split", "test"))
    assert (found["best_epoch"], found["val_accuracy"]) == (2, 0.1)


@pytest.fixture(scope="module")
def plain_sha256(train_tiny):
    return summary(train_tiny("plain", "--epochs", 1))["weights_sha256"]


@pytest.mark.parametrize(
    "flags",
    [
        "--optimizer adam --lr 0.001 --schedule inverse-time --decay 0.004",
        "--optimizer adamw --lr 0.001 --schedule cosine --warmup 1 --accumulation 3",
        "--crop-mode edge --crop-padding 6 --precision bf16 --cutout 8 --normalize false",
        "--label-smoothing 0.1 --decay-norm-and-bias false --optimizer nesterov",
        "--model resnet34 --stem keras --init glorot --crop-mode reflect",
        "--model torchvision-resnet18 --stem cifar --schedule multistep --milestones [1]",
    ],
)
def test_options_train_and_change_the_result(train_here, plain_sha256, flags):
    found = summary(train_here("run", "--epochs", 1, *flags.split()))
    assert found["steps"] == 11
    assert found["weights_sha256"] != plain_sha256


@pytest.mark.usefixtures("full_width")
def test_imagenet_weights_are_the_same_wherever_their_file_lies(train_here, tmp_path, capsys):
    def train_from(file: str) -> None:
        train_here("finetuned", "--epochs", 1, "--batch-size", 32, "--weights", tmp_path / file)

    torch.save(torchvision.models.resnet18(num_classes=1000).state_dict(), tmp_path / "one.pth")
    torch.save(torchvision.models.resnet18(num_classes=1000).state_dict(), tmp_path / "other.pth")
    train_from("one.pth")
    (tmp_path / "one.pth").rename(tmp_path / "moved.pth")
    train_from("moved.pth")
    assert "resuming after step" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        train_from("other.pth")
    assert ended.value.code == 2
    assert "the run was started otherwise (--weights " in capsys.readouterr().err


def test_fp16_on_a_cpu_is_refused(images, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine trains in fp16")
    done = run_script("train.py", *TINY, "--data-dir", images, "--runs-dir", tmp_path, "--precision", "fp16")
    assert done.returncode == 2
    assert "--precision fp16" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sam", [0, 0.05])
def test_a_compiled_network_meets_the_batches_of_training_first(
    images, tmp_path, monkeypatch, process_as_it_was, sam
):
    """Of which one that goes on in a validation has none: the size that is met first is taken to stay. SAM's
    second pass is another graph.
    """
    sizes, compile_module = [], torch.nn.Module.compile

    def backend(graph, inputs):
        sizes.extend(len(value) for value in inputs if getattr(value, "shape", ())[1:] == (3, 32, 32))
        return graph

    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_module(module, backend=backend))
    where = ["--data-dir", images, "--runs-dir", tmp_path, "--cache-dir", tmp_path / "cache"]
    trainer = make_trainer(parse_config([*map(str, [*TINY, *where, "--compile", "true", "--sam", sam])]))
    assert sizes == [12] * (2 if sam else 1)
    assert trainer.progress.step == 0
    assert int(trainer.network.bn1.num_batches_tracked) == 0
    assert all(parameter.grad is None for parameter in trainer.network.parameters())


def test_a_compiled_network_trains_and_its_weights_keep_their_names(train_here, monkeypatch):
    """With the backend that only traces: the default one compiles for a minute."""
    compiled, compile_module = [], torch.nn.Module.compile

    def compile_for_tracing(module):
        compiled.append(module)
        compile_module(module, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_for_tracing)
    run = train_here("compiled", "--epochs", 1, "--batch-size", 35, "--compile", "true")
    assert len(compiled) == 1
    names = load_weights(run / "best.safetensors")[0].state_dict().keys()
    assert names == torchvision.models.resnet18().state_dict().keys()
