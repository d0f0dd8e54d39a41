"""The truth of a model whose other latents are known exactly given up to three outer ones, by `Target.conditional`.

Quadrature integrates over the outer latents. The posterior of all latents is represented by draws: outer latents at the
nodes of the quadrature, as often as their weights ask for, each with an exact draw of the other latents given it. As
the conditional is the user's own statement, the draws and log p(x) are then held to the joint density of the model.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from ppl_vi.numerics.mixtures import DEGREES, fit_student_mixture
from ppl_vi.numerics.sobol import sobol_points
from ppl_vi.numerics.weights import importance_evidence, pareto_khat
from ppl_vi.runtime.stages import stage
from ppl_vi.target.conditional import Conditional
from ppl_vi.target.evaluation import prior_draws
from ppl_vi.target.log_density import Density
from ppl_vi.target.sites import constrain, inside, unconstrain
from ppl_vi.target.supports import LatentSite
from ppl_vi.target.target import Target
from ppl_vi.truth.quadrature.adaptive import (
    MAX_LATENT_NUMBERS,
    MAX_STANDARD_ERRORS,
    Integral,
    integrate,
    joint_truth,
)
from ppl_vi.truth.result import Check, Points, Truth

# Sets of draws that are independent of each other given the nodes; their spread gives the standard errors.
NUM_GROUPS = 16
# Draws in each set: a power of 2, as Sobol points ask for.
LOG2_GROUP_SIZE = 11
GROUP_SIZE = 2**LOG2_GROUP_SIZE
# Noise this close to 0 or 1 is moved: its normal quantile would be infinite.
MIN_UNIFORM = 1e-16
# Draws to which the importance sampler is fitted, and draws that it makes.
NUM_IMPORTANCE_DRAWS = 10_000
# Standard errors by which Stein's identities may fail. The standard errors have 15 degrees of freedom: by Student's t
# one comparison in 40,000 is as far off by chance.
MAX_STEIN_STANDARD_ERRORS = 6.0
# Pareto k-hat of importance weights above which their mean has no standard error that could be trusted.
MAX_KHAT = 0.7


def outer_sites(target: Target) -> tuple[LatentSite, ...]:
    """The sites given which the other latents are known.

    Raises:
        ValueError: the target has no conditional, or its conditional names a site that is not among the latents.
    """
    sites = {site.name: site for site in target.latents}
    outer = _conditional(target).outer
    unknown = [name for name in outer if name not in sites]
    if unknown:
        raise ValueError(f"the conditional of '{target.name}' names {unknown}; its latents are {list(sites)}")
    return tuple(sites[name] for name in outer)


def _conditional(target: Target) -> Conditional:
    if target.conditional is None:
        raise ValueError(
            f"'{target.name}' has no conditional, so that nothing is known of some latents given others: pass "
            f"Target(conditional=...)"
        )
    return target.conditional


def has_few_outer_numbers(target: Target) -> bool:
    """Whether the target has a conditional on one to three unconstrained numbers."""
    return target.conditional is not None and 1 <= _num_numbers(outer_sites(target)) <= MAX_LATENT_NUMBERS


def _num_numbers(sites: tuple[LatentSite, ...]) -> int:
    return sum(site.unconstrained_shape.numel() for site in sites)


def outer_density(target: Target, problem: int) -> Density:
    """log p(x, outer latents) of one problem, as a density of their unconstrained numbers."""
    sites, row, conditional = outer_sites(target), target.row(problem), _conditional(target)

    def of_one(u: Tensor) -> Tensor:
        values, log_jacobian = constrain(sites, u)
        return conditional.log_marginal(values, *row) + log_jacobian

    def within(u: Tensor) -> Tensor:
        return inside(sites, constrain(sites, u)[0])

    return Density(of_one, _num_numbers(sites), target.dtype, within, target.name)


def partial_truth(target: Target, *, seed: int = 0) -> Truth:
    """log p(x) by quadrature over the outer latents, and the posterior by exact draws of the others at its nodes.

    Two checks hold the conditional to the model. The draws must satisfy Stein's identities of the joint density,
    E[d log p / du_i] = 0 and E[u_i d log p / du_i] = -1. Importance sampling from a density fitted to the draws must
    find the same log p(x); where its weights are too heavy-tailed to say, this becomes an assumption.

    Args:
        target: with a conditional on one to three outer unconstrained numbers.
        seed: of the search and the draws.

    Raises:
        ValueError: the target has no such conditional.

    Source: Stein (1972), A bound for the error in the normal approximation; Rue, Martino and Chopin (2009), for the
    idea of integrating over few hyper-parameters.
    """
    sites = outer_sites(target)
    if not 1 <= _num_numbers(sites) <= MAX_LATENT_NUMBERS:
        raise ValueError(
            f"quadrature reaches {MAX_LATENT_NUMBERS} outer numbers; '{target.name}' has {_num_numbers(sites)}"
        )
    with target.isolated(seed):
        integrals = []
        for problem in range(target.num_problems):
            drawn, _ = target.constrain(prior_draws(target, problem, seed=seed))
            prior = unconstrain(sites, drawn)
            density = outer_density(target, problem)
            with torch.no_grad():
                value = density(prior)
                start = prior[torch.where(value.isnan(), -torch.inf, value).argmax()]
                outer = integrate(density, prior, start, seed)
                with stage("draws of the other latents"):
                    draws = _draws_at_nodes(target, problem, outer.points[0], seed)
                with stage("checks against the model"):
                    joint = Density.of(target, problem)
                    integrals.append(_checked_against_model(replace(outer, points=(draws,)), joint, seed))
    return joint_truth(target, "quadrature over " + ", ".join(site.name for site in sites), integrals)


def _draws_at_nodes(target: Target, problem: int, nodes: Points, seed: int) -> Points:
    """Sixteen sets of draws of all latents: outer ones at weighted nodes, the others by scrambled Sobol noise."""
    sites, conditional, row = outer_sites(target), _conditional(target), target.row(problem)
    u = []
    for group in range(NUM_GROUPS):
        rng = np.random.default_rng([seed, group])
        chosen = _systematic(nodes.log_weight[0].exp().numpy(), rng)
        outer, _ = constrain(sites, nodes.u[0, chosen])
        sobol = sobol_points(max(1, conditional.num_noise), LOG2_GROUP_SIZE, rng)
        uniform = torch.from_numpy(sobol[rng.permutation(GROUP_SIZE)])
        noise = torch.special.ndtri(uniform[:, : conditional.num_noise].clamp(MIN_UNIFORM, 1 - MIN_UNIFORM))
        others = vmap(lambda o, e: conditional.sample(o, e, *row))(outer, noise)
        u.append(target.unconstrain({**outer, **others}))
    num = NUM_GROUPS * GROUP_SIZE
    log_weight = torch.full((1, num), -math.log(num), dtype=nodes.u.dtype)
    return Points(torch.cat(u)[None], log_weight, torch.arange(NUM_GROUPS).repeat_interleave(GROUP_SIZE), "draws")


def _systematic(weight: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Indices `(GROUP_SIZE,)` of nodes by systematic resampling: each as often as its weight says, to within one."""
    edges = (np.arange(GROUP_SIZE) + rng.random()) / GROUP_SIZE
    return torch.from_numpy(np.searchsorted(np.cumsum(weight) / weight.sum(), edges).clip(max=len(weight) - 1))


