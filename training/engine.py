"""The training step, an epoch of it, and the state that a checkpoint holds."""

import math
import time
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn

from data.errors import InputError
from data.files import sha256_of
from data.keyed import random_bits
from data.loaders import Batch, Loader
from data.prepared import Prepared
from data.sampling import evaluation_batches
from training.averaging import MovingAverage
from training.batchnorm import synchronize_batchnorm
from training.cli import OneProcessError, RunError
from training.config import Config, flag
from training.graphs import Pass, Passes, blank_images, buffers_kept, capture_passes
from training.hardware import DTYPES
from training.inference import EVALUATION_BATCH, Predictor
from training.loss import training_loss
from training.metrics import TrainingMetrics
from training.optim import make_optimizer, restore_optimizer, schedule_factor, set_lr, take_step
from training.parts import make_stream
from training.peers import from_first_process
from training.sam import SAM
from training.stopping import StopAgreement, StopRequest


@dataclass
class Progress:
    """What a run has come to, besides its weights.

    step: optimizer steps done. epoch: epochs done, their validation included.
    best_epoch: counted from 1; 0: no epoch was evaluated yet.
    seconds: of the whole run; train_seconds: between the first and the last step of its epochs.
    """

    step: int = 0
    epoch: int = 0
    best_epoch: int = 0
    best_accuracy: float = -1.0
    best_macro_f1: float = -1.0
    seconds: float = 0.0
    train_seconds: float = 0.0


