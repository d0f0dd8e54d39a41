"""Importance draws: independent weighted draws of the posterior, which must meet criteria as strict as those of chains.

A proposal is fitted to the posterior (`proposal`), and NUM draws of it are weighted by p(x, z) / q(z). The criteria are

- Pareto's k-hat of the weights, at which their variance is finite;
- the effective sample sizes of means and of tail probabilities, for every coordinate and for the log density, which
  have to be as large as those of chains;
- the standard error of log p(x), and its agreement between two independent halves of the draws;
- the weights on the straight rays from the modes to dispersed starts, where broad mass that the proposal has missed
  would have weights far above those of the draws;
- a few short chains from dispersed starts (`witness`), which judge the draws (`judges`): they must agree with each
  other and with the draws, and so must log p(x) by bridge sampling, from these chains and other draws of the proposal.

Sources: Vehtari et al. (2024), Pareto smoothed importance sampling; Owen (2013), Monte Carlo theory, methods and
examples, chapter 9 (effective sample sizes).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_vi.numerics.mixtures import StudentMixture
from ppl_vi.numerics.weights import EvidenceEstimate, importance_evidence, pareto_khat
from ppl_vi.runtime.stages import stage
from ppl_vi.target.log_density import Density
from ppl_vi.truth.chains.criteria import MAX_STANDARD_ERRORS, MIN_EFFECTIVE_SAMPLE_SIZE, Criterion
from ppl_vi.truth.chains.starts import Coordinates
from ppl_vi.truth.importance.evidence import evidence_of
from ppl_vi.truth.importance.judges import MAX_EXPONENT, MAX_OTHER_WEIGHT, Judge, Tried, by_agreement
from ppl_vi.truth.importance.proposal import FittedProposal, Proposal, ProposalDraws, fitted_proposal, values_at
from ppl_vi.truth.importance.searches import Searched
from ppl_vi.truth.importance.weighted import covariance_factor, effective_sizes
from ppl_vi.truth.importance.witness import NUM_WITNESSES, run_witnesses

# Above 0.5 the weights have no finite variance, and no standard error of a weighted mean could be trusted.
MAX_PARETO_K_HAT = 0.5
# The weights are looked at where the distance from a mode is 1, 1/2, 1/4, ... of that of a dispersed start, down to
# 2^-(NUM_HALVINGS - 1): mass as broad as some of these distances is met, however far away the start is.
NUM_HALVINGS = 24
# From a density, Laplace's approximation at its modes and a seed to a proposal, or why there is none.
Propose = Callable[[Density, StudentMixture, int], FittedProposal | str]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ImportanceDraws:
    """Weighted draws of one problem that have met every criterion.

    Attributes:
        v: the draws in the coordinates of `Target.constrain`, `(S, D)`.
        log_weight: logs of weights that sum to 1, `(S,)`.
        evidence: log p(x) and its standard error.
        criteria: all of them.
        proposal: the density that they are draws of.
    """

    v: Tensor
    log_weight: Tensor
    evidence: EvidenceEstimate
    criteria: tuple[Criterion, ...]
    proposal: Proposal


@dataclass(frozen=True)
class Route:
    """How importance draws are come by.

    Attributes:
        propose: makes the proposal.
        judge: what the short chains are asked.
        num_for_evidence: how many further draws log p(x) is computed from; 0 where it is from the draws themselves.
        stage: the name of the work, as it is told.
        draws: what there is none of where the draws fail, in words.
    """

    propose: Propose
    judge: Judge
    num_for_evidence: Callable[[FittedProposal], int]
    stage: str
    draws: str


FITTED = Route(fitted_proposal, by_agreement, lambda _: 0, "importance sampling", "importance draws")


def importance_draws(
    coordinates: Coordinates, modes: Searched | str, num: int, seed: int, route: Route = FITTED
) -> ImportanceDraws | None:
    """Independent weighted draws of one problem; None where there are none that meet the criteria.

    Args:
        coordinates: in which the proposal is fitted.
        modes: of the density, or why they are not known.
        num: how many draws.
        seed: of everything random.
        route: where the proposal comes from, and who judges the draws.
    """
    with stage(route.stage):
        found = modes if isinstance(modes, str) else _found(coordinates, modes, num, seed, route)
    if isinstance(found, ImportanceDraws):
        return found
    _log.info("'%s' gets no %s: %s", coordinates.density.name, route.draws, found)
    return None


def _found(coordinates: Coordinates, modes: Searched, num: int, seed: int, route: Route) -> ImportanceDraws | str:
    """The draws, or why there are none, in words. What costs little is found out first."""
    density, generator = coordinates.density, torch.Generator()
    generator.set_state(modes.state)
    fitted = route.propose(density, modes.modes, seed)
    if isinstance(fitted, str):
        return fitted
    chosen = torch.linspace(0, len(modes.start) - 1, NUM_WITNESSES).long()
    start, ends = modes.start[chosen], modes.ends[chosen]
    draws = ProposalDraws.of(fitted.proposal, density, num, generator)
    v = coordinates.to_unconstrained(draws.u)
    criteria = (*_criteria_of_draws(draws, v), _criterion_of_rays(density, start, ends, draws, fitted.proposal))
    failure = failures(criteria)
    if failure:
        return failure
    factor = covariance_factor(draws.u, draws.weight)
    if factor is None:
        return "their covariance is singular"
    witnesses = run_witnesses(density, torch.cat([ends, modes.hidden]), factor, generator)
    criteria += route.judge(Tried(coordinates, fitted, draws, witnesses, generator))
    failure = failures(criteria)
    if failure:
        return failure
    num_more = route.num_for_evidence(fitted)
    more = ProposalDraws.of(fitted.proposal, density, num_more, generator) if num_more else draws
    return ImportanceDraws(v, draws.weight.log(), evidence_of(more, fitted.proposal), criteria, fitted.proposal)


def failures(criteria: tuple[Criterion, ...]) -> str:
    """The criteria that were missed, in words."""
    return "; ".join(filter(None, (criterion.failure for criterion in criteria)))


def _criteria_of_draws(draws: ProposalDraws, v: Tensor) -> tuple[Criterion, ...]:
    """The criteria for the importance draws alone, whose coordinates of `Target.constrain` are `v` `(S, D)`."""
    present = draws.weight > 0
    numbers = torch.cat([v, draws.value[:, None]], 1)
    bulk, tail = effective_sizes(numbers[present], draws.weight[present])
    log_ratio = draws.log_ratio.numpy()
    one, other = (importance_evidence(half) for half in np.array_split(log_ratio, 2))
    return (
        Criterion("Pareto k-hat of the importance weights", pareto_khat(log_ratio), MAX_PARETO_K_HAT),
        Criterion("smallest effective sample size in bulk", bulk, MIN_EFFECTIVE_SAMPLE_SIZE, at_least=True),
        Criterion("smallest effective sample size in the tails", tail, MIN_EFFECTIVE_SAMPLE_SIZE, at_least=True),
        Criterion(
            "difference of log p(x) between halves of the draws (in standard errors)",
            abs(one.value - other.value) / math.hypot(one.std_error, other.std_error),
            MAX_STANDARD_ERRORS,
        ),
    )


def _criterion_of_rays(
    density: Density, start: Tensor, ends: Tensor, draws: ProposalDraws, proposal: Proposal
) -> Criterion:
    """The largest weight on the rays from where the searches ended to their starts, in terms of that of the draws."""
    shares = 0.5 ** torch.arange(NUM_HALVINGS, dtype=start.dtype)
    u = (ends[:, None] + shares[:, None] * (start - ends)[:, None]).flatten(0, 1)
    excess = values_at(density, u) - proposal.log_prob(u) - draws.log_ratio.max()
    largest = float(excess.max().clamp(max=MAX_EXPONENT).exp())
    return Criterion(
        "largest weight between modes and dispersed starts, relative to the draws'", largest, MAX_OTHER_WEIGHT
    )
