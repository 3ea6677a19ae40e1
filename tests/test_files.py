"""Files that are complete or absent: several writers, what killed ones leave, and links."""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from data.files import write_atomically, written_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_writer_does_not_publish_what_another_has_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    with ExitStack() as second:
        with written_atomically(path) as ours:
            ours.write_bytes(b"whole")
            with monkeypatch.context() as other_process:
                other_process.setattr(os, "getpid", lambda: 1)  # of a process that is there
                theirs = second.enter_context(written_atomically(path))
            theirs.write_bytes(b"half")
        assert path.read_bytes() == b"whole"
        theirs.write_bytes(b"whole, too")
    assert path.read_bytes() == b"whole, too"
    assert names(tmp_path) == ["report.json"]


def test_what_a_killed_writer_left_is_removed_and_that_of_others_stays(tmp_path: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    for name in (f".a[1].{killed.pid}.tmp", ".a[1].1.tmp", f".b.{killed.pid}.tmp"):
        (tmp_path / name).touch()
    write_atomically(tmp_path / "a[1]", b"")
    assert names(tmp_path) == [".a[1].1.tmp", f".b.{killed.pid}.tmp", "a[1]"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there" / "target")
    for content in (b"first", b"second"):
        write_atomically(link, content)
        assert link.is_symlink()
        assert (tmp_path / "there" / "target").read_bytes() == content
