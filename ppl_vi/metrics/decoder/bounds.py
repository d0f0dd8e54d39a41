"""Bounds on an amortized guide's gap where log p(x) is not known: they hold on average, with standard errors.

    ELBO  <=  IWAE-K  <=  log p(x),      AIS  <=  log p(x),      log p(x) - ELBO  >=  AIS - ELBO

Each of the ELBO, the importance-weighted bound IWAE-K and annealed importance sampling (AIS) is an expectation over
random draws, estimated with a standard error. How far AIS can be trusted is seen on data simulated from the model,
where it bounds log p(x) from both sides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_vi.guides.amortized import Head
from ppl_vi.metrics.decoder.gaps import MIN_ACTIVITY
from ppl_vi.numerics.weights import check_draws, log_mean_weights
from ppl_vi.target.decoder import log_prior
from ppl_vi.target.target import Target
from ppl_vi.truth import AnnealedBound, Sandwich

# The most draws that are decoded at once, which bounds memory. The noise of a data point depends on this number,
# because all points take their noise from one stream of random numbers.
DRAWS_AT_ONCE = 2**13


@dataclass(frozen=True)
class BoundsScorecard:
    """Bounds at each of `B` data points, nats per data point.

    Attributes:
        ais_lower: annealed importance sampling's lower bound on log p(x), `(B,)`.
        ais_std_error: the standard error of `ais_lower`.
        effective_chains: over how many chains the weight of AIS is spread.
        acceptance: mean acceptance probability of AIS's transitions.
        num_particles: K of the importance-weighted bound.
        iwae: E[log mean of K weights], by Monte Carlo.
        iwae_std_error: the standard error of `iwae`.
        elbo: E_q[log p(x, z) - log q(z)], by Monte Carlo.
        elbo_std_error: the standard error of `elbo`.
        prior_kl: KL(q || Normal(0, I)), by Monte Carlo.
        prior_kl_std_error: the standard error of `prior_kl`.
        activity: variance over the data of each latent's mean under q, `(D,)`; unbiased, so it may fall below 0.
        width: AIS's upper minus its lower bound on as many simulated data points as there are, `(S,)`.
    """

    ais_lower: np.ndarray
    ais_std_error: np.ndarray
    effective_chains: np.ndarray
    acceptance: np.ndarray
    num_particles: int
    iwae: np.ndarray
    iwae_std_error: np.ndarray
    elbo: np.ndarray
    elbo_std_error: np.ndarray
    prior_kl: np.ndarray
    prior_kl_std_error: np.ndarray
    activity: np.ndarray
    width: np.ndarray

    @property
    def total_lower(self) -> np.ndarray:
        """AIS - ELBO, `(B,)`, nats: the total gap log p(x) - ELBO is at least this, on average."""
        return self.ais_lower - self.elbo

    @property
    def total_lower_std_error(self) -> np.ndarray:
        """The standard error of `total_lower`, `(B,)`, nats."""
        return np.hypot(self.ais_std_error, self.elbo_std_error)

    @property
    def finite(self) -> np.ndarray:
        """Whether all bounds of a point are finite, `(B,)`; other points should not enter averages."""
        return np.isfinite(self.ais_lower) & np.isfinite(self.iwae) & np.isfinite(self.elbo)

    @property
    def num_active(self) -> int:
        """How many latents the encoder uses."""
        return int((self.activity > MIN_ACTIVITY).sum())


@dataclass(frozen=True, eq=False)
class WeightedDraws:
    """What `N` draws of a guide tell at each of `B` data points.

    Attributes:
        log_weight: log p(x, z) - log q(z) of each draw, `(B, N)`, nats.
        log_ratio: log q(z) - log Normal(z; 0, I) of each draw, `(B, N)`, nats.
        mean: mean of the draws, `(B, D)`.
        variance: variance of that mean, `(B, D)`.
    """

    log_weight: Tensor
    log_ratio: Tensor
    mean: Tensor
    variance: Tensor


def amortized_bounds(
    target: Target,
    bound: AnnealedBound,
    sandwich: Sandwich,
    head: Head,
    local: Tensor,
    *,
    num_particles: int = 50,
    num_repeats: int = 20,
    seed: int = 0,
) -> BoundsScorecard:
    """Bounds the gap of an amortized guide at every data point of a target with any number of latents.

    Args:
        target: `B` problems with one decoder.
        bound: on their log evidence.
        sandwich: of data simulated from the same model.
        head: the guide's family, of which only draws and their densities are needed.
        local: the encoder's outputs, `(B, num_outputs)`.
        num_particles: K of the importance-weighted bound.
        num_repeats: independent estimates of it.
        seed: of the guide's draws.

    Raises:
        ValueError: the target has no decoder, or a number of rows or draws is wrong.

    Source: Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders.
    """
    if not len(local) == len(bound.log_evidence) == target.num_problems:
        rows = f"{len(local)} rows of local parameters and {len(bound.log_evidence)} bounds"
        raise ValueError(f"the target has {target.num_problems} problems, got {rows}")
    check_draws(num_particles, num_repeats)
    drawn = weighted_draws(target, head, local, num_particles * num_repeats, seed)
    iwae, iwae_std_error = _mean_and_error(log_mean_weights(drawn.log_weight, num_particles))
    elbo, elbo_std_error = _mean_and_error(drawn.log_weight)
    prior_kl, prior_kl_std_error = _mean_and_error(drawn.log_ratio)
    return BoundsScorecard(
        ais_lower=bound.log_evidence,
        ais_std_error=bound.std_error,
        effective_chains=bound.effective_chains,
        acceptance=bound.acceptance,
        num_particles=num_particles,
        iwae=iwae,
        iwae_std_error=iwae_std_error,
        elbo=elbo,
        elbo_std_error=elbo_std_error,
        prior_kl=prior_kl,
        prior_kl_std_error=prior_kl_std_error,
        activity=_activity(drawn).cpu().numpy(),
        width=sandwich.width,
    )


def weighted_draws(target: Target, head: Head, local: Tensor, num: int, seed: int) -> WeightedDraws:
    """Draws from the guide at every data point, with their weights.

    Any family will do, since only its draws and their densities are needed.

    Args:
        target: with a decoder.
        head: the guide's family.
        local: its parameters, `(B, num_outputs)`.
        num: draws of each, `N`.
        seed: of the draws.

    Raises:
        ValueError: the target has no decoder.
    """
    if target.decoded is None:
        raise ValueError(f"target '{target.name}' has no decoder: bounds need z ~ Normal(0, I) and one decoder")
    parts = []
    with target.isolated(seed), torch.no_grad():
        for rows in torch.arange(len(local), device=local.device).split(max(1, DRAWS_AT_ONCE // num)):
            z, log_q = head.draw(local[rows].to(target.dtype), num)
            log_likelihood = target.decoded.log_likelihood_at(z, *(arg[rows] for arg in target.args))
            parts.append((log_likelihood + log_prior(z) - log_q, log_q - log_prior(z), z.mean(1), z.var(1) / num))
    return WeightedDraws(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _activity(drawn: WeightedDraws) -> Tensor:
    """The variance over the data of each latent's mean under q, `(D,)`, unbiased.

    Means of draws vary more than the means that they estimate, by their own variance, which is subtracted.
    """
    known = drawn.mean.isfinite().all(-1)
    return drawn.mean[known].var(0, correction=0) - drawn.variance[known].mean(0)


def _mean_and_error(values: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """`(B, N)` to the mean and its standard error, `(B,)` each."""
    error = values.std(-1) / math.sqrt(values.shape[-1])
    return values.mean(-1).cpu().numpy(), error.cpu().numpy()
