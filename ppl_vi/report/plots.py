"""Figures of a comparison. Each is a `Figure` of its own: no state of matplotlib's is touched."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppl_vi.comparison.comparison import Comparison, Entry
from ppl_vi.report.numbers import nats, number, three_digits
from ppl_vi.report.table import sort_key
from ppl_vi.truth import Truth

# Okabe and Ito (2008), Color universal design: told apart by colour-blind readers, too
BLUE, ORANGE, VERMILION = "#0072B2", "#E69F00", "#D55E00"
GREY, LIGHT, DARK = "#8c8c8c", "#d4d4d4", "#333333"

COLUMNS = 4  # of small multiples
PANEL = (2.9, 1.95)  # inches
MARGIN, MARGIN_TOP = 0.8, 0.95  # inches, of small multiples: left and below, above
DPI = 130
SMALLEST = 1e-9  # nats: smaller gaps are drawn as this
ELBO_SPAN = 1.0  # nats below log p(x) that the ELBO's panels show at least
ROOM = 1.25  # of what the middle one of the guides ends below log p(x)
TOO_HIGH = 1.8  # of the posterior's peak: where the density panels end

Panel = Callable[[Axes, Entry, dict[str, Any]], None]


def plain(axes: Axes, *, label_size: float | None = None) -> None:
    """Takes away the lines above and to the right, and gives the ticks' labels a size if one is given."""
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
        axes.set_ylim(0, TOO_HIGH * posterior.max())

    heading = f"{comparison.label(problem)}: the posterior (grey) and the fitted guides, by reverse KL in nats"
    return _multiples(entries, panel, scales, heading, ("z", "density"), problem)


def divergences_by_step(comparison: Comparison, problem: int) -> Figure:
    """Exact reverse KL against SVI steps, and the family gap below which it can't get."""
    entries = _sorted(comparison, problem, _has_way)
    lines = [_way(entry, problem) for entry in entries]
    values = np.concatenate([_above(way).ravel() for _, way in lines]) if lines else np.array([1.0])
    floor = max(SMALLEST, values[values > 0].min(initial=1.0) / 2)

    def panel(axes: Axes, entry: Entry, record: dict[str, Any]) -> None:
        _band(axes, *_way(entry, problem), floor)
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
    """Exact ELBO against SVI steps under its ceiling, log p(x); half of the guides end on the scale, and each that
    doesn't says how far below."""
    entries = _sorted(comparison, problem, _has_way)
    ceiling = float(comparison.truth.log_evidence[problem])
    ends = [float(np.median(_way(entry, problem)[1][:, -1])) for entry in entries]
    middle = sorted(ends)[(len(ends) - 1) // 2] if ends else 0.0
    span = max(ELBO_SPAN, ROOM * middle) if math.isfinite(middle) else ELBO_SPAN

    def panel(axes: Axes, entry: Entry, record: dict[str, Any]) -> None:
        steps, way = _way(entry, problem)
        _band(axes, steps, ceiling - way)
        axes.axhline(ceiling, color=ORANGE, linewidth=1.2, linestyle="--")
        below = float(np.median(way[:, -1]))
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


def gaps(comparison: Comparison, problem: int) -> Figure:
    """Reverse KL split in what the family can't do and what the optimiser left, on logarithmic axes side by side."""
    entries = _sorted(comparison, problem, lambda entry: entry.records[problem]["reverse_kl"] is not None)
    records = [entry.records[problem] for entry in entries]
    figure = Figure(figsize=(10.5, 1.5 + 0.27 * max(len(records), 4)), dpi=DPI, layout="constrained")
    panels = (
        ("family gap: the family can't do better", "family_gap", BLUE, "≤"),
        ("optimization gap: the optimiser fell short", "optimization_gap", ORANGE, "≥"),
    )
    shown = [_drawn(record[name]) for record in records for _, name, _, _ in panels]
    high = max([value for value in shown if math.isfinite(value)], default=1.0)
    for axes, (text, name, color, sign) in zip(np.atleast_1d(figure.subplots(1, 2, sharey=True)), panels, strict=True):
        _bars(axes, records, name, color, sign, high)
        axes.set_title(text, fontsize=10)
        axes.set_xlabel("nats")
    figure.suptitle(f"{comparison.label(problem)}: why each guide is away from the posterior", fontsize=12)
    return figure


def _bars(axes: Axes, records: Sequence[dict[str, Any]], name: str, color: str, sign: str, high: float) -> None:
    """One bar a family, its value at the end; the first record on top."""
    edge = SMALLEST / 2
    for row, record in enumerate(records):
        value = number(record[name])
        label = three_digits(record[name], record.get(f"{name}_error"))
        if record["family_gap_is_upper_bound"]:
            label = sign + label
        if math.isinf(value):
            axes.barh(row, 2 * high - edge, left=edge, color="white", edgecolor=color, hatch="////", height=0.7)
            axes.text(2.5 * high, row, "inf: leaks mass", va="center", fontsize=8, color=DARK)
        elif math.isnan(value):
            axes.text(SMALLEST, row, "not defined", va="center", fontsize=8, color=GREY)
        else:
            at = _drawn(value)
            axes.barh(row, at - edge, left=edge, color=color, height=0.7)
            axes.text(1.3 * at, row, label, va="center", fontsize=8, color=DARK)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xlim(edge, high * 3e3)
    axes.set_yticks(range(len(records)), [record["guide"] for record in records], fontsize=8)
    axes.set_ylim(len(records) - 0.4, -0.6)
    plain(axes, label_size=8)


def _drawn(value: Any) -> float:
    return max(number(value), SMALLEST)


def posterior_over_x(x: np.ndarray, truth: Truth, marked: Sequence[float]) -> Figure:
    """The posterior's mean and 90% interval and log p(x), over many observations.

    Args:
        x: observations, ascending, `(B,)`.
        truth: of the problems that they pose.
        marked: observations that the comparison is about.
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


def _has_way(entry: Entry) -> bool:
    return entry.curves is not None and len(entry.curves.steps) > 0


def _way(entry: Entry, problem: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps `(T,)`, from the first, and reverse KL `(F, T)`; a logarithmic axis has no step 0."""
    assert entry.curves is not None
    return entry.curves.steps[1:], entry.curves.reverse_kl[problem, :, 1:]


def _above(values: np.ndarray) -> np.ndarray:
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
    """One small panel an entry, on common axes, whose `scales` are set once; `names` are x's and y's."""
    columns = min(COLUMNS, max(len(entries), 1))
    rows = max(1, math.ceil(len(entries) / columns))
    width, height = max(7.5, PANEL[0] * columns), MARGIN_TOP + MARGIN + PANEL[1] * rows
    figure = Figure(figsize=(width, height), dpi=DPI)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    # a layout engine takes seconds over this many panels
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
        axes.set_title(axes.get_title(), fontsize=9, y=1.0)  # looking for the title's place takes a third of the time
        plain(axes, label_size=8)
    for axes in grid.flat[len(entries) :]:
        axes.set_axis_off()
    for axes in grid.flat[max(0, len(entries) - columns) : len(entries)]:
        axes.tick_params(labelbottom=True)
    figure.suptitle(heading, fontsize=12 if columns > 2 else 9, y=1 - 0.12 / height, va="top")
    figure.supxlabel(names[0], fontsize=10, y=0.08 / height, va="bottom")
    figure.supylabel(names[1], fontsize=10, x=0.08 / width)
    return figure
