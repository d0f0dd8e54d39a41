"""Importance weights: the log of their mean, its standard error, and whether their variance is finite.

With draws z_1 ... z_N of a density q, the weights w_n = p(x, z_n) / q(z_n) have the mean p(x). They are given by their
logarithms, which may differ by any factor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special
from torch import Tensor


@dataclass(frozen=True)
class EvidenceEstimate:
    """An estimate of log p(x).

    Attributes:
        value: nats.
        std_error: of it, nats.
    """

    value: float
    std_error: float


def log_mean(log_weights: np.ndarray, axis: int | None = -1) -> np.ndarray:
    """log (1/N) sum_n w_n over one axis of `(..., N)`, or over all of them where `axis` is None, `(...)`, nats."""
    num = log_weights.size if axis is None else log_weights.shape[axis]
    return special.logsumexp(log_weights, axis=axis) - math.log(num)


def log_mean_error(log_weights: np.ndarray) -> np.ndarray:
    """The standard error of `log_mean` that the weights `(..., N)` themselves suggest, `(...)`, nats.

    By the delta method it is sd(w) / (mean(w) sqrt(N)). It is nan where no draw has weight.
    """
    largest = log_weights.max(-1, keepdims=True)
    relative = np.exp(log_weights - np.where(np.isneginf(largest), 0.0, largest))
    with np.errstate(invalid="ignore"):
        error: np.ndarray = relative.std(-1, ddof=1) / relative.mean(-1) / log_weights.shape[-1] ** 0.5
    return error


def importance_evidence(log_weights: np.ndarray) -> EvidenceEstimate:
    """log p(x) by importance sampling, from the log weights `(N,)`, with its standard error by the delta method."""
    return EvidenceEstimate(float(log_mean(log_weights)), float(log_mean_error(log_weights)))


def pareto_khat(log_weights: np.ndarray) -> float:
    """The shape of the Pareto distribution that fits the largest of the weights `(N,)`; above 0.5 their variance is
    infinite, and above 0.7 their mean says nothing.

    It is nan where the largest weights are all alike or mostly zero, so that they have no tail, and where there are
    fewer than 5.

    Source: Vehtari et al. (2024), Pareto smoothed importance sampling; computed by ArviZ.
    """
    from arviz_stats.base import array_stats  # imported here since it takes two seconds, with xarray and pandas

    with np.errstate(divide="ignore", invalid="ignore"):  # where weights are mostly zero, the result is nan
        try:
            # ArviZ expects the log likelihoods of leave-one-out cross-validation, and negates them to log weights
            return float(array_stats.psislw(-log_weights)[1])
        except (ValueError, IndexError):  # the largest weights are the same to the last bit, or there are hardly any
            return float("nan")


def check_draws(num_particles: int, num_repeats: int) -> None:
    """Checks how often an importance-weighted bound is to be estimated, and of how many draws.

    Raises:
        ValueError: there is no particle, or no two estimates for a standard error.
    """
    if num_particles < 1 or num_repeats < 2:
        raise ValueError(f"needs 1 particle and 2 repeats at least, got {num_particles} and {num_repeats}")


def log_mean_weights(log_weight: Tensor, num_particles: int) -> Tensor:
    """log (1/K) sum_k w_k of each K draws in a row, `(B, R K)` to `(B, R)`, nats."""
    return log_weight.unflatten(1, (-1, num_particles)).logsumexp(-1) - math.log(num_particles)
