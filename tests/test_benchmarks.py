"""What the benchmarks report and how, and that the baselines do what is said of them. Nothing here is timed."""

import json
import os
import re
import socket
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing import get_start_method
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from benchmarks import (
    baselines,
    data_wait,
    defaults,
    flops,
    loaders,
    memory_format,
    prepare_job,
    processes,
    profile,
    scaling,
    scaling_job,
    start,
    train_step,
)
from benchmarks import prepare as prepare_benchmark
from benchmarks.common import Contender, Row, complete, interleave, make_parser, report, run, summarize, table
from benchmarks.determinism import add_ratio
from benchmarks.loops import make_trainer, our_steps
from benchmarks.processes import PeakMemory, family_memory, in_own_process, python, run_command
from benchmarks.step_overhead import NoNetwork
from benchmarks.train_step import add_utilisation
from data.augment import BatchTransform
from data.errors import InputError
from data.listing import numbered_images
from data.prepared import Prepared, prepare
from data.sources import Split, find_source
from tests.conftest import ROOT, call_main, import_ffcv_loader
from tests.images import PixelSource, prepared_pixels, random_images, save_image
from training.config import Config, parse_config
from training.engine import Trainer
from training.inference import Predictor
from training.parts import initial_model, open_prepared

CPU = torch.device("cpu")
NAMES = sorted(
    path.stem for path in (ROOT / "benchmarks").glob("*.py") if "make_parser(" in path.read_text(encoding="utf-8")
)
NAMES.remove("common")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared_pixels(tmp_path_factory.mktemp("cache"), 40, 0)


# Statistics, table, JSON ------------------------------------------------------------------------------------


