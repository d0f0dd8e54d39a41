"""What short chains say of importance draws: the judges that draws have to pass last.

`by_agreement` asks that the chains agree with each other and with the draws. Chains that stay in separate modes never
agree with each other. Then the chains' ways tell which modes are separate (`Regions`), and in each region that has mass
new chains, which may not leave it, are held to the same criteria. Its mass by bridge sampling must be that of the
importance draws. A region without mass needs no agreement: that it has none is what the weights at the chains' points
say. Modes between which chains pass now and then, too seldom to agree, are regions of their own at the second attempt.

`by_weights` asks for this last alone, that no weight where the chains came is far above those of the draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ppl_vi.numerics.mixtures import StudentMixture
from ppl_vi.numerics.weights import EvidenceEstimate, importance_evidence
from ppl_vi.truth.chains.bridge import bridge
from ppl_vi.truth.chains.criteria import MAX_LOG_EVIDENCE_ERROR, MAX_STANDARD_ERRORS, Criterion
from ppl_vi.truth.chains.starts import Coordinates
from ppl_vi.truth.importance.evidence import evidence_of, with_unseen_mass
from ppl_vi.truth.importance.proposal import FittedProposal, ProposalDraws
from ppl_vi.truth.importance.weighted import covariance_factor
from ppl_vi.truth.importance.witness import NUM_WITNESSES, Witnesses, largest_disagreement, run_witnesses

# How many times the largest weight of the draws a weight elsewhere may be. In a region that no draw has reached the
# proposal has a mass below 1e-3 or so, and the posterior at most this limit times the largest weight times that.
MAX_OTHER_WEIGHT = 3.0
# A number whose exponential is far above any limit, and does not overflow.
MAX_EXPONENT = 100.0
# The limit of Gelman and Rubin (1992). Of chains so short the statistic scatters up to 1.06 even if they all have the
# posterior as their distribution; chains in separate modes, or on their way, have values far above the limit.
MAX_WITNESS_R_HAT = 1.1
# A region with a smaller share of the draws' weight gets no chains of its own: that it has no more is what the weights
# at the points of chains say that came there. It is below the share that any standard error here could tell.
MIN_REGION_MASS = 1e-4
# Regions with mass, each of which takes chains of its own.
MAX_REGIONS = 16


@dataclass(frozen=True, eq=False)
class Tried:
    """Importance draws that have met all criteria so far, and the chains that are to judge them.

    Attributes:
        coordinates: of draws and chains.
        fitted: the proposal.
        draws: of it.
        witnesses: the chains.
        generator: of whatever else is random.
    """

    coordinates: Coordinates
    fitted: FittedProposal
    draws: ProposalDraws
    witnesses: Witnesses
    generator: torch.Generator

    def numbers(self, u: Tensor, value: Tensor) -> Tensor:
        """All that is checked: points in the coordinates of `Target.constrain`, and log densities, `(..., D + 1)`."""
        v = self.coordinates.to_unconstrained(u.flatten(0, -2)).reshape(u.shape)
        return torch.cat([v, value[..., None]], -1)

    def log_proposal(self, chains: Witnesses) -> Tensor:
        """The log density of the proposal where chains came, `(N, C)`, nats."""
        return self.fitted.proposal.log_prob(chains.u.flatten(0, 1)).reshape(chains.value.shape)

    @cached_property
    def more_draws(self) -> ProposalDraws:
        """As many draws again. Of the few that the fit has left, hardly any lie in a region of little mass."""
        return ProposalDraws.of(self.fitted.proposal, self.coordinates.density, len(self.draws.u), self.generator)

    @cached_property
    def evidence(self) -> EvidenceEstimate:
        """log p(x) by the draws."""
        return evidence_of(self.draws, self.fitted.proposal)


Judge = Callable[[Tried], tuple[Criterion, ...]]


def by_weights(tried: Tried) -> tuple[Criterion, ...]:
    """The largest weight where short chains came, in terms of that of the draws."""
    return (_largest_weight(tried, [tried.witnesses]),)


def by_agreement(tried: Tried) -> tuple[Criterion, ...]:
    """The chains agree with each other and with the draws, all together or in each of several separate modes."""
    together = (*_agreement(tried, tried.witnesses, torch.ones_like(tried.draws.weight, dtype=torch.bool)),)
    together += _bridge_criteria(tried.evidence, _bridged(tried, tried.witnesses, None))
    if _all_pass(together):
        return together
    found, modes = together, tried.fitted.modes
    for regions in (Regions.of(modes, tried.witnesses.u), Regions(modes, torch.arange(len(modes.loc)))):
        if regions.num > 1 and not _all_pass(found):
            found = _by_region(tried, regions)
    return found


def _all_pass(criteria: tuple[Criterion, ...]) -> bool:
    return all(criterion.check.passed for criterion in criteria)


def _largest_weight(tried: Tried, chains: list[Witnesses]) -> Criterion:
    largest = max(float((one.value - tried.log_proposal(one)).max()) for one in chains)
    excess = min(largest - float(tried.draws.log_ratio.max()), MAX_EXPONENT)
    return Criterion("largest weight where short chains from dispersed starts came", math.exp(excess), MAX_OTHER_WEIGHT)


def _agreement(tried: Tried, chains: Witnesses, own: Tensor) -> tuple[Criterion, ...]:
    """Whether chains agree with each other and with some of the draws, `own` `(S,)`."""
    from arviz_stats.base import array_stats  # importing it takes half a second, with xarray and pandas

    seen, draws = tried.numbers(chains.u, chains.value), tried.draws
    r_hat = max(float(array_stats.rhat(one)) for one in seen.permute(2, 1, 0).numpy())
    own = own & (draws.weight > 0)
    weight = draws.weight[own] / draws.weight[own].sum()
    off = largest_disagreement(tried.numbers(draws.u[own], draws.value[own]), weight, seen)
    return (
        Criterion("split R-hat of short chains from dispersed starts", r_hat, MAX_WITNESS_R_HAT),
        Criterion("number of their divergent transitions", float(chains.num_diverged), 0.0),
        Criterion("their largest difference from the draws (in standard errors)", off, MAX_STANDARD_ERRORS),
    )


def _bridged(tried: Tried, chains: Witnesses, own: Callable[[Tensor], Tensor] | None) -> EvidenceEstimate:
    """The integral by bridge sampling with chains and other draws of the proposal.

    In a region, `own`, it is relative to the mass that the proposal has there, which cancels where both are compared.
    """
    other = tried.fitted.draws if own is None else tried.more_draws
    inside = torch.ones_like(other.value, dtype=torch.bool) if own is None else own(other.u)
    if not bool(inside.any()):
        return EvidenceEstimate(math.nan, math.inf)
    value, log_proposal = other.value[inside].numpy(), other.log_proposal[inside].numpy()
    return bridge(chains.value.T.numpy(), tried.log_proposal(chains).T.numpy(), value, log_proposal)


def _bridge_criteria(one: EvidenceEstimate, other: EvidenceEstimate) -> tuple[Criterion, Criterion]:
    joint_error = math.hypot(one.std_error, other.std_error)
    away = abs(one.value - other.value) / joint_error
    return (
        Criterion("difference of bridge and importance sampling (in standard errors)", away, MAX_STANDARD_ERRORS),
        Criterion("joint standard error of bridge and importance sampling (nats)", joint_error, MAX_LOG_EVIDENCE_ERROR),
    )


@dataclass(frozen=True, eq=False)
class Regions:
    """A division of space into the surroundings of modes that chains do not leave.

    Attributes:
        modes: Laplace's approximation at each mode.
        label: the region of each mode, `(K,)`.
    """

    modes: StudentMixture
    label: Tensor

    @staticmethod
    def of(modes: StudentMixture, u: Tensor) -> Regions:
        """Modes are in one region if some chain has been around both.

        Args:
            modes: all that were found.
            u: the points of chains, `(N, C, D)`.
        """
        place, num_chains = _nearest(modes, u.flatten(0, 1)).reshape(u.shape[:2]), u.shape[1]
        visited = torch.zeros(num_chains, len(modes.loc))
        visited[torch.arange(num_chains), place] = 1.0
        _, label = connected_components((visited.mT @ visited > 0).numpy(), directed=False)
        return Regions(modes, torch.from_numpy(label.astype(np.int64)))

    @property
    def num(self) -> int:
        """How many there are."""
        return int(self.label.max()) + 1

    def at(self, u: Tensor) -> Tensor:
        """The region of each point `(S, D)`, `(S,)`."""
        return self.label[_nearest(self.modes, u)]


def _nearest(modes: StudentMixture, u: Tensor) -> Tensor:
    """The mode whose Gaussian is highest at each point `(S, D)`, `(S,)`."""
    return (modes.log_share + modes.component_log_prob(u)).argmax(1)


def _by_region(tried: Tried, regions: Regions) -> tuple[Criterion, ...]:
    """The criteria for each region with mass by itself, the worst figure of each, and for the weights everywhere."""
    at, weight = regions.at(tried.draws.u), tried.draws.weight
    mass = torch.zeros(regions.num, dtype=weight.dtype).index_add(0, at, weight)
    heavy = [int(region) for region in mass.argsort(descending=True) if mass[region] >= MIN_REGION_MASS]
    if len(heavy) > MAX_REGIONS:
        return (Criterion("number of separate modes with mass", float(len(heavy)), float(MAX_REGIONS)),)
    chains = {region: _chains_in(tried, regions, region, at == region) for region in heavy}
    found: dict[str, Criterion] = {}
    for region in heavy:
        for criterion in _of_region(tried, regions, region, chains[region]):
            before = found.get(criterion.name, criterion)
            found[criterion.name] = before if before.check.error > criterion.check.error else criterion
    return (*found.values(), _largest_weight(tried, [tried.witnesses, *chains.values()]))


def _chains_in(tried: Tried, regions: Regions, region: int, own: Tensor) -> Witnesses:
    """Short chains that start off the modes of a region, and stay in it."""
    modes = (regions.label == region).nonzero()[:, 0]
    ends = regions.modes.loc[modes[torch.arange(NUM_WITNESSES) % len(modes)]]
    factor = covariance_factor(tried.draws.u[own], tried.draws.weight[own])
    if factor is None:  # the region has hardly any draws
        factor = regions.modes.factor[modes[0]]
    return run_witnesses(tried.coordinates.density, ends, factor, tried.generator, lambda u: regions.at(u) == region)


def _of_region(tried: Tried, regions: Regions, region: int, chains: Witnesses) -> Iterator[Criterion]:
    draws = tried.draws
    inside = regions.at(draws.u) == region
    yield from _agreement(tried, chains, inside)
    by_draws = with_unseen_mass(importance_evidence(draws.log_ratio[inside].numpy()), int(inside.sum()))
    yield from _bridge_criteria(by_draws, _bridged(tried, chains, lambda u: regions.at(u) == region))
