"""Figures of a comparison over one latent number: densities, reverse KL and ELBO against steps, and the gaps.

Each function makes a `Figure` of its own, without pyplot, so that no global state of matplotlib is touched. The guides
stand in the order of their reverse KL, the nearest first. Guides whose curves are the same share a panel, and guides
without a curve are named below the panels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ppl_vi.comparison.comparison import Comparison, Entry
from ppl_vi.report.gap_bars import bar_of, figure_of, worse_optima
from ppl_vi.report.numbers import nats, number, short, three_digits
from ppl_vi.report.same_curves import NOTE, divergence_of, doubts, grouped, near, not_drawn, titled
from ppl_vi.report.style import BLUE, DPI, GREY, LIGHT, NOTE_SIZE, ORANGE, VERMILION, Grid, Page, page, plain
from ppl_vi.report.table import sort_key
from ppl_vi.truth import Truth

PANELS = Grid(columns=4, panel=(2.7, 1.4), between=(0.25, 0.6), left=0.75, below=0.5)
# Reverse KL is drawn on a logarithmic axis, on which 0 has no place: any smaller value is drawn as this one.
MIN_DRAWN = 1e-9
# How far below log p(x), in nats, the panels of ELBOs reach at least; a smaller span would show only noise.
MIN_ELBO_SPAN = 1.0
# Else they reach this many times as far as the lowest guide, of those that end at most so many times as far below
# log p(x) as the median guide: one that is much worse would press the others against log p(x).
ELBO_ROOM, ELBO_CUT = 1.25, 4.0
# Panels of reverse KL end at most so many times as high as the farthest guide ends, of those that end at most so many
# times as far as the median guide: a flow may start 1e100 nats away.
KL_ROOM = 1e3
# An axis of reverse KL whose ends differ by less than this factor has ticks between the powers of ten.
FEW_DECADES = 100.0
# Density panels end at this many times the posterior's peak, so that a far narrower guide does not flatten the rest.
DENSITY_ROOM = 1.8

Group = Sequence[Entry]


def densities(comparison: Comparison, problem: int) -> Figure:
    """The exact posterior, grey, and the fitted density of each family's replica of median reverse KL."""
    entries, without = _with_curves(comparison, problem)
    z = comparison.z[problem]
    (posterior,) = comparison.posterior(problem)
    height = DENSITY_ROOM * float(posterior.max())

    def curve(entry: Entry) -> np.ndarray:
        assert entry.curves is not None
        return np.minimum(entry.curves.density[problem], height)

    groups = grouped(entries, lambda one, other: near(curve(one), curve(other), height))
    heading = f"{comparison.label(problem)}: the posterior (grey) and the fitted guides, by reverse KL in nats"
    notes = ["Vermilion: a guide with mass where the posterior has none."] if any(map(_leaks, entries)) else []
    made = _multiples(groups, problem, heading, ("z", "density"), (*notes, *without))
    for axes, group in zip(made.panels, groups, strict=True):
        axes.fill_between(z, posterior, color=LIGHT, linewidth=0)
        assert group[0].curves is not None
        color = VERMILION if _leaks(group[0]) else BLUE
        axes.plot(z, group[0].curves.density[problem], color=color, linewidth=1.5)
        axes.set(xlim=(z[0], z[-1]), ylim=(0, height))
        _add_to_title(axes, f"KL {divergence_of(group, problem)}")
    return made.figure


def divergences_by_step(comparison: Comparison, problem: int) -> Figure:
    """Reverse KL against SVI steps, and the family gap, below which it can't get."""
    entries, without = _with_curves(comparison, problem)
    ways = {entry.guide: trajectory(entry, problem) for entry in entries}
    values = np.concatenate([_positive(kl) for _, kl in ways.values()]) if ways else np.array([])
    floor = max(MIN_DRAWN, values.min(initial=1.0) / 2)
    ends = {guide: float(np.median(kl[:, -1])) for guide, (_, kl) in ways.items()}
    ceiling = min(2 * values.max(initial=2 * floor), KL_ROOM * max(floor, _farthest(ends, KL_ROOM)))
    if values.max(initial=0.0) > ceiling:
        without = [*without, f"Some fits began beyond the axis, {short(values.max(), 1)} nats away at most."]

    def drawn(entry: Entry) -> np.ndarray:
        return np.log(np.clip(ways[entry.guide][1], floor, ceiling))

    groups = _grouped_ways(entries, ways, drawn, math.log(ceiling / floor))
    heading = f"{comparison.label(problem)}: reverse KL against steps{_of_replicas(ways)}; dashed: the family's best"
    made = _multiples(groups, problem, heading, ("SVI steps", "reverse KL [nats]"), without)
    for axes, group in zip(made.panels, groups, strict=True):
        axes.set(xscale="log", yscale="log", ylim=(floor, ceiling))
        axes.minorticks_off()
        if ceiling < FEW_DECADES * floor:
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter("{x:g}")
        _way(axes, *ways[group[0].guide], floor)
        if ceiling <= ends[group[0].guide] < math.inf:
            _say(axes, f"off the scale: it ends\n{short(ends[group[0].guide], 1)} nats away", 0.5)
        gap = number(group[0].records[problem]["family_gap"])
        if floor < gap < math.inf:
            axes.axhline(gap, color=ORANGE, linewidth=1.2, linestyle="--")
        _add_to_title(axes, f"{divergence_of(group, problem)} nats")
    _same_steps(made, ways)
    return made.figure


