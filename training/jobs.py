"""Runs of train.py started by another script: reproduce.py, and the search of training/search.py."""

import json
import signal
import subprocess
import sys
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from data.errors import InputError
from training.config import Config, parse_config

ROOT = Path(__file__).resolve().parent.parent


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
    milestones = [milestone * share for milestone in config.milestones]
    decay = config.decay / (share * subset)  # per step
    flags = ["--epochs", epochs, "--milestones", json.dumps(milestones), "--warmup", config.warmup * share]
    return [str(flag) for flag in (*flags, "--decay", decay, "--subset", subset)]


def is_finished(run: Path, wanted: Config, whatever: Collection[str] = ()) -> bool:
    """Whether the run is finished.

    whatever: fields in which it may differ from `wanted`.

    Raises:
        InputError: it was trained with other settings than those wanted.
    """
    if not (run / "summary.json").exists():
        return False
    recorded = asdict(parse_config(["--recipe", str(run / "config.yaml")]))
    fields = wanted.result_fields()
    differing = [name for name in fields if recorded[name] != fields[name] and name not in whatever]
    if differing:
        raise InputError(f"{run}: trained with another {', '.join(differing)}; remove it or give another --out")
    return True


def train(flags: list[str], processes: int) -> int:
    """Run train.py and return its exit code. SIGTERM and SIGINT are passed on to it, so that it checkpoints.

    Raises:
        SystemExit: after such a signal, when train.py has ended.
    """
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "accelerate.commands.accelerate_cli", "launch", "--quiet"]
        command += ["--config_file", str(ROOT / "accelerate_config.yaml"), "--num_processes", str(processes)]
    received: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        received.append(number)
        process.send_signal(number)

    # In a session of its own: what a terminal sends reaches it once, through this process.
    with subprocess.Popen([*command, str(ROOT / "train.py"), *flags], start_new_session=True) as process:
        former = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            code = process.wait()
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
    if received:
        raise SystemExit(128 + received[0])
    return code if code >= 0 else 128 - code
