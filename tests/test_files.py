"""Files that are complete or absent: several writers, what killed ones leave, and links."""

import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from data.files import DAY_S, write_atomically, written_atomically
from tests.conftest import ROOT


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_writer_does_not_publish_what_another_has_half_written(tmp_path: Path) -> None:
    """In another container it may have the same process number."""
    path = tmp_path / "report.json"
    with ExitStack() as second:
        with written_atomically(path) as ours:
            ours.write_bytes(b"whole")
            theirs = second.enter_context(written_atomically(path))
            theirs.write_bytes(b"half")
        assert path.read_bytes() == b"whole"
        theirs.write_bytes(b"whole, too")
    assert path.read_bytes() == b"whole, too"
    assert names(tmp_path) == ["report.json"]


KILLED = """
import os, signal, sys
from pathlib import Path
from data.files import written_atomically
with written_atomically(Path(sys.argv[1])) as temporary:
    temporary.touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_is_removed_and_that_of_others_stays(tmp_path: Path) -> None:
    for name in ("a[1]", "b"):
        subprocess.run([sys.executable, "-c", KILLED, tmp_path / name], cwd=ROOT)
    of_a, of_b = names(tmp_path)
    assert (of_a[:6], of_b[:3]) == (".a[1].", ".b.")
    with written_atomically(tmp_path / "a[1]") as alive:
        alive.touch()
        write_atomically(tmp_path / "a[1]", b"")
        assert names(tmp_path) == sorted([alive.name, of_b, "a[1]"])
    assert names(tmp_path) == [of_b, "a[1]"]


def test_what_another_machine_has_left_is_removed_when_it_is_a_day_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or another container: a number of a process says nothing there."""
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    subprocess.run([sys.executable, "-c", KILLED, tmp_path / "a"], cwd=ROOT)
    (remnant,) = tmp_path.iterdir()
    (tmp_path / ".a.b.tmp").touch()  # of another program
    write_atomically(tmp_path / "a", b"")
    assert remnant.exists()
    os.utime(remnant, (time.time() - DAY_S - 60,) * 2)
    write_atomically(tmp_path / "a", b"")
    assert names(tmp_path) == [".a.b.tmp", "a"]


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path: Path) -> None:
    for name in (255 * "x", 63 * "\N{GRINNING FACE}"):
        write_atomically(tmp_path / name, b"whole")
        assert names(tmp_path) == [name]
        (tmp_path / name).unlink()


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there" / "target")
    for content in (b"first", b"second"):
        write_atomically(link, content)
        assert link.is_symlink()
        assert (tmp_path / "there" / "target").read_bytes() == content
