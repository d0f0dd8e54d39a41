"""Deaths by horse kick in the Prussian army: a Poisson rate with a gamma prior.

    rate ~ Gamma(2, 2),  y_n ~ Poisson(rate)

The posterior is Gamma(2 + sum y, 2 + N).

Source: Bortkiewicz (1898), Das Gesetz der kleinen Zahlen: ten army corps in twenty years.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.target.target import Target

YEARS = {0: 109, 1: 65, 2: 22, 3: 3, 4: 1}  # the number of years of a corps with 0, 1, 2, ... deaths
SHAPE, RATE = 2.0, 2.0  # of the gamma prior


def model(deaths: Tensor) -> None:
    """The numbers of deaths `(N,)` in one year of one corps each."""
    rate = pyro.sample("rate", dist.Gamma(SHAPE, RATE))
    with pyro.plate("years", len(deaths)):
        pyro.sample("deaths", dist.Poisson(rate), obs=deaths)


def posterior(deaths: Tensor) -> tuple[Tensor, Tensor]:
    """Shape and rate of the gamma posterior given `(B, N)`: `(B,)` each."""
    shape = SHAPE + deaths.sum(-1)
    return shape, torch.full_like(shape, RATE + deaths.shape[-1])


def log_evidence(deaths: Tensor) -> Tensor:
    """log p(y) = a log b - log Gamma(a) + log Gamma(a') - a' log b' - sum log y_n!, `(B,)`, nats."""
    shape, rate = posterior(deaths)
    prior = SHAPE * math.log(RATE) - math.lgamma(SHAPE)
    return prior + shape.lgamma() - shape * rate.log() - (deaths + 1).lgamma().sum(-1)


def target(dtype: torch.dtype = torch.float64) -> Target:
    """Bortkiewicz's counts as one problem of one latent."""
    deaths = [float(count) for count, years in YEARS.items() for _ in range(years)]
    args = (torch.tensor([deaths], dtype=dtype),)
    return Target(model, args, closed_form=log_evidence, name="gamma_poisson", dtype=dtype)
