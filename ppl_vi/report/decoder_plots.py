"""Figures of a VAE with an amortized guide: latent space, decoded images, gaps and training.

Each function makes a `Figure` of its own, without pyplot, so that no global state of matplotlib is touched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.special import ndtri
from torch import Tensor

from ppl_vi.guides.amortized import Head
from ppl_vi.metrics.decoder.gaps import AmortizedScorecard
from ppl_vi.report.numbers import three_digits
from ppl_vi.report.style import BLUE, DARK, DPI, GREY, ORANGE, VERMILION, plain
from ppl_vi.svi.minibatch import Trained
from ppl_vi.target.target import Target

NUM_TILES = 15  # images along each side of the manifold
NUM_IMAGES = 10  # in each row of reconstructions, prior samples and traversals
NUM_WORST = 6  # data points whose posterior is drawn
NUM_SIDE = 161  # points along each side of a drawn posterior
# Gaps in nats are drawn on logarithmic axes, on which 0 has no place: any smaller gap is drawn as this one.
MIN_DRAWN_GAP = 1e-4
ANGLES = np.linspace(0, 2 * np.pi, 100)  # of the points of an ellipse
# Components of a mixture that are lighter than this, relative to the heaviest, may lie outside the frame.
MIN_FRAMED_WEIGHT = 0.05
RADII = (1.0, 2.0)  # of a Gaussian's ellipses, in standard deviations


@dataclass(frozen=True, eq=False)
class Portrait:
    """One guide's VAE on one split of the data, with all that its figures show.

    Attributes:
        guide: the name of the guide's family.
        split: "train" or "test".
        trained: the trained VAE and its training history.
        head: the family of the guide for a single data point.
        target: the model, with one problem for each of `B` data points.
        local: the parameters that the encoder gives each data point, `(B, P)`.
        card: the gaps.
        labels: the labels of the data points, `(B,)`, or None.
        shape: the height and width of an image.
        preparation: what was done to the pixels before training.
    """

    guide: str
    split: str
    trained: Trained
    head: Head
    target: Target
    local: Tensor
    card: AmortizedScorecard
    labels: np.ndarray | None
    shape: tuple[int, int]
    preparation: str = ""

    @property
    def best(self) -> Tensor:
        """Each data point's best local parameters, `(B, P)`."""
        return torch.from_numpy(self.card.best)

    @property
    def images(self) -> np.ndarray:
        """The data, `(B, height, width)`."""
        return self.target.args[0].reshape(-1, *self.shape).cpu().numpy()

    @property
    def loc(self) -> np.ndarray:
        """The encoder's means, `(B, D)`."""
        return self.head(self.local).mean.cpu().numpy()

    def decoded(self, z: np.ndarray) -> np.ndarray:
        """The mean image at latents `(S, D)`: `(S, height, width)`."""
        module: Any = self.trained.module
        with torch.no_grad():
            dtype = next(module.parameters()).dtype
            mean = module.observation(torch.from_numpy(z).to(dtype)).mean
        return mean.reshape(-1, *self.shape).cpu().numpy()


