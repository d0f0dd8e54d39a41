"""The curvature of the loss where a round ends, and how far a step of the next round moves the parameters.

A step of size 1 should move a fit about as far as its loss is curved: along each parameter, or along each principal
axis of the Hessian, so that steps in a narrow valley run along it. A Hessian takes 2 D gradients at all points of its
noise, so replicas that lie near each other share one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_vi.numerics.newton import eigen
from ppl_vi.svi.gradients import MeanGradients

# The Hessian takes 2 D gradients and has D^2 numbers. Fits of more parameters than this have a preconditioner of 1,
# take all steps, and are checked by products with the Hessian after the last (`ppl_vi.svi.solves`).
MAX_HESSIAN_PARAMETERS = 200
# Sobol points for a preconditioner, of which only the rough size matters: along axes, and along the parameters alone.
AXES_POINTS, UNITS_POINTS = 128, 16
# The step of the differences that give the Hessian where a fit begins, relative to a parameter's size where that is
# above 1.
FIRST_DIFFERENCE = 1e-5
# The same after a round, in units of each parameter. It is wide, since draws may jump when parameters move, as those by
# rejection do, or have a kink, as |x| has: a narrow step between two kinks would not see what curvature they make.
DIFFERENCE = 0.05
# A Newton step longer than this many steps of size 1 sets the preconditioner itself. It promises a gain of more than
# FAR_NEWTON_STEP^2 / 2 nats along that parameter.
FAR_NEWTON_STEP = 5.0
# Replicas share a Hessian if no parameter differs by more than this many units. A larger number saves gradients, and
# takes the Hessian from farther away.
NEARBY = 0.25
# The most Hessians for the replicas of a problem. Replicas near none of them take the nearest one.
MAX_HESSIANS = 16


@dataclass(frozen=True)
class Preconditioner:
    """How far a step of size 1 moves the parameters of `B` problems, `R` replicas each.

    Attributes:
        units: along each parameter, `(B, R, D)`.
        steps: what the steps take: the units, or `(B, R, D, D)`, whose columns are how far a step of size 1 moves the
            parameters along each principal axis of the Hessian.
    """

    units: Tensor
    steps: Tensor

    def of_replicas(self, num_replicas: int) -> Preconditioner:
        """The same for so many replicas, where it is that of one."""
        return Preconditioner(*(t.expand(-1, num_replicas, *t.shape[2:]) for t in (self.units, self.steps)))

    def with_replicas(self, replicas: Tensor, other: Preconditioner) -> Preconditioner:
        """The same, but for the replicas of these numbers that of another."""
        pairs = ((self.units, other.units), (self.steps, other.steps))
        return Preconditioner(*(mine.index_copy(1, replicas, theirs) for mine, theirs in pairs))


@dataclass(frozen=True)
class Curvature:
    """Hessians of the loss at some replicas of each problem, each of which stands for those near to it.

    Attributes:
        group: the number of the Hessian that stands for each replica, `(B, R)`.
        hessians: `(B, G, S, D, D)`, each on `S` independent sets of points.
        num_points: how many points there are in all sets together.
    """

    group: Tensor
    hessians: Tensor
    num_points: int

    def of_replicas(self, replicas: Tensor) -> Tensor:
        """The Hessians that stand for the replicas of these numbers, `(B, N, S, D, D)`."""
        group = self.group[:, replicas][..., None, None, None]
        return self.hessians.take_along_dim(group, 1)


def nearby(theta: Tensor, units: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Replicas that stand for those near to them, among replicas `theta` `(B, R, D)` in the units `(B, R, D)`.

    Each is the first that is near to none of those before it.

    Returns:
        Their numbers, at most `most` for each problem, `(B, G)`; and for each replica the place there of the one that
        is nearest, `(B, R)`. A problem of fewer than another repeats its first.
    """
    places, lengths = theta.cpu().numpy(), units.cpu().numpy()  # whose many small operations take less time
    apart: list[np.ndarray] = []
    chosen: list[np.ndarray] = []
    is_far = np.ones(theta.shape[:2], dtype=bool)
    while is_far.any() and len(chosen) < most:
        chosen.append(is_far.argmax(1)[:, None])  # the first that is far, or 0
        away = places - np.take_along_axis(places, chosen[-1][..., None], 1)
        apart.append(np.abs(away / lengths).max(-1))
        is_far &= (apart[-1] > NEARBY) & np.isfinite(apart[-1])
    nearest = np.stack(apart).argmin(0)
    return torch.from_numpy(np.concatenate(chosen, 1)).to(theta.device), torch.from_numpy(nearest).to(theta.device)


