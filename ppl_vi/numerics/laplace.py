"""A Gaussian at the mode of a density, or, where the mode is far from the mass, one that is near the mass.

The first is Laplace's approximation: the mode, found by Newton's method, and the second derivatives there. The second
is the Gaussian with independent coordinates of least reverse KL, found on few fixed points. Neither is
exact: fits and quadratures start from them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.optimize
import torch
from torch import Tensor
from torch.func import grad, grad_and_value

from ppl_vi.numerics.newton import by_differences, minimize, minimize_by
from ppl_vi.numerics.vmapping import vmap_or_loop

# From points `(B, S, D)` to values `(B, S)` and gradients `(B, S, D)`.
Slopes = Callable[[Tensor], tuple[Tensor, Tensor]]
# The steps of differences of gradients: on the way to a mode, for each unit of a coordinate, the cube root of what is
# rounded; and at the mode, for each standard deviation. A wider one misses how curvature changes, a narrower one has
# more rounding in it.
FIRST_DIFFERENCE, DIFFERENCE = 6e-6, 1e-3
# A search that ended on a saddle begins again at its start plus this many unconstrained units times a normal draw.
NUDGE_SCALE = 0.1
# A search that found no mode counts as ended on a saddle if the slope there is at most this for each nat of the log
# density.
LEVEL_SLOPE = 1e-6
# Expectations over a Gaussian take this many antithetic points, or four for each coordinate where that is more.
MIN_NODES = 64
# The search for a Gaussian near the mass begins with the scale START_SCALE, which is halved until all of its points
# have a finite density, at most MAX_HALVINGS times.
START_SCALE = 0.1
MAX_HALVINGS = 40
# A mode counts as having mass around it if the mean log density there differs from what the curvature at the mode
# promises by at most this many nats, plus a quarter of a nat for each coordinate.
MASS_TOLERANCE = 3.0
# With more coordinates than this, second derivatives cost too much, and L-BFGS takes the place of Newton's method.
MAX_NEWTON_DIM = 40


@dataclass(frozen=True)
class Laplace:
    """The mode of each problem's posterior in unconstrained space and the curvature there.

    Where no mode was found (centred eight schools have none) it is the centre and the precision of the Gaussian with
    independent coordinates nearest to the posterior in reverse KL, which there always is.

    Attributes:
        loc: `(B, D)`.
        precision: minus the second derivatives of the log density, `(B, D, D)`.
        log_density: the unnormalised log density at `loc`, Jacobian included, `(B,)`, nats.
        converged: whether `loc` is a mode, `(B,)`.
    """

    loc: Tensor
    precision: Tensor
    log_density: Tensor
    converged: Tensor

    @cached_property
    def scale(self) -> Tensor:
        """Standard deviation of each coordinate given the others, `(B, D)`: `precision_dd^(-1/2)`, or 1 where flat."""
        diagonal = torch.diagonal(self.precision, dim1=-2, dim2=-1)
        curved = diagonal > 0
        return torch.where(curved, torch.where(curved, diagonal, torch.ones_like(diagonal)).rsqrt(), 1.0)

    @cached_property
    def cholesky(self) -> Tensor:
        """The Cholesky factor of the inverse precision, `(B, D, D)`; that of `scale` alone where there is none."""
        eye = torch.eye(self.loc.shape[-1], dtype=self.loc.dtype, device=self.loc.device)
        upper, failed = torch.linalg.cholesky_ex(self.precision.flip(-1, -2))
        inverse = torch.linalg.solve_triangular(upper.flip(-1, -2), eye.expand_as(self.precision), upper=True)
        usable = (failed == 0)[:, None, None] & inverse.isfinite().all(-1).all(-1)[:, None, None]
        return torch.where(usable, inverse.mT, torch.diag_embed(self.scale))


def laplace_approximation(
    log_density: Callable[..., Tensor],
    start: Tensor,
    args: tuple[Tensor, ...],
    tolerance: float,
    chunk_size: int | None = None,
    slopes: Slopes | None = None,
) -> Laplace:
    """The mode near `start`, which need not be the highest.

    Args:
        log_density: of one point `(D,)` and one row of each of `args`.
        start: points where it is finite, `(B, D)`.
        args: tensors with leading axis `B`.
        tolerance: nats.
        chunk_size: how many derivatives of the density are computed at once; None is all.
        slopes: a faster way to values `(B, S)` and gradients `(B, S, D)` of the density at points `(B, S, D)`, where
            there is one. The curvature is then found by differences.

    Raises:
        ValueError: the density is not finite at the start.
    """

    def loss(u: Tensor, *row: Tensor) -> Tensor:
        return -log_density(u, *row)

    if slopes is not None:
        by_slopes = laplace_by_slopes(slopes, start, tolerance)
        if bool(by_slopes.converged.all()):
            return by_slopes
    found = minimize(loss, start, args=args, tolerance=tolerance, chunk_size=chunk_size)
    laplace = Laplace(found.x, found.hessian, -found.value, found.converged)
    level = vmap_or_loop(grad(loss))(found.x, *args).abs().amax(-1) <= LEVEL_SLOPE * (1 + found.value.abs())
    laplace = _retried(laplace, ~found.converged & level, _nudged, loss, start, args, tolerance)
    return _retried(laplace, ~laplace.converged, _independent, loss, start, args, tolerance)


def laplace_by_slopes(slopes: Slopes, start: Tensor, tolerance: float, max_steps: int = 200) -> Laplace:
    """The mode near each `start` `(B, D)`; its curvature by differences over a thousandth of a standard deviation.

    Args:
        slopes: values `(B, S)` and gradients `(B, S, D)` of the log density at points `(B, S, D)`.
        start: points where it is finite.
        tolerance: nats.
        max_steps: of Newton's method, at most.
    """

    def of_loss(points: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = slopes(points)
        return -value, -gradient

    def derivatives(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return by_differences(of_loss, x, FIRST_DIFFERENCE * x.abs().clamp(min=1.0))

    found = minimize_by(derivatives, start, tolerance=tolerance, max_steps=max_steps)
    rough = Laplace(found.x, found.hessian, -found.value, found.converged)
    return replace(rough, precision=by_differences(of_loss, found.x, DIFFERENCE * rough.scale)[2])


def centred_on_mass(
    laplace: Laplace,
    log_density: Callable[..., Tensor],
    start: Tensor,
    args: tuple[Tensor, ...],
    tolerance: float,
    chunk_size: int | None = None,
    slopes: Slopes | None = None,
) -> Laplace:
    """The same approximations, but Gaussians near the mass for problems whose mode has no mass around it.

    Neal's funnel of ten latents is highest at v = -40, thirteen standard deviations from its mass: nothing could begin
    there.

    Args:
        laplace: of the same problems.
        log_density, start, args, tolerance: see `laplace_approximation`.
        chunk_size: at how many points the density is computed at once; None is all.
        slopes: a faster way to values and gradients, see `laplace_approximation`.
    """

    def loss(u: Tensor, *row: Tensor) -> Tensor:
        return -log_density(u, *row)

    lost = laplace.converged & ~_stands_for_mass(laplace, loss, args, chunk_size, slopes)
    return _retried(laplace, lost, _independent, loss, start, args, tolerance)


def _retried(
    laplace: Laplace,
    wanted: Tensor,
    retry: Callable[..., Laplace],
    loss: Callable[..., Tensor],
    start: Tensor,
    args: tuple[Tensor, ...],
    tolerance: float,
) -> Laplace:
    """The same approximations, but those of the wanted problems, `(B,)`, found anew by another way."""
    index = wanted.nonzero()[:, 0]
    if len(index) == 0:
        return laplace
    return _replaced(laplace, index, retry(loss, start[index], tuple(arg[index] for arg in args), tolerance))


def _replaced(laplace: Laplace, index: Tensor, other: Laplace) -> Laplace:
    """The approximations, with those of the problems `index` from another."""
    names = (field.name for field in dataclasses.fields(Laplace))
    return Laplace(**{name: getattr(laplace, name).index_copy(0, index, getattr(other, name)) for name in names})


def _nudged(loss: Callable[..., Tensor], start: Tensor, args: tuple[Tensor, ...], tolerance: float) -> Laplace:
    """Searches from a point beside the start.

    Where a density is symmetric in two coordinates, a search that starts on the axis of symmetry never leaves it.
    """
    offset = NUDGE_SCALE * torch.special.ndtri(_sobol(1, start.shape[-1], start))
    found = minimize(loss, start + offset, args=args, tolerance=tolerance)
    return Laplace(found.x, found.hessian, -found.value, found.converged)


def _stands_for_mass(
    laplace: Laplace,
    loss: Callable[..., Tensor],
    args: tuple[Tensor, ...],
    chunk_size: int | None,
    slopes: Slopes | None,
) -> Tensor:
    """Whether the density around the mode is about as high as its curvature there says, `(B,)`.

    Its mean logarithm under the Gaussian of independent coordinates at the mode should be that at the mode, less D / 2.
    """
    dim = laplace.loc.shape[-1]
    offsets = laplace.scale[:, None] * _nodes(MIN_NODES, laplace.loc)

    def mean_loss(loc: Tensor, steps: Tensor, *row: Tensor) -> Tensor:
        return vmap_or_loop(lambda step: loss(loc + step, *row), chunk_size=chunk_size)(steps).mean()

    if slopes is not None:
        mean = -slopes(laplace.loc[:, None] + offsets)[0].mean(1)
    else:
        mean = vmap_or_loop(mean_loss)(laplace.loc, offsets, *args)
    missing = mean + laplace.log_density - dim / 2
    return missing.abs() <= MASS_TOLERANCE + dim / 4


def _independent(loss: Callable[..., Tensor], start: Tensor, args: tuple[Tensor, ...], tolerance: float) -> Laplace:
    """The Gaussian with independent coordinates of least reverse KL, on few fixed points: no truth, but a start.

    KL(m, s) = -E log p(m + s e) - sum log s + constants, the expectation over antithetic Sobol points.
    """
    dim = start.shape[-1]
    nodes = _nodes(max(MIN_NODES, 4 * dim), start)

    def divergence(theta: Tensor, *row: Tensor) -> Tensor:
        loc, log_scale = theta.split(dim)
        points = loc + log_scale.exp() * nodes
        return vmap_or_loop(lambda u: loss(u, *row))(points).mean() - log_scale.sum()

    theta = torch.cat([start, torch.full_like(start, START_SCALE).log()], -1)
    for _ in range(MAX_HALVINGS):  # points are outside of the support where it ends nearby
        beyond = ~vmap_or_loop(divergence)(theta, *args).isfinite()
        if not bool(beyond.any()):
            break
        theta[:, dim:] -= torch.where(beyond, math.log(2), 0.0)[:, None]
    smooth = minimize if dim <= MAX_NEWTON_DIM else _descended
    near = vmap_or_loop(divergence)(theta, *args).isfinite()  # a start on the very end of its support is left as it is
    if bool(near.any()):
        theta[near] = smooth(divergence, theta[near], args=tuple(arg[near] for arg in args), tolerance=tolerance).x
    loc, log_scale = theta.split(dim, -1)
    no_mode = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    return Laplace(loc, torch.diag_embed((-2 * log_scale).exp()), -vmap_or_loop(loss)(loc, *args), no_mode)


@dataclass(frozen=True)
class _Point:
    """What `_descended` found: the points `x`, `(B, D)`, as in `Minimum`."""

    x: Tensor


def _descended(objective: Callable[..., Tensor], start: Tensor, args: tuple[Tensor, ...], tolerance: float) -> _Point:
    """The minima of all problems at once, by SciPy's L-BFGS on their sum."""

    def total(flat: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.from_numpy(flat).to(start).reshape(start.shape)
        gradient, value = vmap_or_loop(grad_and_value(objective))(x, *args)
        return float(value.sum()), gradient.cpu().double().numpy().ravel()

    options = {"maxiter": 500, "ftol": tolerance}
    found = scipy.optimize.minimize(
        total, start.cpu().double().numpy().ravel(), jac=True, method="L-BFGS-B", options=options
    )
    return _Point(torch.from_numpy(found.x).to(start).reshape(start.shape))


def _nodes(num: int, like: Tensor) -> Tensor:
    """Standard normal points `(num, D)` that come in pairs, each with its opposite."""
    half = torch.special.ndtri(_sobol(num // 2, like.shape[-1], like))
    return torch.cat([half, -half])


def _sobol(num: int, dim: int, like: Tensor) -> Tensor:
    """Scrambled Sobol points in the open unit cube, `(num, dim)`, always the same ones."""
    points = torch.quasirandom.SobolEngine(dim, scramble=True, seed=0).draw(num, dtype=torch.float64) + 2.0**-31
    return points.to(like)
