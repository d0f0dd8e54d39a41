"""Figures of a comparison on any model: the marginals of its latent numbers, beside the figures of `plots`."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from scipy.interpolate import Akima1DInterpolator

from ppl_vi.comparison.comparison import Comparison, Entry
from ppl_vi.metrics.sampled.weighted_samples import number_names
from ppl_vi.report.plots import DENSITY_ROOM, divergences_by_step, elbos_by_step, gaps
from ppl_vi.report.same_curves import NOTE, divergence_of, doubts, grouped, near, not_drawn
from ppl_vi.report.style import LIGHT, NOTE_SIZE, Grid, legend, legend_height, line_style, page, plain, shortened
from ppl_vi.report.table import sort_key

# A guide of whose mass a panel shows less than this share is named in the panel, with the share.
MIN_MASS_SHOWN = 0.5
# The most latent numbers that are shown: what fits on a page. Where there are more, those that some guide misses the
# farthest are shown, and the figure and the name of its file say how many there are.
MAX_NUMBERS = 40
NAME_LENGTH, LEGEND_LENGTH = 26, 56  # characters of a number's name, and of a legend's line
LARGE, SMALL = (3.1, 2.2), (1.75, 1.15)  # inches, of a panel where there are few and where there are many
SMOOTHING = 8  # points of a curve for each bin
MAX_LARGE = 6  # panels of the larger size


def marginals(comparison: Comparison, problem: int) -> Figure:
    """The posterior's marginals, grey, and those of all guides (the replica of median reverse KL).

    There is a panel for each latent number. The figure's label is the name of its file: `marginals`, or
    `marginals_40_of_1000` where not all numbers are shown.
    """
    entries = sorted(comparison.entries, key=lambda entry: sort_key(entry.records[problem]))
    drawn = [entry for entry in entries if entry.curves is not None]
    names = number_names(comparison.target)
    z, posterior = comparison.z[problem].reshape(len(names), -1), comparison.posterior(problem)
    varying = np.flatnonzero(np.ptp(z, 1) > 0) if posterior.size else np.array([], int)
    shown = shown_numbers(drawn, problem, names, varying)
    tops = np.array([_top(posterior[k]) for k in shown])

    def curves(entry: Entry) -> np.ndarray:
        assert entry.curves is not None
        density = entry.curves.density[problem].reshape(len(names), -1)[shown]
        return np.minimum(density / tops[:, None], 1.0)

    groups = grouped(drawn, lambda one, other: near(curves(one), curves(other), 1.0))
    labels = [_label(group, problem) for group in groups]
    keys = [Patch(color=LIGHT), *(Line2D([], [], **line_style(i)) for i in range(len(groups)))]
    columns = 2 if len(groups) > 1 else 1
    notes = [
        *doubts(entries, problem),
        *([NOTE] if any(len(group) > 1 for group in groups) else []),
        *numbers_left_out(names, shown, varying, bool(posterior.size)),
        *not_drawn([entry for entry in entries if entry.curves is None], problem),
    ]
    heading = f"{comparison.target.name}: the posterior's marginals and those of the fitted guides"
    all_labels = ["posterior", *labels]
    above = legend_height(all_labels, columns)
    made = page(len(shown), _grid(len(shown)), heading, notes, names=("", "density"), above=above)
    for axes, k, top in zip(made.panels, shown, tops, strict=True):
        _marginal(axes, groups, problem, z[k], posterior[k], k, top)
        axes.set_title(shortened(names[k], NAME_LENGTH), fontsize=NOTE_SIZE, y=1.0, parse_math=False)
    legend(made.figure, keys, all_labels, made.top, columns)
    made.figure.set_label("marginals" if len(shown) == len(names) else f"marginals_{len(shown)}_of_{len(names)}")
    return made.figure


def _grid(num_panels: int) -> Grid:
    few = num_panels <= MAX_LARGE
    columns = (3 if num_panels != 4 else 2) if few else 5
    return Grid(columns, LARGE if few else SMALL, (0.3, 0.45), left=0.45, below=0.3)


def _label(group: Sequence[Entry], problem: int) -> str:
    """The names of guides with the same curves and their reverse KL, in as many lines as they need."""
    leaks = ", mass where the posterior has none" if group[0].records[problem]["support_mismatch"] else ""
    text = f"{', '.join(entry.guide for entry in group)}: KL {divergence_of(group, problem)} nats{leaks}"
    return "\n".join(textwrap.wrap(text, LEGEND_LENGTH, break_on_hyphens=False))


def shown_numbers(entries: Sequence[Entry], problem: int, names: tuple[str, ...], varying: np.ndarray) -> list[int]:
    """Which numbers to show: all that vary, or of too many those that some guide misses the farthest."""
    worst = dict.fromkeys(names, 0.0)
    for entry in entries:
        for part in entry.records[problem]["marginals"]:
            worst[part["name"]] = max(worst[part["name"]], float(part.get("wasserstein") or 0.0))
    first = sorted(varying.tolist(), key=lambda k: -worst[names[k]])
    return sorted(first[:MAX_NUMBERS])


def numbers_left_out(names: tuple[str, ...], shown: Sequence[int], varying: np.ndarray, has_points: bool) -> list[str]:
    """Notes on the latent numbers that have no panel; [] where all have one."""
    if not has_points:
        return [f"No marginals: this truth has no points of its posterior ({len(names)} latent numbers)."]
    notes = []
    if len(shown) < len(varying):
        notes.append(
            f"{len(shown)} of {len(names)} latent numbers are shown: those that some guide misses the farthest, by W1. "
            "The scores of all are in records.json, under marginals."
        )
    fixed = [name for k, name in enumerate(names) if k not in set(varying.tolist())]
    if fixed:
        some = ", ".join(fixed[:MAX_NUMBERS]) + (" ..." if len(fixed) > MAX_NUMBERS else "")
        notes.append(f"Without a panel, since the posterior has one value of them: {some} ({len(fixed)} in all).")
    return notes


def _top(posterior: np.ndarray) -> float:
    """The height of a panel."""
    top = DENSITY_ROOM * float(posterior.max(initial=0.0))
    return top if top > 0 and math.isfinite(top) else 1.0


def _marginal(
    axes: Axes,
    groups: Sequence[Sequence[Entry]],
    problem: int,
    z: np.ndarray,
    posterior: np.ndarray,
    k: int,
    top: float,
) -> None:
    """One panel: the posterior's density of the number `k`, and the guides'."""
    axes.fill_between(*_smooth(z, posterior), color=LIGHT, linewidth=0)
    outside = []
    for i, group in enumerate(groups):
        assert group[0].curves is not None
        density = group[0].curves.density[problem].reshape(-1, len(z))[k]
        axes.plot(*_smooth(z, density), **line_style(i))
        here = float(np.trapezoid(density, z))
        if not here > MIN_MASS_SHOWN:
            outside.append(f"{shortened(group[0].guide, NAME_LENGTH)}: {100 * here:.2g}%")
    if outside:
        text = "mass within this panel\n" + "\n".join(outside)
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1}
        axes.text(
            0.98, 0.98, text, transform=axes.transAxes, ha="right", va="top", fontsize=6.5, parse_math=False, bbox=box
        )
    axes.set(xlim=(z[0], z[-1]), ylim=(0, top))
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(4))
    plain(axes, label_size=7)


def _smooth(z: np.ndarray, density: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A curve without kinks through the densities in the middles of bins, which hardly overshoots where they jump."""
    fine = np.linspace(z[0], z[-1], SMOOTHING * (len(z) - 1) + 1)
    return fine, np.maximum(Akima1DInterpolator(z, density, method="makima")(fine), 0.0)


FIGURES: dict[str, Callable[[Comparison, int], Figure]] = {
    "marginals": marginals,
    "gaps": gaps,
    "reverse_kl": divergences_by_step,
    "elbo": elbos_by_step,
}
