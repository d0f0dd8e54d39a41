"""Figures of a VAE with an amortized guide: latent space, decoded images, and posteriors of single data points.

Each function makes a `Figure` of its own, without pyplot, so that no global state of matplotlib is touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scipy.special import ndtri
from torch import Tensor

from ppl_vi.guides.amortized import Head
from ppl_vi.metrics.decoder.gaps import AmortizedScorecard
from ppl_vi.report.numbers import three_digits
from ppl_vi.report.style import (
    BLUE,
    DIGIT_COLORS,
    DPI,
    NOTE_SIZE,
    VERMILION,
    plain,
)
from ppl_vi.svi.minibatch import Trained
from ppl_vi.target.target import Target

NUM_TILES = 15  # images along each side of the manifold
NUM_IMAGES = 10  # in each row of reconstructions, prior samples and traversals
NUM_WORST = 6  # data points whose posterior is drawn
NUM_SIDE = 161  # points along each side of a drawn posterior
ANGLES = np.linspace(0, 2 * np.pi, 100)  # of the points of an ellipse
# Components of a mixture that are lighter than this, relative to the heaviest, may lie outside the frame.
MIN_FRAMED_WEIGHT = 0.05
RADII = (1.0, 2.0)  # of a Gaussian's ellipses, in standard deviations
# The prior of every latent is Normal(0, 1), so that its standard deviation is the unit of the latents.
LATENT_AXES = ("$z_1$ [prior sd]", "$z_2$ [prior sd]")
SHAPES = "osDP^vX<>*"  # of points whose labels are too long to be drawn
# The levels of a drawn posterior: its density divided by its largest value.
LEVELS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


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
    """The encoder's means; each point is drawn as its label, in the label's colour."""
    figure = Figure(figsize=(6.5, 5.5), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    loc = portrait.loc
    if portrait.labels is None:
        axes.scatter(loc[:, 0], loc[:, 1], s=8, color=BLUE)
    else:
        labels = np.unique(portrait.labels)
        names = [str(label) for label in labels]
        for i, (label, name) in enumerate(zip(labels, names, strict=True)):
            here = loc[portrait.labels == label]
            color = DIGIT_COLORS[i % len(DIGIT_COLORS)]
            axes.scatter(here[:, 0], here[:, 1], s=36, color=color, marker=_marker(name, i), linewidth=0, label=name)
        what = "digit" if all(name.isdigit() and len(name) == 1 for name in names) else "label"
        where: dict[str, Any] = {"loc": "outside right upper", "frameon": False, "fontsize": NOTE_SIZE}
        figure.legend(title=what, ncols=1 + len(names) // 30, **where)
    axes.set_aspect("equal", "datalim")
    titled(axes, f"{portrait.guide}: the encoder's means, {portrait.split}", *LATENT_AXES)
    return figure


def _marker(name: str, number: int) -> str:
    """A label as a marker if it is short, so that colour is not all that tells labels apart, or else a shape."""
    return f"${name}$" if name.isalnum() and len(name) <= 2 else SHAPES[number % len(SHAPES)]


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
    rest = ", the other latents 0" if portrait.target.dim > 2 else ""
    axes.set_title(f"{portrait.guide}: the decoder over the prior's quantiles{rest}", fontsize=11)
    axes.set_xlabel(f"$z_1$, from {at[0]:.2f} to {at[-1]:.2f} prior sd")
    axes.set_ylabel(f"$z_2$, from {at[0]:.2f} to {at[-1]:.2f} prior sd")
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


def worst_points(portrait: Portrait) -> Figure:
    """The posteriors of the data points with the largest gaps, the encoder's guide and the family's best member."""
    total = np.where(portrait.card.trusted, portrait.card.total, -np.inf)
    worst = np.argsort(-total)[: min(NUM_WORST, int(portrait.card.trusted.sum()))]
    figure = Figure(figsize=(11.2, 7.9), dpi=DPI, layout="constrained")
    panels = figure.subplots(2, 3).ravel()
    levels = [_posterior(axes, portrait, int(index)) for axes, index in zip(panels, worst, strict=False)]
    for axes in panels[len(worst) :]:
        axes.set_axis_off()
    for place, axes in enumerate(panels[: len(worst)]):
        axes.set_xlabel(LATENT_AXES[0] if place + 3 >= len(worst) else "", fontsize=9)
        axes.set_ylabel(LATENT_AXES[1] if place % 3 == 0 else "", fontsize=9)
    if levels:
        bar = figure.colorbar(levels[0], ax=panels.tolist(), shrink=0.6, pad=0.01, ticks=LEVELS)
        bar.set_label("posterior density, as a share of its largest value", fontsize=9)
        bar.ax.tick_params(labelsize=NOTE_SIZE)
    paler = "; the paler, the lighter a component" if portrait.head.num_components > 1 else ""
    radii = "1 sd" if portrait.head.num_components > 1 else "1 and 2 sd"
    keys = [
        Line2D([], [], color=VERMILION, linestyle="--", label=f"the encoder's guide ({radii}{paler})"),
        Line2D([], [], color=BLUE, label=f"the family's best member ({radii}{paler})"),
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.suptitle(f"{portrait.guide}, {portrait.split}: the data points with the largest gaps, nats", fontsize=11)
    return figure


def _posterior(axes: Axes, portrait: Portrait, index: int) -> QuadContourSet:
    """Draws the posterior of a data point, with two guides and the image; gives the levels of its density."""
    encoder, best = (_gaussians(portrait.head, local[index]) for local in (portrait.local, portrait.best))
    corners = np.concatenate([curve for curve, weight in (*encoder, *best) if weight > MIN_FRAMED_WEIGHT])
    low, high = corners.min(0), corners.max(0)
    middle, half = (low + high) / 2, 0.75 * float((high - low).max()) + 0.1
    sides = [np.linspace(m - half, m + half, NUM_SIDE) for m in middle]
    z = np.stack(np.meshgrid(*sides), -1)
    rows = portrait.target.rows(torch.tensor([index]))
    point = {portrait.target.latents[0].name: torch.from_numpy(z.reshape(1, -1, 2))}
    log_density = rows.log_joint(point).cpu().numpy().reshape(NUM_SIDE, NUM_SIDE)
    density = np.exp(log_density - log_density.max())
    levels = axes.contourf(*sides, density, levels=LEVELS, cmap="Greys", vmin=0.0, vmax=1.1)
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
    return levels


def _gaussians(head: Head, local: Tensor) -> list[tuple[np.ndarray, float]]:
    """Ellipses of the components of a guide of two latents, `(100, 2)` each, with weights relative to the heaviest."""
    log_weights, locs, trils = (part.cpu().numpy() for part in head.components(local))
    weights = np.exp(log_weights - log_weights.max())
    circle = np.stack([np.cos(ANGLES), np.sin(ANGLES)], -1)
    radii = RADII if len(weights) == 1 else RADII[:1]  # the outer ellipses of many components hide each other
    each = zip(locs, trils, weights, strict=True)
    return [(loc + radius * circle @ tril.T, float(weight)) for loc, tril, weight in each for radius in radii]


def _picture(axes: Axes, picture: np.ndarray) -> None:
    axes.imshow(picture, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])


def titled(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    plain(axes, label_size=8)
