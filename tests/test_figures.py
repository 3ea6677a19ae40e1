"""Pictures: what is drawn, from which numbers."""

import pytest
import torch
from matplotlib.figure import Figure

from training import figures
from training.config import Config


@pytest.fixture
def drawn(monkeypatch):
    kept: list[Figure] = []
    monkeypatch.setattr(figures, "save", lambda figure, path: kept.append(figure))
    return kept


def test_curves_show_the_epochs_of_training_and_validation(drawn, tmp_path):
    rows = [{"kind": "step", "epoch": 1, "step": 5, "train_loss": 9.0, "train_accuracy": 0.0, "lr": 0.1}]
    for epoch in (1, 2, 3):
        row = {"kind": "epoch", "epoch": epoch, "lr": 0.1 / epoch, "train_loss": 1 / epoch, "train_accuracy": 0.2}
        rows.append(row | {"val_loss": 2 / epoch, "val_accuracy": 0.1 * epoch})
    figures.draw_curves(rows, Config(), tmp_path)
    loss, accuracy, lr = drawn[0].axes
    assert [line.get_ydata().tolist() for line in loss.lines] == [[1, 1 / 2, 1 / 3], [2, 1, 2 / 3]]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training", "validation"]
    assert accuracy.lines[1].get_xdata().tolist() == [1, 2, 3]
    assert lr.lines[0].get_ydata().tolist() == pytest.approx([0.1, 0.05, 0.1 / 3])


def test_curves_without_validation(drawn, tmp_path):
    row = {"kind": "epoch", "epoch": 1, "lr": 0.1, "train_loss": 1.0, "train_accuracy": 0.2}
    figures.draw_curves([row], Config(), tmp_path)
    assert len(drawn[0].axes[0].lines) == 1


def test_a_loss_that_was_not_finite_is_a_gap(drawn, tmp_path):
    row = {"kind": "epoch", "lr": 0.1, "train_loss": 1.0, "train_accuracy": 0.2, "val_accuracy": 0.1}
    rows = [row | {"epoch": 1, "val_loss": None}, row | {"epoch": 2, "val_loss": 2.0}]
    figures.draw_curves(rows, Config(), tmp_path)
    figures.draw_comparison([figures.Curve("a", [rows])], "runs", tmp_path / "comparison.png")
    assert drawn[0].axes[0].lines[1].get_xdata().tolist() == [2]
    assert drawn[1].axes[1].lines[0].get_ydata().tolist() == pytest.approx([float("nan"), 2], nan_ok=True)


def test_confusion_shows_shares_of_the_true_class(drawn, tmp_path):
    figures.draw_confusion(torch.tensor([[3, 1], [0, 0]]), ["cat", "dog"], "test", tmp_path / "confusion.png")
    axes = drawn[0].axes[0]
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0, 0]]
    assert [text.get_text() for text in axes.texts] == ["75", "25"]
    colours = axes.images[0].norm([0.0, 0.01, 1.0])
    assert colours.tolist() == pytest.approx([0, 0.1, 1])


