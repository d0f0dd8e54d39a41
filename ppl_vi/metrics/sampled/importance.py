"""What a user without the truth would see: Monte Carlo figures from draws of the guide, with their standard errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from ppl_vi.metrics.estimate import Estimate
from ppl_vi.numerics.weights import log_mean, log_mean_error, pareto_khat
from ppl_vi.svi.result import Fit
from ppl_vi.target import evaluation
from ppl_vi.target.sites import Latents

FEW = 1000  # draws for a second k-hat, which falls with their number
IWAE_SAMPLES = 64  # K
NO_TAIL = "the largest weights are all alike or mostly zero, so that they have no tail"
NOWHERE = "no draw fell where the posterior has mass"


@dataclass(frozen=True)
class Weights:
    """Log importance weights log p(x, z) - log q(z) of draws of the guide, `(B, R, N)`."""

    log: np.ndarray

    @property
    def num_draws(self) -> int:
        """`N`."""
        return self.log.shape[-1]


def weights(fit: Fit, num_draws: int = 10_000, seed: int = 0) -> Weights:
    """Draws from every fitted guide and weighs them.

    A draw outside the model's support has no weight: -inf.
    """
    log_joint, log_guide = log_densities(fit, fit.draw(num_draws, seed))
    return Weights(log_joint - log_guide)


def log_densities(fit: Fit, latents: Latents) -> tuple[np.ndarray, np.ndarray]:
    """log p(x, z), -inf outside the model's support, and log q(z) at latents `(B, R, N, *site.shape)`, `(B, R, N)`."""
    log_q = fit.log_prob(latents)
    _, replicas, num = log_q.shape
    flat = {name: value.flatten(1, 2) for name, value in latents.items()}
    log_joint = evaluation.log_joint(fit.target, flat).unflatten(1, (replicas, num))
    inside = fit.target.inside(latents).cpu().numpy()
    return np.where(inside, log_joint.cpu().numpy(), -np.inf), log_q.cpu().numpy()


def scores(fit: Fit, num_draws: int, chi_square: np.ndarray | None = None) -> dict[str, Estimate]:
    """What a user without the truth would see of each fit, all from the same draws; see `importance_log_evidence`."""
    w = weights(fit, num_draws, fit.seed + 1)
    found = {
        "elbo_estimate": elbo_estimate(w),
        "importance_log_evidence": importance_log_evidence(w, chi_square),
        "importance_log_evidence_naive": importance_log_evidence(w),
        "khat": khat(w),
        "ess": effective_sample_size(w),
    }
    if num_draws > FEW:
        found["khat_1000"] = khat(Weights(w.log[..., :FEW]))
        found["iwae_bound"] = iwae_bound(w, IWAE_SAMPLES)
    return found


def iwae_bound(w: Weights, num_samples: int) -> Estimate:
    """E[log mean of K weights], nats, from independent groups of K draws: between the ELBO and log p(x).

    Source: Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders.
    """
    num_groups = w.num_draws // num_samples
    if num_groups < 2:
        raise ValueError(f"two groups of {num_samples} draws are needed at least, got {w.num_draws} draws")
    groups = w.log[..., : num_groups * num_samples].reshape((*w.log.shape[:-1], num_groups, num_samples))
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
        chi_square: the exact chi-square divergence of the posterior from the guide, nan where it is not known; the
            standard error is `(chi_square / N)^(1/2)`, infinite where that is, else the naive one from the weights.
    """
    value, naive = log_mean(w.log), log_mean_error(w.log)
    known = np.full_like(naive, np.nan) if chi_square is None else np.abs(chi_square)  # 0 give or take rounding at best
    error = np.where(np.isnan(known), naive, np.sqrt(known / w.num_draws))
    reason = "the weights have infinite variance" if np.isinf(error).any() else ""
    reason = NOWHERE if np.isneginf(value).any() else reason
    return Estimate(value, error, np.zeros_like(value), "nats", reason)


def khat(w: Weights) -> Estimate:
    """The Pareto shape of the largest weights, by ArviZ: a warning above 0.7, but no ranking of guides.

    Source: Vehtari et al. (2024), Pareto smoothed importance sampling.
    """
    flat = w.log.reshape(-1, w.num_draws)
    value = np.array([pareto_khat(row) for row in flat]).reshape(w.log.shape[:-1])
    reason = NO_TAIL if np.isnan(value).any() else ""
    return Estimate(value, np.full_like(value, np.nan), np.zeros_like(value), "1", reason)


def effective_sample_size(w: Weights) -> Estimate:
    """(sum w)^2 / sum w^2, in draws; nan where no draw has weight."""
    with np.errstate(invalid="ignore"):
        value = np.exp(2 * logsumexp(w.log, axis=-1) - logsumexp(2 * w.log, axis=-1))
    reason = NOWHERE if np.isnan(value).any() else ""
    return Estimate(value, np.full_like(value, np.nan), np.zeros_like(value), "draws", reason)
