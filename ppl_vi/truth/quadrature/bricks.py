"""The integral of one density by an adaptive tree of bricks, halved across the axis along which they are worst.

Where a posterior narrows, as a funnel does, cubes as small as its width would be as many as its length has widths;
bricks need not be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]  # log density at points (S, D), (S,)

NEGLIGIBLE = 28.0  # nats below the integral: 7e-13 of it
SMOOTH = 25.0  # nats: a brick within which the density varies more is not accepted, whatever its rules agree on
SAFETY = 2.0  # of the rise above the best node: as many times, and as many nats
UNKNOWN = 25.0  # nats of rise where a density of 0 is a neighbour
STEEPEST = 1000.0  # nats of rise along an axis at most: no node is farther than 45 standard deviations from any ridge
MOST_POINTS = 2**22  # evaluated in all, whatever one costs
NEIGHBOURS = 64  # points that are looked up together
ROUGH = 30.0  # times what the last coefficients are, by which a corner may be off the polynomial through the nodes
LEAST_JUMP = 1e-3  # of the mean density: less is none
SMALLEST = 1e-12  # half-width of a brick, relative to 1 + |center|, at which halving ends


@dataclass(frozen=True, eq=False)
class BrickRule:
    """A product Gauss-Legendre rule of `order` nodes an axis in the cube from -1 to 1.

    Attributes:
        order: nodes an axis.
        nodes: `(n, D)`, the last axis running fastest.
        log_weight: of sum 0 in logsumexp, `(n,)`.
        corners: of the cube, `(2^D, D)`.
        at_ends: `(2, order)`, from values at the nodes of one axis to those of their polynomial at its ends.
        tails: `(2, order)`, from values at the nodes of one axis to their last two Legendre coefficients.
    """

    order: int
    nodes: Tensor
    log_weight: Tensor
    corners: Tensor
    at_ends: Tensor
    tails: Tensor

    @property
    def rim(self) -> float:
        """The share of a brick that lies beyond its outermost nodes along one axis, on one side."""
        return float(1 - self.nodes.max()) / 2

    @staticmethod
    def of(order: int, dim: int, like: Tensor) -> BrickRule:
        """The rule in `dim` dimensions."""
        x, w = np.polynomial.legendre.leggauss(order)
        degrees = np.array([order - 2, order - 1])
        basis = np.polynomial.legendre.legvander(x, order - 1)[:, degrees]
        tails = (basis * w[:, None] * (2 * degrees + 1) / 2).T
        every = np.arange(order)
        coefficients = np.polynomial.legendre.legvander(x, order - 1) * w[:, None] * (2 * every + 1) / 2
        at_ends = np.stack([coefficients @ (-1.0) ** every, coefficients.sum(1)])
        nodes, weights = torch.from_numpy(x).to(like), torch.from_numpy(w / 2).to(like)
        grid = torch.cartesian_prod(*[nodes] * dim).reshape(-1, dim)
        log_weight = torch.cartesian_prod(*[weights.log()] * dim).reshape(-1, dim).sum(-1)
        corners = torch.cartesian_prod(*[nodes.new_tensor([-1.0, 1.0])] * dim).reshape(-1, dim)
        return BrickRule(
            order, grid, log_weight, corners, torch.from_numpy(at_ends).to(like), torch.from_numpy(tails).to(like)
        )


@dataclass(frozen=True, eq=False)
class Bricks:
    """Axis-parallel boxes with disjoint insides, and what a rule saw of a density in them.

    Attributes:
        center: `(C, D)`.
        half: half of the widths, `(C, D)`.
        log_mass: of the integral over each, `(C,)`, nats; nan where a value is.
        bound: a guess at the log of the most that each may hold, `(C,)`.
        spread: how far the smallest log density lies below the largest, `(C,)`.
        tail: log of the density's last Legendre coefficients along each axis times the volume, `(C, D)`.
        jump: log of how far the density at a corner is from the polynomial through the nodes, times the volume, `(C,)`.
    """

    center: Tensor
    half: Tensor
    log_mass: Tensor
    bound: Tensor
    spread: Tensor
    tail: Tensor
    jump: Tensor

    def __len__(self) -> int:
        return len(self.log_mass)

    def __getitem__(self, index: Tensor) -> Bricks:
        return Bricks(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    @property
    def log_volume(self) -> Tensor:
        """`(C,)`."""
        return (2 * self.half).log().sum(-1)

    def nodes(self, rule: BrickRule) -> tuple[Tensor, Tensor]:
        """The rule's nodes in all of them, `(C * n, D)`, and their log weights `(C * n,)`."""
        points = self.center[:, None] + self.half[:, None] * rule.nodes
        log_weight = self.log_volume[:, None] + rule.log_weight
        return points.reshape(-1, self.center.shape[1]), log_weight.reshape(-1)

    def holding(self, points: Tensor) -> Tensor:
        """Which brick holds each of points `(S, D)`, -1 where none does, `(S,)`."""
        found = torch.full((len(points),), -1)
        reach = self.half * (1 + 1e-9)
        low, high = self.center - reach, self.center + reach
        for rows in points[:, 0].argsort().split(NEIGHBOURS):  # few bricks meet neighbours along the first axis
            some = points[rows]
            near = ((low[:, 0] <= some[-1, 0]) & (high[:, 0] >= some[0, 0])).nonzero()[:, 0]
            if len(near):
                inside = ((some[:, None] >= low[near]) & (some[:, None] <= high[near])).all(-1)
                found[rows] = torch.where(inside.any(1), near[inside.to(torch.uint8).argmax(1)], -1)
        return found


