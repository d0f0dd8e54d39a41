"""Control variates for expectations under standard normal noise: products of Hermite polynomials, whose means are 0.

Means over several independently randomised sets of points are known better when what polynomials in the noise explain
is taken away from their errors (Owen 2013, Monte Carlo theory, methods and examples, section 8.9). The log density of a
posterior that is nearly normal is nearly quadratic in the noise of a Gaussian guide, and its error falls by some orders
of magnitude.
"""

from __future__ import annotations

import math
from itertools import combinations_with_replacement

import torch
from torch import Tensor

# Control variates are used where the other sets have at least this many values for each of them. With fewer, the noise
# of their coefficients would make up for what they explain.
VALUES_PER_CONTROL = 3
# The total degree of the polynomials, at most.
MAX_DEGREE = 4
# Control variates have at most this many numbers, 64 MiB in double precision.
MAX_NUMBERS = 2**23


def hermite_products(noise: Tensor, block: int = 1) -> Tensor | None:
    """1 and products of Hermite polynomials of standard normal noise, whose expectations are 0.

    Args:
        noise: `S` independently randomised sets of `P` points, `(S, P, D)`.
        block: of so many neighbouring points in a set, the mean is taken.

    Returns:
        `(S, P / block, T)`, the constant first; None where there are too few points for any.
    """
    num_sets, num_points, dim = noise.shape
    most = min((num_sets - 1) * (num_points // block) // VALUES_PER_CONTROL, MAX_NUMBERS // (num_sets * num_points))
    degrees = _largest_degrees(dim, most)
    if degrees is None:
        return None
    x = noise.to(torch.float64)
    hermite = torch.stack([torch.ones_like(x), x, x.square() - 1, x**3 - 3 * x, x**4 - 6 * x.square() + 3], -1)
    found = torch.ones((num_sets, num_points, len(degrees)), dtype=x.dtype)
    for d in range(dim):
        found *= hermite[:, :, d, degrees[:, d]]
    return found.unflatten(1, (-1, block)).mean(2)


def _largest_degrees(dim: int, most: int) -> Tensor | None:
    """The degrees in each number of at most so many products, `(T, D)`, that without factors first.

    They are all products up to a total degree, or only single factors up to a degree of 2; None where these are too
    many, too.
    """
    for degree in range(MAX_DEGREE, 1, -1):
        if math.comb(dim + degree, degree) <= most:
            chosen = [c for k in range(degree + 1) for c in combinations_with_replacement(range(dim), k)]
            return torch.tensor([[factors.count(d) for d in range(dim)] for factors in chosen])
    single = torch.eye(dim, dtype=torch.int64)
    return torch.cat([single[:1] * 0, single, 2 * single]) if 1 + 2 * dim <= most else None


def controlled_means(values: Tensor, controls: Tensor) -> Tensor:
    """The mean of values `(..., S, P)` over the points of each set, `(..., S)`, by the control variates `(S, P, T)`.

    The coefficients for each set come from the other sets, so that its mean stays unbiased. Where a value is not
    finite, the plain means are given.
    """
    plain, usual = values.mean(-1), values.isfinite().all(-1).all(-1)
    centre = torch.where(usual, plain.mean(-1), 0.0)[..., None, None]
    away = torch.where(usual[..., None, None], values - centre, 0.0).to(controls)
    products = controls.mT @ controls
    explained = torch.einsum("spt,...sp->st...", controls, away).reshape(*products.shape[:2], -1)
    slopes = torch.linalg.solve(products.sum(0) - products, explained.sum(0) - explained)
    error = (controls.mean(1)[:, 1:, None] * slopes[:, 1:]).sum(1).mT.reshape(plain.shape)
    return torch.where(usual[..., None], plain - error.to(plain), plain)
