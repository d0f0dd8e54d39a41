"""Natural-gradient steps for normals: steepest ascent of the ELBO where distance is that between distributions.

With f = -log p(x, u) and the normal N(m, S^-1), a step of size t (at most 1) is

    S <- S + t E + t^2/2 E S^-1 E,   E = mean f'' - S,          m <- m - t S^-1 mean f',

with means over draws of the normal, and the new S in the step of m. The second term keeps S positive definite whatever
the draws are. With t = 1 on a normal posterior, the error of S is squared in each step, and m is exact once S is. The
mean of f'' is taken from slopes alone, by Stein's identity: mean f'' = S mean (u - m) f'. Of a mean-field normal S is
diagonal, and so is E.

The draws of a step come in pairs of opposite sign and are scaled to a covariance of 1, so that on a normal posterior
the means are exact. Elsewhere their noise is averaged out by steps that fall as 1/k. After 32 steps and twice as many
each time, the same convergence check is made as after Adam's rounds, on other noise.

Sources: Khan and Rue (2023), The Bayesian learning rule; Lin, Schmidt and Khan (2020), Handling the positive-definite
constraint in the Bayesian learning rule (the second term).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_vi.numerics.mixtures import LOG_2PI
from ppl_vi.svi.curvature import DIFFERENCE, MAX_HESSIAN_PARAMETERS, UNITS_POINTS, curvature_preconditioner
from ppl_vi.svi.ended import EndedFit
from ppl_vi.svi.gradients import MAX_HESSIAN_POINTS, MeanGradients
from ppl_vi.svi.optimisers.method import Ends, Method, ended_by
from ppl_vi.svi.optimisers.normals import is_mean_field, no_normal, normals_of, theta_of
from ppl_vi.svi.program import Program
from ppl_vi.svi.running import EARLY_TOLERANCE_SHARE
from ppl_vi.svi.setup import Strategy
from ppl_vi.svi.solves import most_gain
from ppl_vi.svi.start_points import Centres, conditional_scale
from ppl_vi.svi.status import Status
from ppl_vi.svi.stopping import CHECK_ERROR_RATE, gain_bounds
from ppl_vi.target.log_density import Density

# The draws of a step where nobody asks for another number: at least so many, and four for each latent number as far as
# the most, so that they can be scaled to a covariance of 1.
MIN_DRAWS, DRAWS_PER_NUMBER, MAX_DRAWS = 64, 4, 512
# The size of step k is SETTLING / (SETTLING + k): about 1 for so many steps, then falling as 1 / k.
SETTLING = 20.0
# A step of the location is no longer than this, in standard deviations of the normal after it: far out, where the log
# density is no parabola, the next step has a better curvature.
MAX_LENGTH = 3.0
# Steps before the first convergence check; there are twice as many before each further one.
FIRST_CHECK = 32
# Sobol points a scramble in the first convergence check, of which each further one has twice as many up to the most.
# Where the widest temporary of a draw has many numbers, gradients are taken for so few draws at once that all of theirs
# are no more than MAX_NUMBERS, 32 MiB in double precision.
CHECK_POINTS, MAX_CHECK_POINTS, MAX_NUMBERS = 512, 4096, 2**22


def num_draws(dim: int) -> int:
    """How many draws a step has where nobody asks for another number, for so many latent numbers."""
    return min(MAX_DRAWS, max(MIN_DRAWS, DRAWS_PER_NUMBER * dim))


def unsuitable(program: Program, strategy: Strategy) -> str | None:
    """Says why a program can't be fitted so, or gives None where it can."""
    error = program.target.many_at_once()
    return no_normal(program) if error is None else f"the density can't be computed at many points at once: {error}"


@dataclass
class Running:
    """Normals of `B` problems and `R` replicas on their way.

    Attributes:
        loc: `(B, R, D)`.
        precision: S, `(B, R, D, D)`.
        status: a `Status` for each, `(B, R)`.
        reason: why each ended, `(B, R)`.
        gain: what was still to gain at the last check, `(B, R)`, nats.
        num_steps: the steps of each, `(B, R)`.
    """

    loc: Tensor
    precision: Tensor
    status: np.ndarray
    reason: np.ndarray
    gain: np.ndarray
    num_steps: np.ndarray

    @property
    def runs(self) -> np.ndarray:
        """Which have neither converged nor diverged, `(B, R)`."""
        return np.asarray(self.status == Status.NOT_CONVERGED)

    @property
    def normals(self) -> Centres:
        """The normals as location, scale and factor."""
        inverse = torch.linalg.inv_ex(self.precision)[0]
        factor = torch.linalg.cholesky_ex((inverse + inverse.mT) / 2)[0]
        return Centres(self.loc, conditional_scale(factor), factor)


