"""How the cost of a step grows with the number of fits, draws, latents and data points: `benchmarks.speed --growth`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.speed_case import WHOLE_STEPS, Case

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = dict[str, Any]
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
    """A panel for each axis, a line for each engine."""
    from matplotlib.figure import Figure

    from ppl_vi.report.plots import DPI, plain

    made = Figure(figsize=(10, 8.2), dpi=DPI, layout="constrained")
    grid = made.subplots(2, 2)
    for axes, (name, axis) in zip(grid.ravel(), AXES.items(), strict=True):
        for number, (engine, title) in enumerate(titles.items()):
            points = sorted(
                (record[axis.field], record["us_per_step"])
                for record in records
                if (record["axis"], record["engine"]) == (name, engine) and record["us_per_step"] is not None
            )
            if points:
                values, times = zip(*points, strict=True)
                style = "--" if engine in WHOLE_STEPS else "-"
                axes.plot(
                    values, times, style, color=f"C{number}", marker="o", markersize=3, linewidth=1.4, label=title
                )
                if len(values) > 1:
                    axes.annotate(f" {slope(values, times):.2f}", (values[-1], times[-1]), fontsize=8, va="center")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.margins(x=0.1)
        axes.set_title(axis.title, fontsize=10)
        axes.set_xlabel(axis.label, fontsize=9)
        plain(axes, label_size=8)
    for axes in grid[:, 0]:
        axes.set_ylabel("µs a step of all fits", fontsize=9)
    lines = {line.get_label(): line for axes in grid.ravel() for line in axes.lines}
    if lines:
        made.legend(
            lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines), frameon=False, fontsize=9
        )
    made.suptitle(f"What a step costs; the numbers are slopes through the last {NUM_FITTED} points", fontsize=11)
    return made
