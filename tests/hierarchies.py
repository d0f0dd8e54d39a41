"""Hierarchies that several test files share."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

REAL = torch.float64
# Rubin (1981), Estimation in parallel randomized experiments: effects of coaching in eight schools.
Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=REAL)
SD = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=REAL)
COUNTS = torch.tensor([3.0, 0.0, 7.0, 1.0, 12.0, 4.0], dtype=REAL)


def centred(y: Tensor, sd: Tensor) -> None:
    """Effects that are normal around a mean, with a scale of their own."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sd), obs=y)


def non_centred(y: Tensor, sd: Tensor) -> None:
    """The same, by standard normal numbers."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * z, sd), obs=y)


def counts(y: Tensor) -> None:
    """Poisson counts with an effect of each group on the logarithm of the rate."""
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("groups", len(y)):
        e = pyro.sample("e", dist.Normal(0.0, sigma))
        pyro.sample("y", dist.Poisson((a + e).exp()), obs=y)
