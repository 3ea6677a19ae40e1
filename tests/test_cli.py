"""What the scripts print, wherever it goes."""

import io
import os
import sys

import pytest

from data.errors import InputError
from training.cli import one_line_errors, tell, warn


def test_what_the_encoding_lacks_is_written_as_an_escape(monkeypatch):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="cp1252") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with one_line_errors():
        tell("B\u00e4r, \u732b")
    with pytest.raises(SystemExit), one_line_errors():
        raise InputError("\u732b: no such class")
    err.flush()
    assert out.buffer.getvalue() == b"B\xe4r, \\u732b\n"
    assert err.buffer.getvalue() == b"error: \\u732b: no such class\n"


def test_control_c_is_no_traceback():
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise KeyboardInterrupt
    assert ended.value.code == 130


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
def test_what_cannot_be_told_on_a_full_disk_ends_nothing(monkeypatch):
    with open("/dev/full", "w") as out, open("/dev/full", "w") as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        warn("first")
        tell("second")
        warn("third")
        with pytest.raises(SystemExit, match="2"), one_line_errors():
            raise InputError("fourth")


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_where_an_output_is_closed_nothing_is_written(monkeypatch, name):
    monkeypatch.setattr(sys, name, None)
    with one_line_errors():
        tell("a line")
        print("another", file=getattr(sys, name))
    assert getattr(sys, name).name == os.devnull
