"""Quantiles, covariances and effective sample sizes of weighted draws."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

QUANTILES = (0.05, 0.95)  # the tails that are looked at begin there


def weighted_quantiles(x: Tensor, weight: Tensor, probabilities: tuple[float, ...]) -> list[float]:
    """The smallest x up to which there is at least each of the probabilities, for weights `(S,)` that sum to 1."""
    order = x.argsort()
    up_to = weight[order].cumsum(0).numpy()
    places = np.searchsorted(up_to, probabilities).clip(max=len(x) - 1)
    return [float(x[order[int(place)]]) for place in places]


def effective_sizes(numbers: Tensor, weight: Tensor) -> tuple[float, float]:
    """The smallest effective sample sizes in bulk and tails.

    The first is that of means, the variance of a number divided by that of its weighted mean. The second is that of the
    probabilities below two quantiles.

    Args:
        numbers: `(S, K)`.
        weight: `(S,)`, summing to 1.
    """
    bulk, tail = [], []
    for x in numbers.mT:
        bulk.append(_effective_size(x, weight))
        for limit in weighted_quantiles(x, weight, QUANTILES):
            tail.append(_effective_size((x <= limit).to(x), weight))
    return min(bulk), min(tail)


def _effective_size(x: Tensor, weight: Tensor) -> float:
    squares = (x - weight @ x).square()
    return float(weight @ squares / (weight.square() @ squares))


def covariance_factor(u: Tensor, weight: Tensor) -> Tensor | None:
    """The Cholesky factor of the covariance of weighted points `(S, D)`, `(D, D)`; None where that is singular."""
    share = weight / weight.sum()
    away = u - share @ u
    factor, failed = torch.linalg.cholesky_ex((share[:, None] * away).mT @ away)
    return None if bool(failed) else factor