def fit_natural_gradient(program: Program, strategy: Strategy, initial: Tensor) -> EndedFit:
    """Fits normals by natural-gradient steps.

    Args:
        program: the model and a normal guide in unconstrained space.
        strategy: how; `num_particles` is the number of draws of a step, `num_steps` bounds the steps.
        initial: the parameters that fits start at, `(B, R, P)`.
    """
    fit, bounds = _start(program, initial), []
    densities = [Density.of(program.target, problem) for problem in range(program.target.num_problems)]
    generator = torch.Generator().manual_seed(strategy.seed)
    num = num_draws(program.target.dim) if strategy.num_particles == "auto" else strategy.num_particles
    check, mean_field = min(FIRST_CHECK, strategy.num_steps), is_mean_field(program)
    for step in range(strategy.num_steps):
        if not fit.runs.any():
            break
        e = matched_draws(fit.loc, num, generator)
        bounds.append(_take_step(fit, densities, e, SETTLING / (SETTLING + step), mean_field))
        if step + 1 == check:
            is_last = check == strategy.num_steps
            _check(program, strategy, fit, is_last)
            left = strategy.num_steps - check
            check = strategy.num_steps if left < 2 * check else 2 * check
    theta = theta_of(program, fit.normals)
    ends = Ends(theta, torch.stack(bounds), torch.from_numpy(fit.gain), fit.status, fit.reason, fit.num_steps)
    return ended_by("natural_gradient", initial, ends)


def _start(program: Program, initial: Tensor) -> Running:
    start, shape = normals_of(program, initial), initial.shape[:2]
    precision = torch.cholesky_inverse(start.factor)
    if is_mean_field(program):
        precision = torch.diag_embed(start.scale**-2)
    return Running(
        loc=start.loc,
        precision=precision,
        status=np.full(shape, Status.NOT_CONVERGED, dtype=object),
        reason=np.full(shape, "", dtype=object),
        gain=np.full(shape, np.inf),
        num_steps=np.zeros(shape, dtype=np.int64),
    )


