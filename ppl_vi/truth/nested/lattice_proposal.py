"""A proposal that is the density itself, interpolated linearly between the nodes of a lattice.

Weights of its draws are close to 1 wherever the lattice has nodes, far into tails to which a fitted mixture may fall
short. A heavy-tailed copy with a small share bounds the weights beyond them.
"""

from __future__ import annotations

import itertools
import logging
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_vi.numerics.mixtures import DEGREES, StudentMixture
from ppl_vi.target.log_density import Density
from ppl_vi.truth.importance.proposal import FittedProposal, ProposalDraws, heavy_modes
from ppl_vi.truth.nested.lattice import Lattice, LatticeIntegral, Standardized, keys_of, lattice_integral, rough_lattice
from ppl_vi.truth.nested.slices import sliced_integral

# Draws of Laplace's approximation from which the coordinates of the first lattice follow.
NUM_FIRST_DRAWS = 4000
FIRST_HEAVY_SHARE = 0.2
# The share of draws that are taken from a Student t density.
HEAVY_SHARE = 0.03
# With more numbers than this a lattice has so many nodes that slices along one number are tried, too.
MAX_PLAIN_DIM = 3
# How many times as wide as the posterior that Student t density is.
HEAVY_WIDENING = 1.5
# Draws of the proposal for bridge sampling.
NUM_OTHER_DRAWS = 1000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LatticeProposal:
    """A density between the nodes of a lattice.

    Attributes:
        standardized: the density.
        lattice: the nodes.
        heavy: the Student t density.
        integral: of the density, by finer lattices; None where these do not agree.
    """

    standardized: Standardized
    lattice: Lattice
    heavy: StudentMixture
    integral: LatticeIntegral | None

    @property
    def nodes(self) -> tuple[Tensor, Tensor] | None:
        """The nodes u `(N, d)` of one of the finer lattices, and the log of each one's share of its integral `(N,)`."""
        if self.integral is None:
            return None
        lattice = self.integral.lattices[0]
        log_share, has_mass = lattice.log_mass - lattice.log_total, np.isfinite(lattice.log_mass)
        u = self.standardized.at(lattice.nodes(len(self.standardized.center)))
        return u[torch.from_numpy(has_mass)], torch.from_numpy(log_share[has_mass])

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        """Random points, `(num, d)`: in s, a node and a triangular deviate of at most one spacing along each axis."""
        standardized, lattice = self.standardized, self.lattice
        dim = len(standardized.center)
        uniform = torch.rand(num, 2 * dim + 2, generator=generator, dtype=standardized.center.dtype)
        mass = np.exp(lattice.log_mass - lattice.log_total).cumsum()
        chosen = np.searchsorted(mass, uniform[:, -1].numpy() * mass[-1]).clip(max=len(mass) - 1)
        deviate = uniform[:, :dim] + uniform[:, dim : 2 * dim] - 1
        u = standardized.at(lattice.nodes(dim)[chosen] + lattice.spacing * deviate)
        is_heavy = uniform[:, -2] < HEAVY_SHARE
        return torch.where(is_heavy[:, None], self.heavy.draw(num, generator), u)

    def log_prob(self, u: Tensor) -> Tensor:
        """The log density at points `(S, d)`, `(S,)`, nats."""
        share = torch.tensor([1 - HEAVY_SHARE, HEAVY_SHARE], dtype=u.dtype).log()
        return (share + self.component_log_prob(u)).logsumexp(1)

    def component_log_prob(self, u: Tensor) -> Tensor:
        """The log densities of the lattice and of the Student t part at points `(S, d)`, `(S, 2)`, nats."""
        standardized = self.standardized
        s = standardized.inverse(u)
        between = self._interpolated(s) - standardized.log_jacobian(s)
        return torch.stack([between, self.heavy.log_prob(u)], 1)

    def _interpolated(self, s: Tensor) -> Tensor:
        """The log of the density of s, interpolated between the nodes around each point, `(S,)`."""
        lattice, dim = self.lattice, s.shape[1]
        place = s / lattice.spacing - lattice.shift
        below = place.floor()
        part, total = place - below, torch.zeros_like(s[:, 0])
        log_density = lattice.log_mass - lattice.log_total - dim * math.log(lattice.spacing)
        for corner in itertools.product((0, 1), repeat=dim):
            key = keys_of(below.long() + torch.tensor(corner))
            where = np.searchsorted(lattice.key, key).clip(max=len(lattice.key) - 1)
            value = np.where(lattice.key[where] == key, np.exp(log_density[where]), 0.0)
            weight = torch.where(torch.tensor(corner) == 1, part, 1 - part).prod(1)
            total = total + weight * torch.from_numpy(value)
        return total.log()


def lattice_proposal(density: Density, all_modes: StudentMixture, seed: int) -> FittedProposal | str:
    """The proposal for a density of up to five numbers, or why there is none, in words.

    Args:
        density: the unnormalised log density.
        all_modes: Laplace's approximation at all its modes, those without mass too.
        seed: of draws.
    """
    modes = heavy_modes(all_modes)
    generator = torch.Generator().manual_seed(seed)
    first = ProposalDraws.of(modes.defended(FIRST_HEAVY_SHARE), density, NUM_FIRST_DRAWS, generator)
    usable = first.log_ratio > -torch.inf
    rough = rough_lattice(density, first.u[usable], first.log_ratio[usable], modes.loc)
    if isinstance(rough, str):
        return rough
    standardized, lattice = rough
    integral = lattice_integral(standardized, lattice)
    by_slices = isinstance(integral, str) and density.dim > MAX_PLAIN_DIM
    if by_slices:
        u, log_weight = standardized.at(lattice.nodes(density.dim)), torch.from_numpy(lattice.log_mass)
        integral = sliced_integral(standardized, u, log_weight)
    if isinstance(integral, str):
        _log.info("'%s' gets no integral by lattices: %s", density.name, integral)
    elif not by_slices:
        lattice = integral.lattices[0]
    factor = HEAVY_WIDENING * standardized.factor
    center = standardized.center[None]
    heavy = StudentMixture(torch.zeros_like(center[:, 0]), center, factor[None], (DEGREES,))
    proposal = LatticeProposal(standardized, lattice, heavy, None if isinstance(integral, str) else integral)
    return FittedProposal(proposal, ProposalDraws.of(proposal, density, NUM_OTHER_DRAWS, generator), all_modes)
