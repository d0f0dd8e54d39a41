"""Eight schools: how much coaching for a test gained in each of eight schools, shrunk towards their common mean.

    mu ~ Normal(0, 5),  tau ~ HalfCauchy(5),  theta_j ~ Normal(mu, tau),  y_j ~ Normal(theta_j, sigma_j)

`centred` is as written; `non_centred` has theta_j = mu + tau eta_j with eta_j ~ Normal(0, 1), which takes the funnel
between tau and theta out of the posterior. Both have the same evidence.

Source: the data are of Rubin (1981), Estimation in parallel randomized experiments; the priors and both
parametrisations as in Stan's and posteriordb's `eight_schools`.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.target import Target

EFFECTS = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)  # points
ERRORS = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)  # their standard errors


def centred(y: Tensor, sigma: Tensor) -> None:
    """The schools' effects themselves are latent; y and sigma `(J,)`."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def non_centred(y: Tensor, sigma: Tensor) -> None:
    """Their distances from the mean are latent, in units of tau; y and sigma `(J,)`."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)


MODELS = {"centred": centred, "non_centred": non_centred}


def target(parametrisation: str = "centred", dtype: torch.dtype = torch.float64) -> Target:
    """Rubin's data as one problem of ten latents.

    Args:
        parametrisation: "centred" or "non_centred".
        dtype: of every computation.

    Raises:
        ValueError: no such parametrisation.
    """
    if parametrisation not in MODELS:
        raise ValueError(f"unknown parametrisation '{parametrisation}'; there are {', '.join(MODELS)}")
    data = torch.tensor([EFFECTS, ERRORS], dtype=dtype)
    args = (data[:1], data[1:])
    return Target(MODELS[parametrisation], args, name=f"eight_schools_{parametrisation}", dtype=dtype)
