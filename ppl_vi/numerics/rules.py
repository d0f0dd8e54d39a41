"""TODO."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

HERMITE = (8, 12)  # nodes an axis of the coarse rules, exact for polynomials
# of the finer rules' nodes, by the number of latents: where q is wide beside the decoder's features, the trapezoid's
# evenly spaced nodes reach in hundreds what Gauss-Hermite, whose nodes run off into the tails, needs thousands for
SPACINGS = {
    1: (0.7, 0.5, 0.35, 0.25, 0.18, 0.125, 0.09, 0.06),
    2: (0.7, 0.5, 0.35, 0.25, 0.18, 0.125, 0.09),
    3: (0.7, 0.5, 0.35, 0.25),
}
REACH = 7.5  # of their nodes, standard deviations
NEGLIGIBLE = 1e-14  # of a rule's largest weight


def num_rule_levels(dim: int) -> int:
    """How many rules there are."""
    return len(HERMITE) + len(SPACINGS[dim])


@lru_cache(maxsize=64)
def gaussian_rule(level: int, dim: int) -> tuple[Tensor, Tensor]:
    """Nodes `(S, D)` and weights `(S,)` of E[f(e)], e ~ Normal(0, I), finer with the level.

    Two tensor rules of Gauss and Hermite, then trapezoids, whose error falls exponentially with the inverse spacing.

    Source: Trefethen and Weideman (2014), The exponentially convergent trapezoidal rule.
    """
    x: np.ndarray
    w: np.ndarray
    if level < len(HERMITE):
        x, w = np.polynomial.hermite_e.hermegauss(HERMITE[level])
    else:
        spacing = SPACINGS[dim][level - len(HERMITE)]
        half = math.ceil(REACH / spacing)
        x = spacing * (np.arange(2 * half) - half + 0.5)
        w = np.exp(-(x**2) / 2)
    nodes = np.stack(np.meshgrid(*[x] * dim, indexing="ij"), -1).reshape(-1, dim)
    weights = np.stack(np.meshgrid(*[w / w.sum()] * dim, indexing="ij"), -1).reshape(-1, dim).prod(-1)
    kept = weights > weights.max() * NEGLIGIBLE
    return torch.from_numpy(nodes[kept]), torch.from_numpy(weights[kept] / weights[kept].sum())
