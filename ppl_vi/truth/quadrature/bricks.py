"""Bricks: boxes in which a Gauss rule integrates a density and tells how far its result can be trusted.

A brick has its own half-width along each axis. Where a posterior narrows, as a funnel does, cubes as small as the
funnel is narrow would have to be as many as its length has such widths; bricks may be long and thin instead.

In each brick the density is evaluated at the nodes of a product Gauss-Legendre rule and at the corners. These values
give the integral over the brick, and three signs of an error that the integral itself does not show: how high the
density may rise between the nodes, how large the last coefficients of its Legendre series are, and how far the density
at a corner is from the polynomial through the nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]  # log density at points (S, D), (S,)

# Nodes that are evaluated together, in all bricks of a block. More would only need more memory at once.
MAX_NODES_AT_ONCE = 2**20
# Points that `Bricks.holding` looks up together. Sorted along the first axis, they share few candidates; with more
# points at once each would be compared to more bricks.
POINTS_PER_LOOKUP = 64
# How far outside of a brick, relative to its half-width, a point still counts as inside, so that rounding leaves no
# gap between neighbours.
BORDER_TOLERANCE = 1e-9
# The rise between nodes is estimated by parabolas, which may err: the bound on a brick's mass takes this multiple of
# the estimate, and adds as many nats. Larger values only keep more empty bricks.
RISE_FACTOR, RISE_MARGIN = 2.0, 2.0
# The rise along an axis, in nats, that is assumed where a neighbour of the best node has density 0, so that no
# parabola goes through its logarithm.
RISE_BESIDE_ZERO_DENSITY = 25.0
# The largest rise along an axis that is believed, in nats: it puts a ridge 45 of its standard deviations from the
# nearest node. A larger one comes from parabolas through rounding errors.
MAX_RISE = 1000.0
# No parabola is believed farther from the best node than this multiple of the mean distance of two nodes.
MAX_PARABOLA_REACH = 3


@dataclass(frozen=True, eq=False)
class BrickRule:
    """A product Gauss-Legendre rule of `order` nodes an axis in the cube from -1 to 1.

    Attributes:
        order: nodes along each axis.
        nodes: `(n, D)` with n = order^D; the last axis runs fastest.
        log_weight: logs of the weights `(n,)`, which add up to 1.
        corners: of the cube, `(2^D, D)`; the last axis runs fastest.
        at_ends: matrix `(2, order)` that takes values at the nodes of one axis to those of their interpolating
            polynomial at -1 and 1.
        last_coefficients: matrix `(2, order)` that takes values at the nodes of one axis to the last two Legendre
            coefficients of that polynomial.
    """

    order: int
    nodes: Tensor
    log_weight: Tensor
    corners: Tensor
    at_ends: Tensor
    last_coefficients: Tensor

    @property
    def line(self) -> Tensor:
        """The nodes along one axis, `(order,)`."""
        return self.nodes[: self.order, -1]

    @property
    def rim(self) -> float:
        """The share of a brick that lies beyond its outermost nodes along one axis, on one side."""
        return float(1 - self.nodes.max()) / 2

    @staticmethod
    def of(order: int, dim: int, like: Tensor) -> BrickRule:
        """The rule in `dim` dimensions, with the dtype and device of `like`."""
        x, w = np.polynomial.legendre.leggauss(order)
        degrees = np.arange(order)
        coefficients = np.polynomial.legendre.legvander(x, order - 1) * w[:, None] * (2 * degrees + 1) / 2
        at_ends = np.stack([coefficients @ (-1.0) ** degrees, coefficients.sum(1)])
        line, weights = torch.from_numpy(x).to(like), torch.from_numpy(w / 2).to(like)
        return BrickRule(
            order=order,
            nodes=torch.cartesian_prod(*[line] * dim).reshape(-1, dim),
            log_weight=torch.cartesian_prod(*[weights.log()] * dim).reshape(-1, dim).sum(-1),
            corners=torch.cartesian_prod(*[line.new_tensor([-1.0, 1.0])] * dim).reshape(-1, dim),
            at_ends=torch.from_numpy(at_ends).to(like),
            last_coefficients=torch.from_numpy(coefficients[:, -2:].T).to(like),
        )


@dataclass(frozen=True, eq=False)
class Bricks:
    """`C` axis-parallel boxes whose insides are disjoint, and what a rule found in each.

    Attributes:
        center: `(C, D)`.
        half_width: along each axis, `(C, D)`.
        log_mass: log of the integral of the density over each, `(C,)`, nats; nan where a value of the density is.
        log_mass_bound: log of an estimate of the largest integral that each may have, whatever the density does
            between its nodes, `(C,)`, nats.
        log_range: largest minus smallest log density at the nodes, `(C,)`, nats.
        log_tail: log of the mean size of the density's last Legendre coefficients along each axis, times the volume,
            `(C, D)`, nats.
        log_jump: log of the largest distance of the density at a corner from the polynomial through the nodes, times
            the volume, `(C,)`, nats.
    """

    center: Tensor
    half_width: Tensor
    log_mass: Tensor
    log_mass_bound: Tensor
    log_range: Tensor
    log_tail: Tensor
    log_jump: Tensor

    def __len__(self) -> int:
        return len(self.log_mass)

    def __getitem__(self, index: Tensor) -> Bricks:
        return Bricks(**{name: getattr(self, name)[index] for name in self.__dataclass_fields__})

    @property
    def log_volume(self) -> Tensor:
        """`(C,)`."""
        return (2 * self.half_width).log().sum(-1)

    @property
    def broken(self) -> Tensor:
        """Whether the integral over each is nan or infinite, `(C,)`."""
        return self.log_mass.isnan() | (self.log_mass == torch.inf)

    def nodes(self, rule: BrickRule) -> tuple[Tensor, Tensor]:
        """The rule's nodes in all bricks, `(C * n, D)`, and the logs of their weights `(C * n,)`."""
        points = self.center[:, None] + self.half_width[:, None] * rule.nodes
        log_weight = self.log_volume[:, None] + rule.log_weight
        return points.reshape(-1, self.center.shape[1]), log_weight.reshape(-1)

    def holding(self, points: Tensor) -> Tensor:
        """The index of the brick that holds each of points `(S, D)`, or -1 where none does, `(S,)`."""
        found = torch.full((len(points),), -1)
        reach = self.half_width * (1 + BORDER_TOLERANCE)
        low, high = self.center - reach, self.center + reach
        for rows in points[:, 0].argsort().split(POINTS_PER_LOOKUP):
            some = points[rows]
            near = ((low[:, 0] <= some[-1, 0]) & (high[:, 0] >= some[0, 0])).nonzero()[:, 0]
            if len(near):
                inside = ((some[:, None] >= low[near]) & (some[:, None] <= high[near])).all(-1)
                found[rows] = torch.where(inside.any(1), near[inside.to(torch.uint8).argmax(1)], -1)
        return found

    def halves(self) -> tuple[Tensor, Tensor]:
        """Centers and half-widths `(2 C, D)` of the two halves of each brick, which stand next to each other.

        A brick is halved across the axis along which its Legendre series has the largest tail.
        """
        tail = torch.where(self.log_tail.isfinite(), self.log_tail, -torch.inf)
        axis = torch.nn.functional.one_hot(tail.argmax(1), self.half_width.shape[1]).to(self.half_width)
        half_width = torch.where(axis > 0, self.half_width / 2, self.half_width)
        shift = axis * half_width
        center = torch.stack([self.center - shift, self.center + shift], 1).flatten(0, 1)
        return center, half_width.repeat_interleave(2, 0)


