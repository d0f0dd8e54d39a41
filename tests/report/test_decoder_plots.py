"""Figures of a VAE: each label is told by its shape as well as its colour, axes have units, and bars add up."""

from types import SimpleNamespace

import numpy as np
import pytest

from ppl_vi.report import decoder_gap_plots, decoder_plots
from ppl_vi.report.gap_bars import figure_of


def portrait(**more):
    """What the figures of gaps and of the latent space see, for four data points."""
    total, approximation = np.array([0.5, 2.0, 1.0, 40.0]), np.array([0.25, 0.5, 0.125, 1.0])
    trusted = np.array([True, True, True, False])
    card = SimpleNamespace(
        total=total, approximation=approximation, amortization=total - approximation, trusted=trusted,
        log_evidence=-np.arange(20.0, 24.0),
    )  # fmt: skip
    fields = {"guide": "full", "split": "test", "card": card, "labels": None, "loc": np.arange(8.0).reshape(4, 2)}
    return SimpleNamespace(**(fields | more))


def test_bars_are_the_means_over_certified_points_and_add_up():
    bar = decoder_gap_plots._bar(portrait())
    assert bar.total == pytest.approx(3.5 / 3)
    assert bar.parts == pytest.approx({"family": 0.875 / 3, "amortization": 2.625 / 3})
    figure = figure_of([bar], "")
    widths = {patch.get_gid(): patch.get_width() for patch in figure.axes[0].patches if patch.get_gid()}
    assert sum(widths.values()) == pytest.approx(bar.total)
    assert set(widths) == {"family", "amortization"}


def test_a_split_without_a_certified_point_has_a_row_with_the_reason():
    one = portrait()
    one.card.trusted[:] = False
    bar = decoder_gap_plots._bar(one)
    assert np.isnan(bar.total)
    assert "no data point has a certified truth" in bar.reason


@pytest.mark.parametrize("labels", [np.array([3, 3, 7, 0]), np.array(["cat", "dog", "cat", "eel"]), np.arange(4) + 10])
def test_points_are_drawn_by_label(labels):
    figure = decoder_plots.latent_space(portrait(labels=labels))
    axes = figure.axes[0]
    names = [str(label) for label in np.unique(labels)]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    assert sum(len(points.get_offsets()) for points in axes.collections) == len(labels)
    shapes = [points.get_paths()[0].vertices.tobytes() for points in axes.collections]
    assert len(set(shapes)) == len(names)
    assert axes.get_xlabel() == "$z_1$ [prior sd]"
    figure.draw_without_rendering()


def test_more_guides_than_colors_are_all_in_the_legend():
    run = SimpleNamespace(train_elbo=np.array([-3.0, -2.0]), held_out_elbo=np.array([-3.5, -2.5]), best_epoch=1)
    names = [f"guide {i}" for i in range(9)]
    figure = decoder_gap_plots.training_curves(dict.fromkeys(names, run))
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        f"{name}, {data}" for name in names for data in ("train", "held out")
    }
