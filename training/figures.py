"""Pictures of a run."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from data.files import write_atomically


def save(figure: Figure, path: Path) -> None:
    content = BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_atomically(path, content.getvalue())


def draw_curves(rows: Sequence[dict[str, Any]], title: str, held_out: str, path: Path) -> None:
    """Loss, accuracy and learning rate by epoch, from the rows of metrics.jsonl.

    held_out: what the images that were not trained on are called.
    """
    rows = [row for row in rows if row["kind"] == "epoch"]
    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, quantity in zip(panels, ("loss", "accuracy", "lr"), strict=True):
        lines = {"train": f"train_{quantity}", held_out: f"val_{quantity}"} if quantity != "lr" else {"": "lr"}
        for label, key in lines.items():
            values = [row.get(key) for row in rows]
            if any(value is not None for value in values):
                axes.plot(epochs, values, marker="o" if len(epochs) < 20 else None, markersize=3, label=label)
        axes.set(xlabel="epoch", title={"lr": "learning rate"}.get(quantity, quantity))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if quantity != "lr":
            axes.legend()
    figure.suptitle(title)
    save(figure, path)


def draw_confusion(confusion: Tensor, classes: Sequence[str], title: str, path: Path) -> None:
    """Share of each true class (rows) by predicted class (columns); numbers where they can be read."""
    shares = (confusion.double() / confusion.sum(1, keepdim=True).clamp(min=1)).numpy()
    count = len(classes)
    side = 3 + 0.45 * count if count <= 20 else 3 + 0.16 * count
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    font = 9 if count <= 20 else 5
    axes.set_xticks(range(count), classes, rotation=90, fontsize=font)
    axes.set_yticks(range(count), classes, fontsize=font)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    if count <= 20:
        for row in range(count):
            for column in range(count):
                colour = "white" if shares[row, column] > 0.5 else "black"
                text = f"{100 * shares[row, column]:.0f}"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    save(figure, path)
