"""Figures of a comparison on one model of any number of latents."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppl_vi.comparison.comparison import Comparison, Entry
from ppl_vi.metrics.sampled.weighted_samples import number_names
from ppl_vi.report.numbers import three_digits
from ppl_vi.report.plots import BLUE, DPI, LIGHT, TOO_HIGH, VERMILION, divergences_by_step, elbos_by_step, gaps, plain
from ppl_vi.report.table import sort_key

PANEL = (2.3, 1.5)  # inches
LEAST = 0.5  # of a guide's mass; what shows less says so
MOST_NUMBERS = 12  # latent numbers that are shown: the worst ones where there are more


def marginals(comparison: Comparison, problem: int) -> Figure:
    """The exact marginals, grey, and each guide's replica of median reverse KL: a row a guide, a column a number."""
    entries = sorted(
        (entry for entry in comparison.entries if entry.curves is not None),
        key=lambda entry: sort_key(entry.records[problem]),
    )
    names = number_names(comparison.target)
    z, posterior = comparison.z[problem].reshape(len(names), -1), comparison.posterior(problem)
    shown = _shown(entries, problem, names, np.flatnonzero(np.ptp(z, 1) > 0)) if posterior.size else []
    rows, columns = max(len(entries), 1), max(len(shown), 1)
    figure = Figure(figsize=(1.2 + PANEL[0] * columns, 0.9 + PANEL[1] * rows), dpi=DPI, layout="constrained")
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
    """The numbers to show: all that vary, or those that some guide misses the farthest."""
    worst = dict.fromkeys(names, 0.0)
    for entry in entries:
        for part in entry.records[problem]["marginals"]:
            worst[part["name"]] = max(worst[part["name"]], float(part.get("wasserstein") or 0.0))
    first = sorted(varying.tolist(), key=lambda k: -worst[names[k]])
    return sorted(first[:MOST_NUMBERS])


def _marginal(axes: Axes, entry: Entry, problem: int, z: np.ndarray, posterior: np.ndarray, k: int) -> None:
    assert entry.curves is not None
    density = entry.curves.density[problem].reshape(-1, len(z))
    axes.fill_between(z, posterior, color=LIGHT, linewidth=0)
    leaks = entry.records[problem]["support_mismatch"]
    axes.plot(z, density[k], color=VERMILION if leaks else BLUE, linewidth=1.3)
    axes.set_xlim(z[0], z[-1])
    here = float(np.trapezoid(density[k], z))
    if not here > LEAST:
        axes.text(
            0.98, 0.9, f"{100 * here:.2g}% of it here", transform=axes.transAxes, ha="right", va="top", fontsize=7
        )
    top = float(posterior.max(initial=0.0))
    axes.set_ylim(0, TOO_HIGH * top if top > 0 and math.isfinite(top) else 1.0)
    axes.set_yticks([])
    plain(axes, label_size=7)


FIGURES: dict[str, Callable[[Comparison, int], Figure]] = {
    "marginals": marginals,
    "gaps": gaps,
    "reverse_kl": divergences_by_step,
    "elbo": elbos_by_step,
}
