"""Importance draws of up to five outer numbers from a lattice, and the criteria that they have to meet.

The criteria for the draws themselves are those of any importance draws. As a lattice integrates all mass that it has
spread to, only mass elsewhere could be missed. So weights are looked at outside: on rays from the modes to dispersed
starts, and at all points to which short chains come from where searches from these starts have ended. None may be far
above those of the draws.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppl_vi.runtime.stages import stage
from ppl_vi.target.log_density import Density
from ppl_vi.truth.chains.criteria import Criterion
from ppl_vi.truth.chains.starts import dispersed
from ppl_vi.truth.importance.draws import (
    MAX_EXPONENT,
    MAX_RAY_WEIGHT,
    NUM_SEARCHES,
    ImportanceDraws,
    covariance_factor,
    criteria_of_draws,
    criterion_of_rays,
    evidence_of,
    failures,
)
from ppl_vi.truth.importance.proposal import ProposalDraws
from ppl_vi.truth.importance.witness import NUM_WITNESSES, run_witnesses
from ppl_vi.truth.nested.lattice_proposal import LatticeProposal, lattice_proposal

# Draws from which log p(x) is computed where lattices do not give it: those that are handed out are too few for it.
NUM_EVIDENCE_DRAWS = 2**16

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class OuterCoordinates:
    """The outer latents' own unconstrained numbers, as the coordinates of draws and chains."""

    density: Density

    def to_unconstrained(self, u: Tensor) -> Tensor:
        """The points themselves."""
        return u

    def from_unconstrained(self, v: Tensor) -> Tensor:
        """The points themselves."""
        return v


def draws_by_lattice(density: Density, prior: Tensor, num: int, seed: int) -> ImportanceDraws | None:
    """Independent weighted draws of a density; None where there are none that meet the criteria.

    Args:
        density: of up to five numbers.
        prior: draws of their prior, `(S, d)`.
        num: how many draws.
        seed: of everything random.
    """
    with stage("lattices over the outer latents"):
        found = _found(density, prior, num, seed)
    if isinstance(found, ImportanceDraws):
        return found
    _log.info("'%s' gets no draws from a lattice: %s", density.name, found)
    return None


def _found(density: Density, prior: Tensor, num: int, seed: int) -> ImportanceDraws | str:
    generator = torch.Generator().manual_seed(seed)
    start = dispersed(OuterCoordinates(density), prior, NUM_SEARCHES, generator)
    fitted = lattice_proposal(density, start, seed)
    if isinstance(fitted, str):
        return fitted
    chosen = torch.linspace(0, len(start) - 1, NUM_WITNESSES).long()
    fitted = replace(fitted, ends=fitted.ends[chosen])
    draws = ProposalDraws.of(fitted.proposal, density, num, generator)
    criteria = (
        *criteria_of_draws(draws, torch.cat([draws.u, draws.value[:, None]], 1)),
        criterion_of_rays(density, start[chosen], draws, fitted),
    )
    failure = failures(criteria)
    if failure:
        return failure
    by_draws = isinstance(fitted.proposal, LatticeProposal) and fitted.proposal.integral is None
    witnesses = run_witnesses(density, fitted.ends, covariance_factor(draws), generator)
    excess = witnesses.value.flatten() - fitted.proposal.log_prob(witnesses.u.flatten(0, 1)) - draws.log_ratio.max()
    criteria += (_criterion_of_chains(excess),)
    more = ProposalDraws.of(fitted.proposal, density, NUM_EVIDENCE_DRAWS, generator) if by_draws else draws
    evidence = evidence_of(more, fitted.proposal)
    return failures(criteria) or ImportanceDraws(draws.u, draws.weight.log(), evidence, criteria, fitted.proposal)


def _criterion_of_chains(excess: Tensor) -> Criterion:
    """The largest weight at the chains' points, in terms of that of the draws, from the differences of logarithms."""
    largest = float(excess.max().clamp(max=MAX_EXPONENT).exp())
    return Criterion("largest weight where short chains from dispersed starts came", largest, MAX_RAY_WEIGHT)