def _checked_against_model(outer: Integral, joint: Density, seed: int) -> Integral:
    """The same integral with the checks of its draws and its log evidence against the joint density of the model."""
    draws = outer.points[0]
    stein = Check(
        "Stein's identities at the draws, standard errors off", _stein(draws, joint), MAX_STEIN_STANDARD_ERRORS
    )
    importance = _importance(draws.u[0], joint, outer, seed)
    more = (stein,) if importance is None else (stein, importance)
    assumed = "the conditional's log marginal is that of the model, which importance sampling could not confirm here"
    return replace(
        outer,
        checks=(*outer.checks, *more),
        reason=outer.reason or next((check.failure for check in more if not check.passed), ""),
        assumptions=(*outer.assumptions, assumed) if importance is None else outer.assumptions,
    )


def _stein(draws: Points, joint: Density) -> float:
    """The largest deviation from Stein's identities, in standard errors from the spread of the groups."""
    u = draws.u[0]
    slope = torch.cat([joint.slope(part)[1] for part in u.split(GROUP_SIZE)])
    deviation = torch.cat([slope, (u - u.mean(0)) * slope + 1], -1)[None]
    return float((draws.mean(deviation).abs() / draws.std_error(deviation)).max())


def _importance(u: Tensor, joint: Density, outer: Integral, seed: int) -> Check | None:
    """Importance sampling of the joint density against the quadrature; None where its weights are too heavy-tailed."""
    generator = torch.Generator().manual_seed(seed)
    some = u[torch.randperm(len(u), generator=generator)[:NUM_IMPORTANCE_DRAWS]]
    proposal = fit_student_mixture(some, DEGREES, seed)
    proposed = proposal.draw(NUM_IMPORTANCE_DRAWS, generator)
    log_weight = (joint(proposed) - proposal.log_prob(proposed)).numpy()
    if not pareto_khat(log_weight) <= MAX_KHAT:
        return None
    evidence = importance_evidence(log_weight)
    away = abs(evidence.value - outer.log_evidence) / math.hypot(evidence.std_error, outer.error)
    return Check("log p(x) by importance sampling of the full model, standard errors off", away, MAX_STANDARD_ERRORS)
