"""The figure of the gaps: what its bars are made of, how long they are, and that every guide has a row."""

import math

import numpy as np
import pytest

from ppl_vi.report.gap_bars import MIN_AXIS, NEGLIGIBLE, Bar, axis_end, bar_of, figure_of
from tests.report.made import failed_record, infinite_record, made_record

GAPS = {"family": 0.3, "start": 0.125, "optimization": 0.05}


def segments(figure):
    """The length and the left end of each part, by the height of its row and its name."""
    axes = figure.axes[0]
    return {
        (round(bar.get_y() + bar.get_height() / 2, 6), bar.get_gid()): (bar.get_width(), bar.get_x())
        for bar in axes.patches
        if bar.get_gid()
    }


def shown(figure):
    return "\n".join(text.get_text() for axes in figure.axes for text in axes.texts)


@pytest.mark.parametrize(
    "gaps",
    [
        GAPS,
        GAPS | {"objective": 0.25},
        GAPS | {"objective": 0.25, "optimization": -0.0625},
        {"family": 0.0, "optimization": 3e-5},
    ],
)
def test_bars_add_up_to_the_reverse_kl_on_a_linear_axis(gaps):
    record = made_record("one", gaps, replicas=(0.75, 0.0, 0.1875))
    figure = figure_of([bar_of(record)], "")
    middle = sorted(replica["reverse_kl"] for replica in record["replicas"])[1]
    found = segments(figure)
    assert sum(width for width, _ in found.values()) == pytest.approx(middle, rel=1e-12)
    lengths = {part: width for (_, part), (width, _) in found.items()}
    assert lengths["family"] == gaps["family"]
    assert lengths["optimization"] == pytest.approx(gaps["optimization"] + 0.1875, rel=1e-12)
    assert figure.axes[0].get_xscale() == "linear"
    assert figure.axes[0].get_xlim()[0] == 0


def test_of_an_even_number_of_replicas_the_bar_is_the_median_and_adds_up():
    record = made_record("one", GAPS, replicas=(0.75, 0.0, 0.25, 0.1875))
    bar = bar_of(record)
    assert bar.total == pytest.approx(np.median([replica["reverse_kl"] for replica in record["replicas"]]), rel=1e-12)
    assert bar.parts["optimization"] == pytest.approx(0.05 + (0.1875 + 0.25) / 2, rel=1e-12)
    assert sum(bar.parts.values()) == pytest.approx(bar.total, rel=1e-12)


def test_parts_stand_end_to_end_and_a_negative_one_goes_back():
    bar = Bar("one", 0.45, {"family": 0.3, "optimization": -0.05, "objective": 0.2})
    found = {part: place for (_, part), place in segments(figure_of([bar], "")).items()}
    assert found["family"] == (0.3, 0.0)
    assert found["objective"] == pytest.approx((0.2, 0.3))
    assert found["optimization"] == pytest.approx((-0.05, 0.5))


def test_what_is_not_split_is_a_part_of_its_own():
    record = made_record("one", GAPS) | {"family_gap": None}
    bar = bar_of(record)
    assert bar.parts["not split"] == pytest.approx(0.3)
    assert sum(bar.parts.values()) == pytest.approx(bar.total)
    assert "not split" in str([text.get_text() for text in figure_of([bar], "").legends[0].get_texts()])


def test_every_guide_has_a_row_with_its_numbers_or_the_reason():
    records = [
        made_record("_mine$a$", GAPS, family_gap_is_upper_bound=True, optimization_gap_is_lower_bound=True),
        infinite_record("normal"),
        failed_record("AutoDelta", "skipped", "a point mass has no density"),
        failed_record("broken", "failed", "RuntimeError: " + "no " * 60),
        made_record("a guide whose name has no end and goes on and on", {"family": 0.0, "optimization": 1e-5}),
    ]
    figure = figure_of([bar_of(record) for record in records], "")
    names = [" ".join(label.get_text().split()) for label in figure.axes[0].get_yticklabels()]
    assert names == [record["guide"] for record in records]
    words = shown(figure)
    for text in (
        "≤0.300",
        "≥0.0500",
        "0.475",
        "inf: mass where the posterior has none",
        "skipped: a point mass",
        "...",
    ):
        assert text in words
    rows = {row for row, _ in segments(figure)}
    assert len(rows) == 2  # the guides with a finite reverse KL
    figure.draw_without_rendering()  # whatever a name holds


@pytest.mark.parametrize(
    ("totals", "end"),
    [
        ([0.1, 0.6], 0.6),  # nothing is cut
        ([1e-5, 1e-5, 1e-5, 8.0], 8.0),  # what is negligible does not decide
        ([0.18, 0.22, 0.22, 0.28, 28.0], 0.28),
        ([0.02, math.inf, math.nan], 0.02),
    ],
)
def test_a_bar_is_cut_only_where_it_would_hide_the_others(totals, end):
    bars = [Bar(str(total), total, {"family": total} if math.isfinite(total) else {}) for total in totals]
    assert axis_end(bars) == pytest.approx(1.04 * end)
    cut = sum(end < total < math.inf for total in totals)
    assert shown(figure_of(bars, "")).count("//") == cut


@pytest.mark.parametrize("bars", [[], [Bar("near", 2e-5, {"family": 0.0, "optimization": 2e-5})]])
def test_negligible_distances_do_not_look_long(bars):
    axes = figure_of(bars, "").axes[0]
    assert axes.get_xlim() == (0, MIN_AXIS)
    strip = axes.patches[0]
    assert strip.get_width() == NEGLIGIBLE


def test_a_line_runs_from_the_best_replica_to_the_worst():
    bar = bar_of(made_record("one", GAPS, replicas=(0.5, 0.0, 0.25)))
    assert bar.ends == pytest.approx((0.475, 0.975))
    (line,) = figure_of([bar], "").axes[0].lines
    assert list(line.get_xdata()) == pytest.approx([0.475, 1.04 * 0.725])  # the worst lies beyond the axis
    assert not figure_of([bar_of(made_record("one", GAPS))], "").axes[0].lines  # of one replica there is no range
