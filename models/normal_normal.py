"""The density of the Earth from Cavendish's 29 weighings: a normal mean with a normal prior and known noise.

    mu ~ Normal(5, 2),  y_n ~ Normal(mu, 0.22)

The posterior is Normal(m, s^2) with 1 / s^2 = 1 / 4 + N / 0.22^2 and m / s^2 = 5 / 4 + sum y / 0.22^2.

Source: Cavendish (1798), Experiments to determine the density of the Earth, as listed by Stigler (1977), Do robust
estimators work with real data?
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.target.target import Target

DENSITIES = (
    5.50, 5.61, 4.88, 5.07, 5.26, 5.55, 5.36, 5.29, 5.58, 5.65, 5.57, 5.53, 5.62, 5.29, 5.44, 5.34, 5.79, 5.10, 5.27,
    5.39, 5.42, 5.47, 5.63, 5.34, 5.46, 5.30, 5.75, 5.68, 5.85,
)  # fmt: skip

PRIOR_MEAN, PRIOR_SD = 5.0, 2.0  # in units of the density of water, as are the measurements
NOISE = 0.22  # the standard deviation of a measurement, in the same unit


def model(y: Tensor) -> None:
    """Measurements `(N,)`."""
    mu = pyro.sample("mu", dist.Normal(PRIOR_MEAN, PRIOR_SD))
    with pyro.plate("weighings", len(y)):
        pyro.sample("y", dist.Normal(mu, NOISE), obs=y)


def posterior(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of mu given `(B, N)`: `(B,)` each."""
    precision = PRIOR_SD**-2 + y.shape[-1] * NOISE**-2
    mean = (PRIOR_MEAN * PRIOR_SD**-2 + y.sum(-1) * NOISE**-2) / precision
    return mean, torch.full_like(mean, precision**-0.5)


def log_evidence(y: Tensor) -> Tensor:
    """log p(y) of `(B, N)`: `(B,)`, nats, from log p(y, mu) - log p(mu | y) at the posterior's mean."""
    mean, sd = posterior(y)
    prior = -(((mean - PRIOR_MEAN) / PRIOR_SD).square() / 2) - math.log(PRIOR_SD)
    likelihood = -(((y - mean[:, None]) / NOISE).square().sum(-1) / 2)
    return prior + likelihood - y.shape[-1] * (math.log(NOISE) + math.log(2 * math.pi) / 2) + sd.log()


def target(dtype: torch.dtype = torch.float64) -> Target:
    """Cavendish's data as one problem of one latent."""
    y = torch.tensor([DENSITIES], dtype=dtype)
    return Target(model, (y,), closed_form=log_evidence, name="normal_normal", dtype=dtype)
