"""The figure of the gaps: each guide's reverse KL as one bar on a linear axis, made of its parts.

A bar shows the replica of median reverse KL, whose parts add up to its reverse KL; the numbers stand beside it. Of an
even number of replicas it is the mean of the two in the middle. What is smaller than `NEGLIGIBLE` nats lies within a
grey strip. No guide is left out: one that has no reverse KL has a row with the reason.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ppl_vi.report.columns import Record, bound, doubted, leaves_at_least, start_gaps, uncertainty
from ppl_vi.report.numbers import MISSING, number, three_digits
from ppl_vi.report.style import DARK, GREY, LIGHT, NOTE_SIZE, PART_COLORS, Grid, legend, legend_height, page, plain

# Nats below which a distance is called negligible: what a converged fit may still have to gain. The probabilities that
# two distributions so near to each other give to any event differ by less than sqrt(0.001 / 2) = 0.023.
NEGLIGIBLE = 1e-3
MIN_AXIS = 10 * NEGLIGIBLE  # where all bars are shorter, the axis does not make them look long
# Bars that are more than this many times as long as the median of those that are not negligible are cut, so that the
# others can be compared.
CUT_ABOVE = 10.0
MEANINGS = {
    "family": "family gap: no member of the family is nearer",
    "start": "start gap: another start would do",
    "optimization": "optimization gap: the optimiser fell short",
    "amortization": "amortization gap: the encoder falls short",
    "objective": "objective gap: another objective would do",
}
UNKNOWN = "not split"  # the part of a reverse KL of which no record says what it is due to
# Inches: the height of a row, and the widths of the bars' axes, of a column of numbers and of a character.
ROW, BARS, NUMBER_WIDTH, CHARACTER_WIDTH = 0.27, 4.2, 0.88, 0.068
BAR_HEIGHT = 0.7 * ROW
NAME_LENGTH, REASON_LENGTH = 34, 64  # characters of a guide's name on a line, and of a reason
BOUND_HATCH = "////"
# No plain grey, from which colour-blind readers can't tell the green of the start gap.
UNKNOWN_LOOK: dict[str, Any] = {"facecolor": "white", "edgecolor": GREY, "hatch": "....", "linewidth": 0.8}


@dataclass(frozen=True)
class Bar:
    """One row of the figure.

    Attributes:
        name: of the guide.
        total: its reverse KL, nats; nan where there is none.
        parts: the parts of `total` that are known, by name, nats; they add up to it.
        texts: `total` (under "reverse KL") and the parts as they are written.
        bounds: the parts that are bounds: at most this for a family gap, at least this for an optimization gap.
        ends: the smallest and the largest reverse KL of all replicas, nats.
        reason: why there is no bar, or why it does not end.
    """

    name: str
    total: float
    parts: dict[str, float] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    bounds: tuple[str, ...] = ()
    ends: tuple[float, float] = (math.nan, math.nan)
    reason: str = ""


def bar_of(record: Record) -> Bar:
    """The row of a record of a comparison: the replica of median reverse KL, or the mean of the two in the middle."""
    if record["reverse_kl"] is None:
        why = str(record["reason"]).removeprefix(f"{record['guide']}: ")
        return Bar(record["guide"], math.nan, reason=f"{record['status']}: {why}".removesuffix(": "))
    replicas = sorted(record["replicas"], key=lambda replica: _last_if_nan(number(replica["reverse_kl"])))
    middle = replicas[(len(replicas) - 1) // 2 : len(replicas) // 2 + 1] or [record]
    values = {part: _mean(middle, f"{part}_gap", record) for part in MEANINGS}
    total = _mean(middle, "reverse_kl", record)
    known = {part: value for part, value in values.items() if math.isfinite(value)} if math.isfinite(total) else {}
    rest = total - sum(known.values())
    if math.isfinite(rest) and abs(rest) > 1e-9 * max(abs(total), 1.0):
        known[UNKNOWN] = rest
    signs = {"family": "≤"} if record["family_gap_is_upper_bound"] else {}
    signs |= {"optimization": "≥"} if leaves_at_least(record) else {}
    texts = {part: three_digits(values[part], uncertainty(record, f"{part}_gap")) for part in MEANINGS}
    texts = {part: bound(text, signs[part]) if part in signs else text for part, text in texts.items()}
    texts["reverse KL"] = three_digits(total, uncertainty(record, "reverse_kl"))
    for part in texts:
        if ("reverse_kl" if part == "reverse KL" else f"{part}_gap") in record["uncertified"]:
            texts[part] = doubted(texts[part])
    each = [value for value in (number(replica["reverse_kl"]) for replica in replicas) if not math.isnan(value)]
    ends = (min(each), max(each)) if len(each) > 1 else (math.nan, math.nan)
    reason = "mass where the posterior has none" if record["support_mismatch"] and math.isinf(total) else ""
    return Bar(record["guide"], total, known, texts, tuple(part for part in signs if part in known), ends, reason)


def _mean(replicas: Sequence[Record], name: str, record: Record) -> float:
    """The mean of a figure over replicas; what is not listed for each of them is the record's."""
    return sum(number(replica.get(name, record.get(name))) for replica in replicas) / len(replicas)


