"""train.py, killed by SIGKILL at a chosen moment.

KILL in the environment is "<moment> <count> <scope>": at the count-th time that the process of the scope comes
to the moment, it kills itself (scope "first" or "last": the process of that rank) or the whole job, its launcher
and all other processes that have its JOB in their environment (scope "all").
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import data.ffcv_loader
import data.prepared
import train
from tests.jobs import kill_job
from training.engine import Trainer
from training.inference import Predictor

MOMENT, COUNT, SCOPE = os.environ["KILL"].split() if "KILL" in os.environ else ("never", "0", "all")
RANK, WORLD_SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
left = int(COUNT)


def reach(moment: str) -> None:
    """Die if this is the time."""
    global left
    if moment != MOMENT or (RANK != WORLD_SIZE - 1 and SCOPE == "last") or (RANK and SCOPE == "first"):
        return
    left -= 1
    if left == 0:
        print("killed", moment, file=sys.stderr, flush=True)
        if SCOPE == "all":
            kill_job(os.environ["JOB"])
        os.kill(os.getpid(), signal.SIGKILL)


def announced(moment: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def announce(*arguments: Any) -> Any:
        reach(moment)
        return function(*arguments)

    return announce


write_bytes = Path.write_bytes


def write_in_two(path: Path, content: bytes | memoryview) -> int:
    """A file may be half-written when a process dies."""
    kind = "checkpoint" if ".pt" in path.name else "weights" if "best" in path.name else "file"
    if path.name.endswith(".tmp"):
        write_bytes(path, content[: len(content) // 2])
        reach(kind)
    return write_bytes(path, content)


decode_stream = data.prepared.decode_stream


def decode_in_small_chunks(paths: Sequence[Path], size: int) -> Iterator[Any]:
    """So that there are some, and processes that decode them."""
    for chunk in decode_stream(paths, 40):
        reach("decode")
        yield chunk


def main() -> None:
    Trainer.train_step = announced("step", Trainer.train_step)
    Predictor.logits = announced("validation", Predictor.logits)
    data.prepared.sha256_of = announced("cache", data.prepared.sha256_of)
    data.prepared.decode_stream = decode_in_small_chunks
    data.ffcv_loader._Writer.finalize = announced("beton", data.ffcv_loader._Writer.finalize)
    Path.write_bytes = write_in_two
    train.main()


if __name__ == "__main__":
    main()
