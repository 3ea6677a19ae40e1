"""What the benchmarks share: their flags, rounds of measurements in turn, the table and the JSON file."""

import os
import shlex
import statistics
import sys
from argparse import BooleanOptionalAction, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
from tqdm import tqdm

from data.decode import allowed_cores
from data.errors import InputError
from data.files import write_json
from training.cli import OneLineParser, RunError, one_line_errors
from training.config import ROOT, Config
from training.hardware import commit, device_name, has_bf16, set_threads, versions
from training.parts import open_prepared

RESULTS = ROOT / "benchmarks/results"
HAS_FFCV = find_spec("ffcv") is not None
MIB = 2**20


@dataclass(frozen=True)
class Contender:
    """case: what is measured, by the table's column.

    measure: one repeat: numbers by quantity and unit; a text is what was found about the case.
    """

    case: dict[str, Any]
    measure: Callable[[], dict[str, Any]]


def by_seed(case: dict[str, Any], measure: Callable[[int], dict[str, Any]]) -> Contender:
    """Each repeat is the next seed, from 0 on."""
    seeds = count()
    return Contender(case, lambda: measure(next(seeds)))


@dataclass
class Row:
    """A contender's case, and for each quantity the values of all repeats; and what failed, if anything."""

    case: dict[str, Any]
    measured: dict[str, list[float]] = field(default_factory=dict)
    failed: str = ""


def interleave(contenders: Sequence[Contender], repeats: int, warmup: int = 1) -> list[Row]:
    """Measure the contenders in turn, `warmup` rounds that are not kept and then `repeats` that are.

    In turn: what else the machine does, and how warm it is, then meets all of them. One that fails is left out
    from then on: hours of the others' measurements do not go with it.
    """
    rows = [Row(contender.case) for contender in contenders]
    with tqdm(total=(warmup + repeats) * len(contenders), unit="measurement", disable=None) as bar:
        for number in range(warmup + repeats):
            for contender, row in zip(contenders, rows, strict=True):
                bar.update()
                if row.failed:
                    continue
                try:
                    measured = contender.measure()
                except Exception as error:
                    row.failed, row.measured = f"{type(error).__name__}: {error}", {}
                    continue
                for quantity, value in measured.items():
                    if isinstance(value, str):
                        row.case[quantity] = value
                    elif number >= warmup:
                        row.measured.setdefault(quantity, []).append(value)
    return rows


def summarize(repeats: list[float]) -> dict[str, Any]:
    """Median, smallest and largest of the repeats, and the repeats themselves."""
    return {
        "median": statistics.median(repeats),
        "min": min(repeats),
        "max": max(repeats),
        "repeats": repeats,
    }


def mean_and_deviation(values: list[float], sign: str = "") -> str:
    """Such as "94.12 ± 0.20"; of one value that alone. sign: "+" for differences."""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.2f}{deviation}"


def table(rows: Sequence[Row]) -> str:
    """Aligned plain text: the cases' columns, then each quantity as `median (min..max)`."""
    lines = [
        row.case
        | {quantity: _spread(values) for quantity, values in row.measured.items()}
        | ({"failed": row.failed[:60]} if row.failed else {})
        for row in rows
    ]
    return pd.DataFrame(lines, dtype=object).fillna("").to_string(index=False)


def _spread(repeats: list[float]) -> str:
    found = summarize(repeats)
    return f"{_number(found['median'])} ({_number(found['min'])}..{_number(found['max'])})"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def report(name: str, arguments: Namespace, rows: Sequence[Row]) -> dict[str, Any]:
    """The content of the JSON file: the rows, and all that they depend on."""
    cpu = torch.device("cpu")
    return {
        "benchmark": name,
        "command": shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]]),
        **arguments.began,
        "dataset": arguments.dataset,
        "quick": arguments.quick,
        "repeats": arguments.repeats,
        "versions": versions() | {"pillow": version("pillow")},
        "cpu": device_name(cpu),
        "cpu_has_bf16": has_bf16(use_cpu=True),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": device_name(torch.device("cuda")) if arguments.device == "cuda" else None,
        "cores": allowed_cores(),
        "threads": torch.get_num_threads(),
        "load_before": arguments.load_before,
        "rows": [
            {"case": row.case, "measured": {key: summarize(values) for key, values in row.measured.items()}}
            | ({"failed": row.failed} if row.failed else {})
            for row in rows
        ],
    }


