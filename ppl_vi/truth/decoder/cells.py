"""Cubic cells of a latent space, and the integral of the joint density p(x, z) over each by a Gauss-Legendre rule."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_vi.target.decoder import log_prior
from ppl_vi.target.target import Target

# Points are decoded in blocks of at most MAX_POINTS_AT_ONCE, with at most MAX_VALUES_AT_ONCE values of the log joint
# over all problems: their temporaries then stay in the processor's cache. Larger blocks are slower and take more
# memory.
MAX_POINTS_AT_ONCE = 2**12
MAX_VALUES_AT_ONCE = 2**19


class LogJoint:
    """log p(x, z) of some problems of a decoded target, at points z that all of them share, nats."""

    def __init__(self, target: Target) -> None:
        if target.decoded is None:
            raise ValueError(f"target '{target.name}' has no decoder: `decoded` is None")
        self.target = target
        self.log_likelihood = target.decoded.log_likelihood
        self._ceiling = target.decoded.ceiling

    def rows(self, index: Tensor) -> LogJoint:
        """The log joint of some of the problems."""
        return LogJoint(self.target.rows(index))

    def ceiling(self) -> Tensor:
        """An upper bound of log p(x | z) over all z, `(P,)`."""
        return self._ceiling(*self.target.args)

    def __call__(self, z: Tensor) -> Tensor:
        """Points `(S, D)` to values `(P, S)`."""
        return self.log_likelihood(z, *self.target.args) + log_prior(z)


def max_points(num_problems: int) -> int:
    """The largest number of points to evaluate the log joint of so many problems at in one block."""
    return max(1, min(MAX_POINTS_AT_ONCE, MAX_VALUES_AT_ONCE // num_problems))


@dataclass(frozen=True, eq=False)
class Cells:
    """Cubes whose insides are disjoint.

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
        """The logarithm of each cell's volume, `(C,)`."""
        return self.dim * (2 * self.half).log()

    def nodes(self, unit: Tensor) -> Tensor:
        """The points `unit` `(n, D)` of the cube from -1 to 1, moved and scaled into each cell, `(C * n, D)`."""
        return (self.center[:, None] + self.half[:, None, None] * unit).reshape(-1, self.dim)

    def children(self) -> Cells:
        """The 2^D cells of half the width that each cell consists of; those of one cell follow one another."""
        corners = torch.tensor(list(itertools.product((-0.5, 0.5), repeat=self.dim))).to(self.center)
        return Cells(self.nodes(corners), (self.half / 2).repeat_interleave(len(corners)))


def joined_cells(parts: list[Cells]) -> Cells:
    """All cells of several sets."""
    return Cells(torch.cat([part.center for part in parts]), torch.cat([part.half for part in parts]))


def graded_cells(half_width: float, max_width: float, steepness: float, like: Tensor) -> Cells:
    """Splits the cube around 0 of that half-width into cells that grow with their distance from 0.

    A cell is no wider than `max_width`, or than its distance divided by `steepness` where that is more. If half-widths
    are powers of two, the cells of a smaller cube are among those of a larger one.

    Args:
        half_width: of the cube, a power of two.
        max_width: of a cell at the origin.
        steepness: about how many cells lie one behind the other between two successive powers of two.
        like: a tensor `(..., D)` that has the dtype and the device of the cells to be made.
    """
    waiting = Cells(torch.zeros_like(like.reshape(-1, like.shape[-1])[:1]), like.new_full((1,), half_width))
    parts = []
    while len(waiting):
        distance = waiting.center.abs().amax(-1) - waiting.half
        wide = 2 * waiting.half > (distance / steepness).clamp(min=max_width)
        parts.append(waiting[~wide])
        waiting = waiting[wide].children()
    return joined_cells(parts)


@dataclass(frozen=True, eq=False)
class CellIntegrals:
    """What a rule found of the joint density of `P` problems in `C` cells, nats.

    Attributes:
        log_mass: log of the integral of p(x, z) over each cell, `(P, C)`.
        top: the largest log joint at a node of the cell, `(P, C)`.
        spread: the largest minus the smallest log joint at its nodes, `(P, C)`.
        highest: the largest log likelihood at any node of any cell, `(P,)`; nan where any value is nan.
    """

    log_mass: Tensor
    top: Tensor
    spread: Tensor
    highest: Tensor

    def __getitem__(self, cells: Tensor) -> CellIntegrals:
        return CellIntegrals(self.log_mass[:, cells], self.top[:, cells], self.spread[:, cells], self.highest)

    def rows(self, index: Tensor) -> CellIntegrals:
        """Those of some of the problems."""
        return CellIntegrals(self.log_mass[index], self.top[index], self.spread[index], self.highest[index])

    def bound(self, cells: Cells) -> Tensor:
        """The largest log mass that each cell can be expected to hold, `(P, C)`.

        It supposes that between the nodes the log joint rises above their highest by a quarter of its spread at most.
        This is no proved bound, but the log joint is far smoother than its exponential.
        """
        return self.top + self.spread / 4 + cells.log_volume


def joined_integrals(parts: list[CellIntegrals]) -> CellIntegrals:
    """Those of the same problems in several sets of cells."""
    return CellIntegrals(
        torch.cat([part.log_mass for part in parts], 1),
        torch.cat([part.top for part in parts], 1),
        torch.cat([part.spread for part in parts], 1),
        torch.stack([part.highest for part in parts]).amax(0),
    )


def integrate_cells(joint: LogJoint, cells: Cells, order: int) -> CellIntegrals:
    """Integrates the joint density over each cell by the product Gauss-Legendre rule of `order` nodes an axis."""
    abscissas, weights = (torch.from_numpy(a).to(cells.center) for a in np.polynomial.legendre.leggauss(order))
    unit = torch.cartesian_prod(*[abscissas] * cells.dim).reshape(-1, cells.dim)
    weight = torch.cartesian_prod(*[weights / 2] * cells.dim).reshape(-1, cells.dim).prod(-1)
    size = max(1, max_points(joint.target.num_problems) // len(unit))
    blocks = [cells[first : first + size] for first in range(0, max(1, len(cells)), size)]
    return joined_integrals([_integrate_block(joint, block, unit, weight) for block in blocks])


def _integrate_block(joint: LogJoint, cells: Cells, unit: Tensor, weight: Tensor) -> CellIntegrals:
    """The integrals over a few cells by the rule with nodes `unit` `(n, D)` and weights `(n,)` of sum 1."""
    z = cells.nodes(unit)
    log_likelihood = joint.log_likelihood(z, *joint.target.args)
    highest = log_likelihood.amax(-1)
    values = (log_likelihood + log_prior(z)).reshape(len(log_likelihood), len(cells), len(unit))
    top = values.amax(-1)
    empty = top == -torch.inf  # the density is 0 at all nodes, and -inf - -inf would be nan
    spread = torch.where(empty, 0.0, top - values.amin(-1))
    mean = (values - torch.where(empty, 0.0, top)[..., None]).exp_() @ weight  # of the density relative to its top
    return CellIntegrals(top + torch.where(empty, 1.0, mean).log() + cells.log_volume, top, spread, highest)
