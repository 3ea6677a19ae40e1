"""FFCV behind the loaders' contract, and each of its known ways to hang, leak or repeat."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import shared_memory
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import ROOT, import_ffcv_loader

ffcv_loader = import_ffcv_loader()

from ffcv.memory_managers import OSCacheManager  # noqa: E402

from data.ffcv_loader import FFCVLoader, whole_beton  # noqa: E402
from data.loaders import Batch, make_loader  # noqa: E402
from data.prepared import Prepared  # noqa: E402
from data.resident_loader import ResidentLoader  # noqa: E402
from tests.images import prepared_pixels, random_images  # noqa: E402

CPU = torch.device("cpu")
T = TypeVar("T")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared_pixels(tmp_path_factory.mktemp("cache"), 90, 11)


@pytest.fixture(scope="module")
def loader(prepared: Prepared) -> FFCVLoader:
    """Shared, since each loader compiles anew: tests leave it as they found it."""
    return FFCVLoader(prepared, CPU, workers=2)


@pytest.fixture
def small(tmp_path: Path) -> Prepared:
    """A data set whose .beton a test may damage."""
    return prepared_pixels(tmp_path / "cache", 40)


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    assert reading_threads() == []


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if isinstance(thread, ffcv_loader._Pass)]


def in_time(action: Callable[[], T], limit_s: float = 120) -> T:
    """The action's result, or its exception; queue.Empty where it hangs."""
    outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((action(), None))
        except BaseException as error:
            outcome.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    result, error = outcome.get(timeout=limit_s)
    try:
        if error:
            raise error
        return result
    finally:
        del error  # with its traceback it holds what FFCV's writer had open


def read(loader: Any, batches: list[Tensor]) -> list[Batch]:
    return in_time(lambda: list(loader.read(batches)))


def shuffled(count: int, seed: int = 0) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def assert_equal(batches: list[Batch], others: list[Batch]) -> None:
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        for tensor, wanted in zip(batch[:3], other[:3], strict=True):  # images, labels, ids
            assert tensor.dtype == wanted.dtype
            assert tensor.shape == wanted.shape
            assert tensor.stride() == wanted.stride()
            assert torch.equal(tensor, wanted)


def test_importing_it_compiles_nothing_and_leaves_numba_as_it_was():
    code = "from numba.core.event import install_recorder\nwith install_recorder('numba:compile') as compiled:\n"
    code += "    import data.ffcv_loader\nassert not compiled.buffer, compiled.buffer[0]\n"
    code += "import numba.typed, numba.typed.typeddict as home\nassert numba.typed.Dict is home.Dict"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


# The same stream from both loaders --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "size"),
    [(101, 101), (101, 10), (101, 20), (100, 10), (7, 10), (1, 1), (5, 1), (13, 4), (4, 2)],
    ids=lambda value: str(value),
)
def test_both_loaders_give_the_same_batches(loader: FFCVLoader, prepared: Prepared, count: int, size: int) -> None:
    """Also of odd sizes, with a last batch of one, and each size after another in one loader."""
    batches = list(shuffled(101)[:count].split(size))
    found = read(loader, batches)
    assert_equal(found, list(ResidentLoader(prepared, CPU).read(batches)))
    assert torch.equal(torch.cat([batch.ids for batch in found]), torch.cat(batches))


def test_one_worker_gives_the_same_batches(prepared: Prepared) -> None:
    batches = list(shuffled(101).split(20))
    one = FFCVLoader(prepared, CPU, workers=1)
    assert_equal(read(one, batches), list(ResidentLoader(prepared, CPU).read(batches)))