class Trainer:
    """Trains one network on one data set, in this and all other processes of the job.

    Args:
        config: of the run.
        accelerator: made by training/hardware.py.
        model: fresh, on the CPU.
        prepared, loader: the data set and how it is read.
        stop_request: of this process.

    Raises:
        InputError: batch size, processes, accumulation and images do not fit together.
    """

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        model: nn.Module,
        prepared: Prepared,
        loader: Loader,
        stop_request: StopRequest,
    ):
        self.config, self.accelerator, self.loader = config, accelerator, loader
        self.num_classes = len(prepared.classes)
        # What must be the same for a resumed run to be the same run.
        self.identity = {
            **config.result_fields(),
            "precision": accelerator.mixed_precision,
            "processes": accelerator.num_processes,
            "classes": self.num_classes,
            "data": (prepared.digest if config.split == "test" else prepared.train_digest)[:16],
            "weights": sha256_of(Path(config.weights))[:16] if config.weights else "",  # wherever the file lies
        }
        self._require_the_same_everywhere()
        self.stream, self.val_ids = make_stream(config, accelerator, prepared, loader)
        self.steps_per_epoch = self.stream.steps_per_epoch
        self.stop = StopAgreement(stop_request, accelerator.num_processes, config.peer_timeout)

        self.has_dropout = any(isinstance(module, nn.modules.dropout._DropoutNd) for module in model.modules())
        if config.sync_batchnorm and accelerator.num_processes > 1:
            model = synchronize_batchnorm(model, accelerator.device)
        model = model.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = MovingAverage(model, config.ema) if config.ema else None
        if config.compile:
            model.compile()  # in place: names in the state dict stay, and DDP wraps the compiled network
        self.optimizer = make_optimizer(config, model)  # as it is: Accelerate's wrapper takes 0.2 ms a step
        self.network = model  # self.model without DDP
        # A launcher's only process gets no DDP, which has nothing to do there, and does not go into a CUDA graph.
        self.model: nn.Module = accelerator.prepare_model(model, evaluation_mode=accelerator.num_processes == 1)
        self.sam = SAM(self.network, config.sam, config.sam_adaptive) if config.sam else None
        # What is validated and saved: the weights, or their moving average.
        self.eval_network: nn.Module = self.average.module if self.average else self.network
        precision = accelerator.mixed_precision
        self.predictor = Predictor(self.eval_network, self.stream.transform, accelerator.device, precision)
        self.metrics = TrainingMetrics(accelerator)
        # Of several micro-batches the second would overwrite the gradients of the first, which lie where the graph
        # writes them; DDP would want its communication captured; dropout's masks have a seed for each step.
        alone = accelerator.num_processes == 1 and config.accumulation == 1 and not self.has_dropout
        self.passes: Passes = (self.model, self.model)
        if accelerator.device.type == "cuda" and alone:
            self.passes = capture_passes(self.model, self.sam, config.batch_size, DTYPES[precision])
        self.images_per_second = 0.0  # of the last epoch's training steps, all processes
        self.progress = Progress()
        self._last_tick = time.perf_counter()
        self._training_since: float | None = None
        if accelerator.num_processes > 1 or (config.compile and self.passes == (self.model, self.model)):
            self._settle()

    def _require_the_same_everywhere(self) -> None:
        """OneProcessError in a process that was started otherwise than the first one."""
        own = self.identity | {key: getattr(self.config, key) for key in ("log_every", "checkpoint_every_steps")}
        first = from_first_process(self.accelerator, lambda: own)
        if changes := _differences(first, own):
            raise OneProcessError(
                f"this process differs from the first one ({changes}); give all the same flags and images"
            )

    def _settle(self) -> None:
        """Let DDP and torch.compile decide before the first step what their first passes decide.

        DDP arranges its gradient buckets after its first backward pass, and another arrangement adds the gradients
        of three or more processes in another order: a resumed run would differ from an uninterrupted one in its
        first step. The second forward pass builds the new buckets; were its gradients not taken, the reducer would
        go on waiting for them, and average those of the first step's first micro-batch too early. torch.compile
        takes the size that it meets first, in a step's pass and in SAM's second one, for the one that stays: a
        micro-batch's, and not, in a run that goes on in a validation, that of its batches.
        """
        size = self.config.batch_size // (self.accelerator.num_processes * self.config.accumulation)
        images = blank_images(size, self.predictor.dtype, self.accelerator.device)
        with buffers_kept(self.network):
            for kept in [nullcontext] * 2 + ([self.sam.statistics_kept] if self.sam else []):
                with kept():
                    self.model(images).sum().backward()
        self.optimizer.zero_grad()

    def lr(self, step: int) -> float:
        """The learning rate of an optimizer step, counted from 0."""
        return self.config.lr * schedule_factor(self.config, step, self.steps_per_epoch)

    def train_step(self, batches: list[Batch]) -> None:
        """One optimizer step from this process' micro-batches of one global batch, already augmented."""
        set_lr(self.optimizer, self.lr(self.progress.step))
        if not self.network.training:  # after a validation; to walk all modules takes 0.2 ms
            self.model.train()
        first, second = self.passes
        self._backward(batches, first, self.metrics.update)
        if self.sam:
            with self.sam.perturbed():
                self._backward(batches, second)
        take_step(self.optimizer, self.accelerator.scaler)
        if self.average:
            self.average.update_parameters(self.network)
        self.progress.step += 1

    def _backward(
        self, batches: list[Batch], model: Pass, visit: Callable[..., None] = lambda *results: None
    ) -> None:
        """The gradient of the global batch's mean loss; `visit` is shown each loss, logits and labels."""
        if self.has_dropout:
            self._seed_dropout()
        for number, batch in enumerate(batches, start=1):
            # Gradients are averaged over the processes once, with the last micro-batch.
            with nullcontext() if number == len(batches) else self.accelerator.no_sync(self.model):
                logits = model(batch.images)
                loss = training_loss(logits, batch, self.config.label_smoothing)
                self.accelerator.backward(loss / len(batches))
            visit(loss.detach(), logits.detach(), batch.labels)

    def train_epoch(self) -> Generator[None]:
        """The steps that are left of the current epoch, yielding after each.

        Raises:
            Stopped: the run was asked to stop; everything is as after the last step.
        """
        epoch, before = self.progress.epoch, self.progress.step
        done = before - epoch * self.steps_per_epoch
        if not done:
            self.metrics.reset()
        started = self._training_since = time.perf_counter()
        with closing(self.stream.epoch(epoch, done)) as steps:
            for batches in steps:
                self.stop.check()
                self.train_step(batches)
                yield
        self.metrics.read()  # waits for the device
        steps_done, seconds = self.progress.step - before, time.perf_counter() - started
        self._count_training_time()
        if not steps_done:  # the run was stopped in this epoch's validation: its rate so far
            steps_done, seconds = self.progress.step, self.progress.train_seconds
        self.images_per_second = steps_done * self.config.batch_size / seconds
        self._training_since = None

    def _count_training_time(self) -> None:
        """Add what of the current epoch is not yet counted to train_seconds."""
        if self._training_since is not None:
            now = time.perf_counter()
            self.progress.train_seconds += now - self._training_since
            self._training_since = now

    def _seed_dropout(self) -> None:
        """Dropout draws from torch's generator: make that, too, a function of position; SAM's passes have one."""
        rank = torch.tensor([self.accelerator.process_index])
        torch.manual_seed(int(random_bits(rank, self.config.seed, "dropout", self.progress.step)))

    def training_row(self, kind: str) -> dict[str, Any]:
        """The training metrics of the epoch so far, as a row of metrics.jsonl; to be called by every process.

        Raises:
            RunError: the loss is not a finite number.
        """
        epoch, lr = self.progress.epoch + 1, self.optimizer.param_groups[0]["lr"]
        return {"kind": kind, "epoch": epoch, "step": self.progress.step, "lr": lr} | self._finite_metrics()

    def _finite_metrics(self) -> dict[str, float]:
        metrics = self.metrics.read()
        self._require(math.isfinite(metrics["train_loss"]), f"the loss is {metrics['train_loss']}")
        return metrics

    def check_finite(self) -> None:
        """RunError if the loss or a weight is not finite: nothing of it may be saved. For every process."""
        self._finite_metrics()
        finite = all(bool(parameter.isfinite().all()) for parameter in self.network.parameters())
        self._require(finite, "a weight is not a finite number")

    def _require(self, finite: bool, otherwise: str) -> None:
        if not finite:
            raise RunError(
                f"{otherwise} by step {self.progress.step}; the last checkpoint before it is kept; a smaller --lr "
                f"(now {self.config.lr}), a longer --warmup or --precision no may help"
            )

    def tick(self) -> float:
        """Add the time since the last call to the run's seconds, and return those."""
        now = time.perf_counter()
        self.progress.seconds += now - self._last_tick
        self._last_tick = now
        return self.progress.seconds

    def validate(self) -> dict[str, Any]:
        """Metrics over the validation images, each counted once over all processes.

        Raises:
            Stopped: the run was asked to stop; everything is as after the last training step.
        """
        if self.accelerator.num_processes > 1:
            for buffer in self.eval_network.buffers():
                broadcast(buffer)
        with closing(self._validation_batches()) as batches:
            return self.predictor.evaluate(batches, self.num_classes)

    def _validation_batches(self) -> Generator[Batch]:
        """This process' share. All processes check for a stop equally often: the shares differ by one at most."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        share = evaluation_batches(self.val_ids, EVALUATION_BATCH, rank, processes)
        longest = len(evaluation_batches(self.val_ids, EVALUATION_BATCH, 0, processes))
        with closing(self.loader.read(share)) as reader:
            for number in range(longest):
                self.stop.check()
                if number < len(share):
                    yield next(reader)

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs; to be called by every process."""
        self.check_finite()
        self.tick()
        self._count_training_time()
        scaler = self.accelerator.scaler
        return {
            "identity": self.identity,
            "progress": asdict(self.progress),
            "model": self.network.state_dict(),
            "average": self.average.state_dict() if self.average else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
            "metrics": self.metrics.of_every_process().cpu(),
        }

    def restore(self, load: Callable[[], dict[str, Any] | None]) -> None:
        """Go on from the state that `load` finds in the first process, if any. To be called by every process.

        Raises:
            InputError: the state belongs to another config; the message names the fields.
        """
        found = from_first_process(self.accelerator, load)
        if found is None:
            return
        if changes := _differences(found["identity"], self.identity):
            raise InputError(f"the run was started otherwise ({changes}); use its values, or another --name")
        self.network.load_state_dict(found["model"])
        if self.average:
            self.average.load_state_dict(found["average"])
        restore_optimizer(self.optimizer, found["optimizer"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(found["scaler"])
        self.metrics.restore(found["metrics"].to(self.accelerator.device))
        self.progress = Progress(**found["progress"])


def _differences(then: dict[str, Any], now: dict[str, Any]) -> str:
    """The entries that differ, as `--flag former -> present`."""
    names = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
    shown = {name: name if name in ("processes", "classes", "data") else flag(name) for name in names}
    return ", ".join(f"{shown[name]} {then.get(name)} -> {now.get(name)}" for name in names)
