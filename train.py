"""Train a network as a recipe and flags say: `accelerate launch train.py --recipe recipes/cifar10.yaml`."""

import os
import sys
from functools import partial
from typing import TYPE_CHECKING

from training.cli import METRICS, one_line_errors, tell
from training.config import HELD_OUT, Config, parse_config
from training.stopping import STOPPED, Stopped, StopRequest

if TYPE_CHECKING:
    from training.engine import Trainer
    from training.recorder import NullRecorder


def main() -> None:
    stop_request = StopRequest()
    with one_line_errors(quiet_ranks=True):
        config = parse_config(sys.argv[1:])
    try:
        train(config, stop_request)
    except SystemExit as ended:
        if ended.code not in STOPPED:
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(ended.code or 0))  # what else runs at a process' end may wait for W&B's server


def train(config: Config, stop_request: StopRequest) -> None:
    # Imported here: torch takes seconds, and --help or a mistaken flag should not wait for it.
    from training.engine import Trainer
    from training.hardware import make_accelerator
    from training.memory import out_of_memory_told, training_advice
    from training.parts import initial_model, open_data
    from training.peers import lost_peers_told
    from training.recorder import NullRecorder, Recorder

    advice = partial(training_advice, config)
    with one_line_errors(quiet_ranks=True), lost_peers_told(), out_of_memory_told(advice):
        accelerator = make_accelerator(config)
        prepared, loader, note = open_data(config, accelerator)
        if note and accelerator.is_main_process:
            tell(note)
        model = initial_model(config, len(prepared.classes))
        trainer = Trainer(config, accelerator, model, prepared, loader, stop_request)
    recorder = Recorder(config, prepared, accelerator) if accelerator.is_main_process else NullRecorder()
    try:
        with one_line_errors(quiet_ranks=True), lost_peers_told():
            trainer.restore(recorder.open)
        with one_line_errors(), lost_peers_told(), out_of_memory_told(advice):
            recorder.begin(trainer)
            run_epochs(trainer, recorder, stop_request)
    finally:
        recorder.close()
    accelerator.end_training()


def run_epochs(trainer: "Trainer", recorder: "NullRecorder", stop_request: StopRequest) -> None:
    """The epochs that are left; when the run is asked to stop, a checkpoint and exit code 128 + the signal."""
    stop_request.defer()
    try:
        while trainer.progress.epoch < trainer.config.epochs:
            train_epoch(trainer, recorder)
            finish_epoch(trainer, recorder)
        trainer.stop.finish()
        recorder.finish(trainer)
    except Stopped as stopped:
        recorder.stopped(trainer, trainer.state(), stopped)
        trainer.stop.finish()
        raise SystemExit(128 + stopped.signal_number) from None


def train_epoch(trainer: "Trainer", recorder: "NullRecorder") -> None:
    """The steps that are left of the current epoch."""
    config, progress = trainer.config, trainer.progress
    with recorder.progress_bar(trainer) as bar:
        for _ in trainer.train_epoch():
            bar.update(config.batch_size)
            at_end = progress.step % trainer.steps_per_epoch == 0  # the epoch's own row and checkpoint follow
            if progress.step % config.log_every == 0 and not at_end:
                row = trainer.training_row("step")
                bar.set_postfix(loss=f"{row['train_loss']:.3f}", lr=f"{row['lr']:.3g}")
                recorder.log(row)
            every = config.checkpoint_every_steps
            if every and progress.step % every == 0 and not at_end:
                recorder.checkpoint(trainer, trainer.state())


def finish_epoch(trainer: "Trainer", recorder: "NullRecorder") -> None:
    """Validate, record, keep the best weights, and write a checkpoint."""
    config, progress = trainer.config, trainer.progress
    trainer.check_finite()
    row = trainer.training_row("epoch")
    if len(trainer.val_ids):
        result = trainer.validate()
        row |= {f"val_{name}": result[name] for name in METRICS}
    progress.epoch += 1
    if config.split in HELD_OUT:
        is_best = row["val_accuracy"] > progress.best_accuracy
    else:  # nothing may choose, and the last weights are kept
        is_best = progress.epoch == config.epochs
    if is_best:
        progress.best_epoch = progress.epoch
        progress.best_accuracy = row.get("val_accuracy", -1.0)
        progress.best_macro_f1 = row.get("val_macro_f1", -1.0)
        recorder.take_best(trainer, {key: row[key] for key in row if key == "epoch" or key.startswith("val_")})
    row |= {"images_per_second": round(trainer.images_per_second, 1), "seconds": round(trainer.tick(), 3)}
    recorder.log(row)
    recorder.checkpoint(trainer, trainer.state())


if __name__ == "__main__":
    main()
