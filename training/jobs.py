"""train.py and evaluate.py started by another script: reproduce.py, and the search of training/search.py."""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.errors import InputError
from training.config import HELD_OUT, ROOT, Config, flag, parse_config
from training.stopping import STOPPED, signals_to_take

SHORTENED = ("epochs", "subset", "milestones", "warmup")
"""What `shortened` gives to train.py."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", type=int, default=1, help="processes of each training (default: 1)")
    parser.add_argument("--epochs-scale", type=float, default=1.0, help="share of the epochs, above 0 to 1")
    parser.add_argument("--subset", type=float, default=1.0, help="share of the training images, above 0 to 1")


def check_flags(
    arguments: argparse.Namespace, extra: Sequence[str], own: Collection[str], lowest: dict[str, int]
) -> None:
    """InputError for values out of range, and for flags after -- that the script gives itself.

    own: those flags, besides SHORTENED.
    lowest: of whole numbers the lowest allowed value.
    """
    for name, low in lowest.items():
        if getattr(arguments, name) < low:
            raise InputError(f"{flag(name)} {getattr(arguments, name)}: expected at least {low}")
    for name in ("epochs_scale", "subset"):
        if not 0 < getattr(arguments, name) <= 1:
            raise InputError(f"{flag(name)} {getattr(arguments, name)}: expected a fraction above 0, at most 1")
    for given in extra:
        if given.split("=")[0] in map(flag, (*own, *SHORTENED)):
            raise InputError(f"{given} after --: not possible, as this script gives it itself; see its --help")


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What stands before the first "--", and what after it, which goes to train.py."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def shortened(config: Config, epochs_scale: float, subset: float) -> list[str]:
    """Flags that shorten a run to a share of its epochs, at least one, and of its training images.

    What is given in epochs or steps is shortened with them.
    """
    if epochs_scale == subset == 1:
        return []
    epochs = max(1, round(config.epochs * epochs_scale))
    share = epochs / config.epochs
    milestones = [round(milestone * share, 9) for milestone in config.milestones]  # 3, not 3.0000000000000004
    decay = config.decay / (share * subset)  # per step
    flags = ["--epochs", epochs, "--milestones", json.dumps(milestones)]
    flags += ["--warmup", min(epochs, config.warmup * share), "--decay", decay, "--subset", config.subset * subset]
    return list(map(str, flags))


def require_validation(config: Config) -> None:
    """InputError for a run without validation images to be compared by."""
    if config.split not in HELD_OUT:
        raise InputError(
            f"--split {config.split}: runs are compared by validation images; use {HELD_OUT[0]} or {HELD_OUT[1]}"
        )


def is_finished(run: Path, wanted: Config, whatever: Collection[str] = ()) -> bool:
    """Whether the run is finished.

    whatever: fields in which it may differ from `wanted`.

    Raises:
        InputError: it was trained, or begun, with other settings than those wanted.
    """
    finished = (run / "summary.json").exists()
    if not finished and not any((run / "checkpoints").glob("*.pt")):
        return False
    recorded = asdict(parse_config(["--recipe", str(run / "config.yaml")]))
    fields = wanted.result_fields()
    differing = [name for name in fields if recorded[name] != fields[name] and name not in whatever]
    if differing:
        raise InputError(f"{run}: trained with another {', '.join(differing)}; remove it or give another --out")
    return finished


def read_summary(run: Path) -> dict[str, Any]:
    """A finished run's summary.json; InputError where it is damaged."""
    try:
        summary: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{run}/summary.json: damaged ({error}); remove the run's folder") from error
    return summary


def train(flags: list[str], processes: int) -> int:
    """Run train.py and return its exit code: 0 when it has finished; why it has not, it has said itself.

    Raises:
        SystemExit: it was stopped.
    """
    return _unless_stopped(start(flags, processes))


def launcher(processes: int) -> list[str]:
    """How a command line begins that starts a script in that many processes."""
    if processes == 1:
        return [sys.executable]
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--quiet"]
    return [*launch, "--config_file", str(ROOT / "accelerate_config.yaml"), "--num_processes", str(processes)]


def start(flags: list[str], processes: int) -> int:
    """Run train.py and return its exit code."""
    return run_command([*launcher(processes), str(ROOT / "train.py"), *flags])


def evaluate(flags: list[str]) -> int:
    """Run evaluate.py, without what it prints on stdout, and return its exit code.

    In a process of its own: this one would keep some of a GPU's memory, and in exclusive mode the GPU, from the
    trainings that follow.

    Raises:
        SystemExit: it was stopped.
    """
    return _unless_stopped(
        run_command([sys.executable, str(ROOT / "evaluate.py"), *flags], stdout=subprocess.DEVNULL)
    )


def _unless_stopped(code: int) -> int:
    if code in STOPPED:
        raise SystemExit(code)
    return code


def run_command(command: list[str], stdout: int | None = None) -> int:
    """Run a command and return its exit code, or that of the signal that this process got and passed on to it."""
    started: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        received.append(number)
        for process in started:
            process.send_signal(number if number == signal.SIGINT else signal.SIGTERM)

    former = {number: signal.signal(number, pass_on) for number in signals_to_take()}
    try:
        # As `accelerate launch` starts it: on Linux train.py then stops, with a checkpoint, when this one dies.
        # In a session of its own: what a terminal sends reaches it once, through this process.
        environment = {"ACCELERATE_MIXED_PRECISION": "no"} | os.environ
        started.append(subprocess.Popen(command, env=environment, stdout=stdout, start_new_session=True))
        if received:  # before there was a process to pass it on to
            started[0].terminate()
        code = started[0].wait()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    if received:
        return 128 + received[0]
    return code if code >= 0 else 128 - code
