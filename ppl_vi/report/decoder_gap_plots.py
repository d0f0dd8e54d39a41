"""Figures of a VAE's gaps and training: means, how they are spread over data points, and ELBOs against epochs."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ppl_vi.report.decoder_plots import Portrait, titled
from ppl_vi.report.gap_bars import Bar, figure_of
from ppl_vi.report.numbers import three_digits
from ppl_vi.report.style import BLUE, DARK, DPI, LINE_COLORS, PART_COLORS, plain
from ppl_vi.svi.minibatch import Trained

# Gaps in nats are drawn on logarithmic axes, on which 0 has no place: any smaller gap is drawn as this one.
MIN_DRAWN_GAP = 1e-4


def bars(portraits: list[Portrait]) -> Figure:
    """The mean gap of a data point as stacked bars; a bar for each guide and split."""
    heading = "How far the encoders' guides are from the posteriors, and why: means over data points"
    return figure_of([_bar(portrait) for portrait in portraits], heading)


def _bar(portrait: Portrait) -> Bar:
    name = f"{portrait.guide}, {portrait.split}"
    if not portrait.card.trusted.any():
        return Bar(name, math.nan, reason="no data point has a certified truth")
    total, family, amortization = (
        float(np.mean(_shown(portrait, part))) for part in ("total", "approximation", "amortization")
    )
    texts = {"reverse KL": total, "family": family, "amortization": amortization}
    parts = {"family": family, "amortization": total - family}
    return Bar(name, total, parts, {part: three_digits(value) for part, value in texts.items()})


def gap_histograms(portraits: list[Portrait]) -> Figure:
    """How the two parts of the gap are spread over data points; a row for each guide and split."""
    figure = Figure(figsize=(8.5, 0.6 + 1.5 * len(portraits)), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(portraits), 2, squeeze=False, sharex=True)
    largest = max(float(np.max(_shown(p, "total"), initial=1.0)) for p in portraits)
    bins = np.geomspace(MIN_DRAWN_GAP, 2 * largest, 45)
    for line, portrait in zip(grid, portraits, strict=True):
        parts = (("approximation", PART_COLORS["family"]), ("amortization", PART_COLORS["amortization"]))
        for axes, (name, color) in zip(line, parts, strict=True):
            values = _shown(portrait, name)
            axes.hist(np.maximum(values, MIN_DRAWN_GAP), bins, color=color)
            axes.axvline(max(float(np.median(values)), MIN_DRAWN_GAP), color=DARK, linewidth=1)
            axes.set_xscale("log")
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
            text = f"{portrait.guide}, {portrait.split}: {name}, median {three_digits(np.median(values))} nats"
            axes.set_title(text, fontsize=9)
            plain(axes, label_size=8)
    figure.supylabel("data points", fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel(f"nats a data point (below {MIN_DRAWN_GAP:g}: drawn there)", fontsize=9)
    return figure


def gap_against_evidence(portraits: list[Portrait]) -> Figure:
    """The total gap of each data point against its log evidence; a panel for each guide and split."""
    columns = min(2, len(portraits))
    rows = math.ceil(len(portraits) / columns)
    figure = Figure(figsize=(4.3 * columns, 3.1 * rows), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes, portrait in zip(grid.flat, portraits, strict=False):
        card = portrait.card
        axes.scatter(
            card.log_evidence[card.trusted], np.maximum(_shown(portrait, "total"), MIN_DRAWN_GAP), s=6, color=BLUE
        )
        axes.set_yscale("log")
        low = (
            f"\n(below {MIN_DRAWN_GAP:g}: drawn there)"
            if _shown(portrait, "total").min(initial=1.0) < MIN_DRAWN_GAP
            else ""
        )
        titled(axes, f"{portrait.guide}, {portrait.split}", "log p(x) [nats]", f"log p(x) - ELBO [nats]{low}")
        axes.label_outer()
    for axes in grid.flat[len(portraits) :]:
        axes.set_axis_off()
    return figure


def training_curves(trained: dict[str, Trained]) -> Figure:
    """ELBO a data point against epochs, on train and held-out data."""
    figure = Figure(figsize=(6.5, 4.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for i, (name, run) in enumerate(trained.items()):
        epochs, color = np.arange(1, len(run.train_elbo) + 1), LINE_COLORS[i % len(LINE_COLORS)]
        axes.plot(epochs, run.train_elbo, color=color, linewidth=1, linestyle=":", label=f"{name}, train")
        axes.plot(epochs, run.held_out_elbo, color=color, linewidth=1.3, label=f"{name}, held out")
        axes.axvline(run.best_epoch + 1, color=color, linewidth=0.7)
    values = np.concatenate([run.held_out_elbo for run in trained.values()])
    axes.set_ylim(np.quantile(values, 0.05) - 1, max(float(np.max(run.train_elbo)) for run in trained.values()) + 1)
    figure.legend(loc="outside lower center", ncols=min(4, 2 * len(trained)), frameon=False, fontsize=9)
    titled(axes, "training (vertical: the epoch kept)", "epoch", "ELBO a data point [nats]")
    return figure


def _shown(portrait: Portrait, name: str) -> np.ndarray:
    values: np.ndarray = getattr(portrait.card, name)
    return values[portrait.card.trusted]
