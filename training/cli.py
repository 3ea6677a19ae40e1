"""What the scripts share before torch is imported: metrics' names, lines for the user, errors in one line."""

import argparse
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

from tqdm import tqdm

from data.errors import InputError

TTA = ("none", "flip", "six")
"""Test-time augmentations: see `views` in training/inference.py."""

TTA_HELP = "each image and its mirror image (flip), or these moved by a pixel too (six)"

METRICS = {
    "loss": "loss",
    "accuracy": "accuracy",
    "top5": "top-5",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
}
"""An evaluation's metrics: their names in files, and as they are shown."""


def shown(metric: float | None) -> str:
    """None is a loss that is not finite, of a network whose weights are."""
    return "not finite" if metric is None else f"{metric:.4f}"


def tell(line: str) -> None:
    """Print a line, above a progress bar if there is one.

    A reader that has gone (`| head`) or a full disk under a log is no reason to stop: the rest goes nowhere then.
    """
    if failure := _write(line, sys.stdout):
        warn(f"stdout: {failure}; going on without")


def warn(line: str) -> None:
    """Print `warning: line` on stderr in the same way, but that nothing is told where it fails."""
    _write(f"warning: {line}", sys.stderr)


def tell_error(line: str, rank: int = 0) -> None:
    """The same with `error: line`; rank: of the process that meets it."""
    _write(f"error{f' (rank {rank})' if rank else ''}: {line}", sys.stderr)


def _write(line: str, stream: TextIO) -> str:
    """Why a line could not be written, if so: then all that follows it goes nowhere."""
    try:
        tqdm.write(line, file=stream)
        stream.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return error.strerror or str(error)
    return ""


class OneProcessError(InputError):
    """An InputError that one process may meet alone: each that meets it tells."""


class RunError(RuntimeError):
    """A run that cannot go on, for a reason that is not in its input: one line, exit code 1."""


@contextmanager
def one_line_errors(quiet_ranks: bool = False) -> Iterator[None]:
    """Turn InputError into exit code 2; RunError, and an OSError that the disk is to blame for, into 1; Ctrl-C
    into 130.

    quiet_ranks: every process meets the same InputError (a mistaken flag), so that one on each machine tells.
    """
    _take_any_text()
    try:
        yield
    except (InputError, RunError) as error:
        rank = int(os.environ.get("RANK", "0"))
        same_everywhere = quiet_ranks and isinstance(error, InputError) and not isinstance(error, OneProcessError)
        if os.environ.get("LOCAL_RANK", "0") == "0" or not same_everywhere:
            tell_error(" ".join(str(error).split()), rank)
        raise SystemExit(2 if isinstance(error, InputError) else 1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except OSError as error:  # a full disk, a folder without write permission
        if error.filename is None and error.errno is None:
            raise
        tell_error(f"{error.filename or 'writing failed'}: {error.strerror}")
        mistaken = isinstance(error, (NotADirectoryError, IsADirectoryError, FileExistsError))  # a path in a flag
        raise SystemExit(2 if mistaken else 1) from None


def _take_any_text() -> None:
    """Let stdout and stderr write what their encoding lacks as an escape, and nowhere where they are closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for the process' life
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class OneLineParser(argparse.ArgumentParser):
    """argparse, with InputError for a mistaken flag, and no abbreviations: --seed is not --seeds."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")
