"""The truth of any model of one to three unconstrained numbers, by an adaptive tree of bricks.

The steps for each problem:

1. A search finds modes, and draws from about the posterior by importance sampling.
2. Coordinates are chosen in which the posterior has about mean 0, covariance I and light tails.
3. A tree of bricks integrates the density over a box, which grows until it leaves out a negligible mass.
4. Routes that owe the tree nothing confirm it: a second quadrature rule, the modes and scanned points of the search,
   importance sampling, and Hamiltonian Monte Carlo.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_vi.runtime.stages import stage
from ppl_vi.target.evaluation import prior_draws
from ppl_vi.target.log_density import Density
from ppl_vi.target.target import Target
from ppl_vi.truth.importance.scan import what_may_hide
from ppl_vi.truth.quadrature.box import MAX_MASS_OUTSIDE, Accuracy, mass_outside, tree_in_box, tree_in_large_enough_box
from ppl_vi.truth.quadrature.bricks import BrickRule
from ppl_vi.truth.quadrature.cross_checks import (
    RULES_TOLERANCE,
    density_above_bricks,
    largest_region_deviation,
    lattice_nodes,
)
from ppl_vi.truth.quadrature.search import FINITE_AT_ENDS, SearchResult, search
from ppl_vi.truth.quadrature.standardized import StandardizedDensity, WeightedNodes
from ppl_vi.truth.quadrature.tree import Tree
from ppl_vi.truth.result import Check, Grade, Points, Truth, worst_checks

MAX_LATENT_NUMBERS = 3
# By the number of latent numbers: the accuracy of the tree, and that of the coarser tree whose nodes are handed out as
# points. Points need to be no more exact than the moments that are computed from them, and each costs whoever uses it.
TREE_ACCURACY = {1: Accuracy(16, 1e-12), 2: Accuracy(10, 1e-10), 3: Accuracy(7, 1e-10)}
POINTS_ACCURACY = {1: Accuracy(12, 1e-9), 2: Accuracy(7, 1e-8), 3: Accuracy(5, 1e-6)}
# The largest estimated error of a tree, relative to p(x). The estimate is the error of the coarser bricks; that of
# their accepted halves is far smaller, and is checked to `RULES_TOLERANCE` by the second rule.
MAX_TREE_ERROR = 1e-6
# Standard errors by which Monte Carlo may differ from the tree: one comparison in 2 million is as far off by chance.
MAX_STANDARD_ERRORS = 5.0
# Nats that the density at a mode or scanned point may lie above the mean density of its brick. A point above has found
# a peak that the nodes of its brick missed.
MAX_NATS_ABOVE_BRICK = 14.0
# The effective share of importance sampling's draws above which their covariance is used; below it the curvature at the
# best mode is.
MIN_EFFICIENCY = 0.002
# Coordinates are turned only where two latent numbers correlate by more than this. A funnel must stay along its axis:
# turned by a correlation that is there by chance, it would need bricks as short as it is narrow.
MIN_CORRELATION = 0.3
# Bricks of a tree that gave up of which the uncertified truth makes points: the heaviest ones.
MAX_UNSETTLED_POINTS = 4096
ASSUMPTIONS = (
    "outside the box of integration the posterior's mass goes on falling as fast as it does just inside its boundary",
    "where a latent overflows so that the model gives no number, or farther out than where its density has fallen "
    "below e^-750 of the maximum, the density is 0",
    "no part of the posterior is so narrow that the bricks, the ascents, the chains and the scans all miss it: {}",
)


def black_box_truth(target: Target, *, seed: int = 0) -> Truth:
    """log p(x) = log int exp(log p(x, z(u))) |dz/du| du of every problem of a target of up to three latent numbers.

    A check that fails is named in `Truth.reasons`, and the truth is then uncertified. Two quadrature rules must agree
    to 1e-8 nats.

    Args:
        target: any model whose latents are one to three unconstrained numbers.
        seed: of the search and the chains.

    Raises:
        ValueError: the target has more latent numbers, or its density is nowhere positive.
    """
    if not 1 <= target.dim <= MAX_LATENT_NUMBERS:
        raise ValueError(
            f"quadrature reaches {MAX_LATENT_NUMBERS} unconstrained numbers; '{target.name}' has {target.dim}"
        )
    with target.isolated(seed):
        integrals = []
        for problem in range(target.num_problems):
            prior = prior_draws(target, problem, seed=seed)
            with torch.no_grad():
                integrals.append(integrate(Density.of(target, problem), prior, target.laplace.loc[problem], seed))
    return joint_truth(target, "tree of bricks", integrals)


@dataclass(frozen=True, eq=False)
class Integral:
    """One problem's log evidence and posterior.

    Attributes:
        log_evidence: log p(x), nats.
        error: of it, nats.
        checks: all of them, those that failed too.
        reason: why it is not to be trusted, or "".
        points: of this one problem: two rules, the better one first, or draws.
        assumptions: what the checks take for granted.
    """

    log_evidence: float
    error: float
    checks: tuple[Check, ...]
    reason: str
    points: tuple[Points, ...]
    assumptions: tuple[str, ...]


def joint_truth(target: Target, method: str, integrals: list[Integral]) -> Truth:
    """The truth of all problems from their integrals, compared with the target's closed form where it has one."""
    log_evidence = np.array([one.log_evidence for one in integrals])
    error = np.array([one.error for one in integrals])
    reasons = [one.reason for one in integrals]
    checks = worst_checks([check for one in integrals for check in one.checks])
    if target.closed_form is not None:
        exact = target.closed_form(*target.args).detach().cpu().numpy()
        away = np.abs(exact - log_evidence)
        error = error + away  # the closed form also shows the density's own rounding, which all rules share
        tolerance = RULES_TOLERANCE + 1e-12 * float(np.abs(exact).max())
        checks += (Check("tree of bricks against the closed form, nats", float(away.max()), tolerance),)
        for i in np.flatnonzero(~(away <= tolerance)):
            reasons[i] = reasons[i] or f"the tree of bricks differs from the closed form by {away[i]:.1e} nats"
    grade: Grade = "uncertified" if any(reasons) else "checked" if target.closed_form is None else "certified"
    assumptions = dict.fromkeys(text for one in integrals for text in one.assumptions)
    points = tuple(_of_all_problems(parts) for parts in zip(*(one.points for one in integrals), strict=True))
    return Truth(
        target,
        method,
        log_evidence,
        error,
        checks,
        reasons=tuple(reasons) if any(reasons) else (),
        grade=grade,
        assumptions=() if grade == "certified" else tuple(assumptions),
        make_points=lambda: points,
    )


