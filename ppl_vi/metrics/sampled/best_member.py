"""The member of a family nearest to the posterior, for any number of latents: L-BFGS on fixed nodes of noise.

On fixed nodes the ELBO is an ordinary function of the guide's parameters, without noise, and its gradient is exact. The
optimum on one set of nodes is not quite the family's best member; found on two independent sets, it tells by how much.
If both lie at random around the best one, they are, in mean square, twice as far from each other as from it: on either
set, the other's optimum is lower than its own by twice what each falls short of the best. Their midpoint is nearer by
half, unless one density has several parameters.

Parameters are measured in units of the curvature where a search starts, taken from few nodes, and anew where it goes
on: in their own units L-BFGS creeps where they are badly scaled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from ppl_vi.metrics.sampled.elbo_on_nodes import MAX_PARAMETERS, NegativeElbo, nodes
from ppl_vi.metrics.sampled.noise_rules import NoiseRules
from ppl_vi.svi.result import Fit

NUM_STARTS = 3  # of each problem: the replicas that came nearest, those left out from which the way leads straight down
NUM_POINTS = 4096  # nodes of a rule
FINER = 4  # times as many for the last searches, where they are no lattice
FEW_POINTS = 512  # of the rule by which curvatures are taken
MAX_ITERATIONS = 200  # in units of one point
MORE = 2  # times that each search goes on in new units if it has not arrived
SHARE = 0.01  # of what the rules make optima fall short by: to gain less is not worth a step
FLAT = 1e-11  # a step that gains less, relative to max(|ELBO|, 1), is the last: beyond, a rule's own error is climbed
WAY = (0.0, 1 / 3, 2 / 3)  # where the straight way from a start to an optimum is looked at
MEMORY = 40  # of L-BFGS, steps
DIFFERENCE = 1e-5  # of a parameter, or of 1 where it is smaller
FLATTEST = 1e-2  # curvature that sets a unit
GAIN = 1e-5  # nats that a converged search may still promise
OUT = 1e100  # what the line search is told where the ELBO is not finite, or no ELBO, so that it turns back
ABOVE = 100.0  # nats: an ELBO that much above log p(x) is rounding in a density that is nearly singular


@dataclass(frozen=True)
class Projection:
    """Candidates for each problem's best member.

    Attributes:
        theta: the optima on two independent rules and their midpoint, `(B, 3, D)`.
        converged: whether both searches arrived, `(B,)`.
        short: what an optimum on one rule is expected to fall short of the family's best member by, `(B,)`, nats.
    """

    theta: Tensor
    converged: np.ndarray
    short: np.ndarray


def reverse_kl_projection(fit: Fit, elbo: np.ndarray, log_evidence: np.ndarray, seed: int) -> Projection:
    """Maximises each problem's ELBO over the family, from its replicas of highest `elbo` `(B, R)`.

    Searches turn back where the ELBO lies far above `log_evidence` `(B,)`, which none can.
    """
    program = fit.program
    large = program.layout.size > MAX_PARAMETERS
    few = nodes(program.latent_draws, FEW_POINTS, seed + 2)
    fine = [nodes(program.latent_draws, NUM_POINTS, seed + i, large, FINER) for i in range(2)]
    rough = nodes(program.latent_draws, NUM_POINTS, seed, large)
    objective = NegativeElbo(program, rough)
    theta, converged, short = [], [], []
    order = np.argsort(-np.where(np.isfinite(elbo), elbo, -np.inf), 1, kind="stable")[:, :NUM_STARTS]
    for problem, replicas in enumerate(order):
        row, least = fit.target.row(problem), -float(log_evidence[problem]) - ABOVE
        on_rough, *on = (
            _function(partial(_bounded, objective, least), fit.theta, row, rule) for rule in (rough, *fine)
        )
        on_few = None if large else _function(partial(_bounded, objective, least), fit.theta, row, few)
        starts = [fit.theta[problem, int(r)].detach().double().numpy() for r in replicas]
        one = _minimized(on_rough, on_few, starts[0])
        for start in starts[1:]:
            if not _leads_down(on_rough, start, one):
                other = _minimized(on_rough, on_few, start)
                one = other if other.fun < one.fun else one
        if fine[0].weight.shape != rough.weight.shape:
            one = _minimized(on[0], on_few, one.x)
        two = _minimized(on[1], on_few, one.x)
        for _ in range(MORE):
            enough = GAIN if large else min(GAIN, max(SHARE * _short(on, one, two), FLAT * max(1.0, abs(one.fun))))
            one = _gone_on(on[0], on_few, one, two, enough)
            two = _gone_on(on[1], on_few, two, one, enough)
        optima = [torch.from_numpy(result.x) for result in (one, two)]
        theta.append(torch.stack([*optima, (optima[0] + optima[1]) / 2]))
        converged.append(one.gain <= GAIN and two.gain <= GAIN)
        short.append(_short(on, one, two) + (max(one.gain, two.gain) if converged[-1] else 0.0))
    return Projection(torch.stack(theta).to(fit.theta), np.array(converged), np.array(short))


# `(theta, row, rule)` to the gradient and the value of minus the ELBO on the rule's nodes
Objective = Callable[[Tensor, tuple[Tensor, ...], NoiseRules], tuple[Tensor, Tensor]]


def _bounded(
    objective: Objective, least: float, theta: Tensor, row: tuple[Tensor, ...], rule: NoiseRules
) -> tuple[Tensor, Tensor]:
    """The same, minus the ELBO nan where it lies below the least it can be."""
    gradient, value = objective(theta, row, rule)
    return gradient, torch.where(value < least, torch.nan, value)


Function = Callable[[np.ndarray], tuple[float, np.ndarray]]


def _function(objective: Objective, like: Tensor, row: tuple[Tensor, ...], rule: NoiseRules) -> Function:
    """Minus the ELBO on a rule and its gradient, as SciPy takes them."""

    def function(x: np.ndarray) -> tuple[float, np.ndarray]:
        with torch.no_grad():
            gradient, value = objective(torch.from_numpy(x).to(like), row, rule)
        if not (bool(value.isfinite()) and bool(gradient.isfinite().all())):
            return OUT, np.zeros_like(x)
        return float(value), gradient.double().numpy()

    return function


def _leads_down(function: Function, start: np.ndarray, end: Found) -> bool:
    """Whether the straight way from a start to an optimum never climbs: a search from there would end there too."""
    heights = [function(start + share * (end.x - start))[0] for share in WAY]
    return bool((np.diff([*heights, end.fun]) < 0).all())


@dataclass(frozen=True)
class Found:
    """Where a search ended.

    Attributes:
        x: the point.
        fun: the function there.
        gain: what a quasi-Newton step still promises, nats.
    """

    x: np.ndarray
    fun: float
    gain: float


def _minimized(function: Function, on_few: Function | None, start: np.ndarray, enough: float = GAIN) -> Found:
    """L-BFGS in units in which the curvature at the start is about 1 along every axis, if it is taken.

    It ends where a step gains hardly more than a tenth of what is enough, without units where it gains nothing.
    """
    unit = np.eye(len(start)) if on_few is None else _units(on_few, start)
    flat = FLAT if on_few is None else max(FLAT, enough / 10 / max(1.0, abs(function(start)[0])))

    def rescaled(y: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = function(start + unit @ y)
        return value, gradient @ unit

    options = {"maxcor": MEMORY, "maxiter": MAX_ITERATIONS, "maxfun": 2 * MAX_ITERATIONS, "ftol": flat, "gtol": 1e-7}
    found = optimize.minimize(rescaled, np.zeros_like(start), jac=True, method="L-BFGS-B", options=options)
    gain = float(found.jac @ found.hess_inv.matvec(found.jac)) / 2
    return Found(start + unit @ found.x, float(found.fun), gain)


def _units(function: Function, x: np.ndarray) -> np.ndarray:
    """Columns along the principal axes of the curvature c at `x`, `|c|^(-1/2)` long (Dauphin et al. 2014, saddle-free
    Newton), the curvature from differences of gradients; the plain axes where it isn't finite."""
    slope, steps = function(x)[1], DIFFERENCE * np.maximum(1.0, np.abs(x))
    hessian = np.array([(function(x + step)[1] - slope) / step.max() for step in np.diag(steps)])
    if not np.isfinite(hessian).all():
        return np.eye(len(x))
    curvature, axes = np.linalg.eigh((hessian + hessian.T) / 2)
    return axes / np.sqrt(np.maximum(np.abs(curvature), FLATTEST))


def _gone_on(function: Function, on_few: Function | None, own: Found, other: Found, enough: float) -> Found:
    """A search that may gain more than enough, short of steps or lost far out, goes on from the lower of two points."""
    if own.gain <= enough:
        return own
    lower = function(other.x)[0] < own.fun
    found = _minimized(function, on_few, (other if lower else own).x, enough)
    return found if found.fun <= own.fun else own


def _short(on: list[Function], one: Found, two: Found) -> float:
    """What each of two optima is expected to fall short of the best by: see the module's text."""
    return (on[0](two.x)[0] - one.fun + on[1](one.x)[0] - two.fun) / 4
