"""FFCV (Leclerc et al., 2023, arXiv:2306.12517): the .beton file, read and decoded in FFCV's threads.

FFCV decodes and orders, nothing more. Its random transforms cannot be seeded and take tens of seconds to
compile, so augmentation runs on whole batches in torch. What else of FFCV has to be handled with care is
said where it is handled.
"""

import io
import queue
from collections.abc import Generator, Sequence
from multiprocessing import Value
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numba
import numba.typed
import numpy as np
import torch
from torch import Tensor

from data.decode import allowed_cores
from data.files import read_json, sha256_of, write_json, written_atomically
from data.loaders import Batch, ids_on_device
from data.prepared import Prepared, cache_lock

_threads = torch.get_num_threads()
try:
    # FFCV keeps two numbers in a numba.typed.Dict, for which numba compiles for seconds as soon as it is imported.
    with patch.object(numba.typed, "Dict", dict):
        import ffcv.loader.loader
        from ffcv.fields import IntField, RGBImageField
        from ffcv.fields.rgb_image import SimpleRGBImageDecoder
        from ffcv.libffcv import memcpy
        from ffcv.loader import Loader as FFCVReader
        from ffcv.loader.epoch_iterator import EpochIterator
        from ffcv.memory_allocator import MemoryAllocator
        from ffcv.memory_managers import OSCacheManager
        from ffcv.pipeline.compiler import Compiler
        from ffcv.transforms import Squeeze, ToTensor, ToTorchImage
        from ffcv.writer import DatasetWriter
finally:
    torch.set_num_threads(_threads)  # importing ffcv sets it to 1


class FFCVLoader:
    """Reads the .beton beside the prepared cache, writing it first where it is absent or damaged.

    Args:
        prepared: the data set.
        device: where the batches go.
        workers: FFCV's threads; at most the cores this process may use, and NUMBA_NUM_THREADS.
    """

    name = "ffcv"

    def __init__(self, prepared: Prepared, device: torch.device, workers: int):
        self.device = device
        _leave_torch_threads_alone()
        # FFCV's readers choose it themselves; those of other data read with it as before.
        ffcv.loader.loader.OSCacheManager = _OneSizeReads  # type: ignore[attr-defined]
        self.reader = FFCVReader(
            str(whole_beton(prepared)),
            batch_size=1,  # read() sets the size and the order of each pass
            num_workers=min(workers, allowed_cores(), numba.config.NUMBA_NUM_THREADS),  # type: ignore[attr-defined]
            pipelines={
                "image": [_RawDecoder(), ToTensor(), ToTorchImage(channels_last=True)],
                "label": [ToTensor(), Squeeze(1)],  # Squeeze() would make a batch of one a scalar
            },
        )

    def read(self, batches: Sequence[Tensor]) -> Generator[Batch]:
        """As in data/loaders.py. All batches but the last must be of one size, the last at most that size."""
        if not batches:
            return
        size = len(batches[0])
        if any(len(ids) != size for ids in batches[:-1]) or len(batches[-1]) > size:
            raise ValueError("all batches but the last must be of one size, and the last at most of that size")
        self.reader.batch_size = size
        epoch = _Pass(self.reader, torch.cat(list(batches)).numpy())
        try:
            for ids, (images, labels) in zip(ids_on_device(batches, self.device), epoch, strict=True):
                yield Batch(self._own(images), self._own(labels), ids)
        finally:
            epoch.stop()

    def _own(self, tensor: Tensor) -> Tensor:
        """A copy on the device. FFCV's tensors lie in a ring of buffers that it soon overwrites.

        Where there is CUDA the ring is pinned memory, and a transfer straight from it might run after FFCV has
        overwritten it. torch's own pinned memory is kept until the transfer has run.
        """
        if self.device.type != "cuda":
            return tensor.clone()
        pinned = torch.empty_like(tensor, pin_memory=True).copy_(tensor)
        return pinned.to(self.device, non_blocking=True)


def _leave_torch_threads_alone() -> None:
    """FFCV sets torch's number of threads to its own, from two threads; only numba's are its business."""

    def set_num_threads(cls: Any, count: int) -> None:
        cls.num_threads = count
        numba.set_num_threads(count)

    Compiler.set_num_threads = classmethod(set_num_threads)


class _OneSizeReads(OSCacheManager):
    """FFCV's reads of samples, without a search for their sizes if all are of one: numba compiles them sooner."""

    def compile_reader(self) -> Any:
        sizes = np.unique(self.sizes)
        if len(sizes) != 1:
            return super().compile_reader()
        size = sizes[0]

        def read(address, mem_state):  # type: ignore[no-untyped-def]
            return mem_state[0][address : address + size]

        return Compiler.compile(read, numba.uint8[::1](numba.uint64, self.state_type))