def make_parser(name: str, description: str | None) -> OneLineParser:
    """The flags that all benchmarks have."""
    parser = OneLineParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--repeats", type=int, help="measurements of each case; default: 5")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    parser.add_argument("--full", action=BooleanOptionalAction, help="all cases; default: on a GPU")
    parser.add_argument("--quick", action="store_true", help="a rehearsal: tiny sizes, built-in shapes, no spread")
    parser.add_argument(
        "--dataset", choices=("cifar10", "cifar100", "shapes"), help="default: cifar10, with --quick shapes"
    )
    parser.add_argument("--data-dir", default="", help="folder of its images; default: datasets/<dataset>")
    parser.add_argument("--cache-dir", default="cache", help="folder of the decoded images; default: cache")
    parser.add_argument(
        "--out", type=Path, help=f"default: <benchmark>-<device>.json in {RESULTS.relative_to(ROOT)}"
    )
    return parser


def complete(arguments: Namespace, name: str) -> None:
    """Fill in what depends on the machine and on other flags.

    Raises:
        InputError: a flag that does not go with the machine.
    """
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for this process and all that it starts
    elif arguments.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no GPU; use --device cpu")
    arguments.device = arguments.device or default_device().type
    if arguments.full is None:
        arguments.full = arguments.device == "cuda" and not arguments.quick
    if arguments.repeats is None:
        arguments.repeats = 1 if arguments.quick else 5
    if arguments.repeats < 1:
        raise InputError(f"--repeats {arguments.repeats}: expected at least 1")
    arguments.dataset = arguments.dataset or ("shapes" if arguments.quick else "cifar10")
    folder = RESULTS / "quick" if arguments.quick else RESULTS
    other = "-cifar100" if arguments.dataset == "cifar100" else ""
    arguments.out = arguments.out or folder / f"{name}{other}-{arguments.device}.json"
    # Of the beginning: the code that is measured is the one that was loaded then.
    arguments.began = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), **commit()}
    arguments.load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    set_threads(use_cpu=arguments.device == "cpu")


def run(name: str, parser: OneLineParser, benchmark: Callable[[Namespace], list[Row]]) -> None:
    """Parse the flags, measure, print the table and write the JSON file.

    The images are prepared beforehand: no benchmark finds only then that there are none.
    """
    with one_line_errors():
        arguments = parser.parse_args()
        complete(arguments, name)
        open_prepared(base_config(arguments))
        rows = benchmark(arguments)
        print(table(rows))
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.out, report(name, arguments, rows))
        print(f"{arguments.out}: written")
        if failed := sum(bool(row.failed) for row in rows):
            raise RunError(f"{failed} of {len(rows)} cases failed; see {arguments.out}")


def base_config(arguments: Namespace, **changes: Any) -> Config:
    """The suite's defaults for the benchmark's data; nothing held out."""
    settings: dict[str, Any] = {
        "dataset": arguments.dataset,
        "data_dir": arguments.data_dir,
        "cache_dir": arguments.cache_dir,
        "split": "none",
        "tracker": "none",
        "loader": "resident",
    }
    return Config(**settings | changes)


def default_device() -> torch.device:
    """The GPU, or the CPU where there is none or --device cpu hides it."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize(device: torch.device) -> None:
    """Wait for what was queued on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def endless(epoch: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """The steps of one epoch after the other."""
    while True:
        yield from epoch()
