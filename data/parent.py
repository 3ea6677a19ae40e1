"""Tied to the process that started this one."""

import ctypes
import os
import sys


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
