"""log p(x) from published draws by bridge sampling, written apart from the truths of ppl_vi that it checks.

Draws of the posterior are moved to unconstrained space. A Gaussian q is fitted to one half of them. With N_1 draws of
the other half, N_2 draws of q, l = p(x, u) / q(u), and s_i = N_i / (N_1 + N_2), the estimate r of p(x) is the fixed
point of

    r = mean over draws of q of [l / (s_1 l + s_2 r)]  /  mean over the other half of [1 / (s_1 l + s_2 r)].

Meng and Wong (1996), Simulating ratios of normalizing constants via a simple identity; the error as in
Frühwirth-Schnatter (2004), Estimating marginal likelihoods for mixture and Markov switching models using bridge
sampling techniques, with the draws' effective number.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from arviz_stats.base import array_stats
from scipy import special, stats

MAX_ROUNDS, TOLERANCE = 1000, 1e-12  # of the fixed point, in nats

LogDensity = Callable[[np.ndarray], np.ndarray]


def bridge_evidence(u: np.ndarray, log_density: LogDensity, seed: int = 0) -> tuple[float, float]:
    """log p(x) and its standard error, nats.

    Args:
        u: draws in unconstrained space, `(chains, draws, D)`, at least two chains.
        log_density: log p(x, z(u)) + log |dz/du| at points `(n, D)`, `(n,)`.
        seed: of the draws of q.

    Raises:
        ValueError: there are fewer than two chains, or the fixed point does not settle.
    """
    if u.ndim != 3 or len(u) < 2:
        raise ValueError(f"expected draws (chains, draws, D) of at least two chains, got {u.shape}")
    fitted, rest = u[::2].reshape(-1, u.shape[-1]), u[1::2]
    mean, covariance = fitted.mean(0), np.atleast_2d(np.cov(fitted.T))
    q = stats.multivariate_normal(mean, covariance)
    num = rest.shape[0] * rest.shape[1]
    proposed = np.random.default_rng(seed).multivariate_normal(mean, covariance, num).reshape(num, -1)
    flat = rest.reshape(num, -1)
    of_rest = (log_density(flat) - q.logpdf(flat)).reshape(rest.shape[:2])
    of_proposed = log_density(proposed) - q.logpdf(proposed)
    log_r = _fixed_point(of_rest.ravel(), of_proposed)
    return log_r, _std_error(of_rest, of_proposed, log_r)


def _fixed_point(of_rest: np.ndarray, of_proposed: np.ndarray) -> float:
    log_half = np.log(0.5)
    log_r = float(np.median(of_rest))
    for _ in range(MAX_ROUNDS):
        above = of_proposed - np.logaddexp(of_proposed + log_half, log_half + log_r)
        below = -np.logaddexp(of_rest + log_half, log_half + log_r)
        new = float(special.logsumexp(above) - special.logsumexp(below))
        if abs(new - log_r) < TOLERANCE * max(1.0, abs(new)):
            return new
        log_r = new
    raise ValueError(f"the fixed point of bridge sampling has not settled after {MAX_ROUNDS} rounds")


def _std_error(of_rest: np.ndarray, of_proposed: np.ndarray, log_r: float) -> float:
    """The relative error of r, of the variances of its two means over their numbers of draws."""
    log_half = np.log(0.5)
    f_1 = np.exp(of_proposed - log_r - np.logaddexp(of_proposed - log_r + log_half, log_half))
    f_2 = np.exp(-np.logaddexp(of_rest - log_r + log_half, log_half))
    effective = float(array_stats.ess(f_2, method="mean"))
    first = f_1.var() / f_1.mean() ** 2 / f_1.size
    return float(np.sqrt(first + f_2.var() / f_2.mean() ** 2 / effective))
