"""An adaptive tree of bricks: every brick is halved until its halves confirm it, or until it holds nothing.

A brick's integral is compared with the sum of those over its halves. Agreement alone proves little, so that the halves
must also look smooth, by the signs that `ppl_vi.truth.quadrature.bricks` takes from the values of the density.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vi.runtime.stages import Running, stage
from ppl_vi.truth.quadrature.bricks import BrickRule, Bricks, Function, evaluated_bricks, joined

# A mass that lies more nats than this below the integral, a share of 7e-13, counts as nothing. Less would lose mass
# that the tolerances of 1e-10 notice; more would refine bricks that no digit of the result depends on.
NEGLIGIBLE_NATS = 28.0
# A brick in which the log density varies by more nats than this is halved, whatever its rules agree on: two rules agree
# on a mass near 0 where all nodes of both miss a peak.
MAX_LOG_RANGE = 25.0
# The density at a corner may differ from the polynomial through the nodes by this multiple of the last Legendre
# coefficients, found to hold for smooth densities ...
MAX_JUMP_TO_TAIL = 30.0
# ... or by this share of the mean density in the brick. What differs by more is a jump.
MIN_JUMP = 1e-3
# Points at which a tree may evaluate the density, unless its caller allows more. A tree that needs more usually follows
# a jump and would never end.
MAX_TREE_POINTS = 2**22
# A brick whose half-width is smaller than this multiple of 1 + |center| is not halved: its nodes would soon coincide.
MIN_HALF_WIDTH = 1e-12


@dataclass(frozen=True, eq=False)
class Tree:
    """What became of the bricks.

    Attributes:
        bricks: all of them; together they fill the box that the tree began with.
        leaves: those whose mass is not negligible.
        log_mass: log of the integral, nats.
        error: estimated error of the integral, relative to it: what halving changed, the tails of the accepted bricks,
            and the bounds of the dropped ones.
        reason: why the tree gave up, or "".
        place: `(D,)`, the middle of a brick in which the trouble lies, where one can be named.
    """

    bricks: Bricks
    leaves: Bricks
    log_mass: float
    error: float
    reason: str = ""
    place: Tensor | None = None

    @staticmethod
    def of(parts: list[Bricks], error: float, reason: str = "", place: Tensor | None = None) -> Tree:
        """The tree of all these bricks."""
        bricks = joined(parts)
        log_mass = float(bricks.log_mass.logsumexp(0))
        return Tree(bricks, bricks[bricks.log_mass > log_mass - NEGLIGIBLE_NATS], log_mass, error, reason, place)


def grow_tree(
    function: Function,
    start: Bricks,
    rule: BrickRule,
    tolerance: float,
    max_points: int = MAX_TREE_POINTS,
    min_jump: float = MIN_JUMP,
) -> Tree:
    """Halves bricks until the halves of each confirm it, or it holds nothing.

    The two halves of a brick are accepted where

    - their sum agrees with the brick to `tolerance` of the integral,
    - the log density varies by less than 25 nats in each,
    - the tails of their Legendre series are so small that further halving would change less than a quarter of the
      tolerance along the other axes too,
    - no corner of theirs shows a jump of the density.

    A brick is dropped, and its integral kept, where the largest mass that it may hold lies 28 nats below the integral.

    Args:
        function: log density at points `(S, D)`, `(S,)`.
        start: bricks to begin with.
        rule: in each brick.
        tolerance: of one brick, relative to the whole integral.
        max_points: at which the density may be evaluated.
        min_jump: the least jump at a corner, as a share of the mean density in the brick; inf looks for none.
    """
    with stage("tree of bricks", "point") as running:
        return _grown(function, start, rule, tolerance, max_points, min_jump, running)


def _grown(
    function: Function,
    start: Bricks,
    rule: BrickRule,
    tolerance: float,
    max_points: int,
    min_jump: float,
    running: Running,
) -> Tree:
    """The tree of `grow_tree`; `running` counts the points at which the density is evaluated."""
    if bool(start.broken.any()):
        return _broken_tree([start], start)
    log_total = float(start.log_mass.logsumexp(0))
    negligible = start.log_mass_bound < log_total - NEGLIGIBLE_NATS
    error = float((start.log_mass_bound[negligible] - log_total).exp().sum())
    bricks, settled, num_points = start[~negligible], [start[negligible]], len(start) * len(rule.nodes)
    while len(bricks):
        num_points += 2 * len(bricks) * len(rule.nodes)
        if num_points > max_points:
            return Tree.of([*settled, bricks], math.inf, f"more than {max_points:.0e} points are needed")
        running.at(num_points)
        too_small = (bricks.half_width < MIN_HALF_WIDTH * (1 + bricks.center.abs())).any(1)
        if bool(too_small.any()):
            place = bricks.center[too_small][0]
            return Tree.of([*settled, bricks], math.inf, "the density has a jump or is infinite", place)
        halves = evaluated_bricks(function, *bricks.halves(), rule)
        if bool(halves.broken.any()):
            return _broken_tree([*settled, bricks], halves)
        together = halves.log_mass.reshape(-1, 2).logsumexp(1)
        log_total = float(torch.cat([part.log_mass for part in settled] + [together]).logsumexp(0))
        difference = ((together - log_total).exp() - (bricks.log_mass - log_total).exp()).abs()
        unhalved = _error_along_other_axes(halves, log_total)
        even = _shows_no_jump(halves, log_total, rule, tolerance, min_jump)
        smooth = (halves.log_range < MAX_LOG_RANGE) & (unhalved < tolerance / 4) & even
        confirmed = (difference < tolerance) & smooth.reshape(-1, 2).all(1)
        accepted = confirmed.repeat_interleave(2)
        dropped = (halves.log_mass_bound < log_total - NEGLIGIBLE_NATS) & ~accepted
        error += float(difference[confirmed].sum()) + float(unhalved[accepted].sum())
        error += float((halves.log_mass_bound[dropped] - log_total).exp().sum())
        settled.append(halves[accepted | dropped])
        bricks = halves[~(accepted | dropped)]
    return Tree.of(settled, error)


def _error_along_other_axes(halves: Bricks, log_total: float) -> Tensor:
    """An estimate of the error that halving across one axis does not show, relative to the integral, `(2 C,)`.

    A Gauss rule of n nodes integrates polynomials of twice the degree that n nodes determine. Its relative error thus
    goes with the square of the relative size of the last coefficients; ten times that square is taken, but no more than
    the size itself.
    """
    tail = (halves.log_tail - log_total).exp().amax(1)
    mass = (halves.log_mass - log_total).exp().clamp(min=1e-300)  # a mass of 0 must not divide 0
    return tail * (10 * tail / mass).clamp(max=1.0)


def _shows_no_jump(halves: Bricks, log_total: float, rule: BrickRule, tolerance: float, min_jump: float) -> Tensor:
    """Whether the density at the corners is about what the nodes predict, `(2 C,)`.

    Rules whose nodes lie inside see nothing of a jump between the outermost nodes and the rim of a brick; a corner
    does. A jump that can change no more than a quarter of the tolerance passes.
    """
    from_tail = halves.log_tail.logsumexp(1) + math.log(MAX_JUMP_TO_TAIL)
    allowed = torch.logaddexp(from_tail, halves.log_mass + math.log(min_jump))
    return (halves.log_jump <= allowed) | ((halves.log_jump - log_total).exp() * rule.rim < tolerance / 4)


def _broken_tree(parts: list[Bricks], seen: Bricks) -> Tree:
    """The tree that ends because the density was nan or infinite in one of the bricks `seen`."""
    return Tree.of(parts, math.inf, "the density is nan or infinite", seen.center[seen.broken][0])
