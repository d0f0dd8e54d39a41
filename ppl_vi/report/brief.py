"""The six columns that a comparison's table has by default: what a reader needs to choose a guide.

They are the guide, its status, the ELBO, the reverse KL with its parts, the worst interval and the time. All other
columns are in the full layout, see `columns.py`.
"""

from __future__ import annotations

import math
from functools import partial

from ppl_vi.report.columns import (
    BY_MODEL,
    GUIDE,
    STATUS,
    Column,
    Footnotes,
    Layout,
    Record,
    bound,
    doubted,
    leaves_at_least,
    metric_column,
    uncertainty,
)
from ppl_vi.report.numbers import MISSING, number, short, three_digits

IDEAL_COVERAGE = 0.9
SMALLEST_SPLIT = 1e-3  # nats; the parts of a smaller reverse KL, which a fit's tolerance allows for, are not shown
SMALL_SHARE = 0.01  # a part of the reverse KL below this share of it is shown with one digit


def worst_interval(record: Record) -> tuple[str, float, float]:
    """The latent number whose 90% interval covers too much or too little by most, the coverage, and its error.

    The name is "" where the record does not tell the numbers apart, and the coverage is nan where there is none.
    """
    parts = [(part["name"], part) for part in record["marginals"]] or [("", record)]
    known = [(name, number(part.get("coverage_90")), uncertainty(part, "coverage_90")) for name, part in parts]
    known = [one for one in known if not math.isnan(one[1])]
    return max(known, key=lambda one: abs(one[1] - IDEAL_COVERAGE), default=("", math.nan, math.nan))


def reverse_kl_parts(record: Record) -> list[tuple[str, str, float]]:
    """The parts of the reverse KL that are known: the name of each, its sign as a bound, and its value, nats."""
    signs = {"family": "≤" if record["family_gap_is_upper_bound"] else "", "optimization": ""}
    signs["optimization"] = "≥" if leaves_at_least(record) else ""
    named = [(name, number(record.get(f"{name}_gap"))) for name in ("family", "start", "optimization", "objective")]
    needed = [one for one in named if not math.isnan(one[1]) and (one[0] in signs or one[1] != 0)]
    return [(name, signs.get(name, ""), value) for name, value in needed]


def _reverse_kl(record: Record, notes: Footnotes, between: str, plus: str = " + ") -> str:
    whole = metric_column("reverse_kl").cell(record, notes)
    parts = reverse_kl_parts(record)
    if not SMALLEST_SPLIT < number(record["reverse_kl"]) < math.inf or len(parts) < 2:
        return whole
    return f"{whole}{between}= {plus.join(_part(record, *part) for part in parts)}"


def _part(record: Record, name: str, sign: str, value: float) -> str:
    total = number(record["reverse_kl"])
    shown = three_digits(value, uncertainty(record, f"{name}_gap"))
    if abs(value) < SMALL_SHARE * total and "<" not in shown and shown != "0":
        shown = short(value, 1)
    shown = bound(shown, sign) if sign else shown
    shown = doubted(shown) if f"{name}_gap" in record["uncertified"] else shown
    return shown if name in ("family", "optimization") else f"{shown} ({name})"


def _interval(record: Record, notes: Footnotes, between: str) -> str:
    name, covered, _ = worst_interval(record)
    if math.isnan(covered):
        return metric_column("coverage_90").cell(record, notes)
    shown = f"{100 * covered:.1f}%{name and f'{between}{name}'}"
    return doubted(shown) if "coverage_90" in record["uncertified"] else shown


def _time(record: Record, notes: Footnotes) -> str:
    seconds = seconds_of(record)
    return MISSING if math.isnan(seconds) else in_seconds(seconds)


def seconds_of(record: Record) -> float:
    """What the fit took; nan where there was none, as of a guide that was fitted elsewhere and is measured as it is."""
    return math.nan if record["status"] == "as_given" else number(record["seconds"])


def in_seconds(seconds: float) -> str:
    """A time such as `0.41 s`, `4.1 s` or `512 s`."""
    return f"{short(seconds, 2) if seconds < 99.5 else f'{seconds:,.0f}'} s"


# ---- the columns


def _stacked(*columns: Column, heading: tuple[str, ...], left: bool = False) -> Column:
    """One column whose cells have the texts of several, below each other; those on the left are indented."""
    indent = "  " if left else ""

    def cell(record: Record, notes: Footnotes) -> str:
        return f"\n{indent}".join(column.cell(record, notes) for column in columns)

    return Column(heading, cell, left)


TIME = Column(("", "time"), _time)
BRIEF = (
    STATUS,
    "elbo",
    Column(("reverse KL", "= family + optimiz."), partial(_reverse_kl, between=" ")),
    Column(("worst 90%", "interval"), partial(_interval, between=" ")),
    TIME,
)
# The same in two lines a guide.
GUIDE_AND_STATUS = _stacked(GUIDE, STATUS, heading=("guide", "  status"), left=True)
INTERVAL_IN_TWO = Column(("worst 90%", "interval"), partial(_interval, between="\n"))
IN_TWO_LINES = (
    "elbo",
    Column(("reverse KL", "= family + optimiz."), partial(_reverse_kl, between="\n")),
    INTERVAL_IN_TWO,
    TIME,
)
NARROWER = (
    _stacked(metric_column("elbo"), TIME, heading=("ELBO", "time")),
    Column(("reverse KL", "= family + opt."), partial(_reverse_kl, between="\n")),
    INTERVAL_IN_TWO,
)
# And in three lines a guide, where parts are long.
IN_THREE_LINES = (
    "elbo",
    Column(("reverse KL", "= family", "+ optimiz."), partial(_reverse_kl, between="\n", plus="\n+ ")),
    INTERVAL_IN_TWO,
)


def brief(layout: Layout = BY_MODEL) -> Layout:
    """The layout of the same problems with the six columns, where there is room for them in one line a guide."""
    narrower = (
        (GUIDE_AND_STATUS, IN_TWO_LINES),
        (GUIDE_AND_STATUS, NARROWER),
        (_stacked(GUIDE, STATUS, TIME, heading=("guide", "  status", "  time"), left=True), IN_THREE_LINES),
    )
    layouts = (Layout(layout.title, shown, is_full=False, first=first) for first, shown in narrower)
    return Layout(layout.title, BRIEF, is_full=False, narrower=tuple(layouts))
