"""The member of a family nearest to the posterior in reverse KL, for any number of latents: L-BFGS on fixed noise.

On fixed nodes of noise the ELBO is an ordinary function of the guide's parameters, free of noise, and its gradient is
exact. The optimum on one set of nodes is not quite the family's best member. Two optima, found on two independent sets
of nodes, tell by how much. If both lie at random around the best member, they are, in mean square, twice as far from
each other as from it, so that on either set the other's optimum is lower than the set's own by twice what each of them
falls short of the best member. Unless one density has several parameters, the midpoint of the two optima is nearer to
the best member by half.

A search is preconditioned by the curvature at its start, which is taken from few nodes, and taken anew where a search
is continued: without that, L-BFGS creeps along where parameters are badly scaled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from ppl_vi.metrics.sampled.elbo_on_nodes import MAX_CURVATURE_PARAMETERS, NegativeElbo, search_rule
from ppl_vi.metrics.sampled.noise_rules import NoiseRules
from ppl_vi.runtime.stages import Running, stage
from ppl_vi.svi.program import Program
from ppl_vi.svi.result import Fit

# Where a family has many local optima by its nature, searches start from at most this many replicas of each problem,
# those of highest ELBO. More starts may find a better optimum, and each costs another search.
NUM_STARTS = 3
# Two searches have found different optima where these are farther apart than this, in nats. What L-BFGS leaves is less.
OTHER_OPTIMUM = 1e-4
# Nodes of the rules on which a search runs: of the first one, of that from which curvatures are taken, and how many
# times as many as the first the last ones have where their moments are matched. More nodes bring the optimum nearer to
# the best member, at a cost in proportion; a curvature only preconditions a search, and takes one gradient for each
# parameter. The second level follows where the optima of the first one fall short by more than SMALL_SHORTFALL nats, a
# hundredth of what scores are computed to. On much data, where posteriors are nearly normal, the first is enough.
SEARCH_LEVELS = ((512, 128, 1), (4096, 512, 4))
SMALL_SHORTFALL = 1e-6
# The curvature is computed anew after MAX_LBFGS_ITERATIONS iterations of L-BFGS, and a search is then continued, at
# most MAX_CONTINUATIONS times.
MAX_LBFGS_ITERATIONS = 200
MAX_CONTINUATIONS = 2
# A search has converged where a quasi-Newton step promises no more than this, in nats.
GAIN_TOLERANCE = 1e-5
# A search is continued while it promises to gain more than this share of what its optimum is expected to fall short of
# the best member. Smaller gains are less than the error of the rule.
SHORTFALL_SHARE = 0.01
# L-BFGS ends with the first step that gains less than this, relative to max(|ELBO|, 1): smaller gains are only
# rounding.
VALUE_TOLERANCE = 1e-11
# Shares of the straight path from a start to an optimum at which it is checked whether the path leads down.
PATH_SHARES = (0.0, 1 / 3, 2 / 3)
# Pairs of steps and gradients from which L-BFGS builds its curvature. A search in many parameters needs many of them.
LBFGS_MEMORY = 40
# Step of the differences of gradients that give a curvature, relative to max(|parameter|, 1). Smaller steps lose more
# digits to rounding, larger ones see more of the third derivative; a preconditioner needs few digits.
DIFFERENCE_STEP = 1e-5
# Axes of less curvature than this are preconditioned as if they had this curvature. With a smaller number, steps along
# flat axes get longer.
MIN_CURVATURE = 1e-2
# The value that the line search is given where minus the ELBO is not finite or absurdly low, so that it turns back.
REJECTED_VALUE = 1e100
# An ELBO more than this many nats above log p(x) comes from rounding in a density that is nearly singular, and is
# rejected. The ELBO itself never exceeds log p(x); computed on a rule it may do so by the rule's error.
MAX_ELBO_EXCESS = 100.0

# A point `(D,)` to the value there and its gradient `(D,)`, as SciPy takes them.
Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]


@dataclass(frozen=True)
class Projection:
    """Candidates for each problem's best member.

    Attributes:
        theta: the optima on two independent rules and their midpoint, `(B, 3, D)`.
        converged: whether both searches converged, `(B,)`.
        shortfall: how far the ELBO of an optimum on one rule is expected to lie below that of the family's best member,
            `(B,)`, nats.
        different: whether searches ended in different optima, `(B,)`.
        others: the optima in which they ended beside the lowest, `(B, M, D)`; a problem of fewer repeats its lowest.
        arrived: whether the searches for the others arrived, `(B, M)`.
        of_replica: which of the others is the optimum near each replica, `(B, R)`; -1 where it is the lowest. None
            where this was not asked for.
    """

    theta: Tensor
    converged: np.ndarray
    shortfall: np.ndarray
    different: np.ndarray
    others: Tensor
    arrived: np.ndarray
    of_replica: np.ndarray | None


def reverse_kl_projection(
    fit: Fit,
    elbo: np.ndarray,
    log_evidence: np.ndarray,
    seed: int,
    *,
    starts: Tensor | None = None,
    local: bool = False,
) -> Projection:
    """Maximises each problem's ELBO over the family, starting from replicas and from other members.

    A start is left out if minus the ELBO only falls along the straight path from it to an optimum already found.

    Args:
        fit: gives the family and the replicas.
        elbo: of each replica, `(B, R)`, nats.
        log_evidence: log p(x), `(B,)`, nats: a search turns back where the ELBO on a rule lies far above it.
        seed: of the rules' scrambled points.
        starts: other members from which searches start, `(B, K, D)`.
        local: whether searches start from every replica, to find the optimum near each; else from the best ones.
    """
    starts = fit.theta[:, :0] if starts is None else starts
    with stage("best member", "gradient") as running:
        return _projection(fit, elbo, log_evidence, starts, local, _search_levels(fit.program, seed), running)


def _projection(
    fit: Fit,
    elbo: np.ndarray,
    log_evidence: np.ndarray,
    others: Tensor,
    local: bool,
    levels: list[SearchRules],
    running: Running,
) -> Projection:
    """The projection by searches on the rules of these levels."""
    negative_elbo = NegativeElbo(fit.program, levels[-1].first)
    order = np.argsort(-np.where(np.isfinite(elbo), elbo, -np.inf), 1, kind="stable")
    found = []
    for problem, replicas in enumerate(order if local else order[:, :NUM_STARTS]):
        least = -float(log_evidence[problem]) - MAX_ELBO_EXCESS
        begin = [*fit.theta[problem, torch.from_numpy(replicas.copy())], *others[problem]]
        starts = [one.detach().cpu().double().numpy() for one in begin]
        previous: list[np.ndarray] = []
        for rules in levels:
            objectives = _objectives(negative_elbo, rules, fit.target.row(problem), least, fit.theta, running)
            ends = _ends(objectives, [*previous, *starts])
            optima = _optima(objectives, ends.lowest)
            short, gain = _shortfall(objectives, *optima), max(optimum.gain for optimum in optima)
            if 0 <= short + gain <= SMALL_SHORTFALL:
                break
            previous = [optima[0].x]
        of_replica = np.full(elbo.shape[1], -1)
        of_replica[replicas] = np.array(ends.of_start[len(ends.of_start) - len(starts) :][: len(replicas)]) - 1
        found.append(Found(optima, short, gain, ends, of_replica))
    return _joined(found, fit.theta, local)


class Found(NamedTuple):
    """What the searches for one problem found: the optima on two rules, what these lack, and where all ended."""

    optima: tuple[Optimum, Optimum]
    shortfall: float
    gain: float
    ends: Ends
    of_replica: np.ndarray


def _joined(found: list[Found], like: Tensor, local: bool) -> Projection:
    """The projection of all problems; `like` has the parameters' dtype and device."""
    most = max(len(one.ends.optima) for one in found) - 1
    theta, others, arrived = [], [], np.ones((len(found), most), bool)
    for b, one in enumerate(found):
        points = [torch.from_numpy(optimum.x) for optimum in one.optima]
        theta.append(torch.stack([*points, (points[0] + points[1]) / 2]))
        rest = [torch.from_numpy(end.x) for end in one.ends.optima[1:]]
        arrived[b, : len(rest)] = [end.gain <= GAIN_TOLERANCE for end in one.ends.optima[1:]]
        others.append(torch.stack([*rest, *[points[0]] * (most - len(rest) + 1)])[:most])
    converged = np.array([all(optimum.gain <= GAIN_TOLERANCE for optimum in one.optima) for one in found])
    gain = np.array([one.gain for one in found])
    return Projection(
        torch.stack(theta).to(like),
        converged,
        np.array([one.shortfall for one in found]) + np.where(converged, gain, 0.0),
        np.array([any(end.gain <= GAIN_TOLERANCE for end in one.ends.optima[1:]) for one in found]),
        torch.stack(others).to(like),
        arrived,
        np.stack([one.of_replica for one in found]) if local else None,
    )


