"""Tied to the process that started this one."""

import ctypes
import os
import sys
from pathlib import Path


def signal_at_parents_death(number: int) -> None:
    """Have Linux send this process signal `number` when its parent dies; elsewhere nothing is done."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of linux/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, number, 0, 0, 0)


def die_with_parent(parent: int, number: int) -> None:
    """As above, for a worker that has started before it could ask: the parent may be dead by then."""
    signal_at_parents_death(number)
    if sys.platform == "linux" and os.getppid() != parent:
        os._exit(1)


def is_orphan() -> bool:
    """Whether the parent has died before the signal was asked for: init has inherited this process.

    In a container the parent itself may be process 1; then process 1 is Python, as launchers are.
    """
    if sys.platform != "linux" or os.getppid() != 1:
        return False
    return b"python" not in Path("/proc/1/cmdline").read_bytes().split(b"\0")[0]
