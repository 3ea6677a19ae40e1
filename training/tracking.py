"""Where metrics go: metrics.jsonl always, and Weights & Biases or TensorBoard through Accelerate's trackers.

A tracker never stops training: where one fails, a warning says so and the run goes on without it.
"""

import json
import logging
import os
import re
import uuid
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import psutil
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from PIL import Image
from requests.utils import get_netrc_auth
from torch import nn

from data.errors import InputError
from data.files import write_atomically
from data.spec import IMAGE_SIZE
from training.cli import tell, warn
from training.config import Config

STEP_METRICS = {
    **dict.fromkeys(("train/*", "val/*", "lr", "images_per_second", "seconds", "gpu_memory_gib"), "epoch"),
    "step/*": "step",
}
"""What W&B draws each logged number against."""
COARSE = {
    "coarse/accuracy": "coarse_accuracy",
    "coarse/mistakes": "mistakes",
    "coarse/mistakes_within": "mistakes_within_coarse",
}
TABLES = ("per_class", "per_coarse_class")
"""What is logged of an evaluation's report besides its pictures."""
ANSWER_S = 30
"""How long a run waits for its tracker, which may hang, before it goes on without."""
FINISH_S = 60
"""How long W&B may upload after the end of a run. What it has not uploaded by then stays in its folder."""


def tracked_names(row: dict[str, Any]) -> dict[str, Any]:
    """A row of metrics.jsonl under the tracker's names: train/ and val/ of an epoch, step/ of a step.

    A loss of None, which is not finite, is left out.
    """
    values = {name: value for name, value in row.items() if name != "kind" and value is not None}
    if row["kind"] == "step":
        return {name if name in ("epoch", "step") else f"step/{name}": value for name, value in values.items()}
    return {re.sub("^(train|val)_", r"\1/", name): value for name, value in values.items()}


def read_epochs(run: Path) -> list[dict[str, Any]]:
    """The rows of its epochs in a run's metrics.jsonl; the run may be going on, and its last row half written.

    Raises:
        InputError: a row is damaged.
    """
    path = run / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1]
    try:
        rows = [json.loads(line) for line in lines]
        return [row for row in rows if row["kind"] == "epoch"]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: damaged; train.py mends it when it goes on with the run") from error


class MetricsFile:
    """metrics.jsonl: one JSON object a line; `kind` is "step" or "epoch".

    The file is for the reader. A checkpoint holds its rows too, and those are what a resumed run goes on from:
    what was written after the checkpoint comes again, and damage to the file is mended.

    Args:
        path: of the file.
        lines: those of the checkpoint.
    """

    def __init__(self, path: Path, lines: list[str]):
        self.path, self.lines = path, list(lines)
        recorded = "".join(line + "\n" for line in lines).encode()
        found = path.read_bytes() if path.exists() else b""
        if not found.startswith(recorded):
            warn(f"{path} is damaged; restored from the checkpoint")
        if found != recorded:
            write_atomically(path, recorded)

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    def append(self, row: dict[str, Any]) -> None:
        self.lines.append(json.dumps(row))
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(self.lines[-1] + "\n")
        except OSError as error:
            error.filename = error.filename or str(self.path)
            raise


