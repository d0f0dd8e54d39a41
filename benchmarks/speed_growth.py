"""How the cost of a step grows with the number of fits, draws, latents and data points: `benchmarks.speed --growth`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.speed_case import Case

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = dict[str, Any]
STEPS_OF = {"fit": "compiled"}  # whose steps the whole verbs take
LABEL_SHARE = 0.035  # of a panel's height, between two slopes that are written at the ends of lines
NUM_FITTED = 3  # The slope goes through the largest values only: at small ones a step costs what its call costs.


@dataclass(frozen=True)
class Axis:
    """One number that is varied while all else stays the same.

    Attributes:
        title: title of the figure's panel.
        label: label of the panel's horizontal axis.
        case: the case that is varied; its engine and dtype are filled in.
        field: the field of the case that is varied.
        values: the values of the field, ascending.
        quick: fewer values, for `--quick`.
    """

    title: str
    label: str
    case: Case
    field: str
    values: tuple[int, ...]
    quick: tuple[int, ...]


AXES: dict[str, Axis] = {
    "replicas": Axis(
        "the toy, lognormal guide", "fits at once", Case("toy", "lognormal", "", 1), "replicas",
        (1, 10, 100, 1000, 10_000, 100_000), (1, 100, 1000),
    ),
    "particles": Axis(
        "the toy, lognormal guide, 100 fits", "draws a step", Case("toy", "lognormal", "", 100), "num_particles",
        (1, 4, 16, 64, 256, 1024), (1, 16, 64),
    ),
    "dimension": Axis(
        "a Gaussian, AutoNormal, 100 fits", "latents", Case("gaussian", "AutoNormal", "", 100), "size",
        (1, 3, 10, 30, 100, 300, 1000), (1, 10, 100),
    ),
    "data": Axis(
        "logistic regression, AutoNormal, one fit", "rows of data", Case("logistic_regression", "AutoNormal", "", 1),
        "size", (10, 100, 1000, 10_000, 100_000, 1_000_000), (10, 1000, 100_000),
    ),
}  # fmt: skip


def growth_cases(engines: Sequence[str], dtype: str, quick: bool, effort: dict[str, Any]) -> list[tuple[str, Case]]:
    """Each case with the name of its axis; `effort` holds more fields of the cases."""
    return [
        (name, Case(**asdict(axis.case) | {"engine": engine, "dtype": dtype, axis.field: value} | effort))
        for name, axis in AXES.items()
        for engine in engines
        for value in (axis.quick if quick else axis.values)
    ]


def slope(values: Sequence[float], times: Sequence[float]) -> float:
    """Of log time in log value, by least squares through the last `NUM_FITTED` points; nan for fewer than two."""
    x, y = np.log(values[-NUM_FITTED:]), np.log(times[-NUM_FITTED:])
    return float(np.polyfit(x, y, 1)[0]) if len(x) > 1 else float("nan")


def figure(records: Sequence[Record], titles: dict[str, str]) -> Figure:
    """A panel for each axis, a line for each engine; whole verbs are dashed, in the colour of their steps."""
    from matplotlib.figure import Figure

    from ppl_vi.report.style import DPI

    made = Figure(figsize=(10, 8.2), dpi=DPI, layout="constrained")
    grid = made.subplots(2, 2)
    for axes, (name, axis) in zip(grid.ravel(), AXES.items(), strict=True):
        _panel(axes, axis, [record for record in records if record["axis"] == name], titles)
    for axes in grid[:, 0]:
        axes.set_ylabel("µs a step of all fits", fontsize=9)
    lines = {line.get_label(): line for axes in grid.ravel() for line in axes.lines}
    if lines:
        place = {"loc": "outside lower center", "ncols": len(lines), "frameon": False, "fontsize": 9}
        made.legend(list(lines.values()), list(lines), **place)
    made.suptitle(f"What a step costs; the numbers are slopes through the last {NUM_FITTED} points", fontsize=11)
    return made


def _panel(axes: Axes, axis: Axis, records: Sequence[Record], titles: dict[str, str]) -> None:
    from ppl_vi.report.style import LINE_COLORS, plain

    axes.set(xscale="log", yscale="log")
    axes.margins(x=0.1)
    ends: list[tuple[float, float, str, str]] = []  # where a line ends, its slope in words, its colour
    for engine, title in titles.items():
        points = sorted(
            (record[axis.field], record["us_per_step"])
            for record in records
            if record["engine"] == engine and record["us_per_step"] is not None
        )
        if points:
            values, times = zip(*points, strict=True)
            colour = LINE_COLORS[list(titles).index(STEPS_OF.get(engine, engine)) % len(LINE_COLORS)]
            style = "--" if engine in STEPS_OF else "-"
            axes.plot(values, times, style, color=colour, marker="o", markersize=3, linewidth=1.4, label=title)
            if len(values) > 1:
                ends.append((times[-1], values[-1], f"  {slope(values, times):.2f}", colour))
    low, high = np.log(axes.get_ylim())
    heights = _apart(sorted(np.log(end[0]) for end in ends), LABEL_SHARE * (high - low))
    for height, (_, value, text, colour) in zip(heights, sorted(ends), strict=True):
        axes.text(value, np.exp(height), text, color=colour, fontsize=8, va="center")
    axes.set_title(axis.title, fontsize=10)
    axes.set_xlabel(axis.label, fontsize=9)
    plain(axes, label_size=8)


def _apart(places: Sequence[float], least: float) -> list[float]:
    """Ascending places, each moved up where it would be nearer to the one before than `least`."""
    found: list[float] = []
    for place in places:
        found.append(max(place, found[-1] + least) if found else place)
    return found