@pytest.mark.parametrize("sizes", [[7, 7, 7], [7, 2, 9]], ids=["of one size", "of several sizes"])
def test_samples_are_read_as_ffcv_reads_them(sizes: list[int]) -> None:
    starts = [40, 10, 60]  # in the file; samples need not lie there in their order
    table = np.zeros(3, dtype=[("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
    table["ptr"], table["size"] = starts, sizes
    reader = SimpleNamespace(alloc_table=table, page_size=1 << 21)
    content = np.arange(80, dtype=np.uint8)
    for manager in (ffcv_loader._OneSizeReads(reader), OSCacheManager(reader)):
        function = manager.compile_reader()
        for start, size in zip(starts, sizes, strict=True):
            found = function(np.uint64(start), (content, manager.ptrs, manager.sizes))
            assert found.tolist() == list(range(start, start + size))


def test_no_image_comes_twice_where_the_batches_do_not_divide(loader: FFCVLoader, prepared: Prepared) -> None:
    found = read(loader, list(torch.arange(101).split(8)))
    images = [image.tobytes() for batch in found for image in batch.images.permute(0, 2, 3, 1).numpy()]
    assert images == [image.tobytes() for image in prepared.images]


def test_the_labels_of_a_last_batch_of_one_have_one_dimension(loader: FFCVLoader) -> None:
    last = read(loader, list(torch.arange(9).split(4)))[-1]
    assert last.labels.shape == (1,)
    assert last.images.shape == (1, 3, 32, 32)


def test_ids_come_in_any_order_and_may_repeat(loader: FFCVLoader, prepared: Prepared) -> None:
    batches = [torch.tensor(ids) for ids in ([100, 0, 100], [7, 7, 7], [2, 1])]
    assert_equal(read(loader, batches), list(ResidentLoader(prepared, CPU).read(batches)))


def test_images_are_channels_last(loader: FFCVLoader) -> None:
    for batch in read(loader, list(torch.arange(10).split(4))):
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_no_batches_are_read_as_none(loader: FFCVLoader) -> None:
    assert read(loader, []) == []


@pytest.mark.parametrize("sizes", [[2, 3], [3, 2, 3], [4, 4, 5]])
def test_batches_that_ffcv_cannot_cut_are_refused(loader: FFCVLoader, sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="of one size"):
        read(loader, list(torch.arange(sum(sizes)).split(sizes)))


def test_a_kept_batch_stays_valid_while_the_next_are_read(loader: FFCVLoader, prepared: Prepared) -> None:
    batches = list(shuffled(101).split(4))  # 26, FFCV's ring has 5
    kept = read(loader, batches)
    read(loader, list(shuffled(101, seed=1).split(4)))
    assert_equal(kept, list(ResidentLoader(prepared, CPU).read(batches)))


def test_two_passes_may_be_open_at_once(loader: FFCVLoader, prepared: Prepared) -> None:
    """Evaluating in mid-epoch, with another size of batch."""
    training, evaluation = list(shuffled(101).split(7)), list(torch.arange(101).split(10))
    passes = loader.read(training)
    first = [in_time(lambda: next(passes)) for _ in range(3)]
    between = read(loader, evaluation)
    rest = in_time(lambda: list(passes))
    resident = ResidentLoader(prepared, CPU)
    assert_equal(first + rest, list(resident.read(training)))
    assert_equal(between, list(resident.read(evaluation)))


# The end of a pass, early or late ---------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [0, 1, 2, 6, 9, 10], ids=lambda taken: f"after {taken} of 10")
def test_leaving_early_ends_the_thread(loader: FFCVLoader, taken: int) -> None:
    passes = loader.read(list(torch.arange(100).split(10)))
    for _ in range(taken):
        in_time(lambda: next(passes))
    assert len(reading_threads()) <= 1
    in_time(passes.close)
    assert reading_threads() == []


def test_an_error_of_the_consumer_ends_the_thread(loader: FFCVLoader) -> None:
    def consume() -> None:
        for _ in loader.read(list(torch.arange(100).split(10))):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_time(consume)
    assert in_time(reading_threads) == []


def test_after_leaving_early_the_next_pass_starts_at_its_own_beginning(
    loader: FFCVLoader, prepared: Prepared
) -> None:
    for seed in range(3):
        passes = loader.read(list(shuffled(101, seed).split(10)))
        in_time(lambda passes=passes: next(passes))
        in_time(passes.close)
    batches = list(shuffled(101, seed=9).split(10))
    assert_equal(read(loader, batches), list(ResidentLoader(prepared, CPU).read(batches)))


def test_next_after_the_end_stops_again(loader: FFCVLoader) -> None:
    loader.reader.batch_size = 4
    one_pass = ffcv_loader._Pass(loader.reader, np.arange(8))
    assert len(in_time(lambda: list(one_pass))) == 2
    for _ in range(3):
        with pytest.raises(StopIteration):
            in_time(lambda: stop_of(one_pass))
    in_time(one_pass.stop)


def test_next_after_leaving_early_stops(loader: FFCVLoader) -> None:
    loader.reader.batch_size = 4
    one_pass = ffcv_loader._Pass(loader.reader, np.arange(80))
    in_time(lambda: next(one_pass))
    in_time(one_pass.stop)
    with pytest.raises(StopIteration):
        in_time(lambda: stop_of(one_pass))


def stop_of(one_pass: Any) -> None:
    next(one_pass)


# Failures are raised, and nothing waits for good ------------------------------------------------------------


@pytest.mark.parametrize("failing", [0, 1, 7, 9], ids=lambda batch: f"in batch {batch} of 10")
def test_an_error_in_ffcvs_thread_is_raised(
    loader: FFCVLoader, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    run_pipeline = ffcv_loader._Pass.run_pipeline

    def fail(self: Any, batch: int, *arguments: Any) -> Any:
        if batch == failing:
            raise OSError("the disk is gone")
        return run_pipeline(self, batch, *arguments)

    monkeypatch.setattr(ffcv_loader._Pass, "run_pipeline", fail)
    delivered: list[Batch] = []

    def consume() -> None:
        for batch in loader.read(list(torch.arange(100).split(10))):
            delivered.append(batch)

    with pytest.raises(RuntimeError, match="FFCV's reading thread failed") as caught:
        in_time(consume)
    assert str(caught.value.__cause__) == "the disk is gone"
    assert len(delivered) == failing


def test_after_an_error_the_loader_reads_on(
    loader: FFCVLoader, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = list(torch.arange(20).split(5))
    with monkeypatch.context() as patch:
        patch.setattr(ffcv_loader._Pass, "run_pipeline", lambda self, *arguments: 1 / 0)
        with pytest.raises(RuntimeError):
            read(loader, batches)
    assert_equal(read(loader, batches), list(ResidentLoader(prepared, CPU).read(batches)))


def beton(prepared: Prepared) -> Path:
    return prepared.folder / "images.beton"


def truncate(prepared: Prepared) -> None:
    os.truncate(beton(prepared), beton(prepared).stat().st_size * 2 // 3)


def remove(prepared: Prepared) -> None:
    beton(prepared).unlink()


def forget(prepared: Prepared) -> None:
    beton(prepared).with_suffix(".beton.json").unlink()


def take_another_record(prepared: Prepared) -> None:
    beton(prepared).with_suffix(".beton.json").write_text("[]")


def take_another(prepared: Prepared) -> None:
    """The .beton of other images, with its record."""
    other = prepared_pixels(prepared.folder.parent.with_name("other"), 40, seed=1)
    whole_beton(other)
    for path in other.folder.glob("images.beton*"):
        path.rename(prepared.folder / path.name)


@pytest.mark.parametrize("damage", [remove, forget, take_another_record, take_another])
def test_a_beton_that_is_missing_or_not_of_this_data_is_written_anew(
    small: Prepared, damage: Callable[[Prepared], None]
) -> None:
    intact = whole_beton(small).read_bytes()
    damage(small)
    assert whole_beton(small).read_bytes() == intact
    record = json.loads(beton(small).with_suffix(".beton.json").read_text())
    assert record["data"] == small.digest


def test_a_truncated_beton_is_noticed_before_ffcv_reads_it(small: Prepared) -> None:
    whole_beton(small)
    truncate(small)
    found = read(in_time(lambda: FFCVLoader(small, CPU, 2)), list(torch.arange(40).split(16)))
    images = torch.cat([batch.images for batch in found]).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(images.numpy(), random_images(40))


def test_a_whole_beton_is_not_written_again(small: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    write = ffcv_loader._write

    def recording(prepared: Prepared, path: Path) -> None:
        written.append(path)
        write(prepared, path)

    monkeypatch.setattr(ffcv_loader, "_write", recording)
    for _ in range(3):
        whole_beton(small)
    assert len(written) == 1


# The writer -------------------------------------------------------------------------------------------------


@pytest.fixture
def shared_blocks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the shared memory that FFCV's writer asked for."""
    names: list[str] = []
    prepare = ffcv_loader._Writer.prepare

    def recording(self: Any) -> None:
        prepare(self)
        names.append(self.metadata_sm.name)

    monkeypatch.setattr(ffcv_loader._Writer, "prepare", recording)
    return names


def assert_freed(names: list[str]) -> None:
    assert len(names) == 1
    with pytest.raises(FileNotFoundError):
        shared_memory.SharedMemory(names[0])


def test_writing_frees_its_shared_memory_and_leaves_the_beton_and_its_record(
    small: Prepared, shared_blocks: list[str]
) -> None:
    before = set(os.listdir(small.folder))
    in_time(lambda: whole_beton(small))
    assert set(os.listdir(small.folder)) - before == {"images.beton", "images.beton.json"}
    assert_freed(shared_blocks)


def fail_at(patch: pytest.MonkeyPatch, failing: int) -> None:
    """Reading image `failing` for the writer is an error."""
    get = ffcv_loader._Samples.__getitem__

    def fail(self: Any, index: int) -> tuple[np.ndarray, int]:
        if index == failing:
            raise OSError("no space left on device")
        return get(self, index)

    patch.setattr(ffcv_loader._Samples, "__getitem__", fail)


@pytest.mark.parametrize("former", [False, True], ids=["first", "again"])
@pytest.mark.parametrize("failing", [0, 25, 39])
def test_an_error_while_writing_is_raised_and_leaves_nothing(
    small: Prepared, shared_blocks: list[str], monkeypatch: pytest.MonkeyPatch, failing: int, former: bool
) -> None:
    before = set(os.listdir(small.folder))
    if former:
        whole_beton(small)
        truncate(small)
        shared_blocks.clear()
    with monkeypatch.context() as patch:
        fail_at(patch, failing)
        with pytest.raises(OSError, match="no space left"):
            in_time(lambda: whole_beton(small))
    assert_freed(shared_blocks)
    # the former .beton, damaged, may stay: without its record it is never read
    assert set(os.listdir(small.folder)) - before == ({"images.beton"} if former else set())
    in_time(lambda: whole_beton(small))
    assert (small.folder / "images.beton.json").is_file()


def test_a_writer_that_was_killed_leaves_nothing_for_good(small: Prepared) -> None:
    """Its temporary file, as large as the data set, goes when the .beton is written the next time."""
    code = f"""
import os, signal
from pathlib import Path
from data.files import written_atomically

with written_atomically(Path({str(beton(small))!r})) as temporary:
    temporary.touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    before = set(os.listdir(small.folder))
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -signal.SIGKILL
    assert len(set(os.listdir(small.folder)) - before) == 1
    whole_beton(small)
    assert set(os.listdir(small.folder)) - before == {"images.beton", "images.beton.json"}


# Cores and threads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["auto", "ffcv"])
def test_making_a_loader_and_reading_leave_torchs_threads_alone(prepared: Prepared, choice: str) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        made, note = make_loader(choice, prepared, CPU, workers=1)
        assert (made.name, note) == ("ffcv", "")
        assert torch.get_num_threads() == 3
        for _ in made.read(list(torch.arange(101).split(10))):
            assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


FRESH_PROCESS = """
import json, os, sys
from pathlib import Path

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import torch

from data.loaders import make_loader
from tests.images import prepared_pixels

torch.set_num_threads(3)
prepared = prepared_pixels(Path(sys.argv[1]), 37)
loader, _ = make_loader("ffcv", prepared, torch.device("cpu"), workers=8)
threads = [torch.get_num_threads()]
equal = []
for batch in loader.read(list(torch.arange(37).split(8))):
    threads.append(torch.get_num_threads())
    images = batch.images.permute(0, 2, 3, 1).numpy()
    equal.append(bool((images == prepared.images[batch.ids.numpy()]).all()))
print(json.dumps({"threads": threads, "equal": equal}))
"""


@pytest.fixture(scope="module")
def fresh_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    """What a process found that may use one core of the machine and asks for 8 workers and 3 torch threads."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("the system does not limit a process to some cores")
    done = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, str(tmp_path_factory.mktemp("fresh"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_threads_are_no_more_than_numba_is_allowed(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.config.NUMBA_NUM_THREADS", 1)
    monkeypatch.setattr(ffcv_loader, "allowed_cores", lambda: 4)
    assert FFCVLoader(prepared, CPU, workers=4).reader.num_workers == 1


def test_more_workers_than_allowed_cores_may_be_asked_for(fresh_process: dict[str, list]) -> None:
    assert fresh_process["equal"] == [True] * 5


def test_the_first_import_of_ffcv_leaves_torchs_threads_alone(fresh_process: dict[str, list]) -> None:
    assert fresh_process["threads"] == [3] * 6
