"""A run on disk: checkpoints to go on from, and the weights that evaluate.py and submit.py read.

A checkpoint is whole or absent: it is written under a temporary name beside its SHA-256, flushed, and renamed.
"""

import hashlib
import json
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from data.errors import InputError
from data.files import sha256_of, written_atomically
from resnet import build_model

KEPT_CHECKPOINTS = 2


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write folder/step-<step>.pt with its digest beside it, then remove all but the newest two."""
    path = folder / f"step-{step:08d}.pt"
    for remnant in folder.glob(".step-*.tmp"):  # of a process that was killed
        remnant.unlink()
    with written_atomically(path) as temporary:
        torch.save(state, temporary)
        # The digest first: a checkpoint that stands under its final name then always has one.
        with written_atomically(_digest_file(path)) as digest:
            digest.write_text(f"{sha256_of(temporary)}  {path.name}\n", encoding="ascii")
    for old in _checkpoints(folder)[KEPT_CHECKPOINTS:]:
        old.unlink()
        _digest_file(old).unlink(missing_ok=True)


def load_newest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint, on the CPU; None where there is none at all.

    A damaged one is passed over with a warning. Nothing but tensors and plain values is unpickled.

    Raises:
        InputError: there are checkpoints, and none is whole.
    """
    found = _checkpoints(folder)
    for path in found:
        try:
            recorded = _digest_file(path).read_text(encoding="ascii").split()[0]
            if recorded == sha256_of(path):
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
                return state
        except (OSError, IndexError, UnicodeDecodeError, RuntimeError, pickle.UnpicklingError):
            pass
        print(f"warning: {path} is damaged; trying an older checkpoint", file=sys.stderr)
    if found:
        raise InputError(f"{folder}: no checkpoint is whole; remove the run's folder to start it again")
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted((p for p in folder.glob("step-*.pt") if re.fullmatch(r"step-\d+\.pt", p.name)), reverse=True)


def _digest_file(path: Path) -> Path:
    return path.with_suffix(".pt.sha256")


def weights_sha256(weights: dict[str, Tensor]) -> str:
    """A digest of names, types, shapes and bits of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_weights(path: Path, model: nn.Module, about: dict[str, Any]) -> None:
    """Write the weights with all that is needed to use them: network, classes, mean, std.

    Args:
        about: plain values, "config" and "classes" among them; recorded as JSON in the file's metadata.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    about = {**about, "weights_sha256": weights_sha256(weights)}
    with written_atomically(path) as temporary:
        save_file(weights, temporary, metadata={"about": json.dumps(about)})


def load_weights(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network with its weights, on the CPU, in evaluation mode; and what `save_weights` recorded.

    Raises:
        InputError: no such file, or not one of ours, or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if weights_sha256(weights) != about["weights_sha256"]:
            raise InputError(f"{path}: damaged, the weights do not have their recorded SHA-256")
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
