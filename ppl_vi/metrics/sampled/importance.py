"""What a user without the truth would see: Monte Carlo estimates from draws of the guide, with their standard errors.

All of them are functions of the importance weights w = p(x, z) / q(z) at draws z of the guide: their mean estimates
p(x), the mean of their logarithms the ELBO, and how much they vary tells how far the guide is from the posterior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from ppl_vi.metrics.estimate import Estimate
from ppl_vi.numerics.weights import log_mean, log_mean_error, pareto_khat
from ppl_vi.svi.result import Fit
from ppl_vi.svi.trees import log_joint_inside

# Draws for a second k-hat: k-hat depends on the number of draws, so that fits are compared at the same number.
NUM_KHAT_DRAWS = 1000
# K of the importance-weighted bound: a larger one is tighter, and leaves fewer groups for its standard error.
NUM_IWAE_PARTICLES = 64
NO_TAIL = "the largest weights are all alike or mostly zero, so that they have no tail"
MIN_KHAT_DRAWS = 5  # with fewer, ArviZ finds no largest weights
NO_WEIGHT = "no draw fell where the posterior has mass"


@dataclass(frozen=True)
class Weights:
    """Importance weights of draws of the guide.

    Attributes:
        log: log p(x, z) - log q(z), `(B, R, N)`, nats; -inf for a draw outside the model's support.
    """

    log: np.ndarray

    @property
    def num_draws(self) -> int:
        """How many draws there are of each guide, `N`."""
        return self.log.shape[-1]


def weights(fit: Fit, num_draws: int = 10_000, seed: int = 0) -> Weights:
    """Draws from every fitted guide and weighs them.

    A draw outside the model's support has no weight: -inf.
    """
    latents, log_q = fit.draw_with_log_prob(num_draws, seed)
    return Weights(log_joint_inside(fit, latents) - log_q.cpu().numpy())


def iwae_bound(w: Weights, num_particles: int) -> Estimate:
    """E[log mean of K weights], nats, from independent groups of K draws: between the ELBO and log p(x).

    Raises:
        ValueError: the draws make fewer than two groups, which leaves no standard error.

    Source: Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders.
    """
    num_groups = w.num_draws // num_particles
    if num_groups < 2:
        raise ValueError(f"two groups of {num_particles} draws are needed at least, got {w.num_draws} draws")
    groups = w.log[..., : num_groups * num_particles].reshape((*w.log.shape[:-1], num_groups, num_particles))
    each = log_mean(groups)
    with np.errstate(invalid="ignore"):
        spread = each.std(-1, ddof=1) / num_groups**0.5
    return Estimate(each.mean(-1), spread, np.zeros(each.shape[:-1]), "nats")


def elbo_estimate(w: Weights) -> Estimate:
    """Trace_ELBO's estimate, the mean log weight, nats."""
    value = w.log.mean(-1)
    finite = np.isfinite(value)
    spread = np.where(finite[..., None], w.log, 0.0).std(-1, ddof=1) / w.num_draws**0.5
    reason = "" if finite.all() else "draws fell where the posterior has no mass"
    return Estimate(value, np.where(finite, spread, np.nan), np.zeros_like(value), "nats", reason)


def importance_log_evidence(w: Weights, chi_square: np.ndarray | None = None) -> Estimate:
    """log of the mean weight, nats, an estimate of log p(x).

    Args:
        w: the weights.
        chi_square: the exact chi-square divergence of the posterior from the guide, `(B, R)`, nan where it is not
            known. Where it is known the standard error is `(chi_square / N)^(1/2)`, infinite where that is; elsewhere
            it is the naive one, which the weights themselves suggest.
    """
    value, naive = log_mean(w.log), log_mean_error(w.log)
    # rounding may put a chi-square divergence of 0 below 0
    known = np.full_like(naive, np.nan) if chi_square is None else np.abs(chi_square)
    error = np.where(np.isnan(known), naive, np.sqrt(known / w.num_draws))
    reason = "the weights have infinite variance" if np.isinf(error).any() else ""
    reason = NO_WEIGHT if np.isneginf(value).any() else reason
    return Estimate(value, error, np.zeros_like(value), "nats", reason)


def khat(w: Weights) -> Estimate:
    """The Pareto shape of the largest weights, by ArviZ: a warning above 0.7, but no ranking of guides.

    Source: Vehtari et al. (2024), Pareto smoothed importance sampling.
    """
    flat = w.log.reshape(-1, w.num_draws)
    value = np.array([pareto_khat(row) for row in flat]).reshape(w.log.shape[:-1])
    few = f"{w.num_draws} draws have no tail: it takes {MIN_KHAT_DRAWS} at least"
    reason = (few if w.num_draws < MIN_KHAT_DRAWS else NO_TAIL) if np.isnan(value).any() else ""
    return Estimate(value, np.full_like(value, np.nan), np.zeros_like(value), "1", reason)


def effective_sample_size(w: Weights) -> Estimate:
    """(sum w)^2 / sum w^2, in draws; nan where no draw has weight."""
    with np.errstate(invalid="ignore"):
        value = np.exp(2 * logsumexp(w.log, axis=-1) - logsumexp(2 * w.log, axis=-1))
    reason = NO_WEIGHT if np.isnan(value).any() else ""
    return Estimate(value, np.full_like(value, np.nan), np.zeros_like(value), "draws", reason)