def _of_all_problems(parts: tuple[Points, ...]) -> Points:
    """The points of single problems as one row each; a shorter row is filled up with its first point, of weight 0."""
    longest = max(parts, key=lambda part: part.u.shape[1])
    num, u, log_weight = longest.u.shape[1], [], []
    for part in parts:
        missing = num - part.u.shape[1]
        u.append(torch.cat([part.u, part.u[:, :1].expand(-1, missing, -1)], 1))
        log_weight.append(torch.cat([part.log_weight, part.log_weight.new_full((1, missing), -torch.inf)], 1))
    return Points(torch.cat(u), torch.cat(log_weight), longest.group, longest.kind)


def integrate(density: Density, prior: Tensor, start: Tensor, seed: int) -> Integral:
    """The integral of one density, and all checks of it.

    Args:
        density: of one to three numbers.
        prior: draws of the prior, with which the search begins, `(N, D)`.
        start: a point of finite density, `(D,)`.
        seed: of the search and the chains.

    Raises:
        ValueError: the density is nowhere positive, grows without bound, or is infinite or nan where it should not be.
    """
    with stage("search for modes"):
        found = search(density, prior, start, seed)
    standardized = in_standardized_coordinates(density, found)
    accuracy = TREE_ACCURACY[density.dim]
    tree, half_width = tree_in_large_enough_box(standardized, accuracy, found)
    if tree.reason:
        return _given_up(standardized, tree)
    with stage("checks by other routes"):
        lattice = lattice_nodes(standardized, tree)
        second_rule = "a trapezoid lattice" if lattice is not None else "Gauss rules of another order"
        second = lattice if lattice is not None else _nodes(standardized, tree, accuracy.order + 3)
        difference = abs(second.log_total - tree.log_mass)
        outside = mass_outside(tree, half_width)
        rounding = 16 * torch.finfo(density.dtype).eps * (1 + abs(tree.log_mass) + float(found.modes.value.abs().max()))
        above = density_above_bricks(standardized, tree, found)
        importance = abs(found.log_evidence - tree.log_mass) / math.hypot(found.std_error, 1e-6)
        regions = largest_region_deviation(standardized, found.sample, tree, seed)
    checks = (
        _tree_error(tree.error),
        Check(f"tree of bricks against {second_rule}, nats", difference, RULES_TOLERANCE + rounding),
        Check("estimated mass outside the box of integration, relative to p(x)", outside, MAX_MASS_OUTSIDE),
        Check("log density at modes and scanned points above their bricks', nats", above, MAX_NATS_ABOVE_BRICK),
        Check("log p(x) by importance sampling, standard errors off", importance, MAX_STANDARD_ERRORS),
        Check("masses of regions by Hamiltonian Monte Carlo, standard errors off", regions, MAX_STANDARD_ERRORS),
    )
    reason = next((check.failure for check in checks if not check.passed), "")
    error = max(difference, tree.error) + 10 * outside + rounding
    points = _points(standardized, found, half_width, lattice)
    return Integral(tree.log_mass, error, checks, reason, points, _assumptions(density))