def joined(parts: list[Bricks]) -> Bricks:
    """All bricks of several sets."""
    return Bricks(*(torch.cat([getattr(part, name) for part in parts]) for name in Bricks.__dataclass_fields__))


def look(function: Function, center: Tensor, half: Tensor, rule: BrickRule) -> Bricks:
    """What the rule sees in bricks at `center` `(C, D)` of half-widths `half` `(C, D)`."""
    dim = center.shape[1]
    step = max(1, 2**20 // len(rule.nodes))
    parts = []
    for at, wide in zip(center.split(step), half.split(step), strict=True):
        log_volume = (2 * wide).log().sum(-1)
        values = function((at[:, None] + wide[:, None] * rule.nodes).reshape(-1, dim)).reshape(len(at), -1)
        top = values.amax(1)
        empty = top == -torch.inf
        relative = (values - torch.where(empty, 0.0, top)[:, None]).exp()
        log_mass = (relative @ rule.log_weight.exp()).log() + torch.where(empty, 0.0, top) + log_volume
        spread = torch.where(empty, 0.0, top - values.amin(1))
        corner = function((at[:, None] + wide[:, None] * rule.corners).reshape(-1, dim)).reshape(len(at), -1)
        rise = torch.where(empty, top, top + SAFETY * peak_above(values, rule) + SAFETY)
        bound = torch.maximum(rise, corner.amax(1)) + log_volume
        cube = relative.reshape(len(at), *[rule.order] * dim)
        tails = []
        for axis in range(dim):
            last = torch.tensordot(cube, rule.tails, dims=([axis + 1], [1])).abs().amax(-1)
            tails.append(last.reshape(len(at), -1).mean(1))
        tail = torch.stack(tails, 1).log() + (top + log_volume)[:, None]
        for _ in range(dim):  # each takes the first axis of the cube away and adds its ends as the last
            cube = torch.tensordot(cube, rule.at_ends, dims=([1], [1]))
        highest = torch.maximum(top, corner.amax(1))
        shift = torch.where(highest == -torch.inf, 0.0, highest)[:, None]
        away = (corner - shift).exp() - cube.reshape(len(at), -1) * (top[:, None] - shift).exp()
        jump = away.abs().amax(1).log() + shift[:, 0] + log_volume
        parts.append(Bricks(at, wide, log_mass, bound, spread, tail, jump))
    return joined(parts)


def peak_above(values: Tensor, rule: BrickRule) -> Tensor:
    """How far the log density may rise above its value at the best node, `(C,)`, by parabolas along each axis.

    The log density is smooth where its exponential is not: along any axis a thin ridge is a parabola in it.
    """
    dim, order = rule.nodes.shape[1], rule.order
    x = rule.nodes[:order, -1]
    best = values.argmax(1)
    total = torch.zeros_like(values[:, 0])
    for axis in range(dim):
        stride = order ** (dim - 1 - axis)
        along = best // stride % order
        middle = along.clamp(1, order - 2)
        index = torch.stack([middle - 1, middle, middle + 1], 1)
        f = values.gather(1, best[:, None] + (index - along[:, None]) * stride)
        a, b, c = x[index].unbind(1)
        fa, fb, fc = f.unbind(1)
        slope = (fb - fa) / (b - a)
        bend = ((fc - fb) / (c - b) - slope) / (c - a)
        peak = torch.where(bend < 0, (a + b) / 2 - slope / (2 * torch.where(bend < 0, bend, -1.0)), a).clamp(-1, 1)
        ends = peak.new_tensor([-1.0, 1.0]).expand(len(peak), 2)
        at = torch.cat([peak[:, None], ends], 1)
        near = (at - x[along][:, None]).abs() <= 2 / order * 3  # no parabola is believed far from its nodes
        risen = (
            fa[:, None] + slope[:, None] * (at - a[:, None]) + (bend[:, None] * (at - a[:, None])) * (at - b[:, None])
        )
        excess = torch.where(near, risen - values.gather(1, best[:, None]), 0.0).amax(1).clamp(0, STEEPEST)
        total += torch.where(excess.isnan(), UNKNOWN, excess)
    return total


def halves(bricks: Bricks) -> tuple[Tensor, Tensor]:
    """Centers and half-widths `(2 C, D)` of two parts of each, across its worst axis; two parts are neighbours."""
    worst = torch.where(bricks.tail.isfinite(), bricks.tail, -torch.inf)
    axis = torch.nn.functional.one_hot(worst.argmax(1), bricks.half.shape[1]).to(bricks.half)
    half = torch.where(axis > 0, bricks.half / 2, bricks.half)
    shift = axis * half
    center = torch.stack([bricks.center - shift, bricks.center + shift], 1).flatten(0, 1)
    return center, half.repeat_interleave(2, 0)


@dataclass(frozen=True, eq=False)
class Tree:
    """A settled tree.

    Attributes:
        bricks: all of them.
        leaves: those that matter.
        log_mass: of the integral, nats.
        error: of it, relative: what halving changed, and the bounds of what was dropped.
        reason: why it could not be settled, or "".
    """

    bricks: Bricks
    leaves: Bricks
    log_mass: float
    error: float
    reason: str


def grow_tree(function: Function, start: Bricks, rule: BrickRule, tolerance: float, most: int = MOST_POINTS) -> Tree:
    """Halves bricks until each agrees with its halves, or holds nothing.

    A brick is dropped, its integral kept, where the most it may hold lies 28 nats below the integral so far. The halves
    of a brick are accepted where together they agree with it to `tolerance` of the integral, the density varies by less
    than 25 nats within each, its last Legendre coefficients promise the same of the other axes, and no corner shows a
    jump.

    Args:
        function: log density at points.
        start: bricks to begin with.
        rule: in each brick.
        tolerance: relative to the integral.
        most: points that may be evaluated.
    """
    if bool(_broken(start).any()):
        return _unsettled([start], _where(start))
    log_total = float(start.log_mass.logsumexp(0))
    dropped = start.bound < log_total - NEGLIGIBLE
    error = float((start.bound[dropped] - log_total).exp().sum())
    bricks, settled, num_points = start[~dropped], [start[dropped]], len(start) * len(rule.nodes)
    while len(bricks):
        num_points += 2 * len(bricks) * len(rule.nodes)
        if num_points > most:
            return _unsettled([*settled, bricks], f"more than {most:.0e} points are needed")
        if bool((bricks.half < SMALLEST * (1 + bricks.center.abs())).any()):
            return _unsettled([*settled, bricks], "a jump, or a point of infinite density")
        parts = look(function, *halves(bricks), rule)
        if bool(_broken(parts).any()):
            return _unsettled([*settled, bricks], _where(parts))
        together = parts.log_mass.reshape(-1, 2).logsumexp(1)
        log_total = float(torch.cat([part.log_mass for part in settled] + [together]).logsumexp(0))
        difference = ((together - log_total).exp() - (bricks.log_mass - log_total).exp()).abs()
        tail = (parts.tail - log_total).exp().amax(1)
        # a Gauss rule integrates twice the degree that it resolves: its error goes with the square of the tail
        other = tail * (10 * tail / (parts.log_mass - log_total).exp().clamp(min=1e-300)).clamp(max=1.0)
        # a jump between the outermost nodes and the rim is seen by no rule of nodes inside, but by a corner
        promised = torch.logaddexp(parts.tail.logsumexp(1) + math.log(ROUGH), parts.log_mass + math.log(LEAST_JUMP))
        even = (parts.jump <= promised) | ((parts.jump - log_total).exp() * rule.rim < tolerance / 4)
        smooth = (parts.spread < SMOOTH) & (other < tolerance / 4) & even
        good = (difference < tolerance) & smooth.reshape(-1, 2).all(1)
        accepted = good.repeat_interleave(2)
        nothing = (parts.bound < log_total - NEGLIGIBLE) & ~accepted
        error += float(difference[good].sum()) + float(other[accepted].sum())
        error += float((parts.bound[nothing] - log_total).exp().sum())
        done = accepted | nothing
        settled.append(parts[done])
        bricks = parts[~done]
    return _tree(settled, error, "")


def _broken(bricks: Bricks) -> Tensor:
    return bricks.log_mass.isnan() | (bricks.log_mass == torch.inf)


def _where(bricks: Bricks) -> str:
    center = bricks.center[_broken(bricks).nonzero()[0, 0]]
    return f"the density is nan or infinite near {[round(v, 3) for v in center.tolist()]} in standardised coordinates"


def _unsettled(parts: list[Bricks], reason: str) -> Tree:
    return _tree(parts, math.inf, reason)


def _tree(parts: list[Bricks], error: float, reason: str) -> Tree:
    everything = joined(parts)
    log_mass = float(everything.log_mass.logsumexp(0))
    return Tree(everything, everything[everything.log_mass > log_mass - NEGLIGIBLE], log_mass, error, reason)