class _RawDecoder(SimpleRGBImageDecoder):
    """FFCV's decoder, for images that are all raw: without JPEG's, numba compiles it sooner."""

    def generate_code(self) -> Any:
        read, copy, threads_range = self.memory_read, Compiler.compile(memcpy), Compiler.get_iterator()

        def decode(batch_indices, destination, metadata, storage_state):  # type: ignore[no-untyped-def]
            for place in threads_range(len(batch_indices)):
                image = metadata[batch_indices[place]]
                copy(read(image["data_ptr"], storage_state), destination[place])
            return destination[: len(batch_indices)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


class _Pass(EpochIterator):
    """One pass over given indices, which ends when it is told to and raises what went wrong in its thread.

    EpochIterator's thread takes an exception with it and leaves the consumer waiting for good, and runs on
    when the consumer leaves early.
    """

    error: BaseException | None = None
    closed: bool = False

    def run(self) -> None:
        try:
            if torch.cuda.is_available():  # a thread begins on the first GPU: all processes would use memory there
                torch.cuda.set_device(self.current_stream.device)
            super().run()
        except BaseException as error:  # handed to the consumer, which raises it
            self.error = error
            self.output_queue.put(None)

    def __next__(self) -> tuple[Tensor, Tensor]:
        if self.closed:
            raise StopIteration
        try:
            return super().__next__()
        except StopIteration:
            self.closed = True
            if self.error:
                raise RuntimeError("FFCV's reading thread failed") from self.error
            raise

    def stop(self) -> None:
        """End the thread, wherever it is: no batch is left to decode, and its queue has room."""
        self.iter_ixes = iter(())
        self.terminate_event.set()
        while self.is_alive():
            try:
                self.output_queue.get_nowait()
            except queue.Empty:
                self.join(timeout=0.01)
        self.closed = True


def whole_beton(prepared: Prepared) -> Path:
    """The .beton of a prepared data set, written where it is absent or does not have its digest.

    A truncated .beton passes FFCV's own checks and then hangs; so size and digest are checked at each start.
    """
    path = prepared.folder / "images.beton"
    record = path.with_suffix(".beton.json")
    with cache_lock(prepared.folder):
        if not _matches(path, record, prepared.digest):
            record.unlink(missing_ok=True)
            with written_atomically(path) as temporary:
                _write(prepared, temporary)
                sha256 = sha256_of(temporary)
            write_json(record, {"data": prepared.digest, "sha256": sha256})
        return path


def _matches(path: Path, record: Path, digest: str) -> bool:
    try:
        expected = read_json(record)
        return expected["data"] == digest and expected["sha256"] == sha256_of(path)
    except (OSError, ValueError, KeyError, TypeError):
        return False


class _Samples:
    def __init__(self, prepared: Prepared):
        self.prepared = prepared

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.prepared.images[index], int(self.prepared.labels[index])

    def __len__(self) -> int:
        return len(self.prepared.labels)


class _Allocator(MemoryAllocator):
    """FFCV's writes a page with one unbuffered call, and takes no notice when a full disk took a part of it."""

    def __enter__(self) -> None:
        self.fp = _WholeWrites(self.fname, "a")

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        with self.fp:
            if error is None:
                self.flush_page()


class _WholeWrites(io.FileIO):
    """Writes all bytes or raises the error, where FileIO writes what there is room for."""

    def write(self, content: Any) -> int:
        left = memoryview(content)
        while left:
            left = left[super().write(left) :]
        return len(content)


class _Writer(DatasetWriter):
    """FFCV's writer, in this process: it would wait for good for a worker that failed, on a full disk say."""

    metadata_sm: Any

    def _write_common(self, num_samples, queue_content, work_fn, extra_worker_args):  # type: ignore[no-untyped-def]
        self.num_samples = num_samples
        self.prepare()
        self._use_own_memory()
        work: queue.Queue[Any] = queue.Queue()
        for chunk in [*queue_content, None]:
            work.put(chunk)
        allocator = _Allocator(self.fname, self.data_region_start, self.page_size)
        done: queue.Queue[Any] = queue.Queue()
        given = (work, self.metadata_sm, self.metadata_type, self.fields, allocator, Value("Q", 0), done)
        work_fn(*given, *extra_worker_args)
        self.finalize(done.get())

    def _use_own_memory(self) -> None:
        """In place of shared memory: one process needs none, and an error's traceback would keep it open."""
        self.metadata_sm.close()
        self.metadata_sm.unlink()
        self.metadata_sm = SimpleNamespace(buf=bytearray(self.num_samples * self.metadata_type.itemsize))


def _write(prepared: Prepared, path: Path) -> None:
    writer = _Writer(str(path), {"image": RGBImageField(write_mode="raw"), "label": IntField()}, num_workers=1)
    writer.from_indexed_dataset(_Samples(prepared))
