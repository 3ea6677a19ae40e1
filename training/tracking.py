"""Where metrics go: metrics.jsonl always, and Weights & Biases or TensorBoard through Accelerate's trackers.

A tracker never stops training: where one fails, a warning says so and the run goes on without it.
"""

import json
import os
import sys
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from requests.utils import get_netrc_auth

from data.files import written_atomically
from training.config import Config


class MetricsFile:
    """metrics.jsonl: one JSON object a line; `kind` is "step" or "epoch"."""

    def __init__(self, path: Path):
        self.path = path

    def rows(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def keep_until(self, step: int) -> None:
        """Drop what was written after optimizer step `step`: a resumed run writes it again."""
        rows = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []:
            try:
                row = json.loads(line)
            except ValueError:  # the last line of a killed run may be cut short
                break
            if row["step"] <= step:
                rows.append(line)
        with written_atomically(self.path) as temporary:
            temporary.write_text("".join(row + "\n" for row in rows), encoding="utf-8")

    def append(self, row: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


class Tracking:
    """The metrics file and the chosen tracker of the first process."""

    def __init__(self, config: Config, folder: Path, say: Callable[[str], None]):
        self.file = MetricsFile(folder / "metrics.jsonl")
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

    def finish(self) -> None:
        if self.tracker is not None:
            self._guard(self.tracker.finish)

    def _start(self, config: Config, folder: Path) -> None:
        kind: Any = LOGGER_TYPE_TO_CLASS[config.tracker]
        if config.tracker == "wandb":
            tracker = kind("resnet-cifar", **self._wandb_arguments(config, folder))
        else:
            tracker = kind("tensorboard", str(folder))
        tracker.start()
        plain = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in asdict(config).items()}
        if config.tracker == "wandb":
            tracker.store_init_configuration(plain)
            tracker.tracker.define_metric("*", step_metric="step")
        else:
            tracker.tracker.add_text("config", json.dumps(plain, indent=2))
        self.tracker = tracker

    def _wandb_arguments(self, config: Config, folder: Path) -> dict[str, Any]:
        import wandb

        id_file = folder / "wandb-id"  # a resumed run continues the same W&B run
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex[:8], encoding="ascii")
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_wandb_key() else "offline")
        if mode == "offline":
            self.say(f"W&B records offline; to upload: wandb sync {folder}/wandb/offline-*")
        return {
            "id": id_file.read_text(encoding="ascii"),
            "name": folder.name,
            "dir": str(folder),
            "mode": mode,
            "resume": "allow",
            "settings": wandb.Settings(silent=True, console="off", init_timeout=30, finish_timeout=60),
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
