"""Batches of chains, longer than the draws' autocorrelation, and the standard errors that their spread gives.

A batch is a stretch of a chain that is many times as long as the draws remember, or a whole chain, so that batches are
nearly independent. Leaving out one after another then gives the standard error of any figure (the jackknife):

    std_error^2 = (G - 1) / G  sum_g (T_without_g - mean of these)^2,

times the ratio of Student's quantile, for G - 1 degrees of freedom, to the normal one, so that two standard errors hold
as often as they should where there are few batches: their spread is then itself uncertain.

A quantile does not change smoothly as draws are left out, so that its jackknife is right only where a batch has many
more draws than the square root of their number (Shao and Wu 1989). With 32 batches the errors of quantiles, and what
noise makes of the worst of them, are 1.23 times too large with 1,000 independent draws, 1.0 times with 4,000. With 8
batches of 1,000 draws it would be 1.05 times, but every other error would then say less.

Source: Flegal and Jones (2010), Batch means and spectral variance estimators in Markov chain Monte Carlo; Efron and
Stein (1981), The jackknife estimate of variance; Shao and Wu (1989), A general theory for jackknife variance
estimation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student_t

# A batch is at least this many times the autocorrelation time long, which leaves a bias of some per cent in the error.
# With a larger number there would be fewer batches, whose spread says less.
TIMES_PER_BATCH = 10
COVERED = 0.975  # the probability of the quantiles whose ratio widens the spread of few batches
MAX_BATCHES = 32  # more would make standard errors slower and hardly better
MIN_BATCHES = 4  # fewer give no usable standard error
GOOD_BATCHES = 16  # with fewer, standard errors are rough
NUM_NOISES = 4000  # draws of the noise of figures, of which the worst is taken
MIN_ESS_DRAWS = 4  # of a chain, with fewer than which ArviZ computes no effective sample size


def autocorrelation_time(values: np.ndarray) -> float:
    """The number of draws that are worth one independent draw, the largest of all numbers; 1 for independent draws.

    It is that of the means and of the squared deviations, by ArviZ's effective sample size, which also tells where
    chains disagree.

    Args:
        values: `(chain, draw, K)`.

    Source: Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), Rank-normalization, folding, and localization.
    """
    from arviz_stats.base import array_stats  # imported here since it takes two seconds, with xarray and pandas

    chains, draws = values.shape[:2]
    if draws < MIN_ESS_DRAWS:
        return 1.0
    varying = values[..., np.ptp(values, axis=(0, 1)) > 0]
    deviations = np.square(varying - varying.mean((0, 1)))
    sizes = [
        float(array_stats.ess(part[..., k], chain_axis=0, draw_axis=1, method="mean"))
        for part in (varying, deviations)
        for k in range(part.shape[-1])
    ]
    known = [size for size in sizes if np.isfinite(size) and size > 0]
    return max(1.0, chains * draws / min(known, default=chains * draws))


def batch_labels(chains: int, draws: int, time: float) -> np.ndarray:
    """The batch of each draw, `(chain * draw,)`, from 0.

    Args:
        chains: how many there are.
        draws: of each chain.
        time: their autocorrelation time.
    """
    if chains >= MAX_BATCHES:
        return np.repeat(np.arange(chains) * MAX_BATCHES // chains, draws)
    pieces = min(MAX_BATCHES // chains, int(draws / (TIMES_PER_BATCH * time)))
    pieces = min(draws, max(1, -(-MIN_BATCHES // chains), pieces))
    piece = np.arange(draws) * pieces // draws
    return (np.arange(chains)[:, None] * pieces + piece).ravel()


def are_short(chains: int, draws: int, time: float) -> bool:
    """Whether there are so few batches, or such short ones, that standard errors are rough, likely too small."""
    return int(batch_labels(chains, draws, time).max()) + 1 < GOOD_BATCHES or draws < TIMES_PER_BATCH * time


def jackknife(function: Callable[[np.ndarray], np.ndarray], labels: np.ndarray) -> np.ndarray:
    """The standard error of a figure of the draws.

    Args:
        function: of which draws are kept, `(N,)`, to the figures `(...)`.
        labels: the batch of each draw, `(N,)`.

    Returns:
        `(...)`; inf where there is a single batch.
    """
    values = leave_one_out(function, labels)
    return spread(values) if len(values) > 1 else np.full(values.shape[1:], np.inf)


def leave_one_out(function: Callable[[np.ndarray], np.ndarray], labels: np.ndarray) -> np.ndarray:
    """The figures without each of the batches, `(G, ...)`; the arguments are those of `jackknife`."""
    return np.array([function(labels != batch) for batch in np.unique(labels)])


def spread(values: np.ndarray) -> np.ndarray:
    """The jackknife's standard error from the figures without each of at least 2 batches, `(G, ...)` to `(...)`."""
    num = len(values)
    wider = student_t.ppf(COVERED, num - 1) / norm.ppf(COVERED)
    with np.errstate(invalid="ignore"):
        found: np.ndarray = wider * np.sqrt((num - 1) / num * np.square(values - values.mean(0)).sum(0))
    return found


def expected_worst(left_out: Sequence[np.ndarray], seed: int) -> float:
    """What noise alone makes of the worst of many figures: E max_k |e_k|, where e is normal with their covariance.

    The worst of many figures is far from 0 even where each is right. The covariance is the jackknife's,
    `(G - 1) / G sum_g d_g d_g'` with d_g the deviation of the figures without batch g from the mean of these.

    Args:
        left_out: for each independent source of noise the figures without each of its batches, `(G, K)`.
        seed: of `NUM_NOISES` draws of e, which leave a relative error of about 1%.
    """
    rng, noise = np.random.default_rng([seed, 2]), 0.0
    for values in left_out:
        num = len(values)
        noise = noise + rng.standard_normal((NUM_NOISES, num)) @ ((values - values.mean(0)) * np.sqrt((num - 1) / num))
    return float(np.abs(noise).max(1).mean())
