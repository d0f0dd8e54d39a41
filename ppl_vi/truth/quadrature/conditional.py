"""The truth of a model whose other latents are known exactly given up to three outer ones: `Target.conditional`."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor
from torch.func import vmap

from ppl_vi.numerics.mixtures import DEGREES, fit_student_mixture
from ppl_vi.numerics.weights import importance_evidence, pareto_khat
from ppl_vi.target.evaluation import prior_draws
from ppl_vi.target.log_density import Density
from ppl_vi.target.sites import constrain, inside, unconstrain
from ppl_vi.target.target import LatentSite, Target
from ppl_vi.truth.quadrature.adaptive import RULES, SURPRISE, Integral, assembled, integrate
from ppl_vi.truth.result import Check, Grade, Points, Truth

NUM_GROUPS = 16  # independent sets of draws of the rest
MOST_NODES = 2048  # of the outer latents in each
NUM_WEIGHED = 10_000  # draws of the importance sampling
STEIN = 6.0  # standard errors of 15 degrees of freedom: one comparison in 40,000 is as far off by chance
HEAVY = 0.7  # Pareto k-hat of its weights above which it says nothing


def outer_sites(target: Target) -> tuple[LatentSite, ...]:
    """The sites given which the rest is known.

    Raises:
        ValueError: the target has no conditional, or names a site that is not among its latents.
    """
    if target.conditional is None:
        raise ValueError(f"'{target.name}' has no conditional: nothing is known of some latents given others")
    sites = {site.name: site for site in target.latents}
    unknown = [name for name in target.conditional.outer if name not in sites]
    if unknown:
        raise ValueError(f"the conditional of '{target.name}' names {unknown}; its latents are {list(sites)}")
    return tuple(sites[name] for name in target.conditional.outer)


def reaches(target: Target) -> bool:
    """Whether the target has a conditional with at most three outer unconstrained numbers."""
    return target.conditional is not None and _size(outer_sites(target)) in RULES


def _size(sites: tuple[LatentSite, ...]) -> int:
    return sum(site.unconstrained_shape.numel() for site in sites)


def outer_density(target: Target, problem: int) -> Density:
    """log p(x, outer latents) in their unconstrained coordinates."""
    sites, row, conditional = outer_sites(target), target.row(problem), target.conditional
    assert conditional is not None

    def of_one(u: Tensor) -> Tensor:
        values, log_jacobian = constrain(sites, u)
        return conditional.log_marginal(values, *row) + log_jacobian

    def within(u: Tensor) -> Tensor:
        return inside(sites, constrain(sites, u)[0])

    return Density(of_one, _size(sites), target.dtype, within, target.name)


def partial_truth(target: Target, *, seed: int = 0) -> Truth:
    """log p(x) by quadrature over the outer latents, and the posterior by exact draws of the rest at its nodes.

    What the conditional says is held to the model: the points must satisfy Stein's identities of the joint density,
    E[d log p / du_i] = 0 and E[u_i d log p / du_i] = -1, and importance sampling from a density fitted to them must
    find the same evidence, where its weights have a variance.

    Args:
        target: with a conditional of at most three outer unconstrained numbers.
        seed: of the search and the draws.

    Raises:
        ValueError: the target has no such conditional.

    Source: Stein (1972), A bound for the error in the normal approximation; Rue, Martino and Chopin (2009), for the
    idea of integrating over few hyper-parameters.
    """
    sites = outer_sites(target)
    if _size(sites) not in RULES:
        raise ValueError(f"quadrature reaches {max(RULES)} outer numbers; '{target.name}' has {_size(sites)}")
    with target.isolated(seed):
        found, points, more = [], [], []
        for problem in range(target.num_problems):
            drawn, _ = target.constrain(prior_draws(target, problem, seed=seed))
            prior = unconstrain(sites, drawn)
            density = outer_density(target, problem)
            with torch.no_grad():
                start = prior[density(prior).nan_to_num(-math.inf).argmax()]
                found.append(integrate(density, prior, start, seed))
                points.append(_points(target, problem, found[-1], seed))
                more.append(_held_to_the_model(Density.of(target, problem), points[-1], found[-1], seed))
    truth = assembled(target, "quadrature over " + ", ".join(site.name for site in sites), found)
    reasons = list(truth.reasons or [""] * len(found))
    for i, (checks, _) in enumerate(more):
        failed = [f"{c.name}: {c.error:.1f}, allowed {c.tolerance:g}" for c in checks if not c.error <= c.tolerance]
        reasons[i] = reasons[i] or next(iter(failed), "")
    together = tuple(max((checks[k] for checks, _ in more), key=lambda c: c.error) for k in range(len(more[0][0])))
    grade: Grade = "uncertified" if any(reasons) else truth.grade
    assumed = truth.assumptions + (() if grade == "certified" else tuple({a for _, extra in more for a in extra}))
    handed = Points(
        torch.stack([p.u[0] for p in points]),
        torch.stack([p.log_weight[0] for p in points]),
        points[0].group,
        "draws",
    )
    return replace(
        truth,
        checks=(*truth.checks, *together),
        reasons=tuple(reasons) if any(reasons) else (),
        grade=grade,
        assumptions=assumed,
        make_points=lambda: (handed,),
    )


def _points(target: Target, problem: int, found: Integral, seed: int) -> Points:
    """Sixteen sets of the outer nodes, each node with one draw of the rest, from scrambled Sobol noise."""
    sites, conditional, row = outer_sites(target), target.conditional, target.row(problem)
    assert conditional is not None
    nodes, log_weight = found.rules[0]
    u, weights = [], []
    for group in range(NUM_GROUPS):
        rng = np.random.default_rng([seed, group])
        where = _systematic(log_weight.exp().numpy(), rng)
        outer, _ = constrain(sites, nodes[where])
        engine = qmc.Sobol(max(1, conditional.num_noise), rng=rng)
        uniform = engine.random_base2(math.ceil(math.log2(MOST_NODES)))[rng.permutation(MOST_NODES)]
        noise = torch.special.ndtri(torch.from_numpy(uniform[:, : conditional.num_noise]).clamp(1e-16, 1 - 1e-16))
        rest = vmap(lambda o, e: conditional.sample(o, e, *row))(outer, noise)
        u.append(target.unconstrain({**outer, **rest}))
        weights.append(torch.full((MOST_NODES,), -math.log(MOST_NODES * NUM_GROUPS), dtype=nodes.dtype))
    members = torch.arange(NUM_GROUPS).repeat_interleave(MOST_NODES)
    return Points(torch.cat(u)[None], torch.cat(weights)[None], members, "draws")


def _systematic(weight: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Which nodes `MOST_NODES` equally weighted points are at: each as often as its weight asks for, to within one."""
    edges = (np.arange(MOST_NODES) + rng.random()) / MOST_NODES
    return torch.from_numpy(np.searchsorted(np.cumsum(weight) / weight.sum(), edges).clip(max=len(weight) - 1))