class Tracking:
    """The metrics file and the chosen tracker of the first process.

    Args:
        lines: of metrics.jsonl, from the checkpoint that the run goes on from.
    """

    def __init__(self, config: Config, folder: Path, lines: list[str] | None = None):
        self.file = MetricsFile(folder / "metrics.jsonl", lines or [])
        self.tracker: Any = None
        self.given_up = False
        self.name = folder.name
        if config.tracker != "none":
            self.guard(lambda: self._adopt(_start(config, folder)), ANSWER_S)

    def _adopt(self, tracker: Any) -> None:
        if self.given_up:  # it has started too late
            tracker.finish()
        else:
            self.tracker = tracker

    def log(self, row: dict[str, Any], measured: dict[str, float] | None = None) -> None:
        """Add a row to metrics.jsonl, and its numbers to the tracker under the names of docs/tracking.md.

        measured: more numbers for the tracker, which would not be the same again.
        """
        self.file.append(row)
        if self.tracker is not None:
            self.guard(lambda: self._log(tracked_names(row) | (measured or {}), row), ANSWER_S)

    def _log(self, values: dict[str, float], row: dict[str, Any]) -> None:
        if self.tracker.name == "wandb":  # refuses steps below its last one, as a resumed run has them
            self.tracker.log(values, step=None)
        else:
            self.tracker.log(values, step=row["step" if row["kind"] == "step" else "epoch"])

    def log_graph(self, network: nn.Module) -> None:
        """The network's graph, for TensorBoard; W&B has no such thing."""
        if self.tracker is not None and self.tracker.name == "tensorboard":
            self.guard(lambda: self._log_graph(deepcopy(network).cpu().eval()), None)

    def _log_graph(self, network: nn.Module) -> None:
        # Without gradients, with which small maps may be convolved otherwise: torch compares with a trace without.
        with warnings.catch_warnings(), torch.no_grad():
            # TensorBoard's writer traces the network, which torch advises against
            warnings.simplefilter("ignore", FutureWarning)
            self.tracker.tracker.add_graph(network, torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE))

    def log_best(self, pictures: Sequence[Path], report: dict[str, Any], files: Sequence[Path]) -> None:
        """What the best weights come to: pictures, numbers and tables of the classes; the weights themselves.

        report: of their evaluation; empty for a run without validation images.
        files: such as weights and config, go into W&B's artifact. TensorBoard has no place for files and tables.
        """
        if self.tracker is not None:
            self.guard(lambda: self._log_best(pictures, report, files), FINISH_S)

    def _log_best(self, pictures: Sequence[Path], report: dict[str, Any], files: Sequence[Path]) -> None:
        images = {f"pictures/{path.stem}": np.asarray(Image.open(path).convert("RGB")) for path in pictures}
        if numbers := {name: report[key] for name, key in COARSE.items() if key in report}:
            self.tracker.log(numbers, step=None)
        if self.tracker.name != "wandb":
            stacked = {name: pixels[None] for name, pixels in images.items()}
            self.tracker.log_images(stacked, step=None, dataformats="NHWC")
            return
        import wandb

        self.tracker.log_images({name: [pixels] for name, pixels in images.items()})
        for name in TABLES:
            if name in report:
                rows = [list(row.values()) for row in report[name]]
                self.tracker.log_table(name, columns=list(report[name][0]), data=rows)
        artifact = wandb.Artifact(f"{self.name}-weights", type="model")
        for path in files:
            artifact.add_file(str(path))
        self.tracker.run.log_artifact(artifact)

    def finish(self, failed: bool = False, stopped: bool = False) -> None:
        """End the tracker's run. stopped: it was asked to stop, and has seconds left; it may go on later."""
        if self.tracker is not None:
            # W&B's own limit fails where its process hangs
            self.guard(lambda: self._finish(failed, stopped), 4 if stopped else FINISH_S + 5)
            self.tracker = None

    def _finish(self, failed: bool, stopped: bool) -> None:
        if self.tracker.name != "wandb":
            self.tracker.finish()
            return
        if stopped and "WANDB_SWEEP_ID" not in os.environ:  # a sweep would offer what it has stopped itself again
            self.tracker.run.mark_preempting()
        self.tracker.run.finish(exit_code=int(failed or stopped))  # 0 would be shown as finished

    def _end_wandb_processes(self) -> None:
        """What W&B has started would otherwise hold this process' end up, and its output open."""
        found = [child for child in psutil.Process().children(recursive=True) if "wandb" in child.name()]
        for process in found:
            process.kill()
        psutil.wait_procs(found)

    def guard(self, action: Callable[[], object], seconds: float | None) -> None:
        """Do what the tracker needs; where that fails, a warning says so and the run goes on without the tracker.

        seconds: how long a tracker may take, which may hang; None: as long as it takes, for what is ours.
        """
        failures: list[str] = []

        def act() -> None:
            try:
                action()
            except Exception as error:  # whatever a tracker raises, training goes on
                failures.append(" ".join(str(error).split()) or type(error).__name__)

        if seconds is None:
            act()
        elif not self._done_in_time(act, seconds):
            failures.append(f"no answer in {seconds:g} s")
        if failures:
            warn(f"the tracker failed, going on with metrics.jsonl alone: {failures[0]}")
            self.tracker, self.given_up = None, True

    def _done_in_time(self, act: Callable[[], None], seconds: float) -> bool:
        acting = Thread(target=act, daemon=True)
        acting.start()
        try:
            acting.join(seconds)
        finally:  # also when this process is to end
            if acting.is_alive():
                self._end_wandb_processes()
        acting.join(5)  # what waited for them fails now
        return not acting.is_alive()


def _start(config: Config, folder: Path) -> Any:
    """The tracker that the config names, started."""
    kind: Any = LOGGER_TYPE_TO_CLASS[config.tracker]
    if config.tracker == "wandb":
        tracker = kind("resnet-cifar", **_wandb_arguments(folder))
    else:
        tracker = kind("tensorboard", str(folder))
    tracker.start()
    plain = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in asdict(config).items()}
    if config.tracker == "wandb":
        tracker.store_init_configuration(plain)
        for names, axis in STEP_METRICS.items():
            tracker.tracker.define_metric(names, step_metric=axis)
    else:
        tracker.tracker.add_text("config", json.dumps(plain, indent=2))
    return tracker


def _wandb_arguments(folder: Path) -> dict[str, Any]:
    import wandb

    logging.raiseExceptions = False  # W&B's log files on a full disk: a traceback for each line

    id_file = folder / "wandb-id"  # a resumed run continues the same W&B run
    if not id_file.exists():
        write_atomically(id_file, uuid.uuid4().hex[:8].encode())
    mode = os.environ.get("WANDB_MODE") or ("online" if _has_wandb_key() else "offline")
    if mode == "offline":
        tell(f"W&B records offline; to upload: wandb sync {folder}/wandb/offline-*")
    return {
        "id": id_file.read_text(encoding="ascii"),
        "name": folder.name,
        "dir": str(folder),
        "mode": mode,
        "resume": "allow",
        "settings": wandb.Settings(silent=True, console="off", init_timeout=15, finish_timeout=FINISH_S),
    }


def _has_wandb_key() -> bool:
    """For the server that W&B uses, which `wandb login --host` may have left in its settings file."""
    import wandb

    settings = wandb.setup(wandb.Settings(silent=True)).settings
    return bool(settings.api_key or get_netrc_auth(settings.base_url))