def elbos_by_step(comparison: Comparison, problem: int) -> Figure:
    """ELBO against SVI steps below its upper limit, log p(x).

    At least half of the guides end within the panels; each panel whose guide doesn't says how far below it ends.
    """
    entries, without = _with_curves(comparison, problem)
    ways = {entry.guide: trajectory(entry, problem) for entry in entries}
    evidence = float(comparison.truth.log_evidence[problem])
    ends = {guide: float(np.median(kl[:, -1])) for guide, (_, kl) in ways.items()}
    span = max(MIN_ELBO_SPAN, ELBO_ROOM * _farthest(ends, ELBO_CUT))

    def drawn(entry: Entry) -> np.ndarray:
        kl = ways[entry.guide][1]
        return np.where(kl[:, -1:] < span, np.minimum(kl, span), kl)  # what is off the scale has its end in words

    groups = _grouped_ways(entries, ways, drawn, span)
    heading = (
        f"{comparison.label(problem)}: ELBO against steps{_of_replicas(ways)}; dashed: log\u00a0p(x) = {evidence:.4f}"
    )
    made = _multiples(groups, problem, heading, ("SVI steps", "ELBO [nats]"), without)
    for axes, group in zip(made.panels, groups, strict=True):
        axes.set(xscale="log", ylim=(evidence - span, evidence + 0.1 * span))
        axes.minorticks_off()
        steps, kl = ways[group[0].guide]
        _way(axes, steps, evidence - kl)
        axes.axhline(evidence, color=ORANGE, linewidth=1.2, linestyle="--")
        below = ends[group[0].guide]
        if span <= below < math.inf:
            _say(axes, f"off the scale: it ends\n{three_digits(below)} nats below log p(x)", 0.08)
        values = dict.fromkeys(nats(entry.records[problem]["elbo"]) for entry in (group[0], group[-1]))
        _add_to_title(axes, f"{' to '.join(values)} nats")
    _same_steps(made, ways)
    return made.figure


