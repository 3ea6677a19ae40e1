"""reproduce.py: the runs it starts, what it leaves alone, and its report."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import models

import reproduce
from data.errors import InputError
from data.spec import CIFAR10
from tests.conftest import ROOT, call_main, command, run_script, wait_until
from tests.images import serve, write_kaggle
from training import evaluation, jobs, report
from training.checkpoint import load_weights
from training.config import Config, parse_config
from training.parts import initial_model
from training.report import Outcome, Result, environment, results_table, study_report, verdict, write_report
from training.studies import CIFAR10_STUDY, STUDIES

EXTRA = ["--", "--batch-size", "10", "--loader", "resident", "--precision", "no"]


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory) -> Path:
    """Noise in Kaggle's layout: 10 training and 2 test images of each class."""
    folder = tmp_path_factory.mktemp("cifar10")
    write_kaggle(folder, CIFAR10.classes * 10, CIFAR10.classes * 2)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A file as torchvision's, of a network for ImageNet's 1000 classes."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "resnet18-f37072fd.pth"
    torch.save(models.resnet18(num_classes=1000).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def done(cifar10, weights, tmp_path_factory):
    """exp1 and exp9, one epoch each, as a user would run them."""
    folder = tmp_path_factory.mktemp("reproduced")
    where = ["--data-dir", cifar10, "--out", folder / "out", "--weights", weights]
    flags = ["cifar10-study", "--only", "exp1,exp9", "--epochs-scale", "0.01", "--processes", 2, *where, *EXTRA]
    flags += ["--cache-dir", folder / "cache"]
    ended = subprocess.run(command("reproduce.py", *flags), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return folder / "out", [str(flag) for flag in flags]


@pytest.fixture
def copy(done, tmp_path):
    """Of the folder of `done`, to spoil, and the flags for it."""
    folder = shutil.copytree(done[0], tmp_path / "out")
    return folder, [str(folder) if flag == str(done[0]) else flag for flag in done[1]]


def test_runs_are_trained_and_evaluated_on_the_test_set(done):
    for name in ("exp1-seed42-scaled", "exp9-seed42-scaled"):
        run = done[0] / "cifar10-study" / name
        config = parse_config(["--recipe", str(run / "config.yaml")])
        assert (config.epochs, config.seed, config.lr, config.val_fraction) == (1, 42, 0.01, 0.2)
        assert json.loads((run / "evaluation.json").read_text())["count"] == 20
        assert (run / "predictions.png").exists()


def test_exp9_begins_with_the_given_weights(done, weights):
    config = parse_config(["--recipe", str(done[0] / "cifar10-study/exp9-seed42-scaled/config.yaml")])
    assert config.weights == str(weights)
    given, initial = torch.load(weights, weights_only=True), initial_model(config, 10).state_dict()
    assert initial["fc.weight"].shape == (10, 512)
    for name in set(initial) - {"fc.weight", "fc.bias"}:
        assert torch.equal(initial[name], given[name])


def test_the_report_has_our_figures_beside_the_studys_and_says_that_they_are_scaled(done):
    folder, _ = done
    text = (folder / "report.md").read_text()
    summary = json.loads((folder / "cifar10-study/exp1-seed42-scaled/summary.json").read_text())
    (row,) = (line for line in text.splitlines() if line.startswith("| exp1 |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    accuracy = summary["val_accuracy"]
    assert cells[2:6] == ["0.827", f"{accuracy:.4f}", f"{accuracy - 0.827:+.3f}", f"{accuracy:.4f}"]
    assert cells[-3:] == ["1", f"{summary['seconds']:.0f}", "42"]
    assert "| exp2 |" in text
    assert "not chosen, not run yet" in text
    label = "(scaled: 0.01 of the epochs; changed: --batch-size 10, --precision no)"
    for heading in re.findall("^#.*", text, flags=re.MULTILINE):
        assert heading.endswith(label)
    for title, path in re.findall(r"!\[(.*)\]\((.*)\)", text):
        assert title.endswith(label)
        assert (folder / path).read_bytes().startswith(b"\x89PNG")
    assert "torch 2" in text
    assert summary["device"] in text
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == text.count("![") == 1
    assert 'src="http' not in page


def test_what_is_done_is_not_done_again(done, monkeypatch, capsys):
    folder, flags = done
    before = (folder / "report.md").read_text()
    monkeypatch.setattr(jobs, "start", lambda *_: pytest.fail("trained again"))
    assert call_main(reproduce.main, *flags) == 0, capsys.readouterr().err
    assert (folder / "report.md").read_text() == before


def choosing(flags: list[str], only: str) -> list[str]:
    return [only if flag == "exp1,exp9" else flag for flag in flags]


TRAINED_OTHERWISE = "exp1-seed42-scaled: trained with another lr; remove it or give another --out"


def test_runs_with_other_settings_are_refused_before_anything_is_trained(done, monkeypatch, capsys):
    started = fake_train(monkeypatch, code=0)
    assert call_main(reproduce.main, *choosing(done[1], "exp8,exp1"), "--lr", "0.3") == 2
    assert started == []
    assert TRAINED_OTHERWISE in capsys.readouterr().err


def test_runs_with_other_settings_that_are_not_chosen_are_in_nobodys_way(done, monkeypatch):
    folder, flags = done
    before = (folder / "report.md").read_text()
    assert fake_train(monkeypatch, code=1) == []
    assert call_main(reproduce.main, *choosing(flags, "exp8"), "--lr", "0.3") == 1
    (row,) = (line for line in (folder / "report.md").read_text().splitlines() if line.startswith("| exp1 |"))
    assert f"| not chosen; {folder}/cifar10-study/{TRAINED_OTHERWISE} |" in row
    (folder / "report.md").write_text(before)


@pytest.mark.parametrize("name", ["best.safetensors", "metrics.jsonl", "summary.json"])
def test_a_damaged_run_is_told_and_the_others_stay(copy, monkeypatch, capsys, name):
    folder, flags = copy
    path = folder / "cifar10-study/exp1-seed42-scaled" / name
    path.write_bytes(path.read_bytes()[:-100])
    monkeypatch.setattr(jobs, "start", lambda *_: pytest.fail("trained again"))
    assert call_main(reproduce.main, *flags) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line
    report = (folder / "report.md").read_text()
    assert re.search(rf"\| exp1 \|.*\| failed: .*{name}", report)
    assert re.search(r"\| exp9 \|.*\| 1 \| \d+ \| 42 \|", report)


def test_a_run_without_its_metrics_is_told_and_the_others_stay(copy):
    folder, flags = copy[0], choosing(copy[1], "exp9")
    (folder / "cifar10-study/exp1-seed42-scaled/metrics.jsonl").unlink()
    assert call_main(reproduce.main, *flags) == 0
    report = (folder / "report.md").read_text()
    assert re.search(
        r"\| exp1 \|.*\| not chosen; .*exp1-seed42-scaled/metrics.jsonl: not as the run wrote it", report
    )
    assert re.search(r"\| exp9 \|.*\| 1 \| \d+ \| 42 \|", report)


def test_it_goes_on_when_nobody_reads_what_it_says(done, monkeypatch):
    """As after `| head -1`."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert call_main(reproduce.main, *done[1]) == 0


def test_an_evaluation_of_other_images_or_weights_is_no_result(copy):
    folder, flags = copy[0], choosing(copy[1], "exp9")
    path = folder / "cifar10-study/exp1-seed42-scaled/evaluation.json"
    evaluation = json.loads(path.read_text())

    def row_with(**changed: str) -> str:
        path.write_text(json.dumps(evaluation | changed))
        assert call_main(reproduce.main, *flags) == 0
        (row,) = (line for line in (folder / "report.md").read_text().splitlines() if line.startswith("| exp1 |"))
        return row

    micro_f1 = f"| {evaluation['micro_f1']:.4f} |"
    assert micro_f1 in row_with()
    assert micro_f1.replace(" |", " (validation) |") in row_with(split="val")
    for name in ("weights_sha256", "data"):
        assert "not chosen, not evaluated yet" in row_with(**{name: "0"})


def test_a_run_is_not_evaluated_on_other_images_than_it_was_trained_on(copy, cifar10, tmp_path, capsys):
    folder, flags = copy
    write_kaggle(tmp_path / "others", CIFAR10.classes * 10, CIFAR10.classes * 3)
    path = folder / "cifar10-study/exp1-seed42-scaled/evaluation.json"
    path.unlink()
    others = [str(tmp_path / "others") if flag == str(cifar10) else flag for flag in flags]
    assert call_main(reproduce.main, *others) == 1
    assert (
        f"exp1-seed42-scaled: trained on other images than those in {tmp_path}/others" in capsys.readouterr().err
    )
    assert not path.exists()


def test_a_damaged_evaluation_is_made_again(done, monkeypatch):
    """In another process: this one would hold on to the GPU while others train."""
    path = done[0] / "cifar10-study/exp1-seed42-scaled/evaluation.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    monkeypatch.setattr(evaluation, "evaluate_run", lambda *_, **__: pytest.fail("evaluated here"))
    assert call_main(reproduce.main, *done[1]) == 0
    assert path.read_bytes() == whole


@pytest.fixture
def unevaluated(copy):
    """The same runs, without their evaluations."""
    for path in copy[0].glob("cifar10-study/*/evaluation.json"):
        path.unlink()
    return copy


def test_an_evaluation_that_fails_is_a_reason_in_the_report(unevaluated, monkeypatch):
    folder, flags = unevaluated
    monkeypatch.setattr(reproduce, "evaluate", lambda flags: 1)
    assert call_main(reproduce.main, *flags) == 1
    told = (folder / "report.md").read_text()
    assert told.count("failed: the evaluation of exp1-seed42-scaled ended with exit code 1") == 1


def test_an_evaluation_on_images_that_have_just_changed_is_not_reported(unevaluated, monkeypatch):
    folder, flags = unevaluated

    def evaluate(flags: list[str]) -> int:
        about = load_weights(Path(flags[0]) / "best.safetensors")[1]
        other = {"weights_sha256": about["weights_sha256"], "data": "0", "split": "test", "accuracy": 1.0}
        (Path(flags[0]) / "evaluation.json").write_text(json.dumps(other))
        return 0

    monkeypatch.setattr(reproduce, "evaluate", evaluate)
    assert call_main(reproduce.main, *flags) == 1
    assert "exp1-seed42-scaled: trained on other images" in (folder / "report.md").read_text()


def test_an_evaluation_that_is_stopped_ends_it_all(unevaluated, monkeypatch):
    monkeypatch.setattr(jobs, "run_command", lambda *_, **__: 143)
    assert call_main(reproduce.main, *unevaluated[1]) == 143


def test_test_time_augmentation_is_no_reason_to_test_again(done):
    path = done[0] / "cifar10-study/exp1-seed42-scaled/evaluation.json"
    before = path.read_bytes()
    assert run_script("evaluate.py", path.parent, "--tta", "flip").returncode == 0
    with_flip = path.read_bytes()
    assert call_main(reproduce.main, *done[1]) == 0
    assert path.read_bytes() == with_flip != before


def fake_train(monkeypatch, code: int) -> list[list[str]]:
    """In place of train.py: ends with `code`. Returns the flags of each start."""
    started: list[list[str]] = []

    def start(flags: list[str], processes: int) -> int:
        started.append(flags)
        return code

    monkeypatch.setattr(jobs, "start", start)
    return started


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """What these tests leave in cache/ is not left in the checkout's."""
    monkeypatch.chdir(tmp_path)


def test_without_imagenet_weights_exp9_is_not_run_and_the_others_go_on(cifar10, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    serve(monkeypatch, OSError("no network"))
    started = fake_train(monkeypatch, code=1)
    where = ["--data-dir", cifar10, "--out", tmp_path]
    assert (
        call_main(reproduce.main, "cifar10-study", "--only", "exp9,exp8", *where) == 1
    )  # for exp8, whose training failed
    assert [parse_config(flags).name for flags in started] == ["exp8-seed42"]
    report = (tmp_path / "report.md").read_text()
    assert "| 0.857 | not run: no ImageNet weights; give --weights resnet18-f37072fd.pth |" in report
    assert "| 0.893 | failed: the training of exp8-seed42 ended with exit code 1 |" in report
    assert "no network; not running exp9" in capsys.readouterr().err


def test_downloaded_imagenet_weights_are_checked(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    urls = serve(monkeypatch, b"something else")
    assert reproduce.imagenet_weights(tmp_path / "absent.pth") is None
    assert urls == ["https://download.pytorch.org/models/resnet18-f37072fd.pth"]
    assert "invalid hash value" in capsys.readouterr().err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_training_that_is_stopped_ends_it_all(cifar10, monkeypatch, tmp_path):
    for code in (130, 143):
        started = fake_train(monkeypatch, code)
        assert call_main(reproduce.main, "cifar10-study", "--data-dir", cifar10, "--out", tmp_path) == code
        assert len(started) == 1
    assert not (tmp_path / "report.md").exists()


def test_what_was_done_is_in_a_report_when_the_rest_is_stopped(copy, monkeypatch):
    folder, flags = copy[0], choosing(copy[1], "exp1,exp4,exp5,exp9")
    (folder / "report.md").unlink()
    codes = iter([1, 143])
    monkeypatch.setattr(jobs, "start", lambda *_: next(codes))
    assert call_main(reproduce.main, *flags) == 143
    rows = {line.split(" | ")[0]: line for line in (folder / "report.md").read_text().splitlines()}
    for name in ("exp1", "exp9"):
        assert re.search(r"\| 1 \| \d+ \| 42 \|", rows[f"| {name}"])
    assert "ended with exit code 1" in rows["| exp4"]
    assert "| not run yet |" in rows["| exp5"]
    assert "| not chosen, not run yet |" in rows["| exp6"]


def test_results_are_in_the_order_of_their_seeds_whenever_they_were_trained(monkeypatch):
    outcome = Outcome(CIFAR10_STUDY.experiments[0])
    monkeypatch.setattr(reproduce, "ensure_evaluated", lambda job: 0)
    for seed in (1, 0, 2):
        monkeypatch.setattr(report, "read_result", lambda run, seed=seed: result(0.5, seed))
        job = reproduce.Job(Path("run"), [], Config(), "test", "none", finished=True)
        reproduce.carry_out(job, outcome, reproduce.make_parser().parse_args(["all"]))
    assert [each.summary["seed"] for each in outcome.results] == [0, 1, 2]


@pytest.mark.parametrize("code", [1, 2, 137])
def test_after_a_training_that_fails_the_others_go_on_and_the_report_says_so(cifar10, monkeypatch, tmp_path, code):
    started = fake_train(monkeypatch, code)
    where = ["--data-dir", cifar10, "--out", tmp_path]
    assert call_main(reproduce.main, "cifar10-study", "--only", "exp4,exp5", *where) == 1
    assert [parse_config(flags).name for flags in started] == ["exp4-seed42", "exp5-seed42"]
    report = (tmp_path / "report.md").read_text()
    for name in ("exp4", "exp5"):
        assert f"| failed: the training of {name}-seed42 ended with exit code {code} |" in report


def test_flags_for_train_py_need_to_suit_the_chosen_experiments_alone(cifar10, monkeypatch, tmp_path):
    """exp9 does not go with --zero-init, recipes with Nesterov's momentum not without one."""
    started = fake_train(monkeypatch, 1)
    where = ["--only", "exp3", "--data-dir", cifar10, "--out", tmp_path]
    for flags in (["--zero-init", "true"], ["--momentum", "0"]):
        assert call_main(reproduce.main, "cifar10-study", *where, "--", *flags) == 1
        assert len(started) == 1
        started.clear()


def test_missing_images_of_one_study_are_found_before_anything_is_trained(cifar10, monkeypatch, tmp_path, capsys):
    serve(monkeypatch, OSError("no network"))
    started = fake_train(monkeypatch, 0)
    (tmp_path / "cifar10").symlink_to(cifar10)
    where = ["--data-dir", tmp_path, "--out", tmp_path / "out", "--", "--cache-dir", tmp_path / "cache"]
    assert call_main(reproduce.main, "all", *where) == 2
    assert started == []
    assert "cifar100 could not be downloaded" in capsys.readouterr().err


def test_seeds_follow_that_of_the_recipe(cifar10, monkeypatch, tmp_path):
    started = fake_train(monkeypatch, code=1)
    where = ["--data-dir", cifar10, "--out", tmp_path]
    call_main(reproduce.main, "cifar10-study", "--only", "exp4", "--seeds", 3, *where)
    assert [parse_config(flags).seed for flags in started] == [42, 43, 44]


def test_experiments_are_named_with_or_without_spaces_between():
    for only in ("exp3,exp6", " exp3, exp6 "):
        assert [experiment.name for experiment in reproduce.choose_experiments("all", only)] == ["exp3", "exp6"]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["all", "--only", "exp33"], "--only exp33"),
        (["all", "--seeds", "0"], "--seeds 0"),
        (["all", "--epochs-scale", "0"], "--epochs-scale 0"),
        (["all", "--subset", "1.5"], "--subset 1.5"),
        (["all", "--subset", "0"], "--subset 0"),
        (["all", "--subset", "nan"], "--subset nan"),
        (["all", "--weights", "nowhere.pth"], "nowhere.pth"),
        (["all", "--seed", "7"], "--seed"),  # no abbreviation of --seeds
        (["other"], "other"),
        (["all", "--", "--epochs", "5"], "--epochs after --"),
        (["all", "--", "--subset=0.1"], "--subset=0.1 after --"),
        (["all", "--", "--split", "none"], "--split none"),
        (["recipes", "--", "--split", "stratified"], "tested once"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_trained(flags, named, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(jobs, "start", lambda *_: pytest.fail("trained"))
    flags = [*flags[:1], "--out", tmp_path, *flags[1:]]
    assert call_main(reproduce.main, *flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


def test_sigterm_reaches_the_training_which_checkpoints_and_is_gone_on_with(cifar10, tmp_path):
    flags = ["cifar10-study", "--only", "exp2", "--data-dir", cifar10, "--out", tmp_path / "out"]
    flags += ["--epochs-scale", "0.1", *EXTRA, "--cache-dir", tmp_path / "cache", "--log-every", 1]
    job = command("reproduce.py", *flags)
    with subprocess.Popen(job, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        run = tmp_path / "out/cifar10-study/exp2-seed42-scaled"
        wait_until((run / "metrics.jsonl").exists, process)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "stopped by SIGTERM" in out
    assert len(list((run / "checkpoints").glob("*.pt"))) > 0
    assert not (run / "summary.json").exists()

    again = run_script("reproduce.py", *flags)
    assert again.returncode == 0, again.stderr
    assert "resuming after step" in again.stdout
    assert "| exp2 |" in (tmp_path / "out/report.md").read_text()


def test_a_shorter_run_is_shorter_in_all_that_counts_epochs_or_steps():
    config = Config(epochs=100, milestones=[30, 60, 90], warmup=5, decay=0.004)
    short = parse_config(jobs.shortened(config, 0.05, 0.5))
    assert (short.epochs, short.milestones, short.warmup, short.subset) == (5, [1.5, 3, 4.5], 0.25, 0.5)
    assert short.decay == pytest.approx(0.004 / 0.025)
    assert parse_config(jobs.shortened(config, 0.001, 1)).epochs == 1
    assert jobs.shortened(config, 1, 1) == []


def test_a_warm_up_of_all_epochs_is_shortened_to_all_epochs():
    """25 x 0.28 is 7.000000000000001."""
    short = parse_config(jobs.shortened(Config(epochs=25, warmup=25), 0.28, 1))
    assert short.warmup == short.epochs == 7


def test_a_recipe_for_a_budget_trains_on_all_images_and_is_tested(cifar10, tmp_path):
    flags = ["cifar10-budgets", "--only", "c10-15", "--epochs-scale", "0.01", "--data-dir", cifar10]
    flags += ["--out", tmp_path / "out", *EXTRA, "--cache-dir", tmp_path / "cache"]
    ended = run_script("reproduce.py", *flags)
    assert ended.returncode == 0, ended.stderr
    run = tmp_path / "out/cifar10-budgets/c10-15-seed0-scaled"
    summary, evaluation = (json.loads((run / f"{name}.json").read_text()) for name in ("summary", "evaluation"))
    assert (summary["train_images"], summary["val_images"], summary["val_accuracy"]) == (100, 0, None)
    assert (evaluation["split"], evaluation["count"]) == ("test", 20)
    accuracy = evaluation["accuracy"]
    assert evaluation["tta"] == "six"
    tested = f"{accuracy:.4f} (six views {evaluation['tta_accuracy']:.4f})"
    row = f"| 0.935 (test) | {accuracy:.4f} (test) | {accuracy - 0.935:+.3f} | - | {tested} |"
    assert row in (tmp_path / "out/report.md").read_text()


def test_a_recipe_that_could_not_be_tested_is_not_trained(monkeypatch, tmp_path, capsys):
    write_kaggle(tmp_path / "cifar10", CIFAR10.classes * 2)
    started = fake_train(monkeypatch, code=0)
    where = ["--data-dir", tmp_path, "--out", tmp_path / "out", "--", "--cache-dir", tmp_path / "cache"]
    assert call_main(reproduce.main, "recipes", "--only", "c10-30", *where) == 2
    assert started == []
    assert "cifar10: no labelled test images; use CIFAR's archives" in capsys.readouterr().err


def test_every_experiment_has_its_recipe_and_every_recipe_its_experiment():
    for name, study in STUDIES.items():
        recipes = {path.stem for path in (ROOT / "recipes" / name).glob("*.yaml")}
        assert recipes == {experiment.name for experiment in study.experiments}
        named = {n for c in study.comparisons for n in c.experiments}
        named |= {n for finding in study.findings for pair in finding.pairs for n in pair if isinstance(n, str)}
        assert named <= recipes


def test_the_comparisons_are_those_of_the_studies():
    found = {comparison.experiments for comparison in CIFAR10_STUDY.comparisons}
    rates = ("exp3", "exp6", "exp4", "exp7", "exp5", "exp8")
    assert {("exp1", "exp2", "exp3"), rates, ("exp1", "exp9"), ("exp3", "exp9")} <= found
    study = STUDIES["cifar100-study"]
    assert [c.experiments for c in study.comparisons] == [tuple(e.name for e in study.experiments)]


def test_pictures_of_scaled_and_changed_runs_say_so(monkeypatch, tmp_path):
    titles = []
    monkeypatch.setattr(report, "draw_comparison", lambda curves, title, path: titles.append(title))
    outcomes = [Outcome(experiment, [result(0.5)]) for experiment in CIFAR10_STUDY.experiments]
    study_report(CIFAR10_STUDY, outcomes, tmp_path, "scaled: a tenth", "changed: --lr 1")
    assert len(titles) == len(CIFAR10_STUDY.comparisons)
    assert all(title.endswith(" (scaled: a tenth; changed: --lr 1)") for title in titles)


def test_a_comparison_that_lacks_its_runs_says_so_in_place_of_its_picture(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "draw_comparison", lambda *_: None)
    outcomes = [Outcome(each, [result(0.5)] * (each.name != "exp9")) for each in CIFAR10_STUDY.experiments]
    told = [block for block in study_report(CIFAR10_STUDY, outcomes, tmp_path) if "Not drawn" in str(block)]
    titles = ("ImageNet weights", "ImageNet weights or a better network")
    assert told == [f"Not drawn: CIFAR-10 study: {title}. Not run: exp9." for title in titles]


def test_the_recipes_of_all_budgets_are_compared_in_one_picture(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(report, "draw_comparison", lambda curves, title, path: drawn.append(curves))
    study = STUDIES["cifar10-budgets"]
    outcomes = [Outcome(each, [result(0.5)]) for each in study.experiments]
    study_report(study, outcomes, tmp_path)
    (curves,) = drawn
    assert [curve.label.split(":")[0] for curve in curves] == [each.name for each in study.experiments]


def test_what_is_compared_with_and_without_has_one_colour(monkeypatch, tmp_path):
    drawn = {}
    monkeypatch.setattr(report, "draw_comparison", lambda curves, title, path: drawn.update({title: curves}))
    study_report(CIFAR10_STUDY, [Outcome(each, [result(0.5)]) for each in CIFAR10_STUDY.experiments], tmp_path)
    found = {curve.label[:4]: (curve.colour, curve.dash) for curve in drawn["CIFAR-10 study: Learning rates"]}
    assert found == {
        "exp3": (0, 0), "exp6": (0, 1), "exp4": (1, 0), "exp7": (1, 1), "exp5": (2, 0), "exp8": (2, 1)
    }  # fmt: skip


def test_a_report_has_cifar100s_coarse_classes(tmp_path):
    study = STUDIES["cifar100-study"]
    coarse = {"coarse_accuracy": 0.75, "mistakes": 40, "mistakes_within_coarse": 10}
    runs = [result(0.5), result(0.5, seed=1)]
    runs = [replace(run, evaluation=run.evaluation | coarse) for run in runs]
    outcomes = [Outcome(each, runs if each.name in ("v1", "v5") else []) for each in study.experiments]
    blocks = study_report(study, outcomes, tmp_path)
    (told,) = (block for block in blocks if "coarse classes" in str(block))
    assert told.endswith("v1 0.7500 ± 0.0000, 0.2500 ± 0.0000; v5 0.7500 ± 0.0000, 0.2500 ± 0.0000")
    ten = study_report(CIFAR10_STUDY, [Outcome(each) for each in CIFAR10_STUDY.experiments], tmp_path)
    assert not any("coarse classes" in str(block) for block in ten)


@pytest.mark.parametrize(
    ("exp1", "kaiming", "told"),
    [
        ([0.5, 0.6], [0.5, 0.6], report.TO_THE_BIT),
        ([0.5, 0.6], [0.5, 0.7], report.APART),
        ([0.5, 0.6], [0.5], report.TO_THE_BIT),  # of the seed that has run both
        ([0.5], [], ""),
    ],
)
def test_a_report_says_whether_equal_networks_came_to_equal_weights(tmp_path, exp1, kaiming, told):
    runs = {
        name: [result(accuracy, seed) for seed, accuracy in enumerate(accuracies)]
        for name, accuracies in (("exp1", exp1), ("exp2-kaiming", kaiming))
    }
    outcomes = [Outcome(each, runs.get(each.name, [])) for each in CIFAR10_STUDY.experiments]
    notes = next(block for block in study_report(CIFAR10_STUDY, outcomes, tmp_path) if isinstance(block, list))
    found = [note for note in notes if note.startswith("exp1 and exp2-kaiming")]
    assert len(found) == bool(told)
    assert all(told in note for note in found)


def test_a_scaled_run_is_not_held_against_a_number():
    (finding,) = (finding for finding in CIFAR10_STUDY.findings if "first to pass 0.9" in finding.text)
    finished = {name: [result(0.3)] for name in ("exp1", "exp2", "exp3")}
    found = verdict(finding.pairs, finding.quantity, finished, scaled="scaled: a tenth")
    assert found == ("not tested", "needs runs at full length")
    assert verdict([("exp1", "exp2")], "validation accuracy", finished, "scaled: a tenth")[0] == "undecided"


def result(accuracy: float, seed: int = 0, images: int = 10_000) -> Result:
    summary = {
        "val_accuracy": accuracy,
        "val_images": images,
        "epochs": 2,
        "seconds": 10.0,
        "seed": seed,
        "world_size": 1,
        "weights_sha256": f"{accuracy} of seed {seed}",
    }
    summary |= {"device": "a machine", "precision": "no", "loader": "resident", "versions": {"torch": "2.15"}}
    rows = [
        {"kind": "epoch", "val_accuracy": value, "val_loss": 1.0, "train_accuracy": 0.9}
        for value in (accuracy / 2, accuracy)
    ]
    return Result(
        summary,
        {"split": "test", "tta": "none", "accuracy": accuracy - 0.1, "macro_f1": 0.5, "micro_f1": accuracy - 0.1},
        rows,
    )


def test_several_seeds_give_mean_and_deviation(tmp_path):
    experiments = {experiment.name: experiment for experiment in CIFAR10_STUDY.experiments}
    outcomes = [
        Outcome(experiments["exp1"], [result(0.84), result(0.86, seed=1)]),
        Outcome(experiments["exp2"], [result(0.99)]),
    ]
    blocks = study_report(CIFAR10_STUDY, outcomes, tmp_path / "pictures")
    write_report(blocks, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| 0.827 | 0.8500 ± 0.0141 | +0.023 | 0.8500 ± 0.0141 | 0.7500 ± 0.0141 |" in text
    assert "scaled" not in text
    (finding,) = (line for line in text.splitlines() if line.startswith("| Its own ResNet-18"))
    assert "| borne out | validation accuracy: exp2 0.9900, exp1 0.8500 ± 0.0141 |" in finding
    assert (tmp_path / "pictures/cifar-10-study-networks.png").exists()


def test_a_finding_is_borne_out_only_by_all_of_its_pairs():
    finished = {"a": [result(0.5)], "b": [result(0.4)], "c": [result(0.6)]}
    assert verdict([("a", "b")], "validation accuracy", finished)[0] == "borne out"
    found, measured = verdict([("a", "b"), ("a", "c")], "validation accuracy", finished)
    assert found == "not borne out"
    assert measured.endswith(" (a over b borne out; a over c not borne out)")
    assert verdict([("a", "d")], "validation accuracy", finished) == ("not tested", "not run: d")
    assert verdict([("a", 0.45)], "validation accuracy", finished)[0] == "borne out"
    assert verdict([("a", 0.55)], "validation accuracy", finished)[0] == "not borne out"
    gap = "training less validation accuracy, last epoch"
    assert verdict([("b", "a")], gap, finished)[0] == "borne out"
    assert verdict([("c", "a")], "mean validation accuracy over all epochs", finished)[0] == "borne out"


def test_what_chance_could_turn_is_undecided():
    few = {"a": [result(0.5, images=100)], "b": [result(0.4, images=100)]}  # standard errors of 0.05
    assert verdict([("a", "b")], "validation accuracy", few)[0] == "undecided"
    assert verdict([("b", "a")], "validation accuracy", few)[0] == "undecided"
    seeds = {"a": [result(0.5), result(0.6)], "b": [result(0.45), result(0.55)]}
    assert verdict([("a", "b")], "validation accuracy", seeds)[0] == "undecided"
    steady = {"a": [result(0.55), result(0.551)], "b": [result(0.5), result(0.501)]}
    assert verdict([("a", "b")], "validation accuracy", steady)[0] == "borne out"
    equal = {"a": [result(0.923)] * 2, "b": [result(0.9228)] * 2}  # which agree by accident
    assert verdict([("a", "b")], "validation accuracy", equal)[0] == "undecided"
    assert verdict([(0.005, "a")], "validation accuracy", {"a": [result(0.0, images=400)]})[0] == "undecided"


def test_seeds_that_differ_by_chance_alone_decide_a_twentieth_of_the_time():
    """Welch's test against draws of 3 seeds from one distribution; 2 standard errors would decide 12 %."""
    draws = np.random.default_rng(0).normal(0.9, 0.01, (2000, 2, 3))
    decided = 0
    for sides in draws:
        finished = {name: [result(value) for value in side] for name, side in zip("ab", sides, strict=True)}
        decided += verdict([("a", "b")], "validation accuracy", finished)[0] != "undecided"
    assert 0.02 < decided / 2000 < 0.06


def test_the_first_to_pass_a_number_is_alone_with_it():
    (finding,) = (finding for finding in CIFAR10_STUDY.findings if "first to pass 0.9" in finding.text)

    def found(exp1: float, exp2: float, exp3: float) -> str:
        finished = {"exp1": [result(exp1)], "exp2": [result(exp2)], "exp3": [result(exp3)]}
        return verdict(finding.pairs, finding.quantity, finished)[0]

    assert found(0.83, 0.85, 0.92) == "borne out"
    assert found(0.83, 0.93, 0.95) == "not borne out"
    assert found(0.93, 0.85, 0.95) == "not borne out"


def test_finished_runs_that_are_not_chosen_stay_in_the_report(done, monkeypatch, capsys):
    folder, flags = done
    before = (folder / "report.md").read_text()
    monkeypatch.setattr(jobs, "start", lambda *_: pytest.fail("trained again"))
    assert call_main(reproduce.main, *choosing(flags, "exp9")) == 0, capsys.readouterr().err
    (row,) = (line for line in before.splitlines() if line.startswith("| exp1 |"))
    assert row in (folder / "report.md").read_text()


def test_without_test_labels_as_on_kaggle_the_test_columns_stay_empty():
    kaggle = result(0.5)
    kaggle.evaluation["split"] = "val"
    experiments = {experiment.name: experiment for study in STUDIES.values() for experiment in study.experiments}
    exp1, v5 = results_table([Outcome(experiments[name], [kaggle]) for name in ("exp1", "v5")]).rows
    assert exp1[3:9] == ["0.5000", "-0.327", "0.5000", "-", "0.5000 (validation)", "0.4000 (validation)"]
    assert v5[3:7] == ["- (test)", "-", "0.5000", "-"]


def test_without_test_labels_a_run_is_evaluated_on_its_validation_images(cifar10, tmp_path):
    unlabelled = tmp_path / "kaggle"
    shutil.copytree(cifar10, unlabelled, ignore=shutil.ignore_patterns("testLabels.csv", "test"))
    flags = [
        "--dataset",
        "cifar10",
        "--stem",
        "imagenet",
        "--epochs",
        "1",
        "--batch-size",
        "10",
        "--tracker",
        "none",
    ]
    flags += ["--loader", "resident", "--precision", "no", "--data-dir", str(unlabelled), "--name", "run"]
    flags += ["--runs-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache")]
    assert jobs.train(flags, processes=1) == 0
    config = parse_config(flags)
    split = reproduce.evaluated_split(config, CIFAR10_STUDY)
    reproduce.ensure_evaluated(reproduce.Job(tmp_path / "run", flags, config, split, "none", finished=True))
    assert json.loads((tmp_path / "run/evaluation.json").read_text())["split"] == "val"


def test_machines_and_versions_are_named_once():
    other = result(0.5)
    other.summary["device"] = "another machine"
    assert len(environment([result(0.1), result(0.2), other])) == 2


def test_text_of_the_report_is_not_taken_for_html(tmp_path):
    write_report(["a < b", ["`c < d`"]], tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<p>a &lt; b</p>" in page
    assert "<li><code>c &lt; d</code></li>" in page


def test_a_folder_of_images_or_of_both_data_sets(cifar10, tmp_path):
    def found(study: str, folder: Path) -> Path:
        given = reproduce.make_parser().parse_args([study, "--data-dir", str(folder)])
        return reproduce.data_folder(CIFAR10_STUDY, given)

    assert found("cifar10-study", cifar10) == cifar10
    assert found("all", cifar10) == cifar10 / "cifar10"
    assert found("cifar10-study", tmp_path) == tmp_path / "cifar10"  # empty: to be downloaded to
    (tmp_path / "cifar100").mkdir()
    assert found("cifar10-study", tmp_path) == tmp_path / "cifar10"
    (tmp_path / "cifar10").mkdir()
    assert found("cifar10-study", tmp_path) == tmp_path / "cifar10"


def test_unknown_experiments_are_refused_with_the_known_ones():
    with pytest.raises(InputError, match="exp1, exp1-pytorch"):
        reproduce.choose_experiments("cifar10-study", "v1")
