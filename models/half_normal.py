"""A scale that is learnt from a single observation.

    sigma ~ HalfNormal(1),  y ~ Normal(0, sigma)

The posterior's density at s is in proportion to exp(-(s^2 + y^2 / s^2) / 2) / s. With Bessel's modified functions K

    p(y) = K_0(|y|) / pi,    E[sigma^n | y] = |y|^(n/2) K_(n/2)(|y|) / K_0(|y|).

The density falls to 0 at s = 0 faster than any power of s, and has the tail of a Gaussian.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.target.target import Target


def model(y: Tensor) -> None:
    """One scale, one observation."""
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    pyro.sample("y", dist.Normal(0.0, sigma), obs=y)


def log_evidence(y: Tensor) -> Tensor:
    """log p(y), `(B,)`, nats."""
    size = y.abs()
    return torch.special.scaled_modified_bessel_k0(size).log() - size - math.log(math.pi)


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean and standard deviation of sigma, `(B,)` each."""
    size = y.abs()
    k0, k1 = torch.special.scaled_modified_bessel_k0(size), torch.special.scaled_modified_bessel_k1(size)
    mean = math.sqrt(math.pi / 2) / k0  # K_(1/2)(y) = sqrt(pi / 2y) exp(-y)
    return mean, (size * k1 / k0 - mean.square()).sqrt()


def target(y: float = 0.3, dtype: torch.dtype = torch.float64) -> Target:
    """One problem of one latent.

    Args:
        y: the observation.
        dtype: of every computation.

    Raises:
        ValueError: y is 0 or not finite: at 0 the posterior would not be proper.
    """
    if y == 0 or not math.isfinite(y):
        raise ValueError(f"y must be finite and not 0, where the posterior is not proper; got {y}")
    return Target(model, (torch.tensor([y], dtype=dtype),), closed_form=log_evidence, name="half_normal", dtype=dtype)
