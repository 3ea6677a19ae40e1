"""Who imports whom, and the size of things."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

OURS = {"resnet", "data", "training"}
SUITE = sorted([*ROOT.glob("*.py"), *(path for package in OURS for path in (ROOT / package).glob("*.py"))])
FILES = [*SUITE, *sorted((ROOT / "benchmarks").glob("*.py"))]


def imports(path: Path, but_not_in: str = "") -> set[str]:
    """Top-level packages that a file imports, anywhere in it but in one function."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if getattr(node, "name", None) != but_not_in]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def test_networks_import_nothing_of_ours():
    for path in (ROOT / "resnet").glob("*.py"):
        assert imports(path) & (OURS - {"resnet"}) == set(), path


def test_data_imports_neither_networks_nor_training_nor_accelerate():
    for path in (ROOT / "data").glob("*.py"):
        main = path.name in ("stream.py", "shapes.py")  # whose main() is a script's, with its flags and messages
        found = imports(path, but_not_in="main" if main else "")
        assert found & {"resnet", "training", "accelerate", "wandb"} == set(), path


@pytest.mark.parametrize(
    ("package", "allowed"), [("ffcv", {"data/ffcv_loader.py"}), ("wandb", {"training/tracking.py"})]
)
def test_a_package_has_one_home(package, allowed):
    assert {path.relative_to(ROOT).as_posix() for path in SUITE if package in imports(path)} == allowed


def test_the_suite_does_not_know_its_benchmarks():
    for path in SUITE:
        assert "benchmarks" not in imports(path), path


@pytest.mark.parametrize(
    ("modules", "spared"),
    [
        ("train, evaluate, submit, training.inference, data.loaders, data.resident_loader", {"ffcv", "numba"}),
        ("train, training.engine, training.recorder, training.inference", {"torchvision", "pandas"}),
    ],
    ids=["help and inference", "the first step"],
)
def test_nobody_waits_for_imports_that_are_for_others(modules, spared):
    code = f"import sys, {modules}; from resnet import build_model; build_model('resnet18', 10);"
    code += f"sys.exit(not {spared}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_and_functions_stay_small(path):
    limits = {"train.py": 150, "evaluate.py": 120, "submit.py": 120}
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= limits.get(path.name, 400)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
