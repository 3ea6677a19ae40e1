"""Asked to stop: SIGTERM and SIGINT end a run at its next step boundary, in all processes together.

Nothing here imports torch before it is needed: the handlers are there before the first import of it.
"""

import ctypes
import os
import signal
import sys
import time
from types import FrameType
from typing import Any


class Stopped(Exception):
    """The run was asked to stop; raised in every process at the same step boundary.

    signal_number: SIGTERM or SIGINT. The exit code is 128 more, as a shell reports it.
    """

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


class StopRequest:
    """Takes SIGTERM and SIGINT, in place of their default actions.

    Until `defer` is called a signal ends the process: a single one in order (temporary files are removed, the
    exit code is 143 or 130), one of several on the spot, because it may be waiting for the others where Python
    does not run. From then on the first signal is kept in `signal_number`, for StopAgreement to act on, and a
    second one ends the process on the spot.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._deferring = False
        self._since = 0.0
        _send_usr2_when_the_launcher_dies()
        if os.environ.get("WORLD_SIZE", "1") == "1":
            self._take_signals()
        else:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def defer(self) -> None:
        self._deferring = True
        self._take_signals()

    def _take_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)
        if hasattr(signal, "SIGUSR2"):
            signal.signal(signal.SIGUSR2, self._launcher_died)

    def _launcher_died(self, number: int, frame: FrameType | None) -> None:
        if not self.signal_number:  # it does not count as a second signal: Ctrl-C reaches the launcher too
            self._receive(signal.SIGTERM, frame)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self._deferring:
            raise SystemExit(128 + number)
        if not self.signal_number:
            self.signal_number, self._since = number, time.monotonic()
        elif not (_under_torchrun() and time.monotonic() - self._since < 1):
            # (torchrun passes on a Ctrl-C that the terminal has already sent to each process.)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _send_usr2_when_the_launcher_dies() -> None:
    """`accelerate launch` dies of a SIGTERM and leaves its process running: let Linux tell that process of it."""
    if sys.platform == "linux" and (_under_torchrun() or "ACCELERATE_MIXED_PRECISION" in os.environ):
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of linux/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGUSR2, 0, 0, 0)


def _under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


class StopAgreement:
    """Lets all processes stop after the same step.

    Each check sends this process' answer on its way and reads the common one of the check before: by then it
    has arrived, so that no process waits, and none reads the device.

    Args:
        request: of this process.
        num_processes: of the job; the process group exists if there are several.
    """

    def __init__(self, request: StopRequest, num_processes: int):
        import torch.distributed as dist

        self._request = request
        # Its own group, over gloo: the numbers are in the CPU's memory, whatever the training's backend is.
        self._group: Any = dist.new_group(backend="gloo") if num_processes > 1 else None
        self._answer: Any = None
        self._arrival: Any = None

    def check(self) -> None:
        """To be called by every process equally often. Raises Stopped in all of them, or in none."""
        if self._group is None:
            if self._request.signal_number:
                raise Stopped(self._request.signal_number)
            return
        import torch
        import torch.distributed as dist

        if self._arrival is not None:
            self._arrival.wait()
            if number := int(self._answer):
                self._arrival = None
                raise Stopped(number)
        self._answer = torch.tensor(self._request.signal_number)
        self._arrival = dist.all_reduce(self._answer, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def finish(self) -> None:
        """Wait for the last answer: no process may leave while another still sends to it."""
        if self._arrival is not None:
            self._arrival.wait()
            self._arrival = None
