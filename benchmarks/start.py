"""Seconds from the command to the first optimization step, cold and warm; `train.py --help`, a bad flag; imports.

Each is a fresh process. Cold: with an empty cache, so that all image files are decoded, and the .beton written.
Warm: with both in place. The step is over when its row is in metrics.jsonl. Without a tracker, but for the row of
W&B.
"""

import os
import signal
import subprocess
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from benchmarks.common import HAS_FFCV, Contender, Row, interleave, make_parser, run
from benchmarks.processes import python, run_command
from training.config import ROOT

IMPORTS = ("torch", "torch, torchvision, accelerate", "ffcv", "data.ffcv_loader", "train", "training.engine")


def first_step(flags: Sequence[object], cache_dir: str | None, launch: bool = False) -> dict[str, float]:
    """Start train.py, and end it after its first step.

    cache_dir: None: an empty one.
    launch: by `accelerate launch`.

    Raises:
        RuntimeError: it ended before.
    """
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "printed", "w+") as printed:
        metrics = Path(folder) / "first/metrics.jsonl"
        where = ["--runs-dir", folder, "--name", "first", "--cache-dir", cache_dir or f"{folder}/cache"]
        launcher = ["-m", "accelerate.commands.accelerate_cli", "launch"] if launch else []
        command = python(*launcher, "train.py", "--log-every", 1, "--tracker", "none", *flags, *where)
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while not (metrics.exists() and metrics.read_bytes().endswith(b"\n")):
                if process.poll() is not None:
                    printed.seek(0)
                    raise RuntimeError(
                        f"{' '.join(command)} ended before its first step: {printed.read()[-2000:]}"
                    )
                time.sleep(0.005)
            return {"seconds": time.perf_counter() - started}
        finally:
            with suppress(ProcessLookupError):  # where all have ended
                os.killpg(process.pid, signal.SIGKILL)  # what a launcher has started, too
            process.wait()


def command_seconds(command: Sequence[str], code: int = 0) -> dict[str, float]:
    return {"seconds": run_command(command, code=code).seconds}


def benchmark(arguments: Namespace) -> list[Row]:
    of_device = f"{arguments.dataset}{'' if arguments.device == 'cuda' else '-cpu'}"
    recipe = "demo" if arguments.dataset == "shapes" else of_device
    of_run = ["--recipe", f"recipes/{recipe}.yaml"]
    of_run += ["--data-dir", arguments.data_dir] if arguments.data_dir else []
    contenders = [
        Contender({"command": f"import {names}"}, partial(command_seconds, python("-c", f"import {names}")))
        for names in IMPORTS
        if HAS_FFCV or "ffcv" not in names
    ]
    for flags, code in (["--help"], 0), (["--lr", "-1"], 2):
        ended = partial(command_seconds, python("train.py", *flags), code)
        contenders.append(Contender({"command": f"train.py {' '.join(flags)}"}, ended))
    loaders = ("resident", "ffcv") if HAS_FFCV else ("resident",)
    starts = [(loader, state) for loader in loaders for state in ("warm", "cold")]
    for loader, state in starts[:1] if arguments.quick else starts:
        cache_dir = arguments.cache_dir if state == "warm" else None
        started = partial(first_step, [*of_run, "--loader", loader], cache_dir)
        contenders.append(Contender({"command": f"train.py, first step, {state}, {loader}"}, started))
    for name, tracker in (("", "none"), (", W&B", "wandb")):
        started = partial(
            first_step, [*of_run, "--loader", "resident", "--tracker", tracker], arguments.cache_dir, True
        )
        command = f"accelerate launch train.py, first step, warm, resident{name}"
        contenders.append(Contender({"command": command}, started))
    return interleave(contenders, arguments.repeats)


def main() -> None:
    run("start", make_parser("start", __doc__), benchmark)


if __name__ == "__main__":
    main()
