"""What a run writes: config.yaml, metrics.jsonl, checkpoints, best.safetensors, curves.png, summary.json.

The first process has a Recorder, the others a NullRecorder: the training loop calls one or the other alike.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import yaml
from accelerate import Accelerator
from tqdm import tqdm

from data.errors import InputError
from data.files import write_json, written_atomically
from data.prepared import Prepared
from training.checkpoint import load_newest_checkpoint, save_checkpoint, save_weights, weights_sha256
from training.config import Config
from training.engine import Trainer, pixel_statistics
from training.hardware import device_name, versions
from training.tracking import Tracking


class NullRecorder:
    """For all processes but the first."""

    def newest_checkpoint(self) -> dict[str, Any] | None: ...

    def begin(self, trainer: Trainer) -> None: ...

    def progress_bar(self, trainer: Trainer) -> "tqdm[None]":
        return tqdm(disable=True)

    def log(self, row: dict[str, Any]) -> None: ...

    def checkpoint(self, trainer: Trainer, state: dict[str, Any]) -> None: ...

    def save_weights(self, trainer: Trainer, about: dict[str, Any]) -> None: ...

    def finish(self, trainer: Trainer) -> None: ...

    def close(self) -> None: ...


class Recorder(NullRecorder):
    """For the first process.

    Raises:
        InputError: --resume forbids an existing run, or demands one.
    """

    def __init__(self, config: Config, prepared: Prepared, accelerator: Accelerator):
        self.config, self.prepared, self.accelerator = config, prepared, accelerator
        self.folder = config.run_folder
        self.say: Callable[[str], None] = tqdm.write
        exists = (self.folder / "config.yaml").exists()
        if exists and config.resume == "never":
            raise InputError(f"--resume never: {self.folder} exists; give another --name or remove it")
        if not exists and config.resume == "must":
            raise InputError(f"--resume must: there is no run in {self.folder}; check --name and --runs-dir")
        self.tracking: Tracking | None = None

    def newest_checkpoint(self) -> dict[str, Any] | None:
        return load_newest_checkpoint(self.folder / "checkpoints")

    def begin(self, trainer: Trainer) -> None:
        """Record the config, and take up metrics.jsonl where the trainer stands."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with written_atomically(self.folder / "config.yaml") as temporary:
            values = asdict(self.config)
            del values["recipe"]  # so that the file is a recipe itself
            temporary.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        self.tracking = Tracking(self.config, self.folder, self.say)
        self.tracking.file.keep_until(trainer.progress.step)
        config, accelerator = self.config, self.accelerator
        self.say(
            f"{self.folder}: {config.model} on {config.dataset}, {len(trainer.train_ids)} training and "
            f"{len(trainer.val_ids)} {'test' if config.split == 'test' else 'validation'} images; "
            f"{trainer.loader.name} loader; {accelerator.num_processes} x {accelerator.device.type}, "
            f"{accelerator.mixed_precision if accelerator.mixed_precision != 'no' else 'fp32'}"
        )
        if trainer.progress.step:
            self.say(f"resuming after step {trainer.progress.step} of {config.epochs * trainer.steps_per_epoch}")

    def progress_bar(self, trainer: Trainer) -> "tqdm[None]":
        done = trainer.progress.step % trainer.steps_per_epoch
        return tqdm(
            total=trainer.steps_per_epoch * self.config.batch_size,
            initial=done * self.config.batch_size,
            desc=f"epoch {trainer.epoch + 1}/{self.config.epochs}",
            unit="image",
            unit_scale=True,
            leave=False,
            disable=None,  # quiet where there is no terminal
        )

    def log(self, row: dict[str, Any]) -> None:
        assert self.tracking is not None
        self.tracking.log(row)
        if row["kind"] == "epoch":
            parts = [f"epoch {row['epoch']}/{self.config.epochs}", f"loss {row['train_loss']:.4f}"]
            parts.append(f"accuracy {100 * row['train_accuracy']:.2f} %")
            if "val_loss" in row:
                kind = "test" if self.config.split == "test" else "validation"
                parts.append(f"{kind} loss {row['val_loss']:.4f}, accuracy {100 * row['val_accuracy']:.2f} %")
            parts.append(f"{row['images_per_second']:.0f} images/s, {row['seconds']:.0f} s")
            self.say("  ".join(parts))

    def checkpoint(self, trainer: Trainer, state: dict[str, Any]) -> None:
        save_checkpoint(self.folder / "checkpoints", trainer.progress.step, state)

    def save_weights(self, trainer: Trainer, about: dict[str, Any]) -> None:
        """Write best.safetensors with all that evaluate.py and submit.py need."""
        mean, std = pixel_statistics(self.config, self.prepared)
        recorded = {
            "config": asdict(self.config),
            "data": self.prepared.digest,
            "classes": self.prepared.classes,
            "mean": mean,
            "std": std,
            "precision": self.accelerator.mixed_precision,
        }
        save_weights(self.folder / "best.safetensors", trainer.network, recorded | about)

    def finish(self, trainer: Trainer) -> None:
        from training.figures import draw_curves

        assert self.tracking is not None
        held_out = "test" if self.config.split == "test" else "validation"
        draw_curves(self.tracking.file.rows(), self.folder.name, held_out, self.folder / "curves.png")
        summary = summarize(self.config, self.accelerator, trainer)
        write_json(self.folder / "summary.json", summary)
        reached = summary["val_accuracy"]
        score = "" if reached is None else f"accuracy {100 * reached:.2f} % in epoch {summary['best_epoch']}, "
        self.say(f"{self.folder}: finished; {score}{summary['seconds']:.0f} s")

    def close(self) -> None:
        if self.tracking is not None:
            self.tracking.finish()


def summarize(config: Config, accelerator: Accelerator, trainer: Trainer) -> dict[str, Any]:
    """The content of summary.json. Accuracy and F1 are those of the weights in best.safetensors.

    weights_sha256 is of the weights after the last step: equal for two runs that computed the same bits.
    """
    progress, network = trainer.progress, trainer.network
    images = progress.step * config.batch_size
    evaluated = len(trainer.val_ids) > 0
    return {
        "recipe": config.recipe,
        "epochs": config.epochs,
        "steps": progress.step,
        "best_epoch": progress.best_epoch,
        "val_accuracy": progress.best_accuracy if evaluated else None,
        "val_macro_f1": progress.best_macro_f1 if evaluated else None,
        "seconds": round(progress.seconds, 3),
        "images_per_second": round(images / progress.train_seconds, 1),
        "world_size": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        "loader": trainer.loader.name,
        "seed": config.seed,
        "weights_sha256": weights_sha256(network.state_dict()),
        "versions": versions(),
        "device": device_name(accelerator.device),
    }
