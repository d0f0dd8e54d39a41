"""Importance draws of up to five outer numbers from a lattice, and the criteria that they have to meet.

The criteria for the draws themselves are those of any importance draws. As a lattice integrates all mass that it has
spread to, only mass elsewhere could be missed. So weights are looked at outside: on rays from the modes to dispersed
starts, and at all points to which short chains come from where searches from these starts have ended. None may be far
above those of the draws.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ppl_vi.target.log_density import Density
from ppl_vi.truth.importance.draws import ImportanceDraws, Route, importance_draws
from ppl_vi.truth.importance.judges import by_weights
from ppl_vi.truth.importance.proposal import FittedProposal
from ppl_vi.truth.importance.searches import Searched
from ppl_vi.truth.nested.lattice_proposal import LatticeProposal, lattice_proposal

# Draws from which log p(x) is computed where lattices do not give it: those that are handed out are too few for it.
NUM_EVIDENCE_DRAWS = 2**16


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


def _num_for_evidence(fitted: FittedProposal) -> int:
    by_lattices = isinstance(fitted.proposal, LatticeProposal) and fitted.proposal.integral is not None
    return 0 if by_lattices else NUM_EVIDENCE_DRAWS


LATTICES = Route(
    lattice_proposal, by_weights, _num_for_evidence, "lattices over the outer latents", "draws from a lattice"
)


def draws_by_lattice(density: Density, modes: Searched | str, num: int, seed: int) -> ImportanceDraws | None:
    """Independent weighted draws of a density; None where there are none that meet the criteria.

    Args:
        density: of up to five numbers.
        modes: of the density, or why they are not known.
        num: how many draws.
        seed: of everything random.
    """
    return importance_draws(OuterCoordinates(density), modes, num, seed, LATTICES)
