"""Where chains start: points that are spread more widely than the posterior.

A draw of a vague prior may have a log density of -1e68. A chain never comes back from there, since its steps have to be
as small as the slope is steep. Such starts are left out where there are better ones, and chains that have stayed in
such a place while others came away are started anew where others are.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ppl_vi.target.log_density import Density

START_HALF_WIDTH = 2.0  # half of the chains start uniformly within this of 0 in unconstrained space, as in Stan
# A point is hopeless if its log density lies so many nats below the best one's: HOPELESS, and for each coordinate
# HOPELESS_PER_COORDINATE more. Mass there would need a volume e^20 times as large along each coordinate.
HOPELESS, HOPELESS_PER_COORDINATE = 100.0, 20.0
MAX_TRIALS_PER_START = 20  # so many of these are tried for each chain, for the density may be 0 at many of them


class Coordinates(Protocol):
    """Coordinates in which chains move.

    Attributes:
        density: in these coordinates.
    """

    @property
    def density(self) -> Density: ...

    def to_unconstrained(self, u: Tensor) -> Tensor:
        """Maps points `(S, D)` to the coordinates of `Target.constrain`, `(S, D)`."""

    def from_unconstrained(self, v: Tensor) -> Tensor:
        """The inverse of `to_unconstrained`."""


def dispersed(coordinates: Coordinates, prior: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Starts `(C, D)`: half of them draws of the prior, half uniform within 2 of 0, where Stan starts.

    Those that are hopeless beside the best one come last, so that they are taken only where there are too few others.

    Args:
        coordinates: of the chains.
        prior: draws of the prior in unconstrained space, `(S, D)`.
        num: `C`.
        generator: of the uniform starts.

    Raises:
        ValueError: the density is 0 at nearly all of the points.
    """
    density, prior = coordinates.density, coordinates.from_unconstrained(prior)
    num_trials = MAX_TRIALS_PER_START * num
    uniform = START_HALF_WIDTH * (2 * torch.rand(num_trials, density.dim, generator=generator, dtype=prior.dtype) - 1)
    start = prior[density(prior).isfinite()][: num // 2]
    for some in uniform.split(num):
        lost = hopeless(density(start), density.dim).sort(stable=True)
        start = start[lost.indices]
        if len(start) < num or bool(lost.values[:num].any()):
            start = torch.cat([start, some[density(some).isfinite()]])
    if len(start) < num:
        raise ValueError(
            f"the log joint of '{density.name}' is finite at only {len(start)} of {num + num_trials} starts, and {num} "
            "chains need one each: check the model's densities near 0 in unconstrained space"
        )
    return start[:num]


def hopeless(value: Tensor, dim: int) -> Tensor:
    """Which of some points have a log density `(S,)` so far below the best one's that no mass can be there, `(S,)`."""
    best = value[value.isfinite()].max() if bool(value.isfinite().any()) else value.new_zeros(())
    return ~(value >= best - HOPELESS - HOPELESS_PER_COORDINATE * dim)


def started_anew(value: Tensor, dim: int, generator: torch.Generator) -> Tensor:
    """For each chain the number of the chain whose place it takes, `(C,)`: its own, but where it is hopeless another's.

    Args:
        value: the log density where each chain is, `(C,)`.
        dim: how many coordinates chains have.
        generator: of the choice among the chains that are not hopeless.
    """
    lost, place = hopeless(value, dim), torch.arange(len(value))
    good = place[~lost]
    if not len(good):
        return place
    return torch.where(lost, good[torch.randint(len(good), (len(value),), generator=generator)], place)