def descended(fit: Fit, problem: int, start: Tensor) -> Tensor:
    """The member at which a search for one problem ends that begins at `start` `(D,)`, on one rule of few nodes."""
    rules = _search_levels(fit.program, fit.seed + 20)[0]
    with stage("best member", "gradient") as running:
        negative_elbo = NegativeElbo(fit.program, rules.first)
        objectives = _objectives(negative_elbo, rules, fit.target.row(problem), -np.inf, fit.theta, running)
        found = _minimized(objectives.first, objectives.curvature, start.detach().cpu().double().numpy())
    return torch.from_numpy(found.x).to(start)


@dataclass(frozen=True)
class SearchRules:
    """The rules of noise nodes by which best members are searched for.

    Attributes:
        first: the rule on which the best of the starts is found.
        independent: two rules of independent points, on which the search is then continued; the first of them may be
            `first` itself.
        curvature: a rule of few nodes, from which curvatures are taken; None for guides of so many parameters that a
            curvature takes too long.
    """

    first: NoiseRules
    independent: tuple[NoiseRules, NoiseRules]
    curvature: NoiseRules | None


def _search_levels(program: Program, seed: int) -> list[SearchRules]:
    """The rules of each of `SEARCH_LEVELS`; of the last one alone for guides of many parameters."""
    draws, many = program.latent_draws, program.layout.size > MAX_CURVATURE_PARAMETERS
    levels = []
    for num, num_curvature, refined in SEARCH_LEVELS[-1:] if many else SEARCH_LEVELS:
        first = search_rule(draws, num, seed, plain=many)
        one, two = (search_rule(draws, num, seed + i, plain=many, refined=refined) for i in range(2))
        if one.weight.shape == first.weight.shape:  # the same points: nothing was refined
            one = first
        curvature = None if many else search_rule(draws, num_curvature, seed + 2)
        levels.append(SearchRules(first, (one, two), curvature))
    return levels


