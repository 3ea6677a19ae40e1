"""What test_ranks.py has N processes compute, started once by `accelerate launch`; the results as JSON.

    accelerate launch ... tests/ranks_job.py FOLDER IMAGES CASES

FOLDER/digests.json has the digests of the training stream; FOLDER/<run>/ are runs of train.py's own `train`;
FOLDER/<run>/stops.json has the steps and epochs that were done where a run was stopped.
CASES: which of the runs that are stopped and resumed.
"""

import json
import os
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
from training.engine import Trainer, make_stream, open_data
from training.hardware import make_accelerator
from training.stopping import StopRequest

RESUMED = {
    f"{optimizer}-{precision}-{loader}": {"optimizer": optimizer, "precision": precision, "loader": loader}
    for optimizer, precision, loader in product(("sgd", "adam"), ("no", "bf16"), ("resident", "ffcv"))
}
"""Names and settings of the runs that are stopped and resumed."""

SIGNALS = (2, 5, 8) if os.environ.get("WORLD_SIZE", "1") == "1" else (2, 4, 10)
"""Steps, of 10 in 2 epochs, after which SIGTERM comes. Several processes act on it one step or batch later."""


def base_config(folder: Path, images: Path) -> Config:
    where = {"data_dir": str(images), "runs_dir": str(folder), "cache_dir": str(folder / "cache")}
    return Config(dataset="folder", stem="imagenet", lr=0.005, tracker="none", log_every=1, epochs=2, **where)


def stream_digests(config: Config) -> dict[str, list[str]]:
    """The digests of two epochs, by loader, workers and accumulation."""
    found = {}
    for loader_name, workers in (("resident", 1), ("ffcv", 1), ("ffcv", 2)):
        config = replace(config, batch_size=48, precision="no", cutout=8, loader=loader_name, workers=workers)
        accelerator = make_accelerator(config)
        prepared, loader, _ = open_data(config, accelerator)
        for accumulation in (1, 2, 4):
            stream, _ = make_stream(replace(config, accumulation=accumulation), accelerator, prepared, loader)
            digests = [epoch_digest(stream, epoch, accelerator.gather) for epoch in range(2)]
            found[f"{loader_name}, {workers} workers, accumulation {accumulation}"] = digests
    return found


def run(config: Config) -> None:
    """train.py's `train`, in a process that goes on after it: with the process group, at another precision."""
    AcceleratorState._reset_state()
    train(config, StopRequest())


def synchronized_training(config: Config) -> None:
    """20 steps in fp32, where rounding errors grow slowly: large batches and weights, small steps."""
    where = {"name": "synchronized", "split": "none", "loader": "resident", "precision": "no"}
    slow = {"batch_size": 80, "epochs": 10, "lr": 1e-4, "stem": "cifar-pool", "init": "kaiming", "crop_padding": 0}
    run(replace(config, sync_batchnorm=True, **where, **slow))


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
        (config.run_folder / "stops.json").write_text(json.dumps(stops))


def main(folder: Path, images: Path, cases: list[str]) -> None:
    Accelerator.end_training = lambda self: None  # the process group is needed for the next run
    engine.EVALUATION_BATCH = 3  # several batches of the 20 validation images, for every process
    config = base_config(folder, images)
    digests = stream_digests(config)
    if int(os.environ.get("WORLD_SIZE", "1")) != 3:  # 80 images do not divide by 3
        synchronized_training(config)
    for name in cases:
        stopped_and_resumed(config, name)
    if int(os.environ.get("RANK", "0")) == 0:
        (folder / "digests.json").write_text(json.dumps(digests))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].split(","))