def _assumptions(density: Density) -> tuple[str, ...]:
    return tuple(text.format(what_may_hide(density)) for text in ASSUMPTIONS)


def _tree_error(error: float) -> Check:
    return Check("estimated error of the tree of bricks, relative to p(x)", error, MAX_TREE_ERROR)


def _points(
    standardized: StandardizedDensity, found: SearchResult, half_width: float, lattice: WeightedNodes | None
) -> tuple[Points, Points]:
    """The lattice, or else the nodes of a higher order in a coarse tree, and the nodes of the coarse tree."""
    accuracy = POINTS_ACCURACY[standardized.density.dim]
    coarse = tree_in_box(standardized, accuracy, found, half_width)
    better = lattice if lattice is not None else _nodes(standardized, coarse, accuracy.order + 2)
    return standardized.points(better), standardized.points(_nodes(standardized, coarse, accuracy.order))


def _nodes(standardized: StandardizedDensity, tree: Tree, order: int) -> WeightedNodes:
    """The nodes of a Gauss rule of that order in every leaf."""
    s, log_weight = tree.leaves.nodes(BrickRule.of(order, standardized.density.dim, standardized.center))
    return WeightedNodes(s, standardized(s) + log_weight)


def _given_up(standardized: StandardizedDensity, tree: Tree) -> Integral:
    """What is left of a tree that gave up: the middles of its bricks as points, and the reason.

    The first rule weighs a brick by its integral, the second by the density at its middle.

    Raises:
        ValueError: no brick has any mass.
    """
    place = (
        "" if tree.place is None else f" near {_numbers(standardized.at(tree.place[None])[0])} in unconstrained space"
    )
    if not len(tree.leaves):
        raise ValueError(f"{standardized.density.name}: {tree.reason}{place}: {FINITE_AT_ENDS}")
    heaviest = tree.leaves.log_mass.topk(min(len(tree.leaves), MAX_UNSETTLED_POINTS)).indices
    leaves = tree.leaves[heaviest]
    by_integral = WeightedNodes(leaves.center, leaves.log_mass)
    by_middle = WeightedNodes(leaves.center, standardized(leaves.center) + leaves.log_volume)
    points = (standardized.points(by_integral), standardized.points(by_middle))
    reason = f"the tree of bricks gave up: {tree.reason}{place}"
    assumptions = _assumptions(standardized.density)
    return Integral(tree.log_mass, math.inf, (_tree_error(math.inf),), reason, points, assumptions)


def _numbers(u: Tensor) -> str:
    return f"[{', '.join(f'{number:.4g}' for number in u.tolist())}]"


def in_standardized_coordinates(density: Density, found: SearchResult) -> StandardizedDensity:
    """The density in coordinates in which the posterior has about mean 0 and covariance I."""
    center, covariance = found.sample.mean(0), torch.cov(found.sample.T).reshape(density.dim, density.dim)
    if not (found.efficiency > MIN_EFFICIENCY and bool((torch.diagonal(covariance) > 0).all())):
        center, covariance = found.modes.u[0], found.modes.factor[0] @ found.modes.factor[0].mT
    scale = torch.diagonal(covariance).sqrt()
    correlation = covariance / (scale[:, None] * scale)
    if bool((correlation - torch.eye(density.dim).to(scale)).abs().max() > MIN_CORRELATION):
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if not bool(failed):
            return StandardizedDensity(density, center, factor, found.modes.u[0])
    return StandardizedDensity(density, center, torch.diag(scale), found.modes.u[0])