@dataclass(frozen=True)
class Objectives:
    """Minus one problem's ELBO, in nats, on each of `SearchRules`."""

    first: Objective
    independent: tuple[Objective, Objective]
    curvature: Objective | None


def _objectives(
    negative_elbo: NegativeElbo,
    rules: SearchRules,
    row: tuple[Tensor, ...],
    least: float,
    like: Tensor,
    running: Running,
) -> Objectives:
    """Minus the ELBO of the problem whose data are `row`; a value below `least` is rejected, as minus the ELBO can't be
    so low. `like` has the parameters' dtype and device, and `running` counts the gradients."""

    def on(rule: NoiseRules) -> Objective:
        def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
            with torch.no_grad():
                gradient, value = negative_elbo(torch.from_numpy(x).to(like), row, rule)
            running.advance()
            if bool(value < least) or not (bool(value.isfinite()) and bool(gradient.isfinite().all())):
                return REJECTED_VALUE, np.zeros_like(x)
            return float(value), gradient.double().numpy()

        return objective

    first = on(rules.first)
    one, two = rules.independent
    independent = first if one is rules.first else on(one), on(two)
    return Objectives(first, independent, None if rules.curvature is None else on(rules.curvature))


@dataclass(frozen=True)
class Optimum:
    """Where a search ended.

    Attributes:
        x: the point, `(D,)`.
        value: the objective there.
        gain: how much a quasi-Newton step from there still promises to gain, nats.
    """

    x: np.ndarray
    value: float
    gain: float


@dataclass(frozen=True)
class Ends:
    """Where searches from several starts ended on one rule.

    Attributes:
        optima: the different optima, the lowest first.
        of_start: to which of them each start leads.
    """

    optima: list[Optimum]
    of_start: list[int]

    @property
    def lowest(self) -> Optimum:
        """The lowest optimum."""
        return self.optima[0]


def _ends(objectives: Objectives, starts: list[np.ndarray]) -> Ends:
    """The optima on the first rule, of searches from all starts that may lead to another one; the lowest start first.

    A start leads to the optimum to which the straight path from it never climbs, the lowest of these. Ends that have
    not arrived, and lie above an optimum, are optima of their own only where nothing better is near.
    """
    heights = [objectives.first(start)[0] for start in starts]
    optima: list[Optimum] = []
    of_start = [0] * len(starts)
    for i in np.argsort(heights, kind="stable"):
        by_height = sorted(range(len(optima)), key=lambda k: optima[k].value)
        near = next((k for k in by_height if leads_down(objectives.first, starts[i], optima[k])), None)
        if near is None:
            end = _minimized(objectives.first, objectives.curvature, starts[i])
            near = next((k for k in by_height if abs(end.value - optima[k].value) <= OTHER_OPTIMUM), None)
            if near is None:
                near = len(optima)
                optima.append(end)
            elif end.value < optima[near].value:
                optima[near] = end
        of_start[i] = near
    order = sorted(range(len(optima)), key=lambda k: optima[k].value)
    return Ends([optima[k] for k in order], [order.index(k) for k in of_start])