def _held_to_the_model(
    density: Density, points: Points, found: Integral, seed: int
) -> tuple[tuple[Check, ...], tuple[str, ...]]:
    """Checks of the conditional against the joint density, and what has to be assumed for want of one."""
    u = points.u[0]
    slope = torch.cat([density.slope(part)[1] for part in u.split(MOST_NODES)])
    center = u.mean(0)
    away = torch.cat([slope, (u - center) * slope + 1], -1)[None]
    # the standard error of 16 groups: Student's t of 15 degrees of freedom
    stein = float((points.mean(away).abs() / points.std_error(away)).max())
    checks = (Check("Stein's identities at the points, standard errors", stein, STEIN),)
    generator = torch.Generator().manual_seed(seed)
    some = u[torch.randperm(len(u), generator=generator)[:NUM_WEIGHED]]
    proposal = fit_student_mixture(some, DEGREES, seed)
    proposed = proposal.draw(NUM_WEIGHED, generator)
    log_weight = (density(proposed) - proposal.log_prob(proposed)).numpy()
    if not pareto_khat(log_weight) <= HEAVY:
        return checks, ("the conditional's log marginal is that of the model: importance sampling could not tell",)
    evidence = importance_evidence(log_weight)
    away_by = abs(evidence.value - found.log_evidence) / math.hypot(evidence.std_error, found.error)
    return (*checks, Check("evidence of the joint density by importance sampling", away_by, SURPRISE)), ()
