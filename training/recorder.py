"""What a run writes: config.yaml, metrics.jsonl, checkpoints, best.safetensors, curves.png, summary.json.

The first process has a Recorder, the others a NullRecorder: the training loop calls one or the other alike.
"""

import functools
import os
import socket
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from filelock import FileLock, Timeout
from tqdm import tqdm

from data.errors import InputError
from data.files import check_digest, read_json, sha256_of, write_atomically, write_json, write_with_digest
from data.prepared import Prepared
from training.checkpoint import (
    BackgroundWriter,
    Write,
    load_newest_checkpoint,
    load_weights,
    remove_remnants,
    take_checkpoint,
    take_weights,
    weights_sha256,
)
from training.cli import shown, tell, warn
from training.config import Config
from training.engine import Trainer
from training.hardware import commit, device_name, versions
from training.parts import pixel_statistics
from training.stopping import Stopped
from training.tracking import Tracking


class NullRecorder:
    """For all processes but the first."""

    def open(self) -> dict[str, Any] | None: ...

    def begin(self, trainer: Trainer) -> None: ...

    def progress_bar(self, trainer: Trainer) -> "tqdm[None]":
        return tqdm(disable=True)

    def log(self, row: dict[str, Any]) -> None: ...

    def checkpoint(self, trainer: Trainer, state: dict[str, Any]) -> None: ...

    def take_best(self, trainer: Trainer, about: dict[str, Any]) -> None: ...

    def finish(self, trainer: Trainer) -> None: ...

    def stopped(self, trainer: Trainer, state: dict[str, Any], stopped: Stopped) -> None: ...

    def close(self) -> None: ...


