"""What the code does not do: listen, unpickle what others wrote, start a shell, unpack an archive by itself.

Read from the sources, with the names that they import; and, for the listening, from a process that trains.
"""

import ast
import importlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from data.errors import InputError
from data.sources import find_source
from data.spec import CIFAR10, CIFAR100, DatasetSpec
from tests.conftest import ROOT, TINY, command
from tests.images import accept_checksums, serve, write_archive

PACKAGES = ("resnet", "data", "training", "benchmarks", "scripts")
FILES = sorted([*ROOT.glob("*.py"), *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))])

UNPICKLING = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open"),
    *("pandas.read_pickle", "joblib.load", "dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads"),
    *("torch.hub.load", "torch.jit.load", "torch.package.PackageImporter"),
    *("torch.serialization.add_safe_globals", "torch.serialization.safe_globals"),
}
RUNNING = {
    *("eval", "exec", "compile", "__import__", "runpy.run_path", "runpy.run_module", "code.interact"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("asyncio.create_subprocess_shell", "pty.spawn"),
}
UNPACKING = {
    *("shutil.unpack_archive", "tarfile.open", "tarfile.TarFile", "zipfile.ZipFile", "zipfile.PyZipFile"),
    *("torchvision.datasets.utils.extract_archive", "torchvision.datasets.utils.download_and_extract_archive"),
}
UNSAFE_YAML = {
    f"yaml.{name}" for name in ("load", "load_all", "full_load", "unsafe_load", "Loader", "UnsafeLoader")
}
SERVERS = {
    *("socketserver", "http.server", "xmlrpc.server", "wsgiref", "asyncio", "flask", "fastapi", "aiohttp"),
    *("tornado", "uvicorn", "gradio", "multiprocessing.managers", "multiprocessing.connection"),
}
SOCKETS = {"socket.socket", "socket.create_server", "socket.socketpair", "socket.fromfd"}
"""Their module alone also tells this machine's name."""


class Names(ast.NodeVisitor):
    """What the names in a file stand for: `np.load` is numpy.load, whatever it was imported as."""

    def __init__(self, tree: ast.AST):
        self.modules: set[str] = set()
        self.meaning: dict[str, str] = {}
        self.visit(tree)

    def visit_Import(self, node: ast.Import) -> None:
        for name in node.names:
            self.modules.add(name.name)
            self.meaning[name.asname or name.name.split(".")[0]] = (
                name.name if name.asname else name.name.split(".")[0]
            )

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for name in node.names:
            whole = f"{node.module}.{name.name}"
            self.modules |= {node.module or "", whole}
            self.meaning[name.asname or name.name] = whole

    def of(self, node: ast.AST) -> str:
        """The dotted name of an expression; empty for one that is no name."""
        if isinstance(node, ast.Name):
            return self.meaning.get(node.id, node.id)
        if isinstance(node, ast.Attribute) and (owner := self.of(node.value)):
            return f"{owner}.{node.attr}"
        return ""


def faults(source: str) -> list[str]:
    """Each thing in a file that must not be there."""
    tree = ast.parse(source)
    names = Names(tree)
    forbidden = UNPICKLING | RUNNING | UNPACKING | UNSAFE_YAML | SOCKETS
    found = [f"imports {module}" for module in sorted(names.modules & SERVERS)]
    for node in ast.walk(tree):
        # Also where it is not called: it may be handed on.
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            found += [f"line {node.lineno}: {name}" for name in forbidden & {names.of(node)}]
        if isinstance(node, ast.Attribute) and node.attr in ("extractall", "extract", "listen", "start_server"):
            found.append(f"line {node.lineno}: .{node.attr}")
        if isinstance(node, ast.Call):
            found += [f"line {node.lineno}: {fault}" for fault in faults_of_call(node, names.of(node.func))]
    return found


def faults_of_call(node: ast.Call, name: str) -> Iterator[str]:
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if name == "torch.load" and given.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if name == "numpy.load" and (given.get("allow_pickle", "False") != "False" or len(node.args) > 2):
        yield "numpy.load with pickles"
    if given.get("shell", "False") != "False":
        yield "a shell"
    if name.startswith("subprocess.") and node.args and isinstance(node.args[0], ast.Constant | ast.JoinedStr):
        yield "a command as one string"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_listens_unpickles_unpacks_or_starts_a_shell(path: Path) -> None:
    assert faults(path.read_text(encoding="utf-8")) == []


def test_the_files_that_were_read_are_those_of_the_suite() -> None:
    read = {path.relative_to(ROOT).as_posix() for path in FILES}
    assert {"train.py", "evaluate.py", "submit.py", "training/checkpoint.py", "data/sources.py"} <= read
    assert {"resnet/build.py", "data/prepared.py"} <= read


@pytest.mark.parametrize(
    "source",
    [
        "import pickle; pickle.load(f)",
        "from pickle import loads as read; read(b'')",
        "import pickle as p; parse = p.loads",
        "import torch; torch.load(f)",
        "import torch; torch.load(f, weights_only=False)",
        "from torch import load; load(f, weights_only=safe)",
        "import numpy as np; np.load(f, allow_pickle=True)",
        "import numpy as np; np.load(f, None, True)",
        "import pandas as pd; pd.read_pickle(f)",
        "import torch; torch.serialization.add_safe_globals([A])",
        "import os; os.system('ls')",
        "from os import popen; popen('ls')",
        "import subprocess; subprocess.run('ls', shell=True)",
        "import subprocess as s; s.run(c, shell=x)",
        "import subprocess; subprocess.check_output('ls -l')",
        "eval('1')",
        "exec(code)",
        "import yaml; yaml.load(f, yaml.SafeLoader)",
        "from yaml import full_load; full_load(f)",
        "import tarfile; tarfile.open(f).extractall()",
        "def unpack(archive): archive.extractall()",
        "from shutil import unpack_archive; unpack_archive(f)",
        "import zipfile\nwith zipfile.ZipFile(f) as z: pass",
        "from torchvision.datasets.utils import extract_archive; extract_archive(f)",
        "import socket; socket.socket()",
        "from socket import create_server; create_server(a)",
        "import http.server",
        "from http import server",
        "from multiprocessing.connection import Listener",
        "def serve(s): s.listen()",
    ],
)
def test_each_of_them_would_be_found(source: str) -> None:
    assert faults(source)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\ntry: pass\nexcept pickle.UnpicklingError: pass",
        "import torch; torch.load(f, map_location='cpu', weights_only=True)",
        "import numpy as np; np.load(f, mmap_mode='r')",
        "import subprocess; subprocess.run(['ls', '-l'])",
        "import yaml; yaml.safe_load(f); yaml.safe_dump(v)",
        "model.eval(); source.load(); model.compile()",
        "import re; re.compile('a')",
        "import socket; socket.gethostname()",
        "class Config:\n    compile: bool = False",
    ],
)
def test_what_only_looks_like_it_is_allowed(source: str) -> None:
    assert faults(source) == []


