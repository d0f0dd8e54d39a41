"""log p(x) from posterior draws by bridge sampling.

With draws of the posterior p(z | x) = p(x, z) / p(x) and of a proposal density q, and for any function h,

    p(x) = E_q[h p(x, .)] / E_posterior[h q].

The optimal h is proportional to 1 / (s1 p(x, .) + s2 p(x) q), where s1 and s2 are the two samples' shares of all draws.
It depends on p(x), so the equation is iterated.
"""

from __future__ import annotations

import math

import numpy as np

from ppl_vi.numerics.weights import EvidenceEstimate, log_mean

# The iteration ends when log p(x) changes by less than ITERATION_TOLERANCE, which is far below any standard error. It
# converges at a fixed rate, mostly within tens of iterations. After MAX_ITERATIONS the last value is returned.
MAX_ITERATIONS = 1000
ITERATION_TOLERANCE = 1e-12


def bridge(
    log_p: np.ndarray, log_q: np.ndarray, log_p_proposed: np.ndarray, log_q_proposed: np.ndarray
) -> EvidenceEstimate:
    """The bridge sampling estimate of log p(x) with the optimal bridge function, and its standard error.

    Args:
        log_p: log p(x, z) at the posterior draws, `(C, N)`, chains by draws, nats.
        log_q: log q at the posterior draws, `(C, N)`.
        log_p_proposed: log p(x, z) at draws of the proposal, `(M,)`.
        log_q_proposed: log q at draws of the proposal, `(M,)`.

    Source: Meng and Wong (1996), Simulating ratios of normalizing constants via a simple identity; the error by
    Frühwirth-Schnatter (2004), Estimating marginal likelihoods for mixture and Markov switching models.
    """
    own, other = log_p - log_q, log_p_proposed - log_q_proposed
    share = own.size / (own.size + other.size)
    log_s1, log_s2 = math.log(share), math.log1p(-share)
    value = float(np.median(own))
    for _ in range(MAX_ITERATIONS):
        above = log_mean(other - np.logaddexp(log_s1 + other, log_s2 + value))
        below = log_mean(-np.logaddexp(log_s1 + own, log_s2 + value), axis=None)
        change = float(above - below) - value
        value += change
        if abs(change) < ITERATION_TOLERANCE:
            break
    numerator = np.exp(other - value - np.logaddexp(log_s1 + other - value, log_s2))
    denominator = np.exp(-np.logaddexp(log_s1 + own - value, log_s2))
    # Draws of a chain are correlated, so its part of the variance comes from the spread of the chains' means.
    variance = numerator.var() / numerator.mean() ** 2 / other.size
    variance += denominator.mean(1).var(ddof=1) / denominator.mean() ** 2 / len(denominator)
    return EvidenceEstimate(value, math.sqrt(variance))
