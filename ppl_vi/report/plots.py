"""Figures of a comparison over one latent number: densities, reverse KL and ELBO against steps, and the two gaps.

Each function makes a `Figure` of its own, without pyplot, so that no global state of matplotlib is touched. The
families stand in the order of their reverse KL, the nearest first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppl_vi.comparison.comparison import Comparison, Entry
from ppl_vi.report.columns import has_objective_gap, has_start_gap, leaves_at_least
from ppl_vi.report.numbers import nats, number, three_digits
from ppl_vi.report.table import sort_key
from ppl_vi.truth import Truth

# Colours that colour-blind readers can tell apart. Source: Okabe and Ito (2008), Color universal design.
BLUE, ORANGE, VERMILION = "#0072B2", "#E69F00", "#D55E00"
GREY, LIGHT, DARK = "#8c8c8c", "#d4d4d4", "#333333"

DPI = 130
MAX_COLUMNS = 4  # of panels side by side; more would be too small to read on a page
PANEL_SIZE = (2.9, 1.95)  # inches
MARGIN, MARGIN_TOP = 0.8, 0.95  # inches, around all panels: left and below, and above
# Gaps in nats are drawn on logarithmic axes, on which 0 has no place: any smaller gap is drawn as this one.
MIN_DRAWN_GAP = 1e-9
# How far below log p(x), in nats, the panels of ELBOs reach at least; a smaller span would show only noise.
MIN_ELBO_SPAN = 1.0
# If the ELBO of the median guide ends farther below log p(x) than that, the panels reach this many times as far as it
# does.
ELBO_ROOM = 1.25
# Density panels end at this many times the posterior's peak, so that a far narrower guide does not flatten the rest.
DENSITY_ROOM = 1.8

Panel = Callable[[Axes, Entry, dict[str, Any]], None]


def plain(axes: Axes, *, label_size: float | None = None) -> None:
    """Removes the frame's upper and right lines, and sets the size of the ticks' labels if one is given."""
    axes.spines[["top", "right"]].set_visible(False)
    if label_size is not None:
        axes.tick_params(labelsize=label_size)


def densities(comparison: Comparison, problem: int) -> Figure:
    """The exact posterior, grey, and the fitted density of each family's replica of median reverse KL."""
    entries = _sorted(comparison, problem, lambda entry: entry.curves is not None)
    z = comparison.z
    (posterior,) = comparison.posterior(problem)

    def panel(axes: Axes, entry: Entry, record: dict[str, Any]) -> None:
        assert entry.curves is not None
        axes.fill_between(z[problem], posterior, color=LIGHT, linewidth=0)
        leaks = record["support_mismatch"]
        axes.plot(z[problem], entry.curves.density[problem], color=VERMILION if leaks else BLUE, linewidth=1.5)
        axes.set_title(f"{entry.guide}\nKL {three_digits(record['reverse_kl'], record['reverse_kl_error'])}")

    def scales(axes: Axes) -> None:
        axes.set_xlim(z[problem, 0], z[problem, -1])
        axes.set_ylim(0, DENSITY_ROOM * posterior.max())

    heading = f"{comparison.label(problem)}: the posterior (grey) and the fitted guides, by reverse KL in nats"
    return _multiples(entries, panel, scales, heading, ("z", "density"), problem)


def divergences_by_step(comparison: Comparison, problem: int) -> Figure:
    """Reverse KL against SVI steps, and the family gap, below which it can't get."""
    entries = _sorted(comparison, problem, _has_trajectory)
    lines = [_trajectory(entry, problem) for entry in entries]
    values = np.concatenate([_positive(values).ravel() for _, values in lines]) if lines else np.array([1.0])
    floor = max(MIN_DRAWN_GAP, values[values > 0].min(initial=1.0) / 2)

    def panel(axes: Axes, entry: Entry, record: dict[str, Any]) -> None:
        _band(axes, *_trajectory(entry, problem), floor)
        gap = number(record["family_gap"])
        if gap > floor:
            axes.axhline(gap, color=ORANGE, linewidth=1.2, linestyle="--")
        axes.set_title(f"{entry.guide}\n{three_digits(record['reverse_kl'], record['reverse_kl_error'])} nats")

    def scales(axes: Axes) -> None:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.set_ylim(floor, 2 * values.max())

    heading = (
        f"{comparison.label(problem)}: reverse KL, median (line) and range (band) of replicas; "
        "dashed: the best the family can do"
    )
    return _multiples(entries, panel, scales, heading, ("SVI steps", "reverse KL [nats]"), problem)