def curvature_preconditioner(
    estimator: MeanGradients, theta: Tensor, num_points: int, seed: int, by_axes: bool = False
) -> Preconditioner:
    """How far a step of size 1 moves the parameters, from the curvature at `theta` `(B, R, D)`; see `preconditioner`.

    Args:
        estimator: gives gradients and Hessians.
        theta: the parameters.
        num_points: Sobol points a scramble.
        seed: of the noise.
        by_axes: whether steps go along the principal axes. Along each parameter otherwise.
    """
    if estimator.program.layout.size > MAX_HESSIAN_PARAMETERS:
        ones = torch.ones_like(theta)
        return Preconditioner(ones, ones)
    noise = estimator.halves(num_points, seed)
    step = FIRST_DIFFERENCE * theta.abs().clamp(min=1.0)
    hessians = estimator.hessians(theta, noise, step)
    return preconditioner(theta, hessians, estimator.gradients(theta, noise).mean(2), by_axes)


def preconditioner(theta: Tensor, hessians: Tensor, gradient: Tensor, by_axes: bool) -> Preconditioner:
    """How far a step of size 1 moves the parameters, from the curvature there.

    Along a parameter it is the Hessian's diagonal h to the power -1/2. Where that is more than 1 and more than the
    parameter's own size, it is 1, so that steps do not run along a flat direction. A round goes no further than about
    six steps of size 1. Where Newton's step along a parameter is many of these, a step of size 1 is two of Newton's
    steps: along the logarithm of a scale that is far too wide, Newton's step is 1/2, however far the optimum is.

    Along the principal axes the rule is the same. The axes are those of the Hessian, in units of h^(-1/2), on the first
    set of points. The curvature along each is taken on the last, since the axes along which one set sees the least
    curvature are in part those along which its noise is smallest.

    Args:
        theta, gradient: the parameters, and the gradient of the loss there, `(B, R, D)`.
        hessians: on `S` independent sets of points, `(B, R, S, D, D)`.
        by_axes: whether steps go along the principal axes. Along each parameter otherwise.
    """
    ones, widest = torch.ones_like(theta), theta.abs().clamp(min=1.0)
    diagonal = torch.diagonal(hessians.mean(2), dim1=-2, dim2=-1)
    units = _lengths(diagonal, gradient, widest, ones)
    if not by_axes:
        return Preconditioner(units, units)
    axes = _axes(hessians[:, :, 0], _lengths(diagonal, torch.zeros_like(gradient), widest, ones))
    curvature = (axes * (hessians[:, :, -1] @ axes)).sum(-2)
    slope = (axes.mT @ gradient[..., None])[..., 0]
    farthest = _within(widest, axes)
    lengths = _lengths(curvature, slope, farthest, farthest)
    return Preconditioner(units, axes * lengths[..., None, :])


def _lengths(curvature: Tensor, slope: Tensor, widest: Tensor, flat: Tensor) -> Tensor:
    """How far to move in a step of size 1 along some directions, `(B, R, D)` as all arguments.

    Args:
        curvature, slope: of the loss along them.
        widest: the farthest that a step of size 1 may move for its curvature.
        flat: how far it moves where its curvature lets it go farther.
    """
    is_curved = curvature.isfinite() & (curvature.abs() > widest**-2)
    size = torch.where(is_curved, curvature.abs(), 1.0)
    length = torch.where(is_curved, size.rsqrt(), flat)
    newton_step = slope.abs() / size
    is_far = is_curved & (curvature > 0) & newton_step.isfinite() & (newton_step > FAR_NEWTON_STEP * length)
    return torch.where(is_far, 2 * newton_step, length)


def _axes(hessian: Tensor, units: Tensor) -> Tensor:
    """The principal axes of a Hessian `(..., D, D)` in the units `(..., D)`, of length 1 in these, as columns."""
    scaled = units[..., :, None] * hessian * units[..., None, :]
    return units[..., :, None] * eigen(scaled)[1]


def _within(bound: Tensor, axes: Tensor) -> Tensor:
    """How far one can go along each axis before a parameter has moved by its bound, `(..., D)`."""
    return (bound[..., :, None] / axes.abs()).amin(-2)