def _last_if_nan(value: float) -> tuple[bool, float]:
    return math.isnan(value), 0.0 if math.isnan(value) else value


def worse_optima(record: Record) -> str:
    """How many replicas of a guide ended in a worse optimum, where its bar, of a middle one, does not show it."""
    gaps = start_gaps(record)
    worse = [gap for gap in gaps if gap > NEGLIGIBLE]
    if not worse or number(record.get("start_gap")) > NEGLIGIBLE:
        return ""
    many = f"{len(worse)} of {len(gaps)} replicas ended in a worse optimum"
    return f"{record['guide']}: {many}, up to {three_digits(max(worse))} nats farther away: another start would do."


def axis_end(bars: Sequence[Bar]) -> float:
    """Where the axis ends, nats: beyond the longest bar, but for those that are far longer than the others."""
    totals = sorted(bar.total for bar in bars if math.isfinite(bar.total))
    seen = [total for total in totals if total > MIN_AXIS]
    if not seen:
        return MIN_AXIS
    return 1.04 * max(total for total in seen if total <= CUT_ABOVE * seen[len(seen) // 2])


def shown_parts(bars: Sequence[Bar]) -> list[str]:
    """The parts that have a column: family and optimization gap, and those that some guide has."""
    needed = {part for bar in bars for part, value in bar.parts.items() if value}
    always = () if any("amortization" in bar.parts for bar in bars) else ("optimization",)
    return [part for part in MEANINGS if part in needed or part in ("family", *always)]


def figure_of(bars: Sequence[Bar], heading: str, notes: Sequence[str] = ()) -> Figure:
    """The bars from the top, with the reverse KL and its parts as numbers beside them."""
    parts, end = shown_parts(bars), axis_end(bars)
    names = ["\n".join(textwrap.wrap(bar.name, NAME_LENGTH)) for bar in bars]
    heights = [ROW * max(1.0, 0.62 * (1 + name.count("\n"))) for name in names] or [ROW]
    edges = np.cumsum([0.0, *heights])
    rows = (edges[1:] + edges[:-1]) / 2
    left = 0.25 + CHARACTER_WIDTH * max((len(line) for name in names for line in name.split("\n")), default=10)
    keys = _keys(bars, parts)
    labels = [str(key.get_label()) for key in keys]
    right = NUMBER_WIDTH * (1 + len(parts)) + 0.15
    grid = Grid(1, (BARS, float(edges[-1])), (0.0, 0.3), left, 0.45, right)
    all_notes, above = (*_notes(bars, end), *notes), legend_height(labels, 2)
    made = page(1, grid, heading, all_notes, names=("reverse KL [nats]", ""), above=above)
    (axes,) = made.panels
    axes.set(xlim=(0, end), ylim=(edges[-1], 0))
    axes.set_yticks(rows[: len(bars)], names, parse_math=False)
    axes.axvspan(0, NEGLIGIBLE, color=LIGHT, linewidth=0, zorder=0)
    for bar, row in zip(bars, rows, strict=False):
        _draw(axes, bar, row, end)
    _write(made.figure, axes, bars, rows, parts)
    plain(axes, label_size=NOTE_SIZE)
    axes.tick_params(axis="y", length=0)
    legend(made.figure, keys, labels, made.top, 2)
    return made.figure


def _keys(bars: Sequence[Bar], parts: Sequence[str]) -> list[Patch]:
    """What the colours mean."""
    keys = [Patch(color=PART_COLORS[part], label=MEANINGS[part]) for part in parts]
    if any(UNKNOWN in bar.parts for bar in bars):
        keys.append(Patch(**UNKNOWN_LOOK, label="not split into its parts"))
    if any(bar.bounds for bar in bars):
        keys.append(Patch(facecolor=GREY, edgecolor="white", hatch=BOUND_HATCH, label="hatched: only a bound is known"))
    return keys


def _notes(bars: Sequence[Bar], end: float) -> list[str]:
    """What the figure says below the bars."""
    notes = [f"Grey strip and grey numbers: less than {NEGLIGIBLE:g} nats, which is negligible."]
    if any(end < bar.total < math.inf for bar in bars):
        notes.append("//: the bar is cut; its number says how long it is.")
    if any(not math.isnan(bar.ends[0]) for bar in bars):
        notes.append("Bar: the replica of median reverse KL. Thin line: from the best replica to the worst.")
    return notes


def _draw(axes: Axes, bar: Bar, row: float, end: float) -> None:
    """One bar: the parts one after another; a negative part goes back from the end of the others."""
    across = axes.get_yaxis_transform()
    words: dict[str, Any] = {"fontsize": NOTE_SIZE, "va": "center", "parse_math": False, "transform": across}
    if math.isnan(bar.total):
        text = textwrap.shorten(bar.reason or "no reverse KL", REASON_LENGTH, placeholder=" ...")
        axes.text(0.012, row, text, color=DARK, fontstyle="italic", **words)
    elif math.isinf(bar.total):
        axes.barh(row, end, height=BAR_HEIGHT, facecolor="white", edgecolor=GREY, hatch="xxx", linewidth=0.8)
        text, box = f"inf: {bar.reason}".removesuffix(": "), {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        axes.text(0.5, row, text, ha="center", color=DARK, bbox=box, **words)
    else:
        at = 0.0
        for part, value in sorted(bar.parts.items(), key=lambda item: item[1] < 0):
            _segment(axes, part, (at, value), row, part in bar.bounds)
            at += value
        if not math.isnan(bar.ends[0]):
            line = [min(end, one) for one in bar.ends]
            axes.plot(line, [row, row], color=DARK, linewidth=1.0, solid_capstyle="butt")
        if bar.total > end:
            axes.text(0.96, row, " // ", ha="center", color=DARK, backgroundcolor="white", **words)


def _segment(axes: Axes, part: str, place: tuple[float, float], row: float, is_bound: bool) -> None:
    """One part of a bar, from `place[0]` on `place[1]` nats long; one that is negative is hollow."""
    color = PART_COLORS.get(part, GREY)
    start, value = place
    look: dict[str, Any] = {"facecolor": color}
    if part == UNKNOWN:
        look = UNKNOWN_LOOK
    elif value < 0:
        look = {"facecolor": "none", "edgecolor": color, "linewidth": 1.2}
    elif is_bound:
        look |= {"hatch": BOUND_HATCH, "edgecolor": "white", "linewidth": 0.0}
    axes.barh(row, value, left=start, height=BAR_HEIGHT, gid=part, **look)


def _write(figure: Figure, axes: Axes, bars: Sequence[Bar], rows: Sequence[float], parts: Sequence[str]) -> None:
    """The numbers of the bars in columns on the right, whose heads are underlined in the colour of their part."""
    box = axes.get_position()
    width = figure.get_size_inches()[0]
    wide = NUMBER_WIDTH * (1 + len(parts))
    side = figure.add_axes((box.x1 + 0.05 / width, box.y0, wide / width, box.height))
    side.set(xlim=(0, wide), ylim=axes.get_ylim())
    side.set_axis_off()
    for i, part in enumerate(("reverse KL", *parts)):
        right, color = (i + 1) * NUMBER_WIDTH, PART_COLORS.get(part, DARK)
        side.text(right, -0.09, part, fontsize=NOTE_SIZE, ha="right", va="bottom", color=DARK)
        side.plot([right - 0.85 * NUMBER_WIDTH, right], [-0.05, -0.05], color=color, linewidth=2.5, clip_on=False)
        for bar, row in zip(bars, rows, strict=False):
            value = bar.parts.get(part, math.nan) if i else bar.total
            color = GREY if i and not abs(value) >= NEGLIGIBLE else DARK
            text = bar.texts.get(part, MISSING)
            side.text(right, row, text, fontsize=NOTE_SIZE, ha="right", va="center", color=color)
