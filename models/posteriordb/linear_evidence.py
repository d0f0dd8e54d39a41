"""log p(y) of linear regressions without ppl_vi: closed forms given sigma, and an integral over sigma.

Source: any text on the normal linear model, such as O'Hagan and Forster (2004), Kendall's advanced theory of statistics
2B: Bayesian inference, chapter 11.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import integrate, optimize, special

LogPrior = Callable[[float], float]  # of sigma


def flat_given_sigma(X: np.ndarray, y: np.ndarray, sigma: float) -> float:
    """log of the integral of Normal(y; X beta, sigma) over all beta, nats."""
    n, f = X.shape
    residual = y - X @ np.linalg.lstsq(X, y, rcond=None)[0]
    determinant = np.linalg.slogdet(X.T @ X)[1]
    return float(
        -(n - f) * math.log(math.sqrt(2 * math.pi) * sigma) - determinant / 2 - residual @ residual / (2 * sigma**2)
    )


def flat_evidence(X: np.ndarray, y: np.ndarray) -> float:
    """log of the integral of Normal(y; X beta, sigma) over all beta and all sigma > 0, nats.

    With S the residual sum of squares and nu = n - f - 1 it is
    -(n - f)/2 log 2 pi - 1/2 log |X'X| - log 2 + log Gamma(nu / 2) - nu/2 log(S / 2).
    """
    n, f = X.shape
    residual = y - X @ np.linalg.lstsq(X, y, rcond=None)[0]
    half = (n - f - 1) / 2
    constants = -(n - f) / 2 * math.log(2 * math.pi) - np.linalg.slogdet(X.T @ X)[1] / 2 - math.log(2)
    return float(constants + special.gammaln(half) - half * math.log(residual @ residual / 2))


def normal_given_sigma(X: np.ndarray, y: np.ndarray, mean: np.ndarray, sd: np.ndarray, sigma: float) -> float:
    """log Normal(y; X mean, sigma^2 I + X diag(sd^2) X'), nats, by the F x F matrix I + A'A, A = X diag(sd) / sigma."""
    residual, A = (y - X @ mean) / sigma, X * sd / sigma
    inner = np.eye(X.shape[1]) + A.T @ A
    quadratic = residual @ residual - (A.T @ residual) @ np.linalg.solve(inner, A.T @ residual)
    return float(-len(y) / 2 * math.log(2 * math.pi * sigma**2) - np.linalg.slogdet(inner)[1] / 2 - quadratic / 2)


def by_quadrature(given_sigma: LogPrior, log_prior: LogPrior, guess: float) -> float:
    """log of the integral of exp(given_sigma + log_prior) over sigma > 0, along log sigma, nats."""

    def log_density(t: float) -> float:
        return given_sigma(math.exp(t)) + log_prior(math.exp(t)) + t

    start = math.log(guess)
    peak = float(optimize.minimize_scalar(lambda t: -log_density(t), bounds=(start - 5, start + 5), method="bounded").x)
    top = log_density(peak)
    h = 1e-3
    width = (2 * top - log_density(peak + h) - log_density(peak - h)) ** -0.5 * h
    ends = (peak - 40 * width, peak + 40 * width)
    relative = {"epsabs": 0, "epsrel": 1e-11, "limit": 200}
    mass, _ = integrate.quad(lambda t: math.exp(log_density(t) - top), *ends, points=[peak], **relative)
    return top + math.log(mass)


def half_cauchy(scale: float) -> LogPrior:
    """log density of a half Cauchy."""
    return lambda sigma: math.log(2 / (math.pi * scale)) - math.log1p((sigma / scale) ** 2)


def half_normal(scale: float) -> LogPrior:
    """log density of a half normal."""
    return lambda sigma: math.log(2 / math.pi) / 2 - math.log(scale) - (sigma / scale) ** 2 / 2
