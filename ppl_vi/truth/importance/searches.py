"""The search for modes that comes before importance draws and chains: from dispersed starts, and from a wide scan."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vi.numerics.mixtures import StudentMixture
from ppl_vi.target.log_density import Density
from ppl_vi.truth.chains.starts import Coordinates, dispersed
from ppl_vi.truth.importance.proposal import SAME_MODE, Derivatives, at_modes, heavy_modes
from ppl_vi.truth.importance.scan import scanned

# With more coordinates than these the second derivatives at the modes cost too much, and draws of a fitted density are
# seldom worth enough.
MAX_DIM = 100
# Searches for modes, each from a dispersed start, as many as there are chains where chains are run. More of them find
# narrower modes.
NUM_SEARCHES = 100


@dataclass(frozen=True, eq=False)
class Searched:
    """What searches for the modes of a density have found.

    Attributes:
        start: the dispersed starts of searches, `(N, D)`.
        ends: where these searches ended, `(N, D)`.
        modes: Laplace's approximation at all modes, those without mass too, the one with most mass first.
        hidden: modes with mass that only the wide scan has led to, `(K, D)`.
        state: of the random numbers, with which draws go on.
    """

    start: Tensor
    ends: Tensor
    modes: StudentMixture
    hidden: Tensor
    state: Tensor


def can_be_searched(density: Density) -> bool:
    """Whether modes of a density are searched for at all."""
    return density.dtype == torch.float64 and density.dim <= MAX_DIM


def searched(coordinates: Coordinates, prior: Tensor, seed: int) -> Searched | str:
    """The modes of a density; or why they are not searched for, in words.

    Args:
        coordinates: whose density it is.
        prior: draws of the prior in unconstrained space, `(S, D)`.
        seed: of starts and points.
    """
    density = coordinates.density
    if not can_be_searched(density):
        return f"they need double precision and at most {MAX_DIM} coordinates"
    generator = torch.Generator().manual_seed(seed)
    start = dispersed(coordinates, prior, NUM_SEARCHES, generator)
    found = at_modes(density, start)
    if isinstance(found, str):
        return found
    modes, ends = found
    more = hidden_modes(density, coordinates.from_unconstrained(prior), modes.loc, modes.factor, seed)
    if not len(more):
        return Searched(start, ends, modes, more, generator.get_state())
    every = at_modes(density, torch.cat([modes.loc, more]))
    if isinstance(every, str):
        return every
    heavy = heavy_modes(every[0]).loc
    hidden = heavy[_are_new(heavy, modes.loc, modes.factor)]
    return Searched(start, ends, every[0], hidden, generator.get_state())


def hidden_modes(density: Density, prior: Tensor, loc: Tensor, factor: Tensor, seed: int) -> Tensor:
    """Modes that a wide scan leads to, and that are none of the known ones, `(K, D)`.

    Args:
        density: unnormalised.
        prior: draws of the prior, `(S, D)`.
        loc: the known modes, the heaviest first, `(M, D)`.
        factor: L of normal densities there with the covariances L L', `(M, D, D)`.
        seed: of the scan.
    """
    start = scanned(density, prior[prior.isfinite().all(1)], loc, factor, seed)
    if len(start):
        start = start[Derivatives(density, len(start))(start)[2].isfinite().flatten(1).all(1)]
    found = at_modes(density, start) if len(start) else ""
    if isinstance(found, str):
        return loc[:0]
    new = found[0].loc
    return new[_are_new(new, loc, factor)]


def _are_new(u: Tensor, loc: Tensor, factor: Tensor) -> Tensor:
    """Which of modes `(K, D)` are none of the known ones, `(K,)`."""
    white = ((u[:, None] - loc)[..., None, :] @ torch.linalg.inv(factor).mT)[..., 0, :]
    return (white.norm(dim=-1) > SAME_MODE).all(1)