def test_a_picture_is_a_png(tmp_path):
    figures.draw_confusion(torch.eye(100).long(), [f"class {i}" for i in range(100)], "test", tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["c.png"]


def test_confusion_of_many_classes_has_neither_names_nor_numbers_nor_a_side_for_each(drawn, tmp_path):
    for count in (figures.NAMED, figures.NAMED + 200):
        figures.draw_confusion(torch.eye(count).long(), [f"{i}" for i in range(count)], "many", tmp_path / "c.png")
    assert [len(figure.axes[0].texts) for figure in drawn] == [figures.NAMED, 0]
    assert [len(figure.axes[0].get_xticks()) for figure in drawn] == [figures.NAMED, 0]
    assert max(drawn[1].get_size_inches()) < max(drawn[0].get_size_inches())


def test_what_would_be_no_formula_may_be_a_name(tmp_path):
    figures.draw_confusion(torch.eye(2).long(), ["$_$", "b"], "runs/$_$: test", tmp_path / "c.png")
    folder = tmp_path / "a$b_$c"
    folder.mkdir()
    assert figures.draw_curves([], Config(), folder).exists()
    figures.draw_comparison([figures.Curve("a", [[]])], "a$b_$c", tmp_path / "d.png")
    assert {path.name for path in tmp_path.glob("*.png")} == {"c.png", "d.png"}


def test_neither_a_name_in_another_script_nor_a_run_without_epochs_is_warned_of(tmp_path, recwarn):
    figures.draw_confusion(torch.eye(2).long(), ["\u732b", "\u72ac"], "test", tmp_path / "c.png")
    figures.draw_curves([], Config(), tmp_path)
    assert [str(warning.message) for warning in recwarn] == []


def test_confusion_puts_the_classes_of_a_group_together(drawn, tmp_path):
    confusion = torch.diag(torch.tensor([1, 2, 3])) + torch.tensor([[0, 0, 1], [0, 0, 0], [0, 0, 0]])
    figures.draw_confusion(
        confusion, ["ant", "cup", "bee"], "test", tmp_path / "c.png", ["insect", "ware", "insect"]
    )
    axes = drawn[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ant", "bee", "cup"]
    assert axes.images[0].get_array().tolist() == [[0.5, 0.5, 0], [0, 1, 0], [0, 0, 1]]
    assert {"insect", "ware"} <= {text.get_text() for text in axes.texts}


def test_a_comparison_shows_the_mean_and_the_range_of_several_runs(drawn, tmp_path):
    def run(*accuracies):
        return [{"kind": "epoch", "val_accuracy": accuracy, "val_loss": 1 - accuracy} for accuracy in accuracies]

    curves = [
        figures.Curve("one", [run(0.1, 0.2), run(0.3, 0.4, 0.5)]),
        figures.Curve("other", [run(0.5, 0.6)], colour=1, dash=1),
    ]
    figures.draw_comparison(curves, "two", tmp_path / "c.png")
    accuracy, loss = drawn[0].axes
    assert [line.get_ydata().tolist() for line in accuracy.lines] == [pytest.approx([0.2, 0.3]), [0.5, 0.6]]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["one", "other"]
    (band,) = accuracy.collections
    assert band.get_paths()[0].get_extents().bounds == pytest.approx((1, 0.1, 1, 0.3))
    assert loss.lines[1].get_ydata().tolist() == pytest.approx([0.5, 0.4])
    assert len({line.get_color() for line in accuracy.lines}) == 2
    assert [line.get_linestyle() for line in accuracy.lines] == ["-", "--"]
    assert len({line.get_marker() for line in accuracy.lines}) == 2
    assert [axes.get_title() for axes in (accuracy, loss)] == ["validation accuracy", "validation loss"]


def test_a_comparison_of_runs_without_validation_is_of_their_training(drawn, tmp_path):
    rows = [{"kind": "epoch", "train_accuracy": 0.1 * epoch, "train_loss": 1 / epoch} for epoch in (1, 2)]
    figures.draw_comparison([figures.Curve("a", [rows])], "runs", tmp_path / "c.png")
    accuracy, loss = drawn[0].axes
    assert [axes.get_title() for axes in (accuracy, loss)] == ["training accuracy", "training loss"]
    assert accuracy.lines[0].get_ydata().tolist() == [0.1, 0.2]
    assert loss.lines[0].get_ydata().tolist() == [1, 0.5]


@pytest.mark.parametrize(("highest", "scale"), [(2.0, "linear"), (200.0, "log")])
def test_losses_that_span_more_than_a_decade_are_on_a_logarithmic_scale(drawn, tmp_path, highest, scale):
    rows = [{"kind": "epoch", "val_accuracy": 0.1, "val_loss": loss} for loss in (highest, 1.0)]
    figures.draw_comparison([figures.Curve("a", [rows])], "runs", tmp_path / "c.png")
    assert drawn[0].axes[1].get_yscale() == scale


@pytest.mark.parametrize(
    ("schedule", "scale", "style"),
    [
        ("multistep", "log", "steps-mid"),
        ("inverse-time", "log", "default"),
        ("triangle", "linear", "default"),
        ("cosine", "linear", "default"),
    ],
)
def test_learning_rates_that_fall_by_factors_are_on_a_logarithmic_scale(drawn, tmp_path, schedule, scale, style):
    """And those that stay between milestones are drawn as levels."""
    row = {"kind": "epoch", "train_loss": 1.0, "train_accuracy": 0.2}
    rows = [row | {"epoch": epoch, "lr": lr} for epoch, lr in enumerate((0.1, 0.01, 0.001))]
    figures.draw_curves(rows, Config(schedule=schedule), tmp_path)
    panel = drawn[0].axes[2]
    assert (panel.get_yscale(), panel.lines[0].get_drawstyle()) == (scale, style)