def joined(parts: list[Bricks]) -> Bricks:
    """All bricks of several sets."""
    return Bricks(**{name: torch.cat([getattr(part, name) for part in parts]) for name in Bricks.__dataclass_fields__})


def evaluated_bricks(function: Function, center: Tensor, half_width: Tensor, rule: BrickRule) -> Bricks:
    """Applies a rule to a log density in the bricks at `center` `(C, D)` of half-widths `half_width` `(C, D)`."""
    step = max(1, MAX_NODES_AT_ONCE // len(rule.nodes))
    blocks = zip(center.split(step), half_width.split(step), strict=True)
    return joined([_evaluated_block(function, *block, rule) for block in blocks])


def _evaluated_block(function: Function, center: Tensor, half_width: Tensor, rule: BrickRule) -> Bricks:
    """`evaluated_bricks` for one block. Densities are taken relative to the best node's, so that none overflows."""
    log_volume = (2 * half_width).log().sum(-1)
    at_nodes = _values(function, center, half_width, rule.nodes)
    at_corners = _values(function, center, half_width, rule.corners)
    top, highest_corner = at_nodes.amax(1), at_corners.amax(1)
    empty = top == -torch.inf
    shift = torch.where(empty, 0.0, top)
    relative = (at_nodes - shift[:, None]).exp()
    peak = torch.where(empty, top, top + RISE_FACTOR * rise_between_nodes(at_nodes, rule) + RISE_MARGIN)
    cube = relative.reshape(len(center), *[rule.order] * center.shape[1])
    highest = torch.maximum(top, highest_corner)
    corner_shift = torch.where(highest == -torch.inf, 0.0, highest)[:, None]
    predicted = _polynomial_at_corners(cube, rule) * (top[:, None] - corner_shift).exp()
    jump = ((at_corners - corner_shift).exp() - predicted).abs().amax(1)
    return Bricks(
        center=center,
        half_width=half_width,
        log_mass=(relative @ rule.log_weight.exp()).log() + shift + log_volume,
        log_mass_bound=torch.maximum(peak, highest_corner) + log_volume,
        log_range=torch.where(empty, 0.0, top - at_nodes.amin(1)),
        log_tail=_last_coefficients(cube, rule).log() + (top + log_volume)[:, None],
        log_jump=jump.log() + corner_shift[:, 0] + log_volume,
    )


def _values(function: Function, center: Tensor, half_width: Tensor, places: Tensor) -> Tensor:
    """The log density in each brick at places `(n, D)` of the cube from -1 to 1, `(C, n)`."""
    points = (center[:, None] + half_width[:, None] * places).reshape(-1, center.shape[1])
    return function(points).reshape(len(center), -1)


def _last_coefficients(cube: Tensor, rule: BrickRule) -> Tensor:
    """Sizes of the last two Legendre coefficients along each axis of values `(C, order, ..., order)`, `(C, D)`.

    Of the two the larger one counts; its mean is taken over the lines of nodes along the axis.
    """
    sizes = []
    for axis in range(1, cube.dim()):
        last = torch.tensordot(cube, rule.last_coefficients, dims=([axis], [1])).abs().amax(-1)
        sizes.append(last.reshape(len(cube), -1).mean(1))
    return torch.stack(sizes, 1)


def _polynomial_at_corners(cube: Tensor, rule: BrickRule) -> Tensor:
    """What the polynomial through values `(C, order, ..., order)` at the nodes is at the corners, `(C, 2^D)`."""
    num_bricks, dim = len(cube), cube.dim() - 1
    for _ in range(dim):  # each product takes the first axis of nodes away and adds its two ends as the last axis
        cube = torch.tensordot(cube, rule.at_ends, dims=([1], [1]))
    return cube.reshape(num_bricks, -1)


@dataclass(frozen=True, eq=False)
class Parabolas:
    """One parabola a row through three points, in Newton's form f0 + slope (x - x0) + bend (x - x0) (x - x1).

    All attributes are columns `(C, 1)`: the places `x0` and `x1` of two of the points, the value `f0` at the first, and
    the first and second divided differences.
    """

    x0: Tensor
    x1: Tensor
    f0: Tensor
    slope: Tensor
    bend: Tensor

    @staticmethod
    def through(x: Tensor, f: Tensor) -> Parabolas:
        """The parabolas with values `f` `(C, 3)` at places `x` `(C, 3)`."""
        (x0, x1, x2), (f0, f1, f2) = x.split(1, 1), f.split(1, 1)
        slope = (f1 - f0) / (x1 - x0)
        return Parabolas(x0, x1, f0, slope, ((f2 - f1) / (x2 - x1) - slope) / (x2 - x0))

    def peak(self) -> Tensor:
        """The place of the maximum, `(C, 1)`; x0 where there is none because the parabola opens upwards."""
        falls = self.bend < 0
        vertex = (self.x0 + self.x1) / 2 - self.slope / (2 * torch.where(falls, self.bend, -1.0))
        return torch.where(falls, vertex, self.x0)

    def __call__(self, x: Tensor) -> Tensor:
        """Values at places `x` `(C, n)`."""
        return self.f0 + self.slope * (x - self.x0) + (self.bend * (x - self.x0)) * (x - self.x1)


def rise_between_nodes(values: Tensor, rule: BrickRule) -> Tensor:
    """An estimate of how far the log density in a brick rises above its best node, `(C,)`, nats.

    Along each axis a parabola goes through the best node and two nodes beside it. The log density suits this better
    than the density: along any axis a thin Gaussian ridge is a parabola in it. The rises along all axes are added.

    Args:
        values: log density at the nodes, `(C, n)`.
        rule: whose nodes they are.
    """
    order, dim, line = rule.order, rule.nodes.shape[1], rule.line
    best = values.argmax(1, keepdim=True)
    highest = values.gather(1, best)
    total = torch.zeros_like(values[:, 0])
    for axis in range(dim):
        stride = order ** (dim - 1 - axis)  # between neighbours along this axis, in the flat order of the nodes
        place = best // stride % order  # of the best node along this axis
        three = place.clamp(1, order - 2) + torch.arange(-1, 2, device=place.device)
        parabolas = Parabolas.through(line[three], values.gather(1, best + (three - place) * stride))
        ends = line.new_tensor([-1.0, 1.0]).expand(len(values), 2)
        x = torch.cat([parabolas.peak().clamp(-1, 1), ends], 1)
        near = (x - line[place]).abs() <= 2 / order * MAX_PARABOLA_REACH
        rise = torch.where(near, parabolas(x) - highest, 0.0).amax(1).clamp(0, MAX_RISE)
        total += torch.where(rise.isnan(), RISE_BESIDE_ZERO_DENSITY, rise)
    return total