class Recorder(NullRecorder):
    """For the first process."""

    def __init__(self, config: Config, prepared: Prepared, accelerator: Accelerator):
        self.config, self.prepared, self.accelerator = config, prepared, accelerator
        self.folder = config.run_folder
        self.lock = FileLock(self.folder / ".lock")  # the system frees it when its holder dies
        self.holder = self.folder / ".pid"
        self.commit = commit()  # now: the checkout may change while the run lasts
        self.checkpoints = self.folder / "checkpoints"
        self.writer = BackgroundWriter()
        self.best: Write | None = None  # the best weights, if the next checkpoint is the first that names them
        self.metrics_lines: list[str] = []
        self.tracking: Tracking | None = None
        self.finished_before: dict[str, Any] | None = None  # its summary

    def open(self) -> dict[str, Any] | None:
        """Take the run for this process, and return its newest checkpoint.

        Raises:
            InputError: --resume forbids an existing run, or demands one; another process has the run; no
                checkpoint is whole, or there is none of a run that was past its first epoch.
        """
        exists = (self.folder / "config.yaml").exists() or any(self.checkpoints.glob("*.pt"))
        if exists and self.config.resume == "never":
            raise InputError(f"--resume never: {self.folder} exists; give another --name or remove it")
        if not exists and self.config.resume == "must":
            raise InputError(f"--resume must: there is no run in {self.folder}; check --name and --runs-dir")
        self._take_lock()
        remove_remnants(self.checkpoints)
        state = load_newest_checkpoint(self.checkpoints)
        if state is None and exists:
            self._require_no_progress()
        if state is not None:
            if not {"identity", "progress", "model", "metrics_lines"} <= state.keys():
                raise InputError(
                    f"{self.folder}/checkpoints: not checkpoints of this version of train.py; give another --name"
                )
            self.metrics_lines = state.pop("metrics_lines")
            self._check_best(state["progress"])
            self._compare_origin(state.pop("origin", {}))
        return state

    def _require_no_progress(self) -> None:
        """InputError for a run whose checkpoints have been removed: to start it again would overwrite it.

        A process that was killed in its first epoch has left none either; its run starts again.
        """
        metrics = self.folder / "metrics.jsonl"
        epochs = metrics.read_bytes().count(b'"kind": "epoch"') if metrics.exists() else 0
        if epochs > 1 or (self.folder / "summary.json").exists() or self.config.resume == "must":
            raise InputError(
                f"{self.folder}: no checkpoint to go on from; remove the folder, or give another --name"
            )

    @functools.cached_property
    def origin(self) -> dict[str, Any]:
        """What computes the run."""
        device = device_name(self.accelerator.device)
        return {**versions(), "commit": self.commit["commit"], "device": device}

    def _compare_origin(self, former: dict[str, Any]) -> None:
        """Warn where a checkpoint is from other code, versions or hardware: the same bits are not promised."""
        changes = [
            f"{name} {former[name]} -> {now}" for name, now in self.origin.items() if former.get(name, now) != now
        ]
        if changes:
            warn(f"going on with other than before: {', '.join(changes)}")

    def _check_best(self, progress: dict[str, Any]) -> None:
        """Choose the best epoch anew where best.safetensors is not of the one that the checkpoint names.

        It may be of a later one, by a process that was killed before its checkpoint: that epoch is repeated, and
        was better than all before.

        Raises:
            InputError: it is damaged or missing, and no epoch is left.
        """
        if not progress["best_epoch"]:
            return
        path = self.folder / "best.safetensors"
        try:
            epoch = load_weights(path)[1].get("epoch", 0)
            if epoch == progress["best_epoch"]:
                return
            damage = "" if epoch > progress["epoch"] else f"{path}: of epoch {epoch}, not {progress['best_epoch']}"
        except InputError as error:
            damage = str(error).partition(";")[0]
        if progress["epoch"] == self.config.epochs:
            raise InputError(f"{damage or path}; the run is finished: train again under another --name")
        if damage:
            warn(f"{damage}; the best of the epochs that are left takes its place")
        progress.update(best_epoch=0, best_accuracy=-1.0, best_macro_f1=-1.0)

    def _take_lock(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(blocking=False)
        except Timeout:
            holder = "another process"
            with suppress(FileNotFoundError):  # it is just starting, or ending
                holder = self.holder.read_text(encoding="utf-8")
            raise InputError(
                f"--name {self.folder.name}: {holder} is training this run; give another --name, or wait"
            ) from None
        write_atomically(self.holder, f"pid {os.getpid()} on {socket.gethostname()}".encode())

    def begin(self, trainer: Trainer) -> None:
        """Record the config, and take up metrics.jsonl where the trainer stands."""
        self.finished_before = self._summary_of(trainer)
        self._write_config()
        tracked = replace(self.config, tracker="none") if self.finished_before else self.config
        self.tracking = Tracking(tracked, self.folder, self.metrics_lines)
        self.tracking.log_graph(trainer.network)
        config, accelerator = self.config, self.accelerator
        tell(
            f"{self.folder}: {config.model} on {config.dataset}, {len(trainer.stream.ids)} training and "
            f"{len(trainer.val_ids)} {config.evaluated_on} images; "
            f"{trainer.loader.name} loader; {accelerator.num_processes} x {accelerator.device.type}, "
            f"{accelerator.mixed_precision if accelerator.mixed_precision != 'no' else 'fp32'}"
        )
        if config.schedule == "multistep" and not any(after < config.epochs for after in config.milestones):
            tell(f"no milestone lies within {config.epochs} epochs: the learning rate stays at {config.lr:g}")
        if trainer.progress.step:
            tell(f"resuming after step {trainer.progress.step} of {config.epochs * trainer.steps_per_epoch}")

    def _summary_of(self, trainer: Trainer) -> dict[str, Any] | None:
        """The summary of a run in which no epoch is left, if there is a whole one of these weights."""
        if trainer.progress.epoch < self.config.epochs:
            return None
        with suppress(OSError, ValueError):
            summary: dict[str, Any] = read_json(self.folder / "summary.json")
            if summary.get("weights_sha256") == weights_sha256(trainer.eval_network.state_dict()):
                return summary
        return None

    def _write_config(self) -> None:
        path = self.folder / "config.yaml"
        if path.exists():
            if not check_digest(path):
                warn(f"{path} is not as it was written; written anew")
            elif self.finished_before:
                return
        values = asdict(self.config)
        del values["recipe"]  # so that the file is a recipe itself
        write_with_digest(path, yaml.safe_dump(values, sort_keys=False).encode())

    def progress_bar(self, trainer: Trainer) -> "tqdm[None]":
        done = trainer.progress.step - trainer.progress.epoch * trainer.steps_per_epoch
        return tqdm(
            total=trainer.steps_per_epoch * self.config.batch_size,
            initial=done * self.config.batch_size,
            desc=f"epoch {trainer.progress.epoch + 1}/{self.config.epochs}",
            unit="image",
            unit_scale=True,
            leave=False,
            disable=None,  # quiet where there is no terminal
        )

    def log(self, row: dict[str, Any]) -> None:
        assert self.tracking is not None
        is_epoch, device = row["kind"] == "epoch", self.accelerator.device
        if is_epoch:  # whose row is there only when the epoch before has its checkpoint
            self.writer.wait()
        else:
            self.writer.check()
        measured = {}
        if is_epoch and device.type == "cuda":
            measured["gpu_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        self.tracking.log(row, measured)
        if is_epoch:
            parts = [f"epoch {row['epoch']}/{self.config.epochs}", f"loss {row['train_loss']:.4f}"]
            parts.append(f"accuracy {100 * row['train_accuracy']:.2f} %")
            if "val_loss" in row:
                loss, accuracy = shown(row["val_loss"]), 100 * row["val_accuracy"]
                parts.append(f"{self.config.evaluated_on} loss {loss}, accuracy {accuracy:.2f} %")
            parts.append(f"{row['images_per_second']:.0f} images/s, {row['seconds']:.0f} s")
            tell("  ".join(parts))

    def checkpoint(self, trainer: Trainer, state: dict[str, Any]) -> None:
        assert self.tracking is not None
        state = state | {"metrics_lines": self.tracking.file.lines, "origin": self.origin}
        checkpoint = take_checkpoint(self.checkpoints, trainer.progress.step, state)
        self.writer.start(*([self.best] if self.best else []), checkpoint)
        self.best = None

    def take_best(self, trainer: Trainer, about: dict[str, Any]) -> None:
        """Take, for best.safetensors, the weights and all that evaluate.py and submit.py need.

        They are written before the checkpoint that follows, which says that they are there.
        """
        mean, std = pixel_statistics(self.config, self.prepared)
        recorded = {
            "config": asdict(self.config),
            "data": self.prepared.digest,
            "train_data": self.prepared.train_digest,
            "folders": self._folders(),
            "classes": self.prepared.classes,
            "mean": mean,
            "std": std,
            "precision": self.accelerator.mixed_precision,
        }
        self.best = take_weights(self.folder / "best.safetensors", trainer.eval_network, recorded | about)

    def _folders(self) -> dict[str, str]:
        """Where the images are, wherever somebody evaluates the run from; "" for those that are built in."""
        source = "" if self.config.dataset == "shapes" else os.path.abspath(self.config.source_folder)
        return {"data_dir": source, "cache_dir": os.path.abspath(self.config.cache_dir)}

    def finish(self, trainer: Trainer) -> None:
        from training.figures import draw_curves

        assert self.tracking is not None
        self.writer.wait()
        if self.finished_before:  # what computed it then is recorded, and stays
            tell(f"{self.folder}: finished before; {outcome(self.finished_before)}")
            return
        curves = draw_curves(self.tracking.file.rows(), self.config, self.folder)
        summary = summarize(self.config, self.accelerator, trainer)
        summary |= {
            "metrics_sha256": sha256_of(self.tracking.file.path),
            "data": self.prepared.digest,
            **self.commit,
        }
        if self.tracking.tracker is not None:
            self.tracking.guard(lambda: self._track_best(trainer, curves), None)
        self.tracking.finish()
        write_json(self.folder / "summary.json", summary)  # last: the mark of a run that needs nothing more
        tell(f"{self.folder}: finished; {outcome(summary)}")

    def _track_best(self, trainer: Trainer, curves: Path) -> None:
        """Show the tracker the best weights, and what they do with the images that were not trained on."""
        from training.evaluation import draw_evaluation, evaluate_images
        from training.inference import open_predictor

        assert self.tracking is not None
        predictor, _, weights = open_predictor(self.folder)
        pictures, report = [curves], {}
        if len(trainer.val_ids):
            held_out = self.config.evaluated_on
            evaluation = evaluate_images(predictor, self.prepared, trainer.val_ids)
            title = f"{self.folder.name}: {held_out}, accuracy {100 * evaluation.report['accuracy']:.2f} %"
            pictures += draw_evaluation(evaluation, self.prepared, title, self.folder / held_out)
            report = evaluation.report
        self.tracking.log_best(pictures, report, [weights, self.folder / "config.yaml"])

    def stopped(self, trainer: Trainer, state: dict[str, Any], stopped: Stopped) -> None:
        """Write a last checkpoint, within the seconds that are left."""
        assert self.tracking is not None
        try:
            self.checkpoint(trainer, state)
            self.writer.wait()
            step = trainer.progress.step
            tell(f"{self.folder}: {stopped} after step {step}; the same command goes on from there")
        finally:
            self.tracking.finish(stopped=True)

    def close(self) -> None:
        with suppress(Exception):  # of a run that has failed already: that is what is told
            self.writer.wait()
        if self.tracking is not None:
            self.tracking.finish(failed=True)  # unless it has ended in order before
        if self.lock.is_locked:
            with suppress(OSError):  # on a disk that has become read-only; the lock is what counts
                self.holder.unlink(missing_ok=True)
            self.lock.release()


def outcome(summary: dict[str, Any]) -> str:
    reached = summary["val_accuracy"]
    score = "" if reached is None else f"accuracy {100 * reached:.2f} % in epoch {summary['best_epoch']}, "
    return f"{score}{summary['seconds']:.0f} s"


def summarize(config: Config, accelerator: Accelerator, trainer: Trainer) -> dict[str, Any]:
    """The content of summary.json. Accuracy and F1 are those of the weights in best.safetensors.

    weights_sha256 is of the weights after the last step, with --ema of their average: equal for two runs that
    computed the same bits.
    """
    progress = trainer.progress
    images = progress.step * config.batch_size
    evaluated = len(trainer.val_ids) > 0
    return {
        "recipe": config.recipe,
        "epochs": config.epochs,
        "steps": progress.step,
        "train_images": len(trainer.stream.ids),
        "val_images": len(trainer.val_ids),
        "best_epoch": progress.best_epoch,
        "val_accuracy": progress.best_accuracy if evaluated else None,
        "val_macro_f1": progress.best_macro_f1 if evaluated else None,
        "seconds": round(progress.seconds, 3),
        "train_seconds": round(progress.train_seconds, 3),
        "images_per_second": round(images / progress.train_seconds, 1),
        "world_size": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        "loader": trainer.loader.name,
        "seed": config.seed,
        "weights_sha256": weights_sha256(trainer.eval_network.state_dict()),
        "versions": versions(),
        "device": device_name(accelerator.device),
    }