def matched_draws(like: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Standard normal draws for locations like these, `(B, R, num, D)`, an odd one left out but for a single one.

    They come in pairs of opposite sign. Where there are enough of them their covariance is made 1 by a linear map,
    otherwise each number's variance.
    """
    dim, half = like.shape[-1], max(1, num // 2)
    e = torch.randn((*like.shape[:2], half, dim), generator=generator, dtype=like.dtype)
    if half >= 2 * dim:
        factor = torch.linalg.cholesky(e.mT @ e / half)
        e = torch.linalg.solve_triangular(factor, e.mT, upper=False).mT
    else:
        e = e / e.square().mean(-2, keepdim=True).sqrt()
    return torch.cat([e, -e], -2).to(like.device)


def _take_step(fit: Running, densities: list[Density], e: Tensor, size: float, mean_field: bool) -> Tensor:
    """Takes one step of the fits that run; the estimates of the ELBO before it, `(B, R)`, nats; nan for the others."""
    factor = fit.normals.factor
    u = fit.loc[:, :, None] + e @ factor.mT
    with torch.no_grad():
        found = [density.slope(points.flatten(0, 1)) for density, points in zip(densities, u, strict=True)]
    value = torch.stack([one[0] for one in found]).unflatten(1, e.shape[1:3])
    slope = torch.stack([one[1] for one in found]).unflatten(1, e.shape[1:3])
    finite = value.isfinite().all(-1) & slope.isfinite().flatten(2).all(-1)
    _mark_diverged(fit, finite)
    loc, precision = moved(fit.loc, fit.precision, factor, e, -slope, size, mean_field)
    runs = torch.from_numpy(fit.runs).to(loc.device)
    fit.loc = torch.where(runs[..., None], loc, fit.loc)
    fit.precision = torch.where(runs[..., None, None], precision, fit.precision)
    fit.num_steps[fit.runs] += 1
    entropy = torch.diagonal(factor, dim1=-2, dim2=-1).log().sum(-1) + factor.shape[-1] / 2 * (LOG_2PI + 1)
    return torch.where(runs, value.mean(-1) + entropy, torch.nan)


def moved(
    loc: Tensor, precision: Tensor, factor: Tensor, e: Tensor, slope: Tensor, size: float, mean_field: bool
) -> tuple[Tensor, Tensor]:
    """The location and the precision after one step.

    Args:
        loc, precision, factor: of the normals, `(..., D)` and twice `(..., D, D)`.
        e: their draws, standard normal, `(..., M, D)`.
        slope: f' at these, `(..., M, D)`.
        size: t.
        mean_field: whether the precision stays diagonal.
    """
    weighted = torch.linalg.solve_triangular(factor.mT, e.mT @ slope / e.shape[-2], upper=True)
    curvature = (weighted + weighted.mT) / 2
    if mean_field:
        curvature = torch.diag_embed(torch.diagonal(curvature, dim1=-2, dim2=-1))
    away = curvature - precision
    half = factor.mT @ away
    precision = precision + size * away + size**2 / 2 * half.mT @ half
    precision = (precision + precision.mT) / 2
    step = torch.cholesky_solve(slope.mean(-2)[..., None], torch.linalg.cholesky_ex(precision)[0])
    length = (step.mT @ precision @ step).sqrt()
    step = size * step * (MAX_LENGTH / length.clamp(min=MAX_LENGTH))
    return loc - step[..., 0], precision


def _mark_diverged(fit: Running, finite: Tensor) -> None:
    """Stops the fits whose draws met a point without a density, where they are."""
    for at in zip(*np.nonzero(fit.runs & ~finite.cpu().numpy()), strict=True):
        fit.status[at] = Status.DIVERGED
        fit.reason[at] = f"diverged at step {fit.num_steps[at] + 1}: the log density at a draw is not finite"


def _check(program: Program, strategy: Strategy, fit: Running, is_last: bool) -> None:
    """Stops the fits that have converged, by what each could still gain nearby on new noise."""
    replicas = torch.from_numpy(np.flatnonzero(fit.runs.any(0)))
    if not len(replicas):
        return
    theta = theta_of(program, fit.normals)[:, replicas]
    seed = strategy.seed + 7919 * int(fit.num_steps.max())
    most = np.full(fit.gain.shape, np.inf)
    num = min(MAX_CHECK_POINTS, CHECK_POINTS * max(1, int(fit.num_steps.max()) // FIRST_CHECK))
    most[:, replicas.numpy()] = most_to_gain(program, strategy, theta, num, seed).cpu().numpy()
    limit = strategy.tolerance * (1.0 if is_last else EARLY_TOLERANCE_SHARE)
    for at in zip(*np.nonzero(fit.runs), strict=True):
        fit.gain[at] = most[at]
        fit.reason[at] = f"at most {most[at]:.1e} nats to gain nearby (tolerance {strategy.tolerance:g})"
        if most[at] <= limit:
            fit.status[at] = Status.CONVERGED
        elif is_last:
            fit.reason[at] = f"all {strategy.num_steps} steps taken; {fit.reason[at]}"


def most_to_gain(program: Program, strategy: Strategy, theta: Tensor, num: int, seed: int) -> Tensor:
    """The most that fits at `theta` `(B, R, P)` could still gain nearby, `(B, R)`, nats; see `ppl_vi.svi.stopping`.

    `num` is how many Sobol points a scramble has.
    """
    at_once = max(1, MAX_NUMBERS // program.target.width)
    estimator = MeanGradients(program, strategy.objective, 1, max_particles=at_once, is_controlled=True)
    if program.layout.size > MAX_HESSIAN_PARAMETERS:
        return most_gain(estimator, theta, num, min(num, MAX_HESSIAN_POINTS), seed, CHECK_ERROR_RATE)
    units = curvature_preconditioner(estimator, theta, UNITS_POINTS, seed).units
    noise = estimator.halves(num, seed + 1)
    hessians = estimator.hessians(theta, noise, DIFFERENCE * units)
    return gain_bounds(estimator, theta, units, hessians, num, seed + 2, CHECK_ERROR_RATE).most


NATURAL_GRADIENT = Method("natural_gradient", "fitting by natural gradients", fit_natural_gradient, unsuitable)
