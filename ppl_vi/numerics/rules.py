"""Quadrature rules for expectations under Normal(0, I_D), from coarse ones to fine ones."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

# The nodes that the coarse rules, those of Gauss and Hermite, have along each axis; they are exact for polynomials.
HERMITE_NODES = (8, 12)
# The distance between the nodes of the finer rules, trapezoids, by the number of latents D. Where the integrand changes
# many times over the Gaussian's width, some hundred evenly spaced nodes reach what takes thousands of Gauss-Hermite
# nodes, most of which lie in the tails. Finer rules than these hold too many nodes for D = 3.
SPACINGS = {
    1: (0.7, 0.5, 0.35, 0.25, 0.18, 0.125, 0.09, 0.06),
    2: (0.7, 0.5, 0.35, 0.25, 0.18, 0.125, 0.09),
    3: (0.7, 0.5, 0.35, 0.25),
}
# The nodes of the trapezoids reach this many standard deviations from 0, beyond which a Gaussian has the mass 6e-14.
TRAPEZOID_REACH = 7.5
# Nodes whose weight is less than this share of the rule's largest weight are left out: they can't change a sum of
# doubles.
NEGLIGIBLE_WEIGHT = 1e-14


def num_rule_levels(dim: int) -> int:
    """How many rules there are for so many latents: the levels of `gaussian_rule`."""
    return len(HERMITE_NODES) + len(SPACINGS[dim])


@lru_cache(maxsize=64)
def gaussian_rule(level: int, dim: int) -> tuple[Tensor, Tensor]:
    """Nodes `(S, D)` and weights `(S,)` of E[f(e)], e ~ Normal(0, I), finer with the level.

    Two tensor rules of Gauss and Hermite, then trapezoids, whose error falls exponentially with the inverse spacing.

    Source: Trefethen and Weideman (2014), The exponentially convergent trapezoidal rule.
    """
    x: np.ndarray
    w: np.ndarray
    if level < len(HERMITE_NODES):
        x, w = np.polynomial.hermite_e.hermegauss(HERMITE_NODES[level])
    else:
        spacing = SPACINGS[dim][level - len(HERMITE_NODES)]
        half = math.ceil(TRAPEZOID_REACH / spacing)
        x = spacing * (np.arange(2 * half) - half + 0.5)
        w = np.exp(-(x**2) / 2)
    nodes = np.stack(np.meshgrid(*[x] * dim, indexing="ij"), -1).reshape(-1, dim)
    weights = np.stack(np.meshgrid(*[w / w.sum()] * dim, indexing="ij"), -1).reshape(-1, dim).prod(-1)
    kept = weights > weights.max() * NEGLIGIBLE_WEIGHT
    return torch.from_numpy(nodes[kept]), torch.from_numpy(weights[kept] / weights[kept].sum())