# A process that trains --------------------------------------------------------------------------------------


def listening(process: "subprocess.Popen[bytes]") -> set[tuple[int, int]]:
    """(process, TCP port) of all that a process, or a child of it, listens on until it ends."""
    found: set[tuple[int, int]] = set()
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            family = {watched.pid, *(child.pid for child in watched.children(recursive=True))}
        except psutil.NoSuchProcess:
            break
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.pid in family:
                found.add((connection.pid, connection.laddr.port))
        time.sleep(0.1)
    return found


def test_one_training_process_listens_on_no_port(images: Path, tmp_path: Path) -> None:
    where = ["--data-dir", images, "--runs-dir", tmp_path, "--cache-dir", tmp_path / "cache", "--epochs", 1]
    with subprocess.Popen(command("train.py", *TINY, *where), cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        found = listening(process)
    assert process.returncode == 0
    assert found == set()


def test_a_process_that_listens_would_be_seen() -> None:
    code = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); time.sleep(1)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    for script in (code, child):
        with subprocess.Popen([sys.executable, "-c", script]) as process:
            assert len(listening(process)) == 1


# Archives ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [CIFAR10, CIFAR100], ids=lambda spec: spec.name)
@pytest.mark.parametrize("place", ["downloaded", "found in the folder"])
def test_an_archive_with_a_wrong_checksum_is_neither_unpacked_nor_unpickled(
    spec: DatasetSpec, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole archive, that would be read if its name were enough."""
    count = len(spec.classes)
    write_archive(tmp_path / "made", spec, list(range(count)), list(range(count)))
    with pytest.MonkeyPatch.context() as only_here:
        packed = accept_checksums(only_here, tmp_path / "made", spec)
    serve(monkeypatch, packed.read_bytes())
    for function in ("pickle.load", "torchvision.datasets.utils.extract_archive"):
        forbid(monkeypatch, function)
    target = tmp_path / "target"
    target.mkdir()
    if place != "downloaded":
        (target / packed.name).write_bytes(packed.read_bytes())
    with pytest.raises(InputError, match="corrupted"):
        find_source(spec.name, target).load()
    assert [path.name for path in target.iterdir()] in ([], [packed.name])


def forbid(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    module, function = name.rsplit(".", 1)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError(f"{name} was called")

    monkeypatch.setattr(importlib.import_module(module), function, fail)
