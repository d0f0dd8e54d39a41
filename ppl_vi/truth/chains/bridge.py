"""log p(x) from posterior draws, two ways: bridge sampling, and importance sampling from a density fitted to them."""

from __future__ import annotations

import math

import numpy as np

from ppl_vi.numerics.weights import EvidenceEstimate, log_mean

ITERATIONS = 1000


def bridge(
    log_p: np.ndarray, log_q: np.ndarray, log_p_proposed: np.ndarray, log_q_proposed: np.ndarray
) -> EvidenceEstimate:
    """The bridge sampling estimate with the optimal bridge function, and its relative error.

    Args:
        log_p: unnormalised log density at the posterior draws, `(C, N)`, chains by draws, nats.
        log_q: the proposal's there, `(C, N)`.
        log_p_proposed: at the proposal's own draws, `(M,)`.
        log_q_proposed: the proposal's there, `(M,)`.

    Source: Meng and Wong (1996), Simulating ratios of normalizing constants via a simple identity; the error by
    Frühwirth-Schnatter (2004), Estimating marginal likelihoods for mixture and Markov switching models.
    """
    own, other = (log_p - log_q), log_p_proposed - log_q_proposed
    share = own.size / (own.size + other.size)
    log_s1, log_s2 = math.log(share), math.log1p(-share)
    value = float(np.median(own))
    for _ in range(ITERATIONS):
        above = log_mean(other - np.logaddexp(log_s1 + other, log_s2 + value))
        below = log_mean(-np.logaddexp(log_s1 + own, log_s2 + value), axis=None)
        change = float(above - below) - value
        value += change
        if abs(change) < 1e-12:
            break
    numerator = np.exp(other - value - np.logaddexp(log_s1 + other - value, log_s2))
    denominator = np.exp(-np.logaddexp(log_s1 + own - value, log_s2))
    # the spread of the chains' means holds what correlation there is within them
    variance = numerator.var() / numerator.mean() ** 2 / other.size
    variance += denominator.mean(1).var(ddof=1) / denominator.mean() ** 2 / len(denominator)
    return EvidenceEstimate(value, math.sqrt(variance))
