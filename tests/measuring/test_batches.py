"""Standard errors by batches of autocorrelated draws: how often two of them hold, over many chains."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ppl_vi.metrics.draws import batches

NUM_TRIALS = 200


def chains(correlation: float, seed: int) -> np.ndarray:
    """Four chains of 1,000 draws of two numbers, each AR(1) with the variance 1."""
    noise = np.random.default_rng(seed).standard_normal((4, 1000, 2))
    found = noise.copy()
    for t in range(1, 1000):
        found[:, t] = correlation * found[:, t - 1] + math.sqrt(1 - correlation**2) * noise[:, t]
    return found


@pytest.mark.parametrize(("correlation", "least"), [(0.0, 0.92), (0.5, 0.91), (0.9, 0.91)])
def test_two_standard_errors_hold_as_often_as_they_should(correlation: float, least: float) -> None:
    """Of the mean of |x|^2, which is 2. The binomial's own error over these trials is 0.016; 0.954 is right."""
    held = 0
    for seed in range(NUM_TRIALS):
        draws = chains(correlation, seed)
        labels, square = batches.batch_labels(4, 1000, batches.autocorrelation_time(draws)), (draws**2).sum(-1).ravel()
        error = float(batches.jackknife(lambda kept, square=square: np.asarray(square[kept].mean()), labels))
        held += abs(square.mean() - 2) < 2 * error
    assert held / NUM_TRIALS > least


def test_few_batches_are_told() -> None:
    assert not batches.are_short(4, 1000, 1.0)
    assert batches.are_short(4, 1000, 65.0)  # four chains, each a batch
