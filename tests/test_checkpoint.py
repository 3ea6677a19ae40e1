"""Checkpoints and weights files: whole, or refused."""

import errno
import json
from pathlib import Path
from threading import Event

import pytest
import torch
from safetensors import safe_open

from data.errors import InputError
from resnet import build_model
from training.checkpoint import (
    BackgroundWriter,
    load_newest_checkpoint,
    load_weights,
    remove_remnants,
    take_checkpoint,
    take_weights,
    weights_sha256,
)

ABOUT = {"config": {"model": "resnet18", "stem": "imagenet", "init": "default"}, "classes": ["a", "b"]}


def state(step: int) -> dict:
    return {"progress": {"step": step}, "model": {"weight": torch.full((100,), float(step))}}


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_two_are_kept_and_the_newest_is_loaded(tmp_path):
    for step in (5, 10, 200):
        take_checkpoint(tmp_path, step, state(step))()
    kept = ["step-00000010.pt", "step-00000010.pt.sha256", "step-00000200.pt", "step-00000200.pt.sha256"]
    assert names(tmp_path) == kept
    loaded = load_newest_checkpoint(tmp_path)
    assert loaded["progress"] == {"step": 200}
    assert torch.equal(loaded["model"]["weight"], torch.full((100,), 200.0))


def test_what_is_taken_is_of_its_moment_and_is_written_while_training_goes_on(tmp_path):
    """One after the other, and never in the way."""
    may_write, writer = Event(), BackgroundWriter()
    model, taken = build_model("resnet18", 2, "imagenet"), state(1)
    digest = weights_sha256(model.state_dict())
    best = take_weights(tmp_path / "best.safetensors", model, ABOUT)
    writer.start(lambda: may_write.wait(10), best, take_checkpoint(tmp_path, 1, taken))
    taken["model"]["weight"].fill_(7)
    model.fc.weight.data.fill_(7)
    writer.check()  # is not done
    assert names(tmp_path) == []
    may_write.set()
    writer.start(take_checkpoint(tmp_path, 2, state(2)))
    assert {"best.safetensors", "step-00000001.pt", "step-00000001.pt.sha256"} <= set(names(tmp_path))
    writer.wait()
    (tmp_path / "step-00000002.pt").unlink()
    assert torch.equal(load_newest_checkpoint(tmp_path)["model"]["weight"], torch.full((100,), 1.0))
    assert load_weights(tmp_path / "best.safetensors")[1]["weights_sha256"] == digest


@pytest.mark.parametrize(
    "ask", [BackgroundWriter.check, BackgroundWriter.wait, lambda writer: writer.start(lambda: None)]
)
def test_what_fails_while_it_is_written_is_told_once_and_ends_what_follows_it(ask):
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "best.safetensors")

    written, writer = [], BackgroundWriter()
    writer.start(fail, lambda: written.append("the checkpoint that says that they are there"))
    writer._thread.submit(lambda: None).result()  # the thread has come past it
    with pytest.raises(OSError, match="No space left"):
        ask(writer)
    writer.wait()
    assert written == []


def test_no_checkpoint_is_none(tmp_path):
    assert load_newest_checkpoint(tmp_path / "absent") is None


def test_a_checkpoint_without_its_digest_is_passed_over_with_a_warning(tmp_path, capsys):
    take_checkpoint(tmp_path, 1, state(1))()
    take_checkpoint(tmp_path, 2, state(2))()
    (tmp_path / "step-00000002.pt.sha256").unlink()
    assert load_newest_checkpoint(tmp_path)["progress"] == {"step": 1}
    assert "step-00000002.pt is damaged" in capsys.readouterr().err


def test_a_failed_write_leaves_the_older_checkpoint_and_no_remnant(tmp_path, monkeypatch):
    take_checkpoint(tmp_path, 1, state(1))()

    write_bytes = Path.write_bytes

    def fill_the_disk(path, content):
        if not path.name.startswith(".step-00000002.pt."):
            return write_bytes(path, content)
        write_bytes(path, b"half")
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_the_disk)
    with pytest.raises(OSError, match="no space") as raised:
        take_checkpoint(tmp_path, 2, state(2))()
    assert raised.value.filename == str(tmp_path / "step-00000002.pt")
    remove_remnants(tmp_path)
    assert names(tmp_path) == ["step-00000001.pt", "step-00000001.pt.sha256"]


class Malicious:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_that_would_run_code_is_not_unpickled(tmp_path, capsys):
    take_checkpoint(tmp_path, 1, {"progress": Malicious()})()
    with pytest.raises(InputError):
        load_newest_checkpoint(tmp_path)
    assert "executed" not in capsys.readouterr().out


def test_weights_carry_all_that_is_needed_to_use_them(tmp_path):
    model = build_model("resnet18", 2, "imagenet").to(memory_format=torch.channels_last)
    path = tmp_path / "best.safetensors"
    take_weights(path, model, ABOUT)()
    loaded, about = load_weights(path)
    assert weights_sha256(loaded.state_dict()) == weights_sha256(model.state_dict()) == about["weights_sha256"]
    assert about["classes"] == ["a", "b"]
    assert not loaded.training
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["about"]) == about


def test_absent_weights_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_weights(tmp_path / "best.safetensors")


def test_the_digest_depends_on_names_and_bits():
    first = {"a": torch.zeros(3), "b": torch.ones(2)}
    assert weights_sha256(first) == weights_sha256(dict(reversed(first.items())))
    assert weights_sha256(first) != weights_sha256({"a": torch.zeros(3), "c": torch.ones(2)})
    assert weights_sha256(first) != weights_sha256({"a": -torch.zeros(3), "b": torch.ones(2)})
