"""The other processes of the job: what the first one tells them, and what happens when one is lost."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from data.errors import InputError
from training.cli import RunError

T = TypeVar("T")

_LOST = (
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused"),
    *("Timed out waiting", "wait timeout after", "Socket Timeout", "timed out connecting", "Application timeout"),
    *("recvValue failed", "ncclRemoteError", "remote process exited", "collective operation timeout"),
    *("NCCL operation timed out", "NCCL operation failed", "NCCL communicator was aborted"),
)
"""What gloo, NCCL and the store say when a process does not answer any more."""


def from_first_process(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """What `action` returns in the first process, in every process; its InputError or OSError too."""
    shared: list[object] = [None, None]
    if accelerator.is_main_process:
        try:
            shared = [action(), None]
        except (InputError, OSError) as error:
            shared = [None, error]
    broadcast_object_list(shared)
    result, failure = shared
    if isinstance(failure, Exception):
        raise failure
    return result  # type: ignore[return-value]


@contextmanager
def lost_peers_told() -> Iterator[None]:
    """Turn the communication library's error into a RunError where another process was lost."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if os.environ.get("WORLD_SIZE", "1") == "1" or not any(sign in reason for sign in _LOST):
            raise
        raise RunError(
            f"lost contact with another process ({reason[:200]}); start the job again on all machines: it goes "
            "on from the newest checkpoint"
        ) from error
