"""Scrambled Sobol points from SciPy."""

from __future__ import annotations

import numpy as np


def sobol_points(dim: int, log2_num: int, rng: np.random.Generator) -> np.ndarray:
    """The first `2**log2_num` points of a scrambled Sobol sequence in the unit cube, `(N, dim)`.

    `scipy.stats` is imported here and not above: that takes a third of a second, and a fit needs none of it.
    """
    from scipy.stats import qmc

    points: np.ndarray = qmc.Sobol(dim, rng=rng).random_base2(log2_num)
    return points
