"""Cubes of a latent space, and what Gauss-Legendre rules see of the joint density in them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_vi.target.decoder import log_prior
from ppl_vi.target.target import Target

BLOCK = 2**19  # values of the log joint held at once, and
POINTS = 2**12  # points decoded at once: their temporaries stay in the cache


class Joint:
    """log p(x, z) of some problems of a decoded target at points common to them, nats."""

    def __init__(self, target: Target) -> None:
        if target.decoded is None:
            raise ValueError(f"target '{target.name}' has no decoder: `decoded` is None")
        self.target = target
        self.log_likelihood = target.decoded.log_likelihood
        self._ceiling = target.decoded.ceiling

    def rows(self, index: Tensor) -> Joint:
        """Those of some of the problems."""
        return Joint(self.target.rows(index))

    def ceiling(self) -> Tensor:
        """An upper bound of log p(x | z) over all z, `(P,)`."""
        return self._ceiling(*self.target.args)

    def __call__(self, z: Tensor) -> Tensor:
        """Points `(S, D)` to `(P, S)`."""
        return self.log_likelihood(z, *self.target.args) + log_prior(z)


def nodes_at_once(num_problems: int) -> int:
    """How many points to evaluate that many problems at in one go."""
    return max(1, min(POINTS, BLOCK // num_problems))


@dataclass(frozen=True, eq=False)
class Cells:
    """Cubes with disjoint insides.

    Attributes:
        center: `(C, D)`.
        half: half of the width, `(C,)`.
    """

    center: Tensor
    half: Tensor

    def __len__(self) -> int:
        return len(self.half)

    def __getitem__(self, index: Tensor | slice) -> Cells:
        return Cells(self.center[index], self.half[index])

    @property
    def dim(self) -> int:
        """`D`."""
        return self.center.shape[1]

    @property
    def log_volume(self) -> Tensor:
        """`(C,)`."""
        return self.dim * (2 * self.half).log()

    def nodes(self, unit: Tensor) -> Tensor:
        """Points `unit` of the cube from -1 to 1, `(n, D)`, in each cell: `(C * n, D)`."""
        return (self.center[:, None] + self.half[:, None, None] * unit).reshape(-1, self.dim)

    def children(self) -> Cells:
        """The 2^D halves of each, those of one cell following one another."""
        corners = torch.tensor(list(itertools.product((-0.5, 0.5), repeat=self.dim))).to(self.center)
        return Cells(self.nodes(corners), (self.half / 2).repeat_interleave(len(corners)))


def joined(parts: list[Cells]) -> Cells:
    """All cells of several sets."""
    return Cells(torch.cat([part.center for part in parts]), torch.cat([part.half for part in parts]))


def graded(half_width: float, widest: float, steepness: float, like: Tensor) -> Cells:
    """Splits the cube of that half-width into cells no wider than `widest` or their distance from 0 / `steepness`.

    With powers of two the cells of a smaller cube are among those of a larger one.

    Args:
        half_width: a power of two.
        widest: of a cell at the origin.
        steepness: how many cells deep the shell between two powers of two is, about.
        like: `(..., D)`, of the cells' dtype and device.
    """
    waiting = Cells(torch.zeros_like(like.reshape(-1, like.shape[-1])[:1]), like.new_full((1,), half_width))
    parts = []
    while len(waiting):
        distance = waiting.center.abs().amax(-1) - waiting.half
        wide = 2 * waiting.half > (distance / steepness).clamp(min=widest)
        parts.append(waiting[~wide])
        waiting = waiting[wide].children()
    return joined(parts)


@dataclass(frozen=True, eq=False)
class Seen:
    """What a rule saw of the joint density of `P` problems in `C` cells, nats.

    Attributes:
        log_mass: of the integral over each cell, `(P, C)`.
        top: the largest log joint at a node, `(P, C)`.
        spread: how far the smallest lies below it, `(P, C)`.
        highest: log likelihood over all cells, `(P,)`; nan where any value is.
    """

    log_mass: Tensor
    top: Tensor
    spread: Tensor
    highest: Tensor

    def __getitem__(self, cells: Tensor) -> Seen:
        return Seen(self.log_mass[:, cells], self.top[:, cells], self.spread[:, cells], self.highest)

    def rows(self, index: Tensor) -> Seen:
        """What was seen of some of the problems."""
        return Seen(self.log_mass[index], self.top[index], self.spread[index], self.highest[index])

    def bound(self, cells: Cells) -> Tensor:
        """A guess at the most that a cell can hold, `(P, C)`: the log joint is smooth where its exponential is not."""
        return self.top + self.spread / 4 + cells.log_volume


def merged(parts: list[Seen]) -> Seen:
    """What was seen in several sets of cells."""
    log_mass, top, spread = (torch.cat([getattr(p, a) for p in parts], 1) for a in ("log_mass", "top", "spread"))
    return Seen(log_mass, top, spread, torch.stack([part.highest for part in parts]).amax(0))


def look(joint: Joint, cells: Cells, order: int) -> Seen:
    """Integrates the joint density over each cell by the product Gauss-Legendre rule of `order` nodes an axis."""
    abscissas, weights = (torch.from_numpy(a).to(cells.center) for a in np.polynomial.legendre.leggauss(order))
    unit = torch.cartesian_prod(*[abscissas] * cells.dim).reshape(-1, cells.dim)
    weight = torch.cartesian_prod(*[weights / 2] * cells.dim).reshape(-1, cells.dim).prod(-1)
    step = max(1, nodes_at_once(joint.target.num_problems) // len(unit))
    return merged([_look(joint, cells[i : i + step], unit, weight) for i in range(0, max(1, len(cells)), step)])


def _look(joint: Joint, cells: Cells, unit: Tensor, weight: Tensor) -> Seen:
    z = cells.nodes(unit)
    log_likelihood = joint.log_likelihood(z, *joint.target.args)
    highest = log_likelihood.amax(-1)
    values = (log_likelihood + log_prior(z)).reshape(len(log_likelihood), len(cells), len(unit))
    top = values.amax(-1)
    empty = top == -torch.inf  # here -inf - -inf is no spread
    spread = torch.where(empty, 0.0, top - values.amin(-1))
    inside = (values - torch.where(empty, 0.0, top)[..., None]).exp_() @ weight
    return Seen(top + torch.where(empty, 1.0, inside).log() + cells.log_volume, top, spread, highest)
