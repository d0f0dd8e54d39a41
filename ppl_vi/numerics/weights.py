"""TODO."""

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


def importance_evidence(log_weight: np.ndarray) -> EvidenceEstimate:
    """The log of the mean weight and its standard error by the delta method."""
    value = float(special.logsumexp(log_weight)) - math.log(len(log_weight))
    relative = np.exp(log_weight - value)
    return EvidenceEstimate(value, float(relative.std(ddof=1)) / math.sqrt(len(relative)))


def pareto_khat(log_weights: np.ndarray) -> float:
    from arviz_stats.base import array_stats  # takes two seconds, with xarray and pandas

    with np.errstate(divide="ignore", invalid="ignore"):  # of weights mostly zero: nan says so
        try:
            return float(array_stats.psislw(-log_weights)[1])
        except ValueError:  # the largest weights are the same to the last bit
            return float("nan")


def check_draws(num_particles: int, num_repeats: int) -> None:
    """Checks how often an importance-weighted bound is to be estimated, of how many draws.

    Raises:
        ValueError: there is no particle, or no two estimates for a standard error.
    """
    if num_particles < 1 or num_repeats < 2:
        raise ValueError(f"needs 1 particle and 2 repeats at least, got {num_particles} and {num_repeats}")


def log_mean_weights(log_weight: Tensor, num_particles: int) -> Tensor:
    """log (1/K) sum_k w_k of each K draws in a row, `(B, R K)` to `(B, R)`."""
    return log_weight.unflatten(1, (-1, num_particles)).logsumexp(-1) - math.log(num_particles)