def _farthest(ends: dict[str, float], cut: float) -> float:
    """The largest reverse KL at which guides end, of those that end at most `cut` times as far as the median guide."""
    finite = sorted(filter(math.isfinite, ends.values()))
    middle = finite[(len(finite) - 1) // 2] if finite else 0.0
    return max((end for end in finite if end <= cut * middle), default=0.0)


def gaps(comparison: Comparison, problem: int) -> Figure:
    """Reverse KL split into its causes, as stacked bars; every guide has a row."""
    records = sorted((entry.records[problem] for entry in comparison.entries), key=sort_key)
    heading = f"{comparison.label(problem)}: how far each guide is from the posterior, and why"
    notes = [*filter(None, map(worse_optima, records)), *doubts(comparison.entries, problem)]
    return figure_of([bar_of(record) for record in records], heading, notes)


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


def trajectory(entry: Entry, problem: int) -> tuple[np.ndarray, np.ndarray]:
    """SVI steps and the reverse KL after each, `(T,)` and `(F, T)`, without step 0, which a logarithmic axis lacks.

    A guide that was not fitted by steps, or whose reverse KL is not finite, has no steps, and one column: the reverse
    KL of its replicas, `(F, 1)`.
    """
    assert entry.curves is not None
    if len(entry.curves.steps) > 1:
        return entry.curves.steps[1:], entry.curves.reverse_kl[problem, :, 1:]
    record = entry.records[problem]
    values = [number(replica["reverse_kl"]) for replica in record["replicas"]] or [number(record["reverse_kl"])]
    return np.empty(0), np.array(values)[:, None]


def _with_curves(comparison: Comparison, problem: int) -> tuple[list[Entry], list[str]]:
    """The guides that have curves, the nearest first, and notes on the others and on the truth."""
    entries = sorted(comparison.entries, key=lambda entry: sort_key(entry.records[problem]))
    without = [entry for entry in entries if entry.curves is None]
    notes = doubts(entries, problem) + not_drawn(without, problem)
    return [entry for entry in entries if entry.curves is not None], notes


def _leaks(entry: Entry) -> bool:
    return bool(entry.records[0]["support_mismatch"])


Ways = dict[str, tuple[np.ndarray, np.ndarray]]


def _grouped_ways(entries: Group, ways: Ways, drawn: Callable[[Entry], np.ndarray], height: float) -> list[list[Entry]]:
    """Groups of guides with the same steps, whose curves in the units of the axis, `drawn`, are the same."""

    def same(one: Entry, other: Entry) -> bool:
        steps = ways[one.guide][0], ways[other.guide][0]
        with np.errstate(divide="ignore"):
            return np.array_equal(*steps) and near(drawn(one), drawn(other), height)

    return grouped(entries, same)


def _of_replicas(ways: Ways) -> str:
    return ", median (line) and range (band) of replicas" if any(len(kl) > 1 for _, kl in ways.values()) else ""


def _positive(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values) & (values > 0)]


def _way(axes: Axes, steps: np.ndarray, values: np.ndarray, floor: float = -np.inf) -> None:
    """The curve of a guide's replicas; without steps it is a level, or the words that there is none."""
    values = np.where(np.isnan(values), np.nan, np.maximum(values, floor))
    if len(steps):
        axes.fill_between(steps, values.min(0), values.max(0), color=BLUE, alpha=0.25, linewidth=0)
        axes.plot(steps, np.median(values, 0), color=BLUE, linewidth=1.5, marker="o" if len(steps) == 1 else "")
    elif np.isfinite(values).all():
        axes.axhspan(values.min(), values.max(), color=BLUE, alpha=0.25, linewidth=0)
        level = float(np.median(values))
        axes.axhline(level, color=BLUE, linewidth=1.5, linestyle=":")
        height = (axes.transScale + axes.transLimits).transform((1.0, level))[1]
        _say(axes, "dotted: without SVI steps", 0.65 if height < 0.5 else 0.2)
    else:
        _say(
            axes, "infinite: it has mass where\nthe posterior has none" if np.isinf(values).any() else "not known", 0.3
        )


def _say(axes: Axes, text: str, height: float) -> None:
    """Words inside a panel, at a share of its height."""
    axes.text(0.5, height, text, transform=axes.transAxes, ha="center", va="bottom", fontsize=NOTE_SIZE)


def _same_steps(made: Page, ways: Ways) -> None:
    """Gives all panels, which share their axes, the axis of those that have steps."""
    steps = np.concatenate([steps for steps, _ in ways.values()]) if ways else np.empty(0)
    low, high = (float(steps.min()), float(steps.max())) if len(steps) else (1.0, 10.0)
    ticks = [10.0**power for power in range(10) if low / 1.2 < 10.0**power < 1.2 * high]
    ticks += [high] if not ticks or high > 2 * ticks[-1] else []
    for axes in made.panels[:1]:
        axes.set_xlim(low / 1.3, high * 1.3)
        axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])


def _multiples(
    groups: Sequence[Group], problem: int, heading: str, names: tuple[str, str], notes: Sequence[str]
) -> Page:
    """A page with one small panel for each group, all with the same axes, titled with the names of its guides."""
    titles: list[str] = []
    keys: list[str] = []
    for group in groups:
        title, key = titled(group, len(keys) + 1)
        titles.append(title)
        keys += [key] if key else []
    shared = [NOTE] if any(len(group) > 1 for group in groups) else []
    made = page(len(groups), PANELS, heading, (*keys, *shared, *notes), names=names, share=True)
    for axes, title in zip(made.panels, titles, strict=True):
        axes.set_title(title, fontsize=NOTE_SIZE, y=1.0, parse_math=False)  # at a fixed height: finding it takes time
        plain(axes, label_size=NOTE_SIZE)
    return made


def _add_to_title(axes: Axes, text: str) -> None:
    axes.title.set_text(f"{axes.get_title()}\n{text}")
