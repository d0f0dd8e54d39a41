"""How the cost of a step grows with the number of fits, draws, latents and data points: `benchmarks.speed --growth`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.speed_case import Case

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
        "logistic regression, AutoNormal, 100 fits", "data points", Case("logistic_regression", "AutoNormal", "", 100),
        "size", (10, 100, 1000, 10_000), (10, 100, 1000),
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

    made = Figure(figsize=(11, 9.5), dpi=DPI, layout="constrained")
    for axes, (name, axis) in zip(made.subplots(2, 2).ravel(), AXES.items(), strict=True):
        for number, (engine, title) in enumerate(titles.items()):
            points = sorted(
                (record[axis.field], record["us_per_step"])
                for record in records
                if (record["axis"], record["engine"]) == (name, engine) and record["us_per_step"] is not None
            )
            if points:
                values, times = zip(*points, strict=True)
                label = f"{title}: slope {slope(values, times):.2f}" if len(values) > 1 else title
                axes.plot(values, times, color=f"C{number}", marker="o", markersize=3, linewidth=1.2, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(axis.title, fontsize=10)
        axes.set_xlabel(axis.label)
        axes.set_ylabel("µs a step")
        if axes.lines:
            axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
        plain(axes, label_size=8)
    made.suptitle(f"What a step costs; slopes through the last {NUM_FITTED} points", fontsize=12)
    return made
