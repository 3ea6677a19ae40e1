"""Figures of runs, drawn with matplotlib. Colours are told apart by the colour-blind (Okabe and Ito, 2008)."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from data.files import write_atomically
from training.config import Config

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

NAMED = 150
"""Classes that a confusion matrix names."""


@dataclass(frozen=True)
class Curve:
    """One experiment in a comparison.

    runs: of each of its runs the rows of its epochs in metrics.jsonl.
    colour, dash: numbers of COLOURS and DASHES; what belongs together shares its colour.
    """

    label: str
    runs: Sequence[Sequence[dict[str, Any]]]
    colour: int = 0
    dash: int = 0


def save(figure: Figure, path: Path) -> None:
    content = BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # of a script that the font lacks: boxes
        figure.savefig(content, format="png", dpi=120)
    write_atomically(path, content.getvalue())


def draw_curves(rows: Sequence[dict[str, Any]], config: Config, folder: Path) -> Path:
    """Write a run's curves.png: loss and accuracy by epoch, and the learning rate below; returns its path.

    rows: of metrics.jsonl.
    """
    rows = [row for row in rows if row["kind"] == "epoch"]
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    panels = figure.subplot_mosaic([["loss", "accuracy"], ["lr", "lr"]], height_ratios=[3, 1])
    for axes in panels.values():
        _prepare(axes)
    for quantity in ("loss", "accuracy"):
        for label, key in (("training", f"train_{quantity}"), (config.evaluated_on, f"val_{quantity}")):
            _plot(panels[quantity], rows, key, label)
        panels[quantity].set(title=quantity)
        if rows:
            panels[quantity].legend()
    drawstyle = "steps-mid" if config.schedule == "multistep" else "default"  # the rate stays between milestones
    _plot(panels["lr"], rows, "lr", "", drawstyle)
    by_factors = config.schedule in ("multistep", "inverse-time")
    panels["lr"].set(title="learning rate", yscale="log" if by_factors else "linear")
    figure.suptitle(folder.resolve().name, parse_math=False)
    save(figure, folder / "curves.png")
    return folder / "curves.png"


def _plot(axes: Axes, rows: Sequence[dict[str, Any]], key: str, label: str, drawstyle: str = "default") -> None:
    points = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
    if points:
        marker = "o" if len(points) < 20 else None
        axes.plot(*zip(*points, strict=True), marker=marker, markersize=3, label=label, drawstyle=drawstyle)


def _prepare(axes: Axes) -> None:
    """For curves by epoch."""
    axes.set_prop_cycle(cycler(color=COLOURS[:2], linestyle=DASHES[:2]))
    axes.grid(alpha=0.3)
    axes.set(xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def draw_comparison(curves: Sequence[Curve], title: str, path: Path) -> None:
    """Validation accuracy and loss of several experiments, by epoch; with several runs of each, mean and range.

    Of runs that hold no images out it is training accuracy and loss.
    """
    figure = Figure(figsize=(12, 4.6 + 0.2 * len(curves)), layout="constrained")
    panels = figure.subplots(1, 2)
    epochs = [row for curve in curves for rows in curve.runs for row in rows]
    kind, of = ("val", "validation") if all("val_loss" in row for row in epochs) else ("train", "training")
    for axes, quantity in zip(panels, ("accuracy", "loss"), strict=True):
        _prepare(axes)
        for number, curve in enumerate(curves):
            _plot_mean_and_range(axes, curve, f"{kind}_{quantity}", number)
        axes.set(title=f"{of} {quantity}")
    lowest, highest = panels[1].dataLim.intervaly
    if highest > 10 * lowest > 0:  # a loss may begin in the thousands
        panels[1].set(yscale="log")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    figure.suptitle(title, wrap=True, parse_math=False)
    save(figure, path)


def _plot_mean_and_range(axes: Axes, curve: Curve, key: str, number: int) -> None:
    """number: of the curve in its picture; markers of its own show one that others hide."""
    values = [[row[key] for row in rows] for rows in curve.runs]
    shortest = min(map(len, values))
    table = np.array([run[:shortest] for run in values], dtype=float)  # a loss of None is a gap
    epochs, apart, colour = range(1, shortest + 1), max(1, shortest // 10), COLOURS[curve.colour % len(COLOURS)]
    axes.plot(
        epochs,
        table.mean(0),
        color=colour,
        linestyle=DASHES[curve.dash],
        marker=MARKERS[number % len(MARKERS)],
        markevery=(number % apart, apart),
        markersize=5,
        label=curve.label,
    )
    if len(curve.runs) > 1:
        axes.fill_between(epochs, table.min(0), table.max(0), color=colour, alpha=0.15)


def draw_confusion(
    confusion: Tensor, classes: Sequence[str], title: str, path: Path, groups: Sequence[str] = ()
) -> None:
    """Share of each true class (rows) by predicted class (columns), with numbers from 1 % on.

    Beyond NAMED classes there are neither names nor numbers: nobody could read them.

    Colours follow the share's square root: a class that 1 % of another's images are taken for can be seen.

    groups: of each class the group that it belongs to (CIFAR-100's coarse classes): its classes then stand
        together, and lines part them from the others.
    """
    count = len(classes)
    order = sorted(range(count), key=lambda index: (groups[index], classes[index])) if groups else range(count)
    names = [classes[index] for index in order]
    shares = (confusion.double() / confusion.sum(1, keepdim=True).clamp(min=1)).numpy()[np.ix_(order, order)]
    few, named = count <= 20, count <= NAMED
    side, font = (3 + 0.45 * count, 9) if few else (4 + 0.2 * count, 8) if named else (14, 8)
    figure = Figure(figsize=(side + (3 if groups else 1), side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    # parse_math: a name with two dollar signs is no formula.
    labels = names if named else []
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=font, parse_math=False)
    axes.set_yticks(range(len(labels)), labels, fontsize=font, parse_math=False)
    axes.set_title(title, fontsize=20 if named and not few else 12, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    for row, column in np.argwhere(shares >= 0.01) if named else ():
        colour = "white" if shares[row, column] > 0.3 else "black"
        text = f"{100 * shares[row, column]:.0f}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8 if few else 6.5)
    if groups:
        _part_groups(axes, [groups[index] for index in order])
    figure.colorbar(
        image, ax=axes, label="share of the true class", shrink=0.8 if few else 0.4, aspect=30, pad=0.01
    )
    save(figure, path)


def _part_groups(axes: Axes, groups: Sequence[str]) -> None:
    """Lines between groups of rows and columns, and their names at the right."""
    starts = [index for index in range(len(groups)) if index == 0 or groups[index] != groups[index - 1]]
    for start, end in zip(starts, [*starts[1:], len(groups)], strict=True):
        axes.axhline(start - 0.5, color="grey", linewidth=0.6)
        axes.axvline(start - 0.5, color="grey", linewidth=0.6)
        name = groups[start].replace("_", " ")
        axes.text(len(groups) + 0.2, (start + end - 1) / 2, name, va="center", fontsize=8)
