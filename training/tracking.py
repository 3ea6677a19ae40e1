"""Where metrics go: metrics.jsonl always, and Weights & Biases or TensorBoard through Accelerate's trackers.

A tracker never stops training: where one fails, a warning says so and the run goes on without it.
"""

import json
import logging
import os
import sys
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from requests.utils import get_netrc_auth

from data.files import write_atomically
from training.config import Config


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
            print(f"warning: {path} is damaged; restored from the checkpoint", file=sys.stderr)
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
        say: prints a line.
    """

    def __init__(self, config: Config, folder: Path, say: Callable[[str], None], lines: list[str] | None = None):
        self.file = MetricsFile(folder / "metrics.jsonl", lines or [])
        self.tracker: Any = None
        self.say = say
        if config.tracker != "none":
            self._guard(lambda: self._start(config, folder))

    def log(self, row: dict[str, Any]) -> None:
        self.file.append(row)
        if self.tracker is not None:
            values = {name: value for name, value in row.items() if name != "kind"}
            # W&B refuses steps below its last one, as a resumed run has them: there "step" is a value like others
            step = None if self.tracker.name == "wandb" else row["step"]
            self._guard(lambda: self.tracker.log(values, step=step))

    def finish(self, at_once: bool = False) -> None:
        """End the tracker's run. at_once: the run was asked to stop, and has seconds left."""
        if self.tracker is not None:
            tracker = self.tracker
            ending = Thread(target=self._guard, args=(lambda: tracker.finish(),), daemon=True)
            ending.start()
            ending.join(4 if at_once else None)  # what W&B has not uploaded by then stays in its folder
            self.tracker = None

    def _start(self, config: Config, folder: Path) -> None:
        kind: Any = LOGGER_TYPE_TO_CLASS[config.tracker]
        if config.tracker == "wandb":
            tracker = kind("resnet-cifar", **self._wandb_arguments(config, folder))
        else:
            tracker = kind("tensorboard", str(folder))
        tracker.start()
        self.tracker = tracker
        plain = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in asdict(config).items()}
        if config.tracker == "wandb":
            tracker.store_init_configuration(plain)
            tracker.tracker.define_metric("*", step_metric="step")
        else:
            tracker.tracker.add_text("config", json.dumps(plain, indent=2))

    def _wandb_arguments(self, config: Config, folder: Path) -> dict[str, Any]:
        import wandb

        logging.raiseExceptions = False  # W&B's log files on a full disk: a traceback for each line

        id_file = folder / "wandb-id"  # a resumed run continues the same W&B run
        if not id_file.exists():
            write_atomically(id_file, uuid.uuid4().hex[:8].encode())
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_wandb_key() else "offline")
        if mode == "offline":
            self.say(f"W&B records offline; to upload: wandb sync {folder}/wandb/offline-*")
        return {
            "id": id_file.read_text(encoding="ascii"),
            "name": folder.name,
            "dir": str(folder),
            "mode": mode,
            "resume": "allow",
            "settings": wandb.Settings(silent=True, console="off", init_timeout=15, finish_timeout=60),
        }

    def _guard(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever a tracker raises, training goes on
            reason = " ".join(str(error).split()) or type(error).__name__
            print(f"warning: the tracker failed, going on with metrics.jsonl alone: {reason}", file=sys.stderr)
            self.tracker = None


def _has_wandb_key() -> bool:
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return bool(os.environ.get("WANDB_API_KEY") or get_netrc_auth(server))