def elbos_by_step(comparison: Comparison, problem: int) -> Figure:
    """ELBO against SVI steps below its upper limit, log p(x).

    At least half of the guides end within the panels; each panel whose guide doesn't says how far below it ends.
    """
    entries = _sorted(comparison, problem, _has_trajectory)
    ceiling = float(comparison.truth.log_evidence[problem])
    ends = [float(np.median(_trajectory(entry, problem)[1][:, -1])) for entry in entries]
    middle = sorted(ends)[(len(ends) - 1) // 2] if ends else 0.0
    span = max(MIN_ELBO_SPAN, ELBO_ROOM * middle) if math.isfinite(middle) else MIN_ELBO_SPAN

    def panel(axes: Axes, entry: Entry, record: dict[str, Any]) -> None:
        steps, reverse_kl = _trajectory(entry, problem)
        _band(axes, steps, ceiling - reverse_kl)
        axes.axhline(ceiling, color=ORANGE, linewidth=1.2, linestyle="--")
        below = float(np.median(reverse_kl[:, -1]))
        if not below < span:
            text = f"off the scale: it ends\n{three_digits(below)} nats below log p(x)"
            axes.text(0.5, 0.08, text, transform=axes.transAxes, ha="center", va="bottom", fontsize=8)
        axes.set_title(f"{entry.guide}\n{nats(record['elbo'])} nats")

    def scales(axes: Axes) -> None:
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_ylim(ceiling - span, ceiling + 0.1 * span)

    heading = (
        f"{comparison.label(problem)}: ELBO, median (line) and range (band) of replicas; "
        f"dashed: log p(x) = {ceiling:.4f}"
    )
    return _multiples(entries, panel, scales, heading, ("SVI steps", "ELBO [nats]"), problem)


# The panels of `gaps`: the title, the gap, its colour, the sign of a bound, and for which records it is drawn.
GAP_PANELS = (
    ("family gap: the family can't do better", "family_gap", BLUE, "≤", lambda records: True),
    ("start gap: another start would do", "start_gap", VERMILION, "", has_start_gap),
    ("optimization gap: the optimiser fell short", "optimization_gap", ORANGE, "≥", lambda records: True),
    ("objective gap: another objective would do", "objective_gap", GREY, "", has_objective_gap),
)


def gaps(comparison: Comparison, problem: int) -> Figure:
    """Reverse KL split into its causes, on logarithmic axes side by side; a cause that no record has is left out."""
    entries = _sorted(comparison, problem, lambda entry: entry.records[problem]["reverse_kl"] is not None)
    records = [entry.records[problem] for entry in entries]
    panels = [(text, name, color, sign) for text, name, color, sign, is_needed in GAP_PANELS if is_needed(records)]
    size = (5.25 * len(panels), 1.5 + 0.27 * max(len(records), 4))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    shown = [_drawn_at(record[name]) for record in records for _, name, _, _ in panels]
    high = max([value for value in shown if math.isfinite(value)], default=1.0)
    for axes, (text, name, color, sign) in zip(
        np.atleast_1d(figure.subplots(1, len(panels), sharey=True)), panels, strict=True
    ):
        _bars(axes, records, name, color, sign, high)
        axes.set_title(text, fontsize=10)
        axes.set_xlabel("nats")
    figure.suptitle(f"{comparison.label(problem)}: why each guide is away from the posterior", fontsize=12)
    return figure


def _bars(axes: Axes, records: Sequence[dict[str, Any]], name: str, color: str, sign: str, high: float) -> None:
    """Draws one bar for each record, from the top, with its value at the end."""
    edge = MIN_DRAWN_GAP / 2
    for row, record in enumerate(records):
        value = number(record[name])
        label = three_digits(record[name], record.get(f"{name}_error"))
        if sign and (leaves_at_least(record) if sign == "≥" else record["family_gap_is_upper_bound"]):
            label = sign + label
        if math.isinf(value):
            axes.barh(row, 2 * high - edge, left=edge, color="white", edgecolor=color, hatch="////", height=0.7)
            axes.text(2.5 * high, row, "inf: leaks mass", va="center", fontsize=8, color=DARK)
        elif math.isnan(value):
            axes.text(MIN_DRAWN_GAP, row, "not defined", va="center", fontsize=8, color=GREY)
        else:
            at = _drawn_at(value)
            axes.barh(row, at - edge, left=edge, color=color, height=0.7)
            axes.text(1.3 * at, row, label, va="center", fontsize=8, color=DARK)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xlim(edge, high * 3e3)
    axes.set_yticks(range(len(records)), [record["guide"] for record in records], fontsize=8)
    axes.set_ylim(len(records) - 0.4, -0.6)
    plain(axes, label_size=8)


def _drawn_at(value: Any) -> float:
    return max(number(value), MIN_DRAWN_GAP)


def posterior_over_x(x: np.ndarray, truth: Truth, marked: Sequence[float]) -> Figure:
    """The posterior's mean and 90% interval and log p(x), over many observations.

    Args:
        x: observations, ascending, `(B,)`.
        truth: the truth of the problems that they pose.
        marked: the observations of the comparison, which get a dotted line.
    """
    ends = truth.quantile(np.tile([0.05, 0.95], (len(x), 1)))
    figure = Figure(figsize=(7.5, 6.5), dpi=DPI, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.fill_between(x, ends[:, 0], ends[:, 1], color=BLUE, alpha=0.25, linewidth=0, label="central 90% interval")
    upper.plot(x, truth.mean, color=BLUE, label="mean")
    upper.set_ylabel("z given x")
    upper.legend(loc="upper left", frameon=False)
    lower.plot(x, truth.log_evidence, color=BLUE)
    lower.set_ylabel("log p(x) [nats]")
    lower.set_xlabel("x")
    for axes in (upper, lower):
        for value in marked:
            axes.axvline(value, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_xlim(x[0], x[-1])
        plain(axes)
    figure.suptitle("The exact posterior and evidence (dotted: the observations compared)", fontsize=12)
    return figure


FIGURES: dict[str, Callable[[Comparison, int], Figure]] = {
    "densities": densities,
    "reverse_kl": divergences_by_step,
    "elbo": elbos_by_step,
    "gaps": gaps,
}


def _sorted(comparison: Comparison, problem: int, wanted: Callable[[Entry], bool]) -> list[Entry]:
    return sorted(filter(wanted, comparison.entries), key=lambda entry: sort_key(entry.records[problem]))


def _has_trajectory(entry: Entry) -> bool:
    return entry.curves is not None and len(entry.curves.steps) > 0


def _trajectory(entry: Entry, problem: int) -> tuple[np.ndarray, np.ndarray]:
    """SVI steps and the reverse KL after each, `(T,)` and `(F, T)`, without step 0, which a logarithmic axis lacks."""
    assert entry.curves is not None
    return entry.curves.steps[1:], entry.curves.reverse_kl[problem, :, 1:]


def _positive(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values) & (values > 0)]


def _band(axes: Axes, steps: np.ndarray, values: np.ndarray, floor: float = -np.inf) -> None:
    values = np.where(np.isnan(values), np.nan, np.maximum(values, floor))
    axes.fill_between(steps, values.min(0), values.max(0), color=BLUE, alpha=0.25, linewidth=0)
    axes.plot(steps, np.median(values, 0), color=BLUE, linewidth=1.5)


def _multiples(
    entries: list[Entry],
    panel: Panel,
    scales: Callable[[Axes], None],
    heading: str,
    names: tuple[str, str],
    problem: int,
) -> Figure:
    """A figure with one small panel for each entry, all with the same axes.

    Args:
        entries: the families, in order.
        panel: draws one entry.
        scales: sets the scales of the axes; called once, since the panels share them.
        heading: the line above all panels.
        names: the labels of the x and of the y axis.
        problem: which of the comparison's problems is shown.
    """
    columns = min(MAX_COLUMNS, max(len(entries), 1))
    rows = max(1, math.ceil(len(entries) / columns))
    width, height = max(7.5, PANEL_SIZE[0] * columns), MARGIN_TOP + MARGIN + PANEL_SIZE[1] * rows
    figure = Figure(figsize=(width, height), dpi=DPI)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    # Margins in inches are set by hand, because matplotlib's layout engines take seconds for this many panels.
    figure.subplots_adjust(
        left=MARGIN / width,
        right=1 - 0.15 / width,
        bottom=MARGIN / height,
        top=1 - MARGIN_TOP / height,
        wspace=0.12,
        hspace=0.5,
    )
    scales(grid[0, 0])
    for axes, entry in zip(grid.flat, entries, strict=False):
        panel(axes, entry, entry.records[problem])
        axes.set_title(axes.get_title(), fontsize=9, y=1.0)  # at a fixed height: finding it takes a third of the time
        plain(axes, label_size=8)
    for axes in grid.flat[len(entries) :]:
        axes.set_axis_off()
    for axes in grid.flat[max(0, len(entries) - columns) : len(entries)]:
        axes.tick_params(labelbottom=True)
    figure.suptitle(heading, fontsize=12 if columns > 2 else 9, y=1 - 0.12 / height, va="top")
    figure.supxlabel(names[0], fontsize=10, y=0.08 / height, va="bottom")
    figure.supylabel(names[1], fontsize=10, x=0.08 / width)
    return figure
