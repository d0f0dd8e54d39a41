"""The box over which a tree of bricks integrates: how large it is, and how it is cut before the tree grows."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vi.truth.quadrature.bricks import BORDER_TOLERANCE, BrickRule, evaluated_bricks
from ppl_vi.truth.quadrature.search import SearchResult
from ppl_vi.truth.quadrature.standardized import StandardizedDensity
from ppl_vi.truth.quadrature.tree import MAX_TREE_POINTS, Tree, grow_tree

# Half-widths that are tried one after another, in standardised coordinates. With t = 2 sinh(s / 2) they reach from 20
# to 7e20 standard deviations.
HALF_WIDTHS = (6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0)
# The thickness of the two layers inside the boundary of the box whose masses tell how fast the density falls there.
LAYER = 2.0
# The largest mass, relative to p(x), that may seem to lie outside of the box.
MAX_MASS_OUTSIDE = 1e-10
# Bricks that come as near to a mode as so many of its standard deviations, along every axis, are at first no wider than
# MAX_BRICK_WIDTHS of these to either side: beside a brick that holds a narrow mode, a wide one would have all its nodes
# where the mode's own mass has vanished, and would look smooth.
MODE_REACH, MAX_BRICK_WIDTHS = 7.0, 4.0
# A tree may evaluate the density at up to MAX_CHEAP_POINTS points, so that the density of few data points may have many
# corners. They are fewer where the model's largest temporary at all of them together would have more than
# MAX_TREE_NUMBERS numbers, but never fewer than MAX_TREE_POINTS.
MAX_CHEAP_POINTS, MAX_TREE_NUMBERS = 2**25, 2**30


class Accuracy(NamedTuple):
    """How well a tree integrates.

    Attributes:
        order: of the Gauss rule in each brick, along each axis.
        tolerance: of one brick, relative to the integral.
    """

    order: int
    tolerance: float


def tree_in_large_enough_box(
    standardized: StandardizedDensity, accuracy: Accuracy, found: SearchResult
) -> tuple[Tree, float]:
    """The tree over the smallest box that leaves out a negligible mass, and the half-width of that box."""
    farthest = float(standardized.inverse(found.modes.u).abs().max()) + 2 * LAYER
    for half_width in [each for each in HALF_WIDTHS if each >= farthest] or HALF_WIDTHS[-1:]:
        tree = tree_in_box(standardized, accuracy, found, half_width)
        if tree.reason or mass_outside(tree, half_width) <= MAX_MASS_OUTSIDE:
            break
    return tree, half_width


def tree_in_box(standardized: StandardizedDensity, accuracy: Accuracy, found: SearchResult, half_width: float) -> Tree:
    """The tree over a box: unit cubes at first, which are cut to the width of the modes that lie in them."""
    density = standardized.density
    line = torch.arange(-half_width + 1, half_width, 2, dtype=standardized.center.dtype)
    center = torch.cartesian_prod(*[line] * density.dim).reshape(-1, density.dim)
    inverse = torch.linalg.inv(standardized.factor)
    modes = standardized.inverse(found.modes.u)
    mode_width = torch.linalg.vector_norm(inverse @ found.modes.factor, dim=-1) / (modes / 2).cosh()  # dt = cosh ds
    center, half_widths = cut_around(center, torch.ones_like(center), modes, mode_width)
    reach, near_width = MODE_REACH * mode_width, MAX_BRICK_WIDTHS / 2 * mode_width
    center, half_widths = cut_around(center, half_widths, modes, near_width, reach)
    rule = BrickRule.of(accuracy.order, density.dim, center)
    max_points = max(MAX_TREE_POINTS, min(MAX_CHEAP_POINTS, MAX_TREE_NUMBERS // density.width))
    return grow_tree(
        standardized, evaluated_bricks(standardized, center, half_widths, rule), rule, accuracy.tolerance, max_points
    )


def cut_around(
    center: Tensor, half_width: Tensor, points: Tensor, width: Tensor, reach: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Halves bricks until those that hold a point are no wider than twice what is asked for at that point.

    Args:
        center: of the bricks, `(C, D)`.
        half_width: of the bricks along each axis, `(C, D)`.
        points: `(M, D)`.
        width: the half-width asked for at each point along each axis, `(M, D)`; twice as much is accepted.
        reach: how near a brick has to come to a point along each axis, `(M, D)`; by default it has to hold the point.

    Returns:
        Centers and half-widths of bricks that fill the same box, `(C', D)` each.
    """
    done: list[tuple[Tensor, Tensor]] = []
    while len(center):
        beyond = (points[:, None] - center).abs() - half_width * (1 + BORDER_TOLERANCE)
        holds = (beyond <= (0.0 if reach is None else reach[:, None])).all(-1)
        excess = torch.where(holds[..., None], half_width / (2 * width[:, None]), 0.0).amax(0)
        wide = excess.amax(1) > 1
        done.append((center[~wide], half_width[~wide]))
        center, half_width, excess = center[wide], half_width[wide], excess[wide]
        axis = torch.nn.functional.one_hot(excess.argmax(1), center.shape[1]).to(half_width)
        half_width = half_width * (1 - axis / 2)
        center = torch.cat([center - axis * half_width, center + axis * half_width])
        half_width = half_width.repeat(2, 1)
    centers, half_widths = zip(*done, strict=True)
    return torch.cat(centers), torch.cat(half_widths)


def mass_outside(tree: Tree, half_width: float) -> float:
    """An estimate of the mass outside of a box of that half-width, relative to the integral.

    With the masses m of the outermost layer inside the box and M of the next one, it is the sum of the geometric series
    that continues them, m r / (1 - r) with r = m / M; inf if the masses do not fall.
    """
    bricks = tree.bricks
    distance = bricks.center.abs().amax(1)
    mass = (bricks.log_mass - tree.log_mass).exp()
    last = float(mass[distance > half_width - LAYER].sum())
    before = float(mass[(distance <= half_width - LAYER) & (distance > half_width - 2 * LAYER)].sum())
    if last == 0:
        return 0.0
    return last * last / (before - last) if before > last else math.inf
