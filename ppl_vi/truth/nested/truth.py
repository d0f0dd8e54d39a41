"""The truth of a hierarchy: quadrature over the outer latents, and exact draws of all.

The inner latents are integrated out at every outer point, so that the density of the outer ones has none of the necks
that make a hierarchy hard. Importance draws of the outer latents, which meet the same criteria as those of any other
model, get exact draws of the inner latents beside them. Up to five outer numbers are integrated over by lattices, too,
which give log p(x) to many digits; for more of them log p(x) has the standard error of the importance draws.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_vi.numerics.weights import importance_evidence, pareto_khat
from ppl_vi.runtime.stages import stage
from ppl_vi.target.evaluation import prior_draws
from ppl_vi.target.factorisation import Factorisation, factorisation
from ppl_vi.target.log_density import Density
from ppl_vi.target.target import Target
from ppl_vi.truth.importance.draws import importance_draws
from ppl_vi.truth.importance.evidence import with_unseen_mass
from ppl_vi.truth.importance.scan import what_may_hide
from ppl_vi.truth.importance.searches import searched
from ppl_vi.truth.importance.witness import NUM_WITNESSES
from ppl_vi.truth.nested.lattice import MAX_LATTICE_DIM, LatticeIntegral
from ppl_vi.truth.nested.lattice_draws import OuterCoordinates, draws_by_lattice
from ppl_vi.truth.nested.lattice_proposal import LatticeProposal
from ppl_vi.truth.nested.marginal import GOOD_INNER_ERROR, Drawn, Inner, inner_of
from ppl_vi.truth.result import Check, Points, Truth, worst_checks

# Targets of more problems would take too long, one after another.
MAX_PROBLEMS = 4
# Points of the outer latents at which two rules of the inner integrals are compared.
NUM_COMPARED = 500
# Draws, in groups that are independent of each other.
NUM_GROUPS, GROUP_SIZE = 100, 100
NUM_PRIOR_DRAWS = 100
# At a larger mean error of the inner integrals there is no truth.
MAX_INNER_ERROR = 1e-6
# The share of draws by rejection that may have exceeded its bound, or have been refused.
MAX_EXCEEDING = 1e-3
# Standard errors, as for other importance draws and for Stein's identities.
MAX_STANDARD_ERRORS, MAX_STEIN_STANDARD_ERRORS = 5.0, 6.0
# Pareto's k-hat above which a mean of weights has no standard error that could be trusted.
MAX_KHAT = 0.7
# What the log densities of closed forms may differ by from the model, beside rounding, nats.
CLOSED_FORM_TOLERANCE = 1e-8
# Rounding in the inner integrals is looked at in so many nodes of a lattice at most.
MAX_ROUNDING_NODES = 10_000
# The share of the integral that may lie in the outermost nodes of a lattice.
MAX_RIM = 1e-7
# An integral over the inner latents at one outer point may take as many numbers as this.
MAX_NUMBERS = 2**16
DEPENDENCE = "no latent depends on another where neither changing numbers nor derivatives have shown it"
NO_MASS_MISSED = (
    f"no mass of the outer latents lies where neither the fitted density nor any of {NUM_WITNESSES} short chains from "
    "dispersed starts has come, which no check here can prove: {}"
)
UNCONFIRMED = "the inner integrals are those of the model, which importance sampling could not confirm here"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Problem:
    """The truth of one problem.

    Attributes:
        structure: outer and inner latents.
        points: all latents, `(S, D)`.
        log_weight: of these, `(S,)`.
        log_evidence: log p(x), nats.
        error: bound on its numerical error, nats.
        std_error: its standard error, nats.
        checks: all of them.
        assumptions: what they take for granted.
    """

    structure: Factorisation
    points: Tensor
    log_weight: Tensor
    log_evidence: float
    error: float
    std_error: float
    checks: tuple[Check, ...]
    assumptions: tuple[str, ...]


def nested_truth(target: Target, *, seed: int = 0) -> Truth | None:
    """log p(x) and independent draws of every problem, the inner latents integrated out; None where this can't be had.

    Args:
        target: a model some of whose latents fall apart given the others, see `ppl_vi.target.factorisation`.
        seed: of everything random.

    Source: Rue, Martino and Chopin (2009), Approximate Bayesian inference for latent Gaussian models, for the idea of
    integrating over few outer latents; here the inner integrals are exact or have a stated error.
    """
    if target.num_problems > MAX_PROBLEMS or target.decoded is not None or target.closed_form is not None:
        return None
    with target.isolated(seed):
        found = []
        for problem in range(target.num_problems):
            try:
                one: _Problem | str = _problem_truth(target, problem, seed)
            except ValueError as error:  # a search met a place where the density is not finite
                one = str(error)
            if isinstance(one, str):
                _log.info("'%s' gets no nested quadrature: %s", target.name, one)
                return None
            found.append(one)
    return _joined(target, found)


def _joined(target: Target, found: list[_Problem]) -> Truth:
    group = torch.arange(NUM_GROUPS).repeat_interleave(GROUP_SIZE)
    u, log_weight = torch.stack([one.points for one in found]), torch.stack([one.log_weight for one in found])
    points = Points(u, log_weight, group, "draws")
    by_lattice = all(not one.std_error for one in found)
    route = "nested quadrature" if by_lattice else "importance sampling of outer latents"
    return Truth(
        target,
        f"{route} ({found[0].structure.summary})",
        np.array([one.log_evidence for one in found]),
        np.array([one.error for one in found]),
        worst_checks(check for one in found for check in one.checks),
        assumptions=tuple(dict.fromkeys(text for one in found for text in one.assumptions)),
        log_evidence_std_error=np.array([one.std_error for one in found]),
        make_points=lambda: (points,),
    )


@dataclass(frozen=True, eq=False)
class _Outer:
    """The posterior of the outer latents.

    Attributes:
        inner: how the others are integrated out.
        u: weighted draws, `(S, d)`.
        log_weight: of these, `(S,)`.
        log_evidence: log p(x), nats.
        std_error: its standard error, nats.
        inner_error: estimated error of it by that of the inner integrals, nats.
        checks: that the draws have passed.
        lattice: the integral over up to five outer numbers; None where lattices do not agree, or there are more.
        nodes: of one of the lattices, u `(N, d)` and the log of each one's share of the integral `(N,)`.
    """

    inner: Inner
    u: Tensor
    log_weight: Tensor
    log_evidence: float
    std_error: float
    inner_error: float
    checks: tuple[Check, ...]
    lattice: LatticeIntegral | None
    nodes: tuple[Tensor, Tensor] | None = None


def _problem_truth(target: Target, problem: int, seed: int) -> _Problem | str:
    """The truth of one problem, or why there is none, in words."""
    with stage("structure of the latents"):
        structure = factorisation(target, problem, seed)
    if structure is None:
        return "no few latents were found given which the others fall apart"
    prior = prior_draws(target, problem, NUM_PRIOR_DRAWS, seed)
    with torch.no_grad():
        inner = inner_of(target, structure, torch.cat([torch.zeros_like(prior[:1]), prior]))
        if inner is None:
            return "there is no machine code for the blocks"
        if inner.density.width > MAX_NUMBERS:
            return f"an integral over the inner latents takes {inner.density.width} numbers"
        outer = _outer(inner, prior, seed)
        if isinstance(outer, str):
            return outer
        joint, generator = Density.of(target, problem), torch.Generator().manual_seed(seed)
        with stage("draws of the inner latents"):
            drawn = outer.inner.drawn(outer.u, joint, generator)
            rounding = _rounding_at_nodes(outer, joint, generator)
        return _checked(outer, drawn, joint, rounding)


def _outer(inner: Inner, prior: Tensor, seed: int) -> _Outer | str:
    """Draws of the outer latents, with the coarsest rule for the inner integrals that is good enough."""
    while True:
        found = _outer_draws(inner, prior, seed)
        if found is None:
            return "importance draws of the outer latents do not meet their criteria"
        finer = inner.refined()
        if found.inner_error <= GOOD_INNER_ERROR or finer is None or finer.refined() is None:
            return found
        inner = finer


def _outer_draws(inner: Inner, prior: Tensor, seed: int) -> _Outer | None:
    num = NUM_GROUPS * GROUP_SIZE
    if not inner.density.dim:
        nothing = prior.new_zeros(num, 0)
        value, error = inner.density(nothing[:1]), inner.error_at(nothing[:1])
        even = prior.new_full((num,), -math.log(num))
        return _Outer(inner, nothing, even, float(value), 0.0, float(error.abs()), (), None)
    start = prior[:, inner.structure.outer]
    modes = searched(OuterCoordinates(inner.density), start, seed)
    found = draws_by_lattice(inner.density, modes, num, seed) if inner.density.dim <= MAX_LATTICE_DIM else None
    found = found or importance_draws(OuterCoordinates(inner.density), modes, num, seed)
    if found is None:
        return None
    proposal = found.proposal
    lattice = proposal.integral if isinstance(proposal, LatticeProposal) else None
    nodes = proposal.nodes if isinstance(proposal, LatticeProposal) else None
    generator = torch.Generator().manual_seed(seed)
    some = torch.multinomial(found.log_weight.exp(), NUM_COMPARED, replacement=True, generator=generator)
    inner_error = float(inner.error_at(found.v[some]).expm1().abs().mean())
    checks = tuple(criterion.check for criterion in found.criteria)
    evidence = found.evidence if lattice is not None else with_unseen_mass(found.evidence, num)
    return _Outer(
        inner, found.v, found.log_weight, evidence.value, evidence.std_error, inner_error, checks, lattice, nodes
    )


def _rounding_at_nodes(outer: _Outer, joint: Density, generator: torch.Generator) -> float:
    """What rounding in the normal inner latents takes from log p(x) or adds to it, nats.

    In exact arithmetic log p(x, z) less the log marginal and the log of the normal density is 0 wherever z lies. Where
    a scale is small, the precision of centred effects has few digits left, and so has its determinant. At the nodes of
    a lattice, weighted by their shares, the sum of these differences is what the evidence is off by; thrice the spread
    of such a sum is added.
    """
    if outer.nodes is None or not outer.inner.structure.is_normal:
        return 0.0
    u, log_share = outer.nodes
    some = torch.randperm(len(u), generator=generator)[:MAX_ROUNDING_NODES]
    off = outer.inner.drawn(u[some], joint, generator).log_ratio
    off = torch.where(off.isfinite(), off, 1.0) * log_share[some].exp() * (len(u) / len(some))
    return float(off.sum().abs() + 3 * off.square().sum().sqrt())


def _checked(outer: _Outer, drawn: Drawn, joint: Density, rounding: float) -> _Problem | str:
    """The truth with all its checks, or the first that failed; `rounding` is what that costs in the inner integrals."""
    log_weight = (outer.log_weight + drawn.log_correction).log_softmax(0)
    points = Points(drawn.u[None], log_weight[None], torch.arange(NUM_GROUPS).repeat_interleave(GROUP_SIZE), "draws")
    confirmed = _of_full_model(outer, drawn)
    checks = [*outer.checks, *confirmed]
    checks.append(
        Check("Stein's identities at the draws, standard errors off", _stein(points, joint), MAX_STEIN_STANDARD_ERRORS)
    )
    exceeding = float(outer.log_weight.exp() @ (drawn.log_correction != 0).double())
    if not outer.inner.structure.is_normal:
        checks.append(
            Check("difference of two rules for the inner integrals, nats", outer.inner_error, MAX_INNER_ERROR)
        )
        checks.append(
            Check("share of draws above the bound of rejection sampling, or refused", exceeding, MAX_EXCEEDING)
        )
    rounding += 16 * torch.finfo(joint.dtype).eps * (1 + abs(outer.log_evidence))
    log_evidence, error, std_error = outer.log_evidence, outer.inner_error + rounding, outer.std_error
    lattice = outer.lattice
    if lattice is not None:
        off = abs(lattice.log_evidence - outer.log_evidence) / outer.std_error
        checks.append(Check("two lattices over the outer latents, nats", lattice.difference, MAX_INNER_ERROR))
        checks.append(Check("share of p(x) in the outermost nodes of the lattices", lattice.rim, MAX_RIM))
        checks.append(Check("lattices against importance sampling, standard errors off", off, MAX_STANDARD_ERRORS))
        log_evidence, std_error = lattice.log_evidence, 0.0
        error += lattice.difference + 10 * lattice.rim
    failure = next((check.failure for check in checks if not check.passed), "")
    if failure:
        return failure
    structure, outer_density = outer.inner.structure, outer.inner.density
    nothing_missed = (NO_MASS_MISSED.format(what_may_hide(outer_density)),) if outer_density.dim else ()
    assumptions = (*nothing_missed, DEPENDENCE) if confirmed else (*nothing_missed, DEPENDENCE, UNCONFIRMED)
    return _Problem(structure, drawn.u, log_weight, log_evidence, error, std_error, tuple(checks), assumptions)


def _of_full_model(outer: _Outer, drawn: Drawn) -> list[Check]:
    """The inner integrals against the joint density of the model; nothing where weights are too heavy-tailed to say."""
    if outer.inner.structure.is_normal:
        away = float(outer.log_weight.exp() @ drawn.log_ratio.abs())
        tolerance = CLOSED_FORM_TOLERANCE * (1 + abs(outer.log_evidence))
        return [Check("mean of log joint less log marginal and normal log density at the draws, nats", away, tolerance)]
    log_ratio = drawn.log_ratio + outer.log_weight + math.log(len(drawn.log_ratio))
    if not pareto_khat(log_ratio.numpy()) <= MAX_KHAT:
        return []
    mean = importance_evidence(log_ratio.numpy())
    off = abs(mean.value) / mean.std_error
    return [
        Check("inner integrals by importance sampling of the full model, standard errors off", off, MAX_STANDARD_ERRORS)
    ]


def _stein(draws: Points, joint: Density) -> float:
    """The largest deviation from Stein's identities, in standard errors from the spread of the groups."""
    u = draws.u[0]
    slope = torch.cat([joint.slope(part)[1] for part in u.split(GROUP_SIZE * GROUP_SIZE // 10)])
    mean = draws.mean(draws.u)[0]
    deviation = torch.cat([slope, (u - mean) * slope + 1], -1)[None]
    return float((draws.mean(deviation).abs() / draws.std_error(deviation)).max())