def latent_space(portrait: Portrait) -> Figure:
    """The encoder's means, coloured by label."""
    figure = Figure(figsize=(6.5, 5.5), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    loc = portrait.loc
    if portrait.labels is None:
        axes.scatter(loc[:, 0], loc[:, 1], s=8, color=BLUE)
    else:
        digits, labels = np.arange(10), np.unique(portrait.labels)
        labels = digits if np.isin(labels, digits).all() else labels
        cmap = colormaps["tab10" if len(labels) <= len(digits) else "turbo"].resampled(len(labels))
        at = np.searchsorted(labels, portrait.labels)
        colors = axes.scatter(loc[:, 0], loc[:, 1], s=10, c=at, cmap=cmap, vmin=-0.5, vmax=len(labels) - 0.5)
        bar = figure.colorbar(colors, ax=axes, label="digit" if labels is digits else "label")
        bar.set_ticks(range(len(labels)), labels=[str(label) for label in labels], fontsize=8)
    axes.set_aspect("equal", "datalim")
    _titled(axes, f"{portrait.guide}: the encoder's means, {portrait.split}", "$z_1$", "$z_2$")
    return figure


def manifold(portrait: Portrait) -> Figure:
    """Decoded images over the first two latents, equal steps in prior probability."""
    at = ndtri((np.arange(NUM_TILES) + 0.5) / NUM_TILES)
    z = np.zeros((NUM_TILES**2, portrait.target.dim))
    z[:, :2] = np.stack(np.meshgrid(at, at[::-1]), -1).reshape(-1, 2)
    tiles = portrait.decoded(z).reshape(NUM_TILES, NUM_TILES, *portrait.shape)
    figure = Figure(figsize=(6, 6.3), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    apart = np.pad(tiles, [(0, 0), (0, 0), (1, 0), (1, 0)])  # a line between the images
    _picture(axes, apart.transpose(0, 2, 1, 3).reshape(NUM_TILES * (portrait.shape[0] + 1), -1))
    axes.set_title(f"{portrait.guide}: the decoder over the prior's quantiles", fontsize=11)
    return figure


def reconstructions(portrait: Portrait) -> Figure:
    """Data, their reconstructions, samples from the prior and traversals of each latent."""
    images = portrait.images[:NUM_IMAGES]
    rng = np.random.default_rng(0)
    rows = {
        "data": images,
        "reconstruction": portrait.decoded(portrait.loc[:NUM_IMAGES]),
        "prior sample": portrait.decoded(rng.standard_normal((NUM_IMAGES, portrait.target.dim))),
    }
    steps = ndtri(np.linspace(0.02, 0.98, NUM_IMAGES))
    for d in range(min(portrait.target.dim, 4)):
        z = np.zeros((NUM_IMAGES, portrait.target.dim))
        z[:, d] = steps
        rows[f"along $z_{d + 1}$"] = portrait.decoded(z)
    figure = Figure(figsize=(0.75 * NUM_IMAGES + 1.4, 0.8 * len(rows) + 0.5), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(rows), NUM_IMAGES, squeeze=False)
    for line, (name, pictures) in zip(grid, rows.items(), strict=True):
        for axes in line:
            axes.set_axis_off()
        for axes, picture in zip(line, pictures, strict=False):
            _picture(axes, picture)
        line[0].text(-0.15, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
    figure.suptitle(f"{portrait.guide}, {portrait.split}", fontsize=11)
    return figure


def gap_histograms(portraits: list[Portrait]) -> Figure:
    """How the two parts of the gap are spread over data points; a row for each guide and split."""
    figure = Figure(figsize=(8.5, 0.6 + 1.5 * len(portraits)), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(portraits), 2, squeeze=False, sharex=True)
    largest = max(float(np.max(_shown(p, "total"), initial=1.0)) for p in portraits)
    bins = np.geomspace(MIN_DRAWN_GAP, 2 * largest, 45)
    for line, portrait in zip(grid, portraits, strict=True):
        parts = (("approximation", BLUE), ("amortization", ORANGE))
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
        _titled(axes, f"{portrait.guide}, {portrait.split}", "log p(x) [nats]", "log p(x) - ELBO [nats]")
    for axes in grid.flat[len(portraits) :]:
        axes.set_axis_off()
    return figure


def worst_points(portrait: Portrait) -> Figure:
    """The posteriors of the data points with the largest gaps, the encoder's guide and the family's best member."""
    total = np.where(portrait.card.trusted, portrait.card.total, -np.inf)
    worst = np.argsort(-total)[:NUM_WORST]
    figure = Figure(figsize=(10.5, 7.4), dpi=DPI, layout="constrained")
    for axes, index in zip(figure.subplots(2, 3).flat, worst, strict=False):
        _posterior(axes, portrait, int(index))
    figure.suptitle(
        f"{portrait.guide}, {portrait.split}: the largest gaps. Grey: the true posterior; "
        "dashed orange: the encoder's q; blue: the family's best"
        + ("; the paler, the lighter a component" if portrait.head.num_components > 1 else ""),
        fontsize=10,
    )
    return figure


def _posterior(axes: Axes, portrait: Portrait, index: int) -> None:
    encoder, best = (_gaussians(portrait.head, local[index]) for local in (portrait.local, portrait.best))
    corners = np.concatenate([curve for curve, weight in (*encoder, *best) if weight > MIN_FRAMED_WEIGHT])
    low, high = corners.min(0), corners.max(0)
    middle, half = (low + high) / 2, 0.75 * float((high - low).max()) + 0.1
    sides = [np.linspace(m - half, m + half, NUM_SIDE) for m in middle]
    z = np.stack(np.meshgrid(*sides), -1)
    rows = portrait.target.rows(torch.tensor([index]))
    point = {portrait.target.latents[0].name: torch.from_numpy(z.reshape(1, -1, 2))}
    log_density = rows.log_joint(point).cpu().numpy().reshape(NUM_SIDE, NUM_SIDE)
    axes.contourf(*sides, np.exp(log_density - log_density.max()), levels=12, cmap="Greys")
    for curve, weight in encoder:
        axes.plot(*curve.T, color=VERMILION, linestyle="--", linewidth=1.2, alpha=weight)
    for curve, weight in best:
        axes.plot(*curve.T, color=BLUE, linewidth=1.2, alpha=weight)
    card = portrait.card
    best_gap = three_digits(card.approximation[index], card.approximation_error[index])
    encoder_gap = three_digits(card.amortization[index], card.amortization_error[index])
    axes.set_title(f"gap {three_digits(card.total[index])} = {best_gap} family + {encoder_gap} encoder", fontsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    inset = axes.inset_axes((0.79, 0.77, 0.2, 0.22))
    _picture(inset, portrait.images[index])
    axes.tick_params(labelsize=8)


def _gaussians(head: Head, local: Tensor) -> list[tuple[np.ndarray, float]]:
    """Ellipses of the components of a guide of two latents, `(100, 2)` each, with weights relative to the heaviest."""
    log_weights, locs, trils = (part.cpu().numpy() for part in head.components(local))
    weights = np.exp(log_weights - log_weights.max())
    circle = np.stack([np.cos(ANGLES), np.sin(ANGLES)], -1)
    radii = RADII if len(weights) == 1 else RADII[:1]  # the outer ellipses of many components hide each other
    each = zip(locs, trils, weights, strict=True)
    return [(loc + radius * circle @ tril.T, float(weight)) for loc, tril, weight in each for radius in radii]


def training_curves(trained: dict[str, Trained]) -> Figure:
    """ELBO a data point against epochs, on train and held-out data."""
    figure = Figure(figsize=(6.5, 4.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for (name, run), color in zip(trained.items(), (BLUE, ORANGE, VERMILION, DARK, GREY), strict=False):
        epochs = np.arange(1, len(run.train_elbo) + 1)
        axes.plot(epochs, run.train_elbo, color=color, linewidth=1, linestyle=":", label=f"{name}, train")
        axes.plot(epochs, run.held_out_elbo, color=color, linewidth=1.3, label=f"{name}, held out")
        axes.axvline(run.best_epoch + 1, color=color, linewidth=0.7)
    values = np.concatenate([run.held_out_elbo for run in trained.values()])
    axes.set_ylim(np.quantile(values, 0.05) - 1, max(float(np.max(run.train_elbo)) for run in trained.values()) + 1)
    axes.legend(frameon=False, fontsize=9)
    _titled(axes, "training (vertical: the epoch kept)", "epoch", "ELBO a data point [nats]")
    return figure


def _shown(portrait: Portrait, name: str) -> np.ndarray:
    values: np.ndarray = getattr(portrait.card, name)
    return values[portrait.card.trusted]


def _picture(axes: Axes, picture: np.ndarray) -> None:
    axes.imshow(picture, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])


def _titled(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    plain(axes, label_size=8)
