"""Measurements in processes of their own, and the memory of a process with all that descend from it."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context, set_start_method
from types import TracebackType
from typing import Any

import psutil

from benchmarks.common import MIB, Contender, Row, interleave
from data.parent import die_with_parent
from training.config import ROOT

SAMPLING_INTERVAL_S = 0.1

_open: Callable[[], Callable[..., Any]] | None = None  # in a process of in_own_process


@contextmanager
def in_own_process(make: Callable[..., Callable[..., Any]], *arguments: Any) -> Iterator[Callable[..., Any]]:
    """A function that calls, in a fresh process, what `make(*arguments)` returned in that process.

    Contenders that are measured in turn do not share threads, compiled code or allocators then. The process starts
    and imports what it needs at once, beside others. It opens its contender, which may choose kernels by timing
    them, when it is first called.
    """
    pool = ProcessPoolExecutor(
        1, get_context("spawn"), initializer=_start, initargs=(os.getpid(), partial(make, *arguments))
    )
    with pool:
        pool.submit(int)
        yield lambda *given: pool.submit(_call, *given).result()


def _start(parent: int, opening: Callable[[], Callable[..., Any]]) -> None:
    global _open
    die_with_parent(parent, getattr(signal, "SIGKILL", 0))
    # A spawned process would spawn its own children too. A script's DataLoader forks its workers where the system
    # does so by default, and so must a baseline's.
    set_start_method(None, force=True)
    _open = cache(opening)


def _call(*given: Any) -> Any:
    assert _open is not None
    return _open()(*given)


Opening = tuple[dict[str, Any], tuple[Any, ...]]
"""A contender's case; and what in_own_process is given for it: what opens it, and with which arguments."""


def in_turn(openings: Sequence[Opening], count: int, repeats: int) -> list[Row]:
    """Measure contenders that have a process each, in turn; `count` is what their functions are called with."""
    with ExitStack() as stack:
        opened = [(case, stack.enter_context(in_own_process(*opening))) for case, opening in openings]
        return interleave([Contender(case, partial(measure, count)) for case, measure in opened], repeats)


class PeakMemory:
    """The largest memory, in MiB, of a process and all that descend from it, while the block runs.

    Of a page that several processes share, each counts its share (PSS), where the system tells it.
    """

    def __init__(self, pid: int):
        self.pid = pid
        self.mib = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        last = False
        while not last:
            last = self._done.wait(SAMPLING_INTERVAL_S)
            self.mib = max(self.mib, family_memory(self.pid) / MIB)


def family_memory(pid: int) -> int:
    """Bytes of a process and all that descend from it; those that end meanwhile do not count."""
    try:
        parent = psutil.Process(pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    return sum(_memory(process) for process in family)


def _memory(process: psutil.Process) -> int:
    try:
        found = process.memory_full_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
    return int(getattr(found, "pss", found.uss))


@dataclass(frozen=True)
class Finished:
    """seconds: from start to end. printed: on stdout and stderr. peak_mib: PeakMemory's, 0 if not watched."""

    seconds: float
    printed: str
    peak_mib: float = 0.0


def python(*arguments: object) -> list[str]:
    """The command line of this interpreter."""
    return [sys.executable, *map(str, arguments)]


def run_command(command: Sequence[str], watch_memory: bool = False, code: int = 0) -> Finished:
    """Run a command in the checkout, to its end.

    To watch its memory takes a fifth of a core for each process with torch: its seconds mean nothing then.

    Raises:
        RuntimeError: it ended with another exit code than `code`; with the end of what it printed.
    """
    with tempfile.TemporaryFile("w+") as printed:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=printed, stderr=subprocess.STDOUT)
        with PeakMemory(process.pid) if watch_memory else nullcontext() as memory:
            ended_with = process.wait()
        seconds = time.perf_counter() - started
        printed.seek(0)
        text = printed.read()
    if ended_with != code:
        raise RuntimeError(f"{' '.join(command)} ended with {ended_with}: {text[-2000:]}")
    return Finished(seconds, text, memory.mib if memory else 0.0)
