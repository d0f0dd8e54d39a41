"""Sums up a figure that each data point has: with heavy tails the mean alone would mislead."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# How many times the bootstrap resamples. Its interval's ends then have a standard error of about 2% of their distance
# from the mean; more resamples cost time in proportion.
NUM_RESAMPLES = 4000
LEVEL = 0.95  # of the bootstrap interval


@dataclass(frozen=True)
class Summary:
    """How a figure is spread over `num` data points.

    Attributes:
        mean: its mean.
        low: the lower end of the bootstrap interval of the mean.
        high: the upper end of that interval.
        median: its median.
        maximum: its largest value.
        num: the number of data points.
    """

    mean: float
    low: float
    high: float
    median: float
    maximum: float
    num: int


def summarize(values: np.ndarray, seed: int = 0) -> Summary:
    """Mean with its 95% percentile bootstrap interval over data points, median and maximum of `(N,)` values.

    Source: Efron and Tibshirani (1993), An introduction to the bootstrap, chapter 13.

    Raises:
        ValueError: there are no values.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        raise ValueError("there is nothing to summarize: no data point was certified")
    draws = np.random.default_rng(seed).integers(len(values), size=(NUM_RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Summary(
        mean=float(values.mean()),
        low=float(low),
        high=float(high),
        median=float(np.median(values)),
        maximum=float(values.max()),
        num=len(values),
    )
