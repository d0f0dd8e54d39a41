"""The modes of a posterior, and how much of it lies around each: where fits and searches for best members start.

A mode is where Newton's method ends that ascends from one of the truth's points, or from where a fit would start
without a truth. Each point belongs to the mode whose Gaussian (the peak and the curvature there) is highest at it, and
the points of a mode give its share of the mass and the moments around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from ppl_vi.numerics.laplace import Laplace, laplace_by_slopes
from ppl_vi.numerics.newton import minimize
from ppl_vi.numerics.vmapping import vmap_or_loop
from ppl_vi.runtime.showing import short_repr
from ppl_vi.target.evaluation import log_joint
from ppl_vi.target.target import Target

# Ascents begin at no more points than these. More of them would find more of the modes of a rugged posterior, at the
# cost of one run of Newton's method each.
MAX_ASCENTS = 16
# With more coordinates than this second derivatives cost too much, and the posterior counts as one part.
MAX_DIM = 40
# In up to this many dimensions an ascent begins at each point that is higher than its nearest ones, NUM_NEIGHBOURS
# times the number of dimensions. In more dimensions neighbours say little, and points far from each other are taken.
MAX_NEIGHBOUR_DIM, NUM_NEIGHBOURS = 3, 3
# Of more points than this, those that are looked at are drawn by their weights.
MAX_POINTS = 2**15
# Ascents from points that lie far from each other are so many, of which the highest point is one.
NUM_DISPERSED = 8
# They are chosen among this many.
NUM_CANDIDATES = 512
# The log density at all points of an ascent is computed so that its largest temporary has at most this many numbers.
MAX_NUMBERS = 2**22
# Two ascents have ended at one mode if their ends are no farther apart along any axis, in standard deviations there.
SAME_MODE_DISTANCE = 0.5
# Newton's method has found a mode where a further step promises no more than this, in nats.
MODE_TOLERANCE, MAX_STEPS = 1e-8, 60


@dataclass(frozen=True, eq=False)
class Modes:
    """The modes of one problem's posterior in unconstrained space, the one with the most mass around it first.

    Attributes:
        peak: where the density is highest, `(M, D)`.
        factor: Cholesky factors of the inverse of the curvature there, `(M, D, D)`.
        share: of the posterior's mass around each, `(M,)`; 0 where the truth has no point of it.
        loc: the mean around each; that of the whole posterior comes last, `(M + 1, D)`. A mode without a point has its
            peak here, and its curvature below.
        spread: Cholesky factors of the covariances around each; that of the whole posterior comes last,
            `(M + 1, D, D)`.
    """

    peak: Tensor
    factor: Tensor
    share: Tensor
    loc: Tensor
    spread: Tensor

    __repr__ = short_repr

    def __len__(self) -> int:
        return len(self.peak)


def modes_of(target: Target, problem: int, u: Tensor, log_weight: Tensor, seed: int = 0) -> Modes:
    """The modes of one problem of a target.

    Where no ascent ends at a mode, as in a funnel, or all end at one, it is where fits of the problem start.

    Args:
        target: whose posterior.
        problem: which of its problems.
        u: points that represent its posterior, `(S, D)`; at least one.
        log_weight: logs of their weights, `(S,)`, which add up to 1.
        seed: of the choice of points, where there are many.
    """
    points = _fewer(u, log_weight, seed)
    start = _Peaks(target.start.loc[problem][None], target.start.cholesky[problem][None], u.new_zeros(1))
    if target.dim > MAX_DIM:
        return _with_moments(start, *points)
    begin = _beginnings(target, problem, points, seed)
    if target.dim == 1 and _is_beside(begin, start.u, points[0]):  # without an ascent: there may be many problems
        return _with_moments(start, *points)
    found = _ascended(target, problem, torch.cat([begin, start.u]))
    return _with_moments(found if len(found.u) > 1 else start, *points)


def _is_beside(begin: Tensor, start: Tensor, u: Tensor) -> bool:
    """Whether there is one highest point `(1, 1)` alone, and `start` lies between the points `(S, 1)` next to it."""
    if len(begin) != 1:
        return False
    below, above = u[u < begin], u[u > begin]
    return bool((below < start).all() and (above > start).all())


class _Peaks(NamedTuple):
    """Peaks `(M, D)`, Cholesky factors of the inverse curvature there, `(M, D, D)`, and log densities, `(M,)`."""

    u: Tensor
    factor: Tensor
    height: Tensor


def _fewer(u: Tensor, log_weight: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """At most `MAX_POINTS` of the points, as they are or drawn by their weights, and the logs of their weights."""
    if len(u) <= MAX_POINTS:
        return u, log_weight
    generator = torch.Generator(device=u.device).manual_seed(seed)
    chosen, times = torch.multinomial(log_weight.exp(), MAX_POINTS, True, generator=generator).unique(
        return_counts=True
    )
    return u[chosen], (times / MAX_POINTS).to(u).log()


def _beginnings(target: Target, problem: int, points: tuple[Tensor, Tensor], seed: int) -> Tensor:
    """The points from which ascents begin, `(N, D)`."""
    u, log_weight = points
    index = torch.tensor([problem], device=u.device)
    if target.dim > MAX_NEIGHBOUR_DIM:
        u = _dispersed(u, log_weight, seed)
        latents, log_slope = target.constrain(u[None])
        return u[(log_joint(target, latents, index) + log_slope)[0].isfinite()]
    latents, log_slope = target.constrain(u[None])
    value = (log_joint(target, latents, index) + log_slope)[0]
    value = torch.where(value.isfinite(), value, -torch.inf)
    if target.dim == 1:
        order = u[:, 0].argsort()
        along = torch.nn.functional.pad(value[order], (1, 1), value=-torch.inf)
        is_peak = (along[1:-1] > along[:-2]) & (along[1:-1] >= along[2:])
        return _high_and_apart(u[order[is_peak]], value[order[is_peak]])
    scaled = (u / (u.amax(0) - u.amin(0)).clamp(min=torch.finfo(u.dtype).tiny)).cpu().numpy()
    _, near = cKDTree(scaled).query(scaled, k=min(len(u), 1 + NUM_NEIGHBOURS * target.dim))
    neighbours = value[torch.from_numpy(np.reshape(near, (len(u), -1))[:, 1:]).to(u.device)]
    is_peak = value.isfinite() & (value[:, None] >= neighbours).all(1)
    return _high_and_apart(u[is_peak], value[is_peak])


def _high_and_apart(u: Tensor, value: Tensor) -> Tensor:
    """At most `MAX_ASCENTS` of points `(S, D)`: the highest, and others that lie far from these and each other."""
    if len(u) <= MAX_ASCENTS:
        return u
    order = value.argsort(descending=True)
    return u[order][_apart(u[order], MAX_ASCENTS // 2, MAX_ASCENTS)]


def _apart(u: Tensor, num_first: int, num: int) -> Tensor:
    """The numbers of `num` points among `(S, D)`, the first ones and then those farthest from all chosen before.

    Distances are in standard deviations of the points.
    """
    scaled = u / u.std(0).clamp(min=torch.finfo(u.dtype).tiny)
    away = torch.cdist(scaled, scaled[:num_first]).amin(1)
    chosen = list(range(num_first))
    while len(chosen) < num:
        chosen.append(int(away.argmax()))
        away = torch.minimum(away, torch.cdist(scaled, scaled[chosen[-1:]])[:, 0])
    return torch.tensor(chosen, device=u.device)


def _dispersed(u: Tensor, log_weight: Tensor, seed: int) -> Tensor:
    """Points drawn by their weights that lie far from each other, in standard deviations; the first is any of them."""
    generator = torch.Generator(device=u.device).manual_seed(seed)
    some = u[torch.multinomial(log_weight.exp(), NUM_CANDIDATES, True, generator=generator)]
    return some[_apart(some, 1, NUM_DISPERSED)]


def _ascended(target: Target, problem: int, begin: Tensor) -> _Peaks:
    """The different modes at which ascents from points `(N, D)` end, the highest first."""
    with target.isolated(seed=0):
        found = _ends(target, problem, begin)
    known = found.precision.isfinite().all(-1).all(-1)
    hessian = torch.where(known[:, None, None], found.precision, torch.eye(target.dim).to(begin))
    root, not_curved = torch.linalg.cholesky_ex(hessian)  # whatever the scales of the coordinates are
    root = torch.where((not_curved == 0)[:, None, None], root, torch.eye(target.dim).to(begin))
    factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(root))
    is_mode = found.converged & known & (not_curved == 0) & (failed == 0) & factor.isfinite().all(-1).all(-1)
    kept: list[int] = []
    for i in found.log_density.argsort(descending=True).tolist():
        if not bool(is_mode[i]):
            continue
        away = [
            torch.linalg.solve_triangular(factor[k], (found.loc[i] - found.loc[k])[:, None], upper=False).abs().max()
            for k in kept
        ]
        if all(float(distance) > SAME_MODE_DISTANCE for distance in away):
            kept.append(i)
    return _Peaks(found.loc[kept], factor[kept], found.log_density[kept])


def _ends(target: Target, problem: int, begin: Tensor) -> Laplace:
    """Where Newton's method ends that begins at points `(N, D)`, those without a density left out."""
    row, slopes = target.row(problem), target.slopes
    if slopes is not None and target.num_problems == 1:

        def at_each(points: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = slopes(points.flatten(0, 1)[None])
            return value.reshape(points.shape[:-1]), gradient.reshape(points.shape)

        begin = begin[at_each(begin[:, None])[0][:, 0].isfinite()]
        return laplace_by_slopes(at_each, begin, MODE_TOLERANCE, MAX_STEPS)

    def energy(u: Tensor) -> Tensor:
        return -target.log_density_of_row(u, *row)

    begin = begin[vmap_or_loop(energy)(begin).isfinite()]
    chunk = max(1, MAX_NUMBERS // target.width)
    found = minimize(energy, begin, tolerance=MODE_TOLERANCE, max_steps=MAX_STEPS, chunk_size=chunk)
    return Laplace(found.x, found.hessian, -found.value, found.converged)


def _with_moments(peaks: _Peaks, u: Tensor, log_weight: Tensor) -> Modes:
    """The modes, each with what the points that belong to it say of its mass and its moments."""
    weight, dim = log_weight.exp(), u.shape[1]
    heights = []
    for peak, factor, height in zip(*peaks, strict=True):
        white = torch.linalg.solve_triangular(factor, (u - peak).mT, upper=False)
        heights.append(height - white.square().sum(0) / 2)
    nearest = torch.stack(heights).argmax(0)
    share = torch.stack([weight[nearest == k].sum() for k in range(len(peaks.u))])
    order = share.argsort(descending=True, stable=True)
    loc, spread = [], []
    for k in order.tolist():
        own = torch.where(nearest == k, weight, 0.0)
        found = _moments(u, own / share[k]) if int((own > 0).sum()) > dim else None
        loc.append(peaks.u[k] if found is None else found[0])
        spread.append(peaks.factor[k] if found is None else found[1])
    whole = _moments(u, weight) or (loc[0], spread[0])
    loc, spread = [*loc, whole[0]], [*spread, whole[1]]
    return Modes(peaks.u[order], peaks.factor[order], share[order], torch.stack(loc), torch.stack(spread))


def _moments(u: Tensor, weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean and Cholesky factor of the covariance of weighted points; None where that is singular."""
    mean = weight @ torch.where((weight > 0)[:, None], u, 0.0)
    away = torch.where((weight > 0)[:, None], u - mean, 0.0)
    factor, failed = torch.linalg.cholesky_ex((weight[:, None] * away).mT @ away)
    usable = int(failed) == 0 and bool(factor.isfinite().all())
    return (mean, factor) if usable else None
