"""Asked to stop: SIGTERM, SIGINT and SIGHUP end a run at its next step boundary, in all processes together.

Nothing here imports torch before it is needed: the handlers are there before the first import of it.
"""

import os
import signal
import time
from datetime import timedelta
from types import FrameType
from typing import Any

from data.parent import is_orphan, signal_at_parents_death
from training.cli import tell_error

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]
STOPPED = tuple(128 + number for number in SIGNALS)
"""Exit codes of a process that was asked to stop."""


def signals_to_take() -> list[signal.Signals]:
    """All SIGNALS, but for a SIGHUP that nohup has this process ignore."""
    hangup = getattr(signal, "SIGHUP", None)
    return [number for number in SIGNALS if number != hangup or signal.getsignal(number) != signal.SIG_IGN]


class Stopped(Exception):
    """The run was asked to stop; raised in every process at the same step boundary.

    signal_number: one of SIGNALS. The exit code is 128 more, as a shell reports it.
    """

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


class StopRequest:
    """Takes the signals that ask for an end, in place of their default actions.

    Until `defer` is called a signal ends the process: a single one in order (temporary files are removed, the
    exit code is 128 + the signal), one of several on the spot, because it may be waiting for the others where
    Python does not run. From then on the first signal is kept in `signal_number`, for StopAgreement to act on, and
    a second one ends the process on the spot.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._deferring = False
        self._since = 0.0
        if _launched():  # `accelerate launch` dies of a SIGTERM and leaves its process running
            signal_at_parents_death(getattr(signal, "SIGUSR2", 0))
            if is_orphan():  # it died before: nobody would end this process, which would wait for the others
                tell_error("what has launched this process has ended")
                raise SystemExit(128 + signal.SIGTERM)
        if os.environ.get("WORLD_SIZE", "1") == "1":
            self._take_signals()
        else:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def defer(self) -> None:
        self._deferring = True
        self._take_signals()

    def _take_signals(self) -> None:
        for number in signals_to_take():
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
        elif not (_launched() and time.monotonic() - self._since < 1):
            # A launcher passes on the Ctrl-C that the terminal sends to each process too, or dies of the SIGTERM
            # that the whole group gets: within a second those are one signal.
            os._exit(128 + number)


def _launched() -> bool:
    """By torchrun or `accelerate launch`."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


class StopAgreement:
    """Lets all processes stop after the same step.

    Each check sends this process' answer on its way and reads the common one of the check before: by then it
    has arrived, so that no process waits, and none reads the device.

    Args:
        request: of this process.
        num_processes: of the job; the process group exists if there are several.
        timeout_s: how long to wait for another process.
    """

    def __init__(self, request: StopRequest, num_processes: int, timeout_s: float):
        import torch.distributed as dist

        self._request = request
        # Its own group, over gloo: the numbers are in the CPU's memory, whatever the training's backend is.
        self._group: Any = None
        if num_processes > 1:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
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
        """Wait for all processes: the launcher ends the others when the first of them has left."""
        if self._group is not None:
            import torch.distributed as dist

            if self._arrival is not None:
                self._arrival.wait()
                self._arrival = None
            dist.barrier(group=self._group)