def test_a_summary_is_the_median_and_the_range():
    assert summarize([5.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 5.0, "repeats": [5.0, 1.0, 2.0]}
    assert summarize([1.0, 2.0])["median"] == 1.5


def test_contenders_take_turns_and_the_first_round_is_not_kept():
    calls: list[str] = []

    def contender(name: str) -> Contender:
        def measure() -> dict[str, float]:
            calls.append(name)
            return {"call": len(calls)}

        return Contender({"name": name}, measure)

    rows = interleave([contender("a"), contender("b")], repeats=2)
    assert calls == ["a", "b"] * 3
    assert [(row.case, row.measured) for row in rows] == [
        ({"name": "a"}, {"call": [3, 5]}),
        ({"name": "b"}, {"call": [4, 6]}),
    ]


def test_a_text_that_is_measured_describes_the_case():
    (row,) = interleave([Contender({"name": "a"}, lambda: {"form": "float32", "rate": 2.0})], 1, warmup=0)
    assert row == Row({"name": "a", "form": "float32"}, {"rate": [2.0]})


def test_one_that_fails_is_left_out_and_told_beside_the_others(monkeypatch, tmp_path, capsys):
    tried = []

    def fail() -> dict[str, float]:
        tried.append("failed")
        if len(tried) == 2:
            raise RuntimeError("no compiler")
        return {"rate": 1.0}

    def benchmark(arguments: Namespace) -> list[Row]:
        return interleave([Contender({"name": "a"}, fail), Contender({"name": "b"}, lambda: {"rate": 2.0})], 3)

    out = tmp_path / "results.json"
    where = ["--quick", "--device", "cpu", "--cache-dir", tmp_path / "cache", "--out", out]
    assert call_main(lambda: run("loaders", make_parser("loaders", ""), benchmark), *where) == 1
    printed = capsys.readouterr()
    assert len(tried) == 2
    assert "RuntimeError: no compiler" in printed.out
    assert printed.err.endswith(f"error: 1 of 2 cases failed; see {out}\n")
    one, other = json.loads(out.read_text())["rows"]
    assert one == {"case": {"name": "a"}, "measured": {}, "failed": "RuntimeError: no compiler"}
    assert other["measured"]["rate"]["repeats"] == [2.0, 2.0, 2.0]


@pytest.mark.usefixtures("same_environment")
def test_a_benchmark_without_images_is_refused_before_it_measures(tmp_path, capsys):
    (tmp_path / "other.txt").touch()
    where = ["--device", "cpu", "--data-dir", tmp_path, "--cache-dir", tmp_path / "cache"]
    code = call_main(lambda: run("loaders", make_parser("loaders", ""), lambda _: pytest.fail("measured")), *where)
    assert code == 2
    assert capsys.readouterr().err.startswith(f"error: --data-dir {tmp_path}")


def test_the_table_is_aligned_and_shows_median_and_range():
    lines = table([Row({"loop": "a", "batch": 128}, {"rate": [1234.5, 1.25, 20.0]}), Row({"loop": "long"}, {})])
    head, first, second = lines.splitlines()
    assert head.split() == ["loop", "batch", "rate"]
    assert first.split() == ["a", "128", "20", "(1.25..1234)"]
    assert second.split() == ["long"]
    assert len(head) == len(first) == len(second)


def arguments_of(*flags: str, name: str = "loaders") -> Namespace:
    arguments = make_parser(name, "").parse_args(flags)
    complete(arguments, name)
    return arguments


def test_the_report_holds_what_the_figures_depend_on(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["loaders.py", "--repeats", "2"])
    found = report("loaders", arguments_of("--repeats", "2"), [Row({"batch": 128}, {"rate": [1.0, 3.0]})])
    found = json.loads(json.dumps(found))
    assert found["command"] == "python -m benchmarks.loaders --repeats 2"
    assert found["rows"] == [
        {
            "case": {"batch": 128},
            "measured": {"rate": {"median": 2.0, "min": 1.0, "max": 3.0, "repeats": [1.0, 3.0]}},
        }
    ]
    assert {"python", "torch", "torchvision", "accelerate", "numpy", "pillow"} <= set(found["versions"])
    assert found["cores"] >= 1
    assert found["threads"] == torch.get_num_threads()
    assert found["cpu"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT.*\+00:00", found["date"])
    if (ROOT / ".git").exists():
        assert re.fullmatch("[0-9a-f]{40}", found["commit"])
        assert isinstance(found["dirty"], bool)


@pytest.fixture
def same_environment(monkeypatch: pytest.MonkeyPatch, process_as_it_was: None) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.usefixtures("same_environment")
def test_flags_are_completed_by_the_machine():
    arguments = arguments_of("--device", "cpu")
    assert (arguments.repeats, arguments.full, arguments.dataset) == (5, False, "cifar10")
    assert arguments.out == ROOT / "benchmarks/results/loaders-cpu.json"
    quick = arguments_of("--device", "cpu", "--quick")
    assert (quick.repeats, quick.dataset) == (1, "shapes")
    assert quick.out == ROOT / "benchmarks/results/quick/loaders-cpu.json"


@pytest.mark.usefixtures("same_environment")
@pytest.mark.parametrize(
    ("flags", "told"), [(["--repeats", "0"], "--repeats 0"), (["--device", "cuda"], "--device cuda")]
)
def test_a_mistaken_flag_is_refused(flags, told):
    with pytest.raises(InputError, match=told):
        arguments_of(*flags)


@pytest.mark.parametrize("name", NAMES)
def test_each_benchmark_has_a_main_and_is_part_of_the_readme(name):
    assert "def main() -> None:" in (ROOT / f"benchmarks/{name}.py").read_text(encoding="utf-8")
    assert f"`python -m benchmarks.{name}`" in (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")


def test_make_runs_each_once():
    """One that fails does not keep the others from being run."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", "")
    listed = re.search("^BENCHMARKS := (.*)$", makefile, re.MULTILINE)
    assert listed is not None
    assert sorted([*listed[1].split(), "ablation"]) == NAMES
    assert len(NAMES) == 13
    assert "--keep-going $(addprefix benchmark-,$(BENCHMARKS))" in makefile
    for line in (
        "benchmark-%: setup\n\t$(BIN)/python -m benchmarks.$* $(FLAGS)",
        "-m benchmarks.ablation $(FLAGS)",
    ):
        assert line in makefile


# Processes --------------------------------------------------------------------------------------------------


def open_counter(first: int):  # in a process of its own
    numbers = iter(range(first, first + 10))
    return lambda: (next(numbers), os.getpid(), get_start_method())


def test_a_measurement_has_a_process_of_its_own_that_keeps_what_it_opened():
    with in_own_process(open_counter, 5) as measure:
        (one, pid, method), (two, same_pid, _) = measure(), measure()
    assert (one, two) == (5, 6)
    assert pid == same_pid != os.getpid()
    assert method == get_start_method()  # workers of a baseline's DataLoader start as they would in a script
    assert not psutil.pid_exists(pid)


class Connecting:
    """Connects to a port as soon as a process has it."""

    def __init__(self, port: int):
        self.port = port

    def __reduce__(self):
        return socket.create_connection, (("127.0.0.1", self.port),)


def open_noted(note: Path, connected: socket.socket | None = None):  # in a process of its own
    note.touch()
    return int


def test_processes_start_side_by_side_and_open_what_they_measure_one_after_the_other(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(120)
        first, second = tmp_path / "first", tmp_path / "second"
        with (
            in_own_process(open_noted, first, Connecting(server.getsockname()[1])) as measure,
            in_own_process(open_noted, second) as measure_second,
        ):
            server.accept()[0].close()  # the first has started, and was asked for nothing
            measure_second()
            assert (first.exists(), second.exists()) == (False, True)
            measure()
            assert first.exists()


def test_peak_memory_is_that_of_a_process_with_its_descendants():
    nested = "x = bytearray(150 * 2**20); print('there', flush=True); input()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {nested!r}])"
    process = subprocess.Popen(python("-c", code), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with PeakMemory(process.pid) as memory:
        assert process.stdout.readline() == "there\n"  # the watch looks once more when the block ends
    process.communicate("\n")
    assert 150 < memory.mib < 400
    assert family_memory(process.pid) == 0


def test_memory_is_watched_only_where_asked(monkeypatch):
    """A watch would slow down what is timed."""
    watched = []

    def watch(pid):
        watched.append(pid)
        return nullcontext(SimpleNamespace(mib=5.0))

    monkeypatch.setattr(processes, "PeakMemory", watch)
    assert run_command(python("-c", "pass")).peak_mib == 0
    assert not watched
    assert run_command(python("-c", "pass"), watch_memory=True).peak_mib == 5


def test_a_command_that_fails_tells_what_it_printed():
    with pytest.raises(RuntimeError, match="ended with 3: so it was"):
        run_command(python("-c", "import sys; print('so it was'); sys.exit(3)"))
    assert (
        run_command(python("-c", "import sys; print('so it was'); sys.exit(2)"), code=2).printed == "so it was\n"
    )


# Baselines --------------------------------------------------------------------------------------------------


def normalized(prepared: Prepared) -> Tensor:
    images = torch.from_numpy(prepared.images.copy()).permute(0, 3, 1, 2)
    return BatchTransform(prepared.mean, prepared.std).normalize(images)


def test_b1_without_augmentation_gives_the_pixels_of_our_loaders(prepared, tmp_path):
    transform = baselines.pil_transform(prepared.mean, prepared.std)
    transform.transforms = transform.transforms[2:]
    expected = normalized(prepared)
    paths = [str(save_image(tmp_path / f"{number}.png", image)) for number, image in enumerate(prepared.images)]
    for images in (prepared.images, paths):
        dataset = baselines.ImageDataset(images, prepared.labels, transform)
        pixels = torch.stack([dataset[index][0] for index in range(len(dataset))])
        torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-5, check_stride=False)
        assert [dataset[index][1] for index in range(len(dataset))] == prepared.labels.tolist()


def test_b1_reads_the_files_of_a_source(images, tmp_path):
    config = Config(dataset="folder", data_dir=str(images), cache_dir=str(tmp_path), batch_size=64, workers=1)
    passes = loaders.OPENERS["B1, PNG"](config, open_prepared(config))
    assert [batch.shape for batch in passes()] == [(64, 3, 32, 32), (64, 3, 32, 32), (32, 3, 32, 32)]


def test_b1_augments_and_delivers_contiguous_fp32(prepared):
    transform = baselines.pil_transform(prepared.mean, prepared.std)
    dataset = baselines.ImageDataset(prepared.images, prepared.labels, transform)
    batches = list(baselines.pil_loader(dataset, batch_size=16, workers=0))
    assert [len(labels) for _, labels in batches] == [16, 16, 8]
    assert loaders.form_of(batches[0][0]) == "float32 contiguous"
    assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == sorted(prepared.labels.tolist())
    one, two = dataset[0][0], torch.stack([dataset[0][0] for _ in range(20)])
    assert (two != one).any()


def test_b2_shifts_and_normalizes(tmp_path):
    """Images of one colour each: at their middle, wherever they are shifted, they are as ours."""
    import_ffcv_loader()
    images = np.repeat(np.repeat(random_images(41)[:, :1, :1], 32, axis=1), 32, axis=2)
    labels = np.arange(41) % 3
    plain = prepare(PixelSource(Split(images[:40], labels[:40]), Split(images[40:], labels[40:])), tmp_path)
    loader = baselines.ffcv_loader(plain, 32, batch_size=16, workers=1, device=CPU, cutout=False)
    batches = list(loader)
    assert [images.shape for images, _ in batches] == [(16, 3, 32, 32)] * 2
    assert loaders.form_of(batches[0][0]) == "float32 channels_last"
    pixels = torch.cat([images.clone() for images, _ in batches])
    expected = normalized(plain)[:32]
    middle, wanted = (sorted(images[:, :, 16, 16].tolist()) for images in (pixels, expected))
    torch.testing.assert_close(torch.tensor(middle), torch.tensor(wanted), rtol=0, atol=1e-4)
    assert (pixels[:, :, 0, 0] != pixels[:, :, 16, 16]).any()  # shifted: the padding shows


def test_b3_shifts_and_flips_each_image_of_the_set():
    torch.manual_seed(0)
    images = torch.randn(64, 3, 32, 32)
    augmented = baselines.augment_whole_set(images)
    assert augmented.is_contiguous(memory_format=torch.channels_last)
    padded = nn.functional.pad(images, (4,) * 4, "reflect")
    found = set()
    for image, choice, other in zip(augmented, padded, padded.flip(-1), strict=True):
        places = [
            (flip, top, left)
            for flip, whole in enumerate((choice, other))
            for top in range(9)
            for left in range(9)
            if torch.equal(image, whole[:, top : top + 32, left : left + 32])
        ]
        assert len(places) == 1
        found.add(places[0])
    assert {flip for flip, _, _ in found} == {0, 1}
    assert {top for _, top, _ in found} == {left for _, _, left in found} == set(range(9))


def test_b3_normalizes_the_set_once_in_half_precision(prepared):
    images, labels = baselines.resident_images(prepared, 30, CPU, torch.bfloat16)
    assert loaders.form_of(images) == "bfloat16 channels_last"
    torch.testing.assert_close(images.float(), normalized(prepared)[:30], rtol=0, atol=0.02)
    assert labels.tolist() == prepared.labels[:30].tolist()


def loss_of(model: nn.Module, prepared: Prepared) -> float:
    labels = torch.from_numpy(prepared.labels)
    return nn.functional.cross_entropy(model(torch.zeros(len(labels), 3, 32, 32)), labels).item()


def test_the_loops_of_b1_and_b3_train(prepared):
    labels = torch.from_numpy(prepared.labels)
    batches = [(torch.zeros(40, 3, 32, 32), labels)] * 3
    for loop in ("B1", "B3"):
        model = NoNetwork(10)
        before = loss_of(model, prepared)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if loop == "B1":
            steps = list(baselines.fp32_epoch(model, optimizer, batches, CPU))
        else:
            steps = list(baselines.resident_epoch(model, optimizer, torch.zeros(40, 3, 32, 32), labels))
        assert len(steps) == {"B1": 3, "B3": 1}[loop]
        assert loss_of(model, prepared) < before


@pytest.mark.usefixtures("process_as_it_was")
def test_the_loop_of_b4_trains_what_accelerate_prepared(prepared):
    transform = baselines.pil_transform(prepared.mean, prepared.std, normalize=False)
    dataset = baselines.ImageDataset(prepared.images, prepared.labels, transform)
    loader = baselines.pil_loader(dataset, batch_size=20, workers=0)
    model = NoNetwork(10)
    before = loss_of(model, prepared)
    loop = baselines.AccelerateLoop(Accelerator(cpu=True), model, loader, prepared)
    assert len(list(loop.epoch())) == 2
    assert loss_of(model, prepared) < before


# The benchmarks themselves ----------------------------------------------------------------------------------


def test_the_operations_of_a_training_step_are_those_of_its_products():
    """3072 -> 10 -> 10: forward and weights' gradients of both layers, and the gradient between them."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10), nn.Linear(10, 10))
    assert flops.training_flops(model) == 2 * (2 * 3072 * 10) + 3 * (2 * 10 * 10)


def test_utilisation_is_the_networks_share_of_its_precisions_matrix_rate():
    config = Config(precision="no")
    row = Row({}, {"images/s": [100.0, 200.0]})
    per_image = flops.training_flops(initial_model(config, 10))
    add_utilisation([row], [("ours", config)], {"no": 1000.0 * per_image, "bf16": 1.0})
    assert row.measured["utilisation"] == pytest.approx([0.1, 0.2])


def test_a_failed_count_of_launches_leaves_the_rates(monkeypatch):
    entries = [("ours", Config(batch_size=size)) for size in (128, 512)]

    def count_launches(entry):
        if entry == entries[0]:
            raise RuntimeError("out of memory")
        return {"launches/step": 24.0}

    rates = [Row({}, {"images/s": [100.0]}), Row({}, {"images/s": [200.0]})]
    monkeypatch.setattr(train_step, "in_turn", lambda *arguments: rates)
    monkeypatch.setattr(train_step, "count_launches", count_launches)
    first, second = train_step.measure_group(entries, steps=1, repeats=1, launches=True)
    assert (first.measured, first.failed) == ({"images/s": [100.0]}, "RuntimeError: out of memory")
    assert (second.measured, second.failed) == ({"images/s": [200.0], "launches/step": [24.0]}, "")


def test_the_cost_of_determinism_is_compared_within_a_round():
    rows = [Row({}, {"images/s": [100.0, 50.0]}), Row({}, {"images/s": [90.0, 50.0]})]
    add_ratio(rows)
    assert rows[1].measured["of the rate without"] == [0.9, 1.0]


def test_copied_images_are_files_of_their_own_in_kaggles_layout(tmp_path):
    images = [save_image(tmp_path / f"{number}.png", image) for number, image in enumerate(random_images(3))]
    prepare_benchmark.copy_images(images, 10, tmp_path / "copies")
    copies = [Path(path) for path in numbered_images(tmp_path / "copies/train").values()]
    assert [path.name for path in copies] == [f"{number}.png" for number in range(1, 11)]
    assert [path.read_bytes() for path in copies] == [images[number % 3].read_bytes() for number in range(10)]
    assert all(path.stat().st_nlink == 1 and not path.is_symlink() for path in copies)
    for job in ("cache", "beton", "pil"):
        assert prepare_job.JOBS[job](tmp_path / "copies", tmp_path / "cache") > 0
    assert len(list((tmp_path / "cache").glob("*/images.beton"))) == 1
    prepare_job.to_cache(tmp_path / "copies", tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*/images.beton"))  # built anew, though it was there
    assert len(prepare(find_source("cifar10", tmp_path / "copies"), tmp_path / "cache").labels) == 10


def test_jobs_are_started_with_the_flags_of_their_config():
    config = Config(batch_size=64, stem="imagenet", split="none", deterministic=False, milestones=[1.5, 2.0])
    assert parse_config(scaling.flags(config)) == config


ALL_OF_SCALING = [
    ("global batch", 1, 128),
    ("global batch", 2, 128),
    ("global batch", 4, 128),
    ("batch per process", 2, 256),
    ("batch per process", 4, 512),
]


@pytest.mark.parametrize(
    ("stem", "brief", "expected"), [(None, False, ALL_OF_SCALING), ("cifar", True, ALL_OF_SCALING[:2])]
)
def test_scaling_is_measured_at_a_fixed_batch_of_the_job_and_of_a_process(
    stem, brief, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(scaling, "interleave", lambda contenders, *_, **__: [each.case for each in contenders])
    place = {"dataset": "shapes", "data_dir": "", "cache_dir": str(tmp_path)}
    cases = scaling.benchmark(Namespace(device="cpu", quick=False, stem=stem, brief=brief, repeats=1, **place))
    assert [(case["fixed"], case["processes"], case["global batch"]) for case in cases] == expected
    assert {case["stem"] for case in cases} == {stem or "imagenet"}


@pytest.fixture
def small_config(images, tmp_path, process_as_it_was) -> Config:
    flags = {"dataset": "folder", "data_dir": str(images), "cache_dir": str(tmp_path), "split": "none"}
    return Config(**flags, batch_size=16, stem="imagenet", loader="resident", precision="no", tracker="none")


def test_the_parts_of_a_step_are_measured_on_the_real_trainer(small_config):
    trainer = make_trainer(small_config, NoNetwork)
    trainer.val_ids = torch.arange(20)
    scaling_job.measure(trainer, 12)  # more steps than an epoch has
    assert trainer.progress.step == 24
    trainer.progress.step = 0
    found = scaling_job.measure(trainer, 2)
    assert list(found) == ["images/s", "data ms", "compute ms", "evaluation images/s"]  # it communicates with none
    assert trainer.progress.step == 4  # with and without communication
    trainer.progress.step = 0
    steps = our_steps(trainer)
    for _ in range(25):  # of 10 an epoch
        next(steps)
    assert (trainer.progress.epoch, trainer.progress.step) == (2, 25)


def recorded(monkeypatch, owner: Any, name: str, what: Callable[..., Any]) -> list[Any]:
    """`what` of each call of a class' method or a module's function, which goes on as it does."""
    found: list[Any] = []
    method = getattr(owner, name)

    def record(*arguments, **named):
        found.append(what(*arguments, **named))
        return method(*arguments, **named)

    monkeypatch.setattr(owner, name, record)
    return found


def test_defaults_are_measured_beside_their_alternatives(small_config, monkeypatch):
    steps = recorded(monkeypatch, Trainer, "training_row", lambda trainer, kind: trainer.progress.step)
    assert defaults.open_reading(small_config, 10)(2)["us/step"] > 0
    assert steps == [10, 20, 30]
    evaluated = recorded(monkeypatch, Predictor, "logits", lambda predictor, images, tta: len(images))
    assert defaults.open_evaluation(small_config, 125)(1)["images/s"] > 0
    assert evaluated == [125, 35]
    augmented = recorded(monkeypatch, BatchTransform, "augment", lambda transform, images, *_: len(images))
    assert defaults.open_stream(small_config, 4)(1)["images/s"] > 0
    assert augmented == [64, 64, 32, 64, 64]  # 10 steps an epoch
    updates = recorded(monkeypatch, torch.optim.SGD, "step", lambda optimizer: optimizer.defaults["fused"])
    assert defaults.open_sgd(small_config, defaults.SGD["fused"])(2)["us/step"] > 0
    assert updates == [True, True]
    kept = recorded(monkeypatch, defaults, "keep_freed_memory", lambda: True)
    for opening in (defaults.open_memory, defaults.open_memory_of_images):
        assert opening(small_config, defaults.FREED_MEMORY["returned"])(1)["images/s"] > 0
        assert kept == []
        assert opening(small_config, defaults.FREED_MEMORY["kept"])(1)["images/s"] > 0
        assert kept.pop()
    monkeypatch.setattr("resnet.resnet._AVX2_ALONE", None)  # so that it is put back
    products = recorded(monkeypatch, torch.nn.functional, "unfold", lambda *_, **__: True)
    for name, by_product in defaults.SMALL_MAPS.items():
        assert defaults.open_small_maps("imagenet", small_config, by_product)(1)["images/s"] > 0
        assert bool(products) == (name == "product of matrices")
        products.clear()


def test_a_profile_has_the_longest_operations_and_the_sum_of_all_others(monkeypatch):
    monkeypatch.setattr(profile, "SHOWN", 2)
    rows = profile.longest("step", [{"a": 1.0, "b": 5.0, "c": 4.0}, {"b": 4.0, "c": 3.0, "d": 1.0}])
    assert [row.case for row in rows] == [{"of": "step", "operation": name} for name in ("b", "c", "all others")]
    assert [row.measured["ms"] for row in rows] == [[5.0, 4.0], [4.0, 3.0], [1.0, 1.0]]
    assert [row.measured["%"] for row in rows] == [[50, 50], [40, 37.5], [10, 12.5]]


def test_a_profile_counts_what_a_step_takes(monkeypatch):
    monkeypatch.setattr(profile, "default_device", lambda: CPU)
    steps = iter(lambda: torch.zeros(1000).sort(), None)
    found = profile.ms_by_operation(steps, 3)
    assert found["aten::sort"] > 0


@pytest.mark.usefixtures("same_environment")
def test_what_needs_ffcv_is_left_out_where_it_is_not_installed(monkeypatch, tmp_path):
    for module in (loaders, train_step, data_wait, start, prepare_benchmark):
        monkeypatch.setattr(module, "HAS_FFCV", False)
    found: list[Any] = []
    monkeypatch.setattr(loaders, "throughput", lambda names, *_: found.extend(names) or [])
    monkeypatch.setattr(loaders, "starts", lambda names, *_: found.extend(names) or [])
    monkeypatch.setattr(data_wait, "in_turn", lambda openings, *_: found.extend(case for case, _ in openings))
    monkeypatch.setattr(
        start, "interleave", lambda contenders, *_: found.extend(contender.case for contender in contenders)
    )
    arguments = arguments_of("--cache-dir", str(tmp_path), "--quick", "--device", "cpu")
    arguments.images, arguments.only, arguments.brief = 0, None, False
    for module in (loaders, data_wait, start):
        arguments.quick = module is not start  # whose rehearsal has the resident loader alone
        module.benchmark(arguments)
    arguments.only = ["B2"]
    with pytest.raises(InputError, match="--only B2: needs FFCV"):
        loaders.benchmark(arguments)
    found += [contender.case for contender in prepare_benchmark.contenders_of(tmp_path, 1, tmp_path / "weights")]
    arguments = arguments_of("--device", "cpu")
    arguments.stem = "cifar"
    found += train_step.beside_baselines(arguments)
    assert len(found) >= 20
    assert not [case for case in map(str, found) if "ffcv" in case or "beton" in case or "B2" in case]


@pytest.mark.parametrize("full", [False, True])
def test_each_baseline_has_the_batch_that_it_is_published_with(full):
    arguments = arguments_of("--device", "cpu", *(["--full"] if full else []))
    arguments.stem = "cifar"
    cases = [train_step.case(*entry) for entry in train_step.beside_baselines(arguments)]
    of_ours = {(case["batch"], case["compile"]) for case in cases if case["loop"] == "ours"}
    assert of_ours == {(128, False), *([(128, True), (512, False), (512, True)] if full else [])}
    assert {(case["loop"], case["batch"]) for case in cases} - {("ours", 128), ("ours", 512)} == {
        ("B1", 128),
        ("B3", 500),
        ("B4", 128),
    }


@pytest.mark.parametrize(("brief", "stems"), [(False, {"cifar", "imagenet"}), (True, {"cifar"})])
def test_waiting_is_measured_with_one_stem_in_brief(brief, stems, monkeypatch, tmp_path):
    monkeypatch.setattr(data_wait, "in_turn", lambda openings, *_: openings)
    arguments = arguments_of("--device", "cpu", "--full", "--cache-dir", str(tmp_path))
    arguments.brief = brief
    assert {case["stem"] for case, _ in data_wait.benchmark(arguments)} == stems


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_starts_are_of_the_data_sets_own_recipe(dataset, monkeypatch):
    monkeypatch.setattr(start, "interleave", lambda contenders, _: contenders)
    contenders = start.benchmark(arguments_of("--dataset", dataset, "--device", "cpu"))
    steps = [each.measure.args[0] for each in contenders if "first step" in each.case["command"]]
    assert {flags[flags.index("--recipe") + 1] for flags in steps} == {f"recipes/{dataset}-cpu.yaml"}


def test_a_training_that_ends_before_its_first_step_is_told(tmp_path):
    with pytest.raises(RuntimeError, match="before its first step: error: --lr -1"):
        start.first_step(["--lr", "-1"], str(tmp_path))


def test_loaders_rehearses_on_drawn_shapes(tmp_path):
    out = tmp_path / "results/loaders.json"
    flags = ["--quick", "--device", "cpu", "--only", "ours, resident", "--images", "256"]
    command = python("-m", "benchmarks.loaders", *flags, "--cache-dir", tmp_path / "cache", "--out", out)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ours, resident" in done.stdout
    found = json.loads(out.read_text())
    (row,) = found["rows"]
    assert row["case"] == {"loader": "ours, resident", "batch": 128, "workers": 1, "form": "float32 channels_last"}
    assert set(row["measured"]) == {"images/s", "CPU s / 10,000 images", "first batch s", "peak memory MiB"}
    assert all(len(measured["repeats"]) == 1 for measured in row["measured"].values())
    assert found["quick"] is True


@pytest.mark.parametrize("name", ["contiguous", "channels_last"])
def test_the_networks_memory_format_is_the_one_that_is_measured(monkeypatch, name):
    formats = []

    class Network(nn.Conv2d):
        def forward(self, images):
            formats.append((images, self.weight))
            return super().forward(images).mean((2, 3))

    monkeypatch.setattr(memory_format, "initial_model", lambda config, num_classes: Network(3, num_classes, 3))
    steps = memory_format.network_steps(Config(batch_size=2, precision="no"), name)
    next(steps)
    next(steps)
    for images, weight in formats:
        for tensor in (images, weight):
            assert tensor.is_contiguous(memory_format=torch.channels_last) == (name == "channels_last")
            assert tensor.is_contiguous() == (name == "contiguous")
