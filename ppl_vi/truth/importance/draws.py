"""Importance draws: independent weighted draws of the posterior, which must meet criteria as strict as those of chains.

A proposal is fitted to the posterior (`proposal`), and NUM draws of it are weighted by p(x, z) / q(z). The criteria are

- Pareto's k-hat of the weights, at which their variance is finite;
- the effective sample sizes of means and of tail probabilities, for every coordinate and for the log density, which
  have to be as large as those of chains;
- the standard error of log p(x), and its agreement between two independent halves of the draws, and with bridge
  sampling, which takes other draws of the proposal and those of the chains below;
- the weights on the straight rays from the modes to dispersed starts, where broad mass that the proposal has missed
  would have weights far above those of the draws;
- a few short chains from dispersed starts (`witness`), which must agree with each other and with the draws.

Sources: Vehtari et al. (2024), Pareto smoothed importance sampling; Owen and Zhou (2000), Safe and effective importance
sampling (control variates); Owen (2013), Monte Carlo theory, methods and examples, chapter 9 (effective sample sizes).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ppl_vi.numerics.weights import EvidenceEstimate, importance_evidence, pareto_khat
from ppl_vi.runtime.stages import stage
from ppl_vi.target.log_density import Density
from ppl_vi.truth.chains.bridge import bridge
from ppl_vi.truth.chains.criteria import (
    MAX_LOG_EVIDENCE_ERROR,
    MAX_STANDARD_ERRORS,
    MIN_EFFECTIVE_SAMPLE_SIZE,
    Criterion,
)
from ppl_vi.truth.chains.starts import Coordinates, dispersed
from ppl_vi.truth.importance.proposal import FittedProposal, Proposal, ProposalDraws, fitted_proposal, values_at
from ppl_vi.truth.importance.weighted import effective_sizes
from ppl_vi.truth.importance.witness import (
    NUM_WITNESSES,
    Witnesses,
    largest_disagreement,
    run_witnesses,
)

# With more coordinates than these the second derivatives at the modes cost too much, and draws of a fitted density are
# seldom worth enough.
MAX_DIM = 100
# Above 0.5 the weights have no finite variance, and no standard error of a weighted mean could be trusted.
MAX_PARETO_K_HAT = 0.5
# Searches for modes, each from a dispersed start, as many as there are chains where chains are run. More of them find
# narrower modes. NUM_WITNESSES of the starts, evenly chosen, are also those of rays and short chains.
NUM_SEARCHES = 100
# The weights are looked at where the distance from a mode is 1, 1/2, 1/4, ... of that of a dispersed start, down to
# 2^-(NUM_HALVINGS - 1): mass as broad as some of these distances is met, however far away the start is.
NUM_HALVINGS = 24
# How many times the largest weight of the draws a weight on the rays may be. In a region that no draw has reached the
# proposal has a mass below 1e-3 or so, and the posterior at most this limit times the largest weight times that.
MAX_RAY_WEIGHT = 3.0
# The limit of Gelman and Rubin (1992). Of chains so short the statistic scatters up to 1.06 even if they all have the
# posterior as their distribution; chains in separate modes, or on their way, have values far above the limit.
MAX_WITNESS_R_HAT = 1.1

# A number whose exponential is far above any limit, and does not overflow.
MAX_EXPONENT = 100.0

# From a density, starts of searches for modes `(N, D)` and a seed to a proposal, or why there is none.
Propose = Callable[[Density, Tensor, int], FittedProposal | str]

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


def importance_draws(
    coordinates: Coordinates, prior: Tensor, num: int, seed: int, propose: Propose | None = None
) -> ImportanceDraws | None:
    """Independent weighted draws of one problem; None where there are none that meet the criteria.

    Args:
        coordinates: in which the proposal is fitted.
        prior: draws of the prior in unconstrained space, `(S, D)`.
        num: how many draws.
        seed: of everything random.
        propose: makes the proposal; `fitted_proposal` if it is None.
    """
    with stage("importance sampling"):
        found = _found(coordinates, prior, num, seed, propose or fitted_proposal)
    if isinstance(found, ImportanceDraws):
        return found
    _log.info("'%s' gets no importance draws: %s", coordinates.density.name, found)
    return None


def _found(coordinates: Coordinates, prior: Tensor, num: int, seed: int, propose: Propose) -> ImportanceDraws | str:
    """The draws, or why there are none, in words. What costs little is found out first."""
    density = coordinates.density
    if density.dtype != torch.float64 or density.dim > MAX_DIM:
        return f"they need double precision and at most {MAX_DIM} coordinates"
    generator = torch.Generator().manual_seed(seed)
    start = dispersed(coordinates, prior, NUM_SEARCHES, generator)
    fitted = propose(density, start, seed)
    if isinstance(fitted, str):
        return fitted
    chosen = torch.linspace(0, len(start) - 1, NUM_WITNESSES).long()
    fitted = replace(fitted, ends=fitted.ends[chosen])
    draws = ProposalDraws.of(fitted.proposal, density, num, generator)
    numbers = _numbers(coordinates, draws.u, draws.value)
    criteria = (*criteria_of_draws(draws, numbers), criterion_of_rays(density, start[chosen], draws, fitted))
    failure = failures(criteria)
    if failure:
        return failure
    witnesses = run_witnesses(density, fitted.ends, covariance_factor(draws), generator)
    criteria += _criteria_of_witnesses(coordinates, witnesses, draws, numbers, fitted)
    evidence = evidence_of(draws, fitted.proposal)
    return failures(criteria) or ImportanceDraws(
        numbers[:, :-1], draws.weight.log(), evidence, criteria, fitted.proposal
    )


def failures(criteria: tuple[Criterion, ...]) -> str:
    """The criteria that were missed, in words."""
    return "; ".join(filter(None, (criterion.failure for criterion in criteria)))


def _numbers(coordinates: Coordinates, u: Tensor, value: Tensor) -> Tensor:
    """All that is checked: the points in the coordinates of `Target.constrain`, and the log density, `(..., D + 1)`."""
    v = coordinates.to_unconstrained(u.flatten(0, -2)).reshape(u.shape)
    return torch.cat([v, value[..., None]], -1)


def covariance_factor(draws: ProposalDraws) -> Tensor:
    """The Cholesky factor of the weighted covariance, `(D, D)`."""
    away = draws.u - draws.weight @ draws.u
    return torch.linalg.cholesky((draws.weight[:, None] * away).mT @ away)


def evidence_of(draws: ProposalDraws, proposal: Proposal) -> EvidenceEstimate:
    """log p(x) and its standard error, with the components of the proposal as control variates.

    For each component q_k, E_q[q_k / q - 1] = 0. So the weights are regressed on these ratios: the constant of the
    regression is p(x), and its standard error comes from the residuals. They lack what the weights vary because the
    proposal has components that the posterior has not.
    """
    shift = float(draws.log_ratio.max())
    weights = (draws.log_ratio - shift).exp()
    ratios = (proposal.component_log_prob(draws.u) - draws.log_proposal[:, None]).exp() - 1
    ratios = ratios[:, 1:]  # the shares of all add up to q, so one of the ratios follows from the others
    design = torch.cat([torch.ones_like(ratios[:, :1]), ratios], 1)
    inverse = torch.linalg.pinv(design)
    solution = inverse @ weights
    residual = weights - design @ solution
    variance = residual.square().sum() / (len(weights) - design.shape[1]) * inverse[0].square().sum()
    return EvidenceEstimate(shift + float(solution[0].log()), float(variance.sqrt() / solution[0]))


def criteria_of_draws(draws: ProposalDraws, numbers: Tensor) -> tuple[Criterion, ...]:
    """The criteria for the importance draws alone."""
    present = draws.weight > 0
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


def criterion_of_rays(density: Density, start: Tensor, draws: ProposalDraws, fitted: FittedProposal) -> Criterion:
    """The largest weight on the rays from where the searches ended to their starts, in terms of that of the draws."""
    shares = 0.5 ** torch.arange(NUM_HALVINGS, dtype=start.dtype)
    u = (fitted.ends[:, None] + shares[:, None] * (start - fitted.ends)[:, None]).flatten(0, 1)
    excess = values_at(density, u) - fitted.proposal.log_prob(u) - draws.log_ratio.max()
    largest = float(excess.max().clamp(max=MAX_EXPONENT).exp())
    return Criterion(
        "largest weight between modes and dispersed starts, relative to the draws'", largest, MAX_RAY_WEIGHT
    )


def _criteria_of_witnesses(
    coordinates: Coordinates, witnesses: Witnesses, draws: ProposalDraws, numbers: Tensor, fitted: FittedProposal
) -> tuple[Criterion, ...]:
    """What the short chains say of the importance draws."""
    from arviz_stats.base import array_stats  # importing it takes half a second, with xarray and pandas

    seen = _numbers(coordinates, witnesses.u, witnesses.value)
    r_hat = max(float(array_stats.rhat(one)) for one in seen.permute(2, 1, 0).numpy())
    log_q = fitted.proposal.log_prob(witnesses.u.flatten(0, 1)).reshape(witnesses.value.shape)
    other = fitted.draws
    by_bridge = bridge(witnesses.value.T.numpy(), log_q.T.numpy(), other.value.numpy(), other.log_proposal.numpy())
    evidence = evidence_of(draws, fitted.proposal)
    joint_error = math.hypot(evidence.std_error, by_bridge.std_error)
    away, present = abs(evidence.value - by_bridge.value) / joint_error, draws.weight > 0
    disagreement = largest_disagreement(numbers[present], draws.weight[present], seen)
    return (
        Criterion("split R-hat of short chains from dispersed starts", r_hat, MAX_WITNESS_R_HAT),
        Criterion("number of their divergent transitions", float(witnesses.num_diverged), 0.0),
        Criterion("their largest difference from the draws (in standard errors)", disagreement, MAX_STANDARD_ERRORS),
        Criterion("difference of bridge and importance sampling (in standard errors)", away, MAX_STANDARD_ERRORS),
        Criterion("joint standard error of bridge and importance sampling (nats)", joint_error, MAX_LOG_EVIDENCE_ERROR),
    )