def _optima(objectives: Objectives, start: Optimum) -> tuple[Optimum, Optimum]:
    """The optima on the two independent rules that searches reach from an optimum on the first rule."""
    on_one, on_two = objectives.independent
    curvature = objectives.curvature
    one = start if on_one is objectives.first else _minimized(on_one, curvature, start.x)
    two = _minimized(on_two, curvature, one.x)
    for _ in range(MAX_CONTINUATIONS):
        enough = GAIN_TOLERANCE
        if curvature is not None:
            rounding = VALUE_TOLERANCE * max(1.0, abs(one.value))
            enough = min(enough, max(SHORTFALL_SHARE * _shortfall(objectives, one, two), rounding))
        one = _continued(on_one, curvature, one, two, enough)
        two = _continued(on_two, curvature, two, one, enough)
    return one, two


def leads_down(objective: Objective, start: np.ndarray, end: Optimum) -> bool:
    """Whether the straight path from a start to an optimum never climbs: a search from there would end there too."""
    heights = [objective(start + share * (end.x - start))[0] for share in PATH_SHARES]
    return bool((np.diff([*heights, end.value]) < 0).all())


def _minimized(
    objective: Objective, curvature: Objective | None, start: np.ndarray, enough: float = GAIN_TOLERANCE
) -> Optimum:
    """L-BFGS from a start, preconditioned by the curvature of the objective `curvature` there, if there is one.

    It ends with a step that gains less than a tenth of `enough` nats; without preconditioner, where a small step says
    little about what is left, with one that gains nothing but rounding.
    """
    scaling = np.eye(len(start)) if curvature is None else _preconditioner(curvature, start)
    flat = VALUE_TOLERANCE
    if curvature is not None:
        flat = max(flat, enough / 10 / max(1.0, abs(objective(start)[0])))

    def rescaled(y: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = objective(start + scaling @ y)
        return value, gradient @ scaling

    limits = {"maxcor": LBFGS_MEMORY, "maxiter": MAX_LBFGS_ITERATIONS, "maxfun": 2 * MAX_LBFGS_ITERATIONS}
    options = {**limits, "ftol": flat, "gtol": 1e-7}
    found = optimize.minimize(rescaled, np.zeros_like(start), jac=True, method="L-BFGS-B", options=options)
    gain = float(found.jac @ found.hess_inv.matvec(found.jac)) / 2
    return Optimum(start + scaling @ found.x, float(found.fun), gain)


def _preconditioner(objective: Objective, x: np.ndarray) -> np.ndarray:
    """A matrix `(D, D)` in whose columns as units the curvature at `x` is about 1 along every axis.

    The columns lie along the principal axes of the curvature c and are `|c|^(-1/2)` long. The curvature comes from
    differences of gradients; where it isn't finite the matrix is the identity.

    Source: Dauphin et al. (2014), Identifying and attacking the saddle point problem in high-dimensional non-convex
    optimization (saddle-free Newton).
    """
    slope, steps = objective(x)[1], DIFFERENCE_STEP * np.maximum(1.0, np.abs(x))
    hessian = np.array([(objective(x + step)[1] - slope) / step.max() for step in np.diag(steps)])
    if not np.isfinite(hessian).all():
        return np.eye(len(x))
    curvature, axes = np.linalg.eigh((hessian + hessian.T) / 2)
    return axes / np.sqrt(np.maximum(np.abs(curvature), MIN_CURVATURE))


def _continued(
    objective: Objective, curvature: Objective | None, own: Optimum, other: Optimum, enough: float
) -> Optimum:
    """A search that promises to gain more than `enough` nats goes on, from the lower of its own and another optimum.

    It had run out of iterations, or was lost far from the optimum.
    """
    if own.gain <= enough:
        return own
    lower = objective(other.x)[0] < own.value
    found = _minimized(objective, curvature, (other if lower else own).x, enough)
    return found if found.value <= own.value else own


def _shortfall(objectives: Objectives, one: Optimum, two: Optimum) -> float:
    """How far each of two optima is expected to fall short of the best member, nats: see the module's docstring."""
    on_one, on_two = objectives.independent
    return (on_one(two.x)[0] - one.value + on_two(one.x)[0] - two.value) / 4
