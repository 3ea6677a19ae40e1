"""A run on disk: checkpoints to go on from, and the weights that evaluate.py and submit.py read.

A checkpoint is whole or absent: it is written under a temporary name beside its SHA-256, flushed, and renamed.
"""

import hashlib
import io
import json
import pickle
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from data.errors import InputError
from data.files import check_digest, write_atomically, write_with_digest
from resnet import build_model
from training.cli import warn

KEPT_CHECKPOINTS = 2


Write = Callable[[], None]
"""Puts on disk what was taken before."""


class BackgroundWriter:
    """Writes checkpoints and weights while training goes on: on a slow disk that can take as long as an epoch."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None

    def start(self, *writes: Write) -> None:
        """Write one after the other; what follows one that fails is not written. Waits for those before."""
        self.wait()
        self._written = self._thread.submit(_all, writes)

    def wait(self) -> None:
        """Until all is on disk. Raises OSError where that has failed."""
        written, self._written = self._written, None
        if written:
            written.result()

    def check(self) -> None:
        """As `wait`, but only if there is nothing to wait for: a full disk is told soon."""
        if self._written and self._written.done():
            self.wait()


def _all(writes: Sequence[Write]) -> None:
    for write in writes:
        write()


def take_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Write:
    """Take the state as it is now. The result, when it is called, writes folder/step-<step>.pt with its digest
    beside it, then removes all but the newest two.
    """
    serialized = io.BytesIO()
    torch.serialization.set_crc32_options(False)  # the file has a SHA-256, and training waits for this
    torch.save(state, serialized)

    def write() -> None:
        write_with_digest(folder / f"step-{step:08d}.pt", serialized.getbuffer())
        for old in _checkpoints(folder)[KEPT_CHECKPOINTS:]:
            old.unlink()
        remove_remnants(folder)

    return write


def remove_remnants(folder: Path) -> None:
    """Remove what a killed process left half-done: temporary files, and digests without their checkpoint."""
    for remnant in folder.glob(".step-*.tmp"):
        remnant.unlink()
    for digest in folder.glob("step-*.pt.sha256"):
        if not digest.with_suffix("").exists():
            digest.unlink()


def load_newest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint, on the CPU; None where there is none at all.

    A damaged one that is newer is removed with a warning. Nothing but tensors and plain values is unpickled.

    Raises:
        InputError: there are checkpoints, and none is whole.
    """
    found = _checkpoints(folder)
    damaged: list[Path] = []
    for path in found:
        try:
            if check_digest(path):
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
                for newer in damaged:  # removed, or it would count as one of the newest two
                    warn(f"{newer} is damaged, removed; going on from {path.name}")
                    newer.unlink()
                return state
            damaged.append(path)
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:  # of the disk or the memory, perhaps
            warn(f"{path} cannot be read ({type(error).__name__}); passed over")
    if found:
        raise InputError(f"{folder}: no checkpoint is whole; remove the run's folder to start it again")
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted((p for p in folder.glob("step-*.pt") if re.fullmatch(r"step-\d+\.pt", p.name)), reverse=True)


def weights_sha256(weights: dict[str, Tensor]) -> str:
    """A digest of names, types, shapes and bits of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def take_weights(path: Path, model: nn.Module, about: dict[str, Any]) -> Write:
    """Take the weights as they are now. The result, when it is called, writes them with all that is needed to
    use them: network, classes, mean, std.

    Args:
        about: plain values, "config" and "classes" among them; recorded as JSON in the file's metadata.
    """
    contiguous = torch.contiguous_format  # as safetensors wants them
    weights = {
        name: tensor.detach().to("cpu", memory_format=contiguous, copy=True)
        for name, tensor in model.state_dict().items()
    }

    def write() -> None:
        recorded = json.dumps({**about, "weights_sha256": weights_sha256(weights)})
        metadata = {"about": recorded, "about_sha256": hashlib.sha256(recorded.encode()).hexdigest()}
        write_atomically(path, save(weights, metadata=metadata))

    return write


def load_weights(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network with its weights, on the CPU, in evaluation mode; and what `take_weights` recorded.

    Raises:
        InputError: no such file, or not one of ours, or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        recorded = metadata["about"]
        about = json.loads(recorded)
        digests = (hashlib.sha256(recorded.encode()).hexdigest(), weights_sha256(weights))
        if digests != (metadata["about_sha256"], about["weights_sha256"]):
            raise InputError(f"{path}: damaged, its content does not have the SHA-256 recorded in it")
        config = about["config"]
        model = build_model(config["model"], len(about["classes"]), config["stem"], config["init"])
        model.load_state_dict(weights)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; train a run first, or give a weights file") from error
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a weights file of train.py, or damaged ({type(error).__name__})") from error
    return model.eval(), about
