"""Figures of a comparison on any model: the marginals of its latent numbers, beside the figures of `plots`."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppl_vi.comparison.comparison import Comparison, Entry
from ppl_vi.metrics.sampled.weighted_samples import number_names
from ppl_vi.report.numbers import three_digits
from ppl_vi.report.plots import (
    BLUE,
    DENSITY_ROOM,
    DPI,
    LIGHT,
    VERMILION,
    divergences_by_step,
    elbos_by_step,
    gaps,
    plain,
)
from ppl_vi.report.table import sort_key

PANEL_SIZE = (2.3, 1.5)  # inches
# A panel that shows less than this share of a guide's mass says how much of it is shown.
MIN_MASS_SHOWN = 0.5
# The most latent numbers that are shown. Where there are more, those that some guide misses the farthest are shown. A
# larger figure would be too wide for a page.
MAX_NUMBERS = 12


def marginals(comparison: Comparison, problem: int) -> Figure:
    """The posterior's marginals, grey, and the guides' (the replica of median reverse KL).

    There is a row for each guide, and a column for each latent number.
    """
    entries = sorted(
        (entry for entry in comparison.entries if entry.curves is not None),
        key=lambda entry: sort_key(entry.records[problem]),
    )
    names = number_names(comparison.target)
    z, posterior = comparison.z[problem].reshape(len(names), -1), comparison.posterior(problem)
    shown = _shown(entries, problem, names, np.flatnonzero(np.ptp(z, 1) > 0)) if posterior.size else []
    rows, columns = max(len(entries), 1), max(len(shown), 1)
    figure = Figure(figsize=(1.2 + PANEL_SIZE[0] * columns, 0.9 + PANEL_SIZE[1] * rows), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex="col", sharey="col")
    for axes in grid.flat[: rows * columns if not shown or not entries else 0]:
        axes.set_axis_off()
    for i, entry in enumerate(entries):
        for j, k in enumerate(shown):
            _marginal(grid[i, j], entry, problem, z[k], posterior[k], k)
            if i == 0:
                grid[i, j].set_title(names[k], fontsize=9)
        if shown:
            record = entry.records[problem]
            text = f"{entry.guide}\nKL {three_digits(record['reverse_kl'], record['reverse_kl_error'])}"
            grid[i, 0].set_ylabel(text, fontsize=8)
    figure.suptitle(
        f"{comparison.target.name}: the posterior's marginals (grey) and the fitted guides, by reverse KL in nats",
        fontsize=10 if columns > 2 else 8,
    )
    return figure


def _shown(entries: list[Entry], problem: int, names: tuple[str, ...], varying: np.ndarray) -> list[int]:
    """Which numbers to show: all that vary, or of too many those that some guide misses the farthest."""
    worst = dict.fromkeys(names, 0.0)
    for entry in entries:
        for part in entry.records[problem]["marginals"]:
            worst[part["name"]] = max(worst[part["name"]], float(part.get("wasserstein") or 0.0))
    first = sorted(varying.tolist(), key=lambda k: -worst[names[k]])
    return sorted(first[:MAX_NUMBERS])


def _marginal(axes: Axes, entry: Entry, problem: int, z: np.ndarray, posterior: np.ndarray, k: int) -> None:
    assert entry.curves is not None
    density = entry.curves.density[problem].reshape(-1, len(z))
    axes.fill_between(z, posterior, color=LIGHT, linewidth=0)
    leaks = entry.records[problem]["support_mismatch"]
    axes.plot(z, density[k], color=VERMILION if leaks else BLUE, linewidth=1.3)
    axes.set_xlim(z[0], z[-1])
    here = float(np.trapezoid(density[k], z))
    if not here > MIN_MASS_SHOWN:
        axes.text(
            0.98, 0.9, f"{100 * here:.2g}% of it here", transform=axes.transAxes, ha="right", va="top", fontsize=7
        )
    top = float(posterior.max(initial=0.0))
    axes.set_ylim(0, DENSITY_ROOM * top if top > 0 and math.isfinite(top) else 1.0)
    axes.set_yticks([])
    plain(axes, label_size=7)


FIGURES: dict[str, Callable[[Comparison, int], Figure]] = {
    "marginals": marginals,
    "gaps": gaps,
    "reverse_kl": divergences_by_step,
    "elbo": elbos_by_step,
}
