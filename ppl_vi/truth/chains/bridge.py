"""log p(x) from posterior draws, two ways: bridge sampling, and importance sampling from a density fitted to them."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special
from torch import Tensor

MOST_COMPONENTS = 6
DRAWS_PER_NUMBER = 10  # of a component, at least
DEGREES = 5.0  # of freedom of the heavy-tailed proposal
WIDENED = 1.2  # its factors: what the draws did not reach counts too
ITERATIONS = 1000


@dataclass(frozen=True)
class Evidence:
    """An estimate of log p(x).

    Attributes:
        value: nats.
        std_error: of it, nats.
    """

    value: float
    std_error: float


@dataclass(frozen=True, eq=False)
class Fitted:
    """A mixture of normal densities, or of Student t ones with the same locations and matrices.

    Attributes:
        log_share: `(K,)`.
        loc: `(K, D)`.
        factor: `(K, D, D)`, lower triangular.
        degrees: of freedom; inf for the normal.
    """

    log_share: Tensor
    loc: Tensor
    factor: Tensor
    degrees: float

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        """`(num, D)`."""
        which = torch.multinomial(self.log_share.exp(), num, replacement=True, generator=generator)
        noise = torch.randn(num, self.loc.shape[1], generator=generator, dtype=self.loc.dtype)
        if math.isfinite(self.degrees):
            normal = torch.randn(num, round(self.degrees), generator=generator, dtype=self.loc.dtype)
            noise = noise / normal.square().mean(1, keepdim=True).sqrt()
        return self.loc[which] + (self.factor[which] @ noise[..., None]).squeeze(-1)

    def log_prob(self, u: Tensor) -> Tensor:
        """At `(S, D)`, `(S,)`, nats."""
        dim, k, parts = u.shape[1], self.degrees, []
        for log_share, loc, factor in zip(self.log_share, self.loc, self.factor, strict=True):
            square = torch.linalg.solve_triangular(factor, (u - loc).mT, upper=False).square().sum(0)
            log_det = torch.diagonal(factor).log().sum()
            if math.isfinite(k):
                constant = math.lgamma((k + dim) / 2) - math.lgamma(k / 2) - dim / 2 * math.log(k * math.pi)
                shape = constant - (k + dim) / 2 * torch.log1p(square / k)
            else:
                shape = -square / 2 - dim / 2 * math.log(2 * math.pi)
            parts.append(log_share + shape - log_det)
        return torch.stack(parts).logsumexp(0)


def fitted(u: Tensor, degrees: float, seed: int) -> Fitted:
    """A mixture fitted to draws `(S, D)` by expectation maximisation."""
    from sklearn.mixture import GaussianMixture  # a second

    num, dim = u.shape
    size = min(MOST_COMPONENTS, max(1, num // (DRAWS_PER_NUMBER * dim * (dim + 3))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a mixture that has not converged is as good a proposal
        mixture = GaussianMixture(size, random_state=seed, max_iter=100, reg_covar=1e-9).fit(u.cpu().numpy())
    covariance = torch.from_numpy(mixture.covariances_).to(u)
    log_share = torch.from_numpy(np.log(mixture.weights_)).to(u)
    widened = 1.0 if math.isinf(degrees) else WIDENED
    factor = widened * torch.linalg.cholesky(covariance)
    return Fitted(log_share, torch.from_numpy(mixture.means_).to(u), factor, degrees)


def bridge(log_p: np.ndarray, log_q: np.ndarray, log_p_proposed: np.ndarray, log_q_proposed: np.ndarray) -> Evidence:
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
        above = special.logsumexp(other - np.logaddexp(log_s1 + other, log_s2 + value)) - math.log(other.size)
        below = special.logsumexp(-np.logaddexp(log_s1 + own, log_s2 + value)) - math.log(own.size)
        change = float(above - below) - value
        value += change
        if abs(change) < 1e-12:
            break
    numerator = np.exp(other - value - np.logaddexp(log_s1 + other - value, log_s2))
    denominator = np.exp(-np.logaddexp(log_s1 + own - value, log_s2))
    # the spread of the chains' means holds what correlation there is within them
    variance = numerator.var() / numerator.mean() ** 2 / other.size
    variance += denominator.mean(1).var(ddof=1) / denominator.mean() ** 2 / len(denominator)
    return Evidence(value, math.sqrt(variance))


def importance(log_weight: np.ndarray) -> Evidence:
    """The log of the mean weight and its standard error by the delta method."""
    value = float(special.logsumexp(log_weight)) - math.log(len(log_weight))
    relative = np.exp(log_weight - value)
    return Evidence(value, float(relative.std(ddof=1)) / math.sqrt(len(relative)))
