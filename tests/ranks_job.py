"""What test_ranks.py has N processes compute, started once by `accelerate launch`; the results as JSON.

    accelerate launch ... tests/ranks_job.py FOLDER IMAGES CASES

FOLDER/digests.json has the digests of the training stream; FOLDER/<run>/ are runs of train.py's own `train`;
FOLDER/<run>/stops.json has the steps and epochs that were done where a run was stopped.
CASES: which of the runs that are stopped and resumed.
"""

import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

from accelerate import Accelerator
from accelerate.state import AcceleratorState

from data.stream import epoch_digest
from train import train
from training import engine
from training.checkpoint import load_newest_checkpoint
from training.config import Config
from training.engine import Trainer
from training.hardware import make_accelerator
from training.parts import make_stream, open_data
from training.stopping import StopRequest

RESUMED = {
    f"{optimizer}-{precision}-{loader}": {"optimizer": optimizer, "precision": precision, "loader": loader}
    for optimizer, precision, loader in product(("sgd", "adam"), ("no", "bf16"), ("resident", "ffcv"))
}
"""Names and settings of the runs that are stopped and resumed."""

AUGMENTED = {
    "flip": "alternating",
    "cutout": 8,
    "trivial_augment": True,
    "erasing": 0.5,
    "mixup": 0.2,
    "cutmix": 1.0,
    "mix_probability": 0.8,
}
TECHNIQUES = {"label_smoothing": 0.1, "ema": 0.9, "sam": 0.5, "sam_adaptive": True, "zero_init": True}
TECHNIQUES |= {"norm_bias_lr": 4.0, "decay_norm_and_bias": False, "crop_mode": "reflect", "accumulation": 2}
EVERYTHING = {**RESUMED["sgd-no-ffcv"], "optimizer": "nesterov", **AUGMENTED, **TECHNIQUES}
RESUMED["everything"] = EVERYTHING

SIGNALS = (2, 5, 8) if os.environ.get("WORLD_SIZE", "1") == "1" else (2, 4, 10)
"""Steps, of 10 in 2 epochs, after which SIGTERM comes. Several processes act on it one step or batch later."""


def base_config(folder: Path, images: Path) -> Config:
    where = {"data_dir": str(images), "runs_dir": str(folder), "cache_dir": str(folder / "cache")}
    return Config(dataset="folder", stem="imagenet", lr=0.005, tracker="none", log_every=1, epochs=2, **where)


def stream_digests(config: Config) -> dict[str, list[str]]:
    """The digests of two epochs, by loader, workers and accumulation; plain, and with all that changes images."""
    found = {}
    for loader_name, workers in (("resident", 1), ("ffcv", 1), ("ffcv", 2)):
        config = replace(config, batch_size=48, precision="no", cutout=8, loader=loader_name, workers=workers)
        accelerator = make_accelerator(config)
        prepared, loader, _ = open_data(config, accelerator)
        for accumulation, (kind, settings) in product((1, 2, 4), {"plain": {}, "augmented": AUGMENTED}.items()):
            chosen = replace(config, accumulation=accumulation, **settings)
            stream, _ = make_stream(chosen, accelerator, prepared, loader)
            digests = [epoch_digest(stream, epoch, accelerator.gather) for epoch in range(2)]
            found[f"{kind}, {loader_name}, {workers} workers, accumulation {accumulation}"] = digests
    return found


def run(config: Config) -> None:
    """train.py's `train`, in a process that goes on after it: with the process group, at another precision."""
    AcceleratorState._reset_state()
    train(config, StopRequest())


SLOW = {
    **{"split": "none", "loader": "resident", "precision": "no"},
    **{"batch_size": 80, "lr": 1e-4, "stem": "cifar-pool", "init": "kaiming", "crop_padding": 0},
}
"""In fp32, where rounding errors grow slowly: large batches and weights, small steps."""


def synchronized_training(config: Config) -> None:
    """20 steps."""
    run(replace(config, name="synchronized", sync_batchnorm=True, epochs=10, **SLOW))


def sharpness_aware_training(config: Config, processes: int) -> None:
    """One step of SAM, from a global batch in 2 parts: those of the processes, or of accumulation."""
    one_step = SLOW | {"batch_size": 160, "epochs": 1}
    run(replace(config, name="sam", sam=0.2, accumulation=2 // processes, **one_step))


def stopped_and_resumed(config: Config, name: str) -> None:
    """One run without interruption; and the same, in which the last process gets SIGTERM after some steps."""
    config = replace(config, batch_size=24, **RESUMED[name])
    run(replace(config, name=f"{name}-whole"))
    config = replace(config, name=f"{name}-resumed")
    train_step = Trainer.train_step
    signals, stops = list(SIGNALS), []

    def signalled_after_some_steps(trainer: Trainer, batches: list) -> None:
        train_step(trainer, batches)
        if signals and trainer.progress.step == signals[0]:
            del signals[0]
            if trainer.accelerator.is_last_process:
                os.kill(os.getpid(), signal.SIGTERM)

    Trainer.train_step = signalled_after_some_steps
    while True:
        try:
            run(config)
            break
        except SystemExit as ended:
            if ended.code != 143:
                raise
            progress = load_newest_checkpoint(config.run_folder / "checkpoints")["progress"]
            stops.append([progress["step"], progress["epoch"]])
    Trainer.train_step = train_step
    if int(os.environ.get("RANK", "0")) == 0:
        for checkpoints in config.run_folder.parent.glob(f"{name}-*/checkpoints"):
            shutil.rmtree(checkpoints)  # of all runs of `make test-faults` they are tens of GB
        (config.run_folder / "stops.json").write_text(json.dumps(stops))


def main(folder: Path, images: Path, cases: list[str]) -> None:
    Accelerator.end_training = lambda self: None  # the process group is needed for the next run
    engine.EVALUATION_BATCH = 3  # several batches of the 20 validation images, for every process
    config = base_config(folder, images)
    digests = stream_digests(config)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes != 3:  # 80 images do not divide by 3
        synchronized_training(config)
    if processes <= 2:
        sharpness_aware_training(config, processes)
    for name in cases:
        stopped_and_resumed(config, name)
    if int(os.environ.get("RANK", "0")) == 0:
        (folder / "digests.json").write_text(json.dumps(digests))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].split(","))
