"""Eight schools: how much coaching for a test gained in each of eight schools, shrunk towards their common mean.

    mu ~ Normal(0, 5),  tau ~ HalfCauchy(5),  theta_j ~ Normal(mu, tau),  y_j ~ Normal(theta_j, sigma_j)

The model `centred` is written as above. The model `non_centred` has theta_j = mu + tau eta_j with eta_j ~ Normal(0, 1),
which takes the funnel between tau and theta out of the posterior. Both have the same evidence.

Given mu and tau the schools are independent, y_j ~ Normal(mu, sqrt(tau^2 + sigma_j^2)), and the posterior of their
effects is Gaussian. The target states this by its `conditional`, so that quadrature has to run over mu and tau only.

Source: the data are of Rubin (1981), Estimation in parallel randomized experiments; the priors and both
parametrisations as in Stan's and posteriordb's `eight_schools`.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.target.conditional import Conditional
from ppl_vi.target.sites import Latents
from ppl_vi.target.target import Target

EFFECTS = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)  # points gained in the test by coaching, for each school
ERRORS = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)  # their standard errors


def centred(y: Tensor, sigma: Tensor) -> None:
    """The schools' effects themselves are latent; y and sigma `(J,)`."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def non_centred(y: Tensor, sigma: Tensor) -> None:
    """The distances of the schools' effects from their mean, in units of tau, are latent; y and sigma `(J,)`."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)


def log_marginal(outer: Latents, y: Tensor, sigma: Tensor) -> Tensor:
    """log p(y, mu, tau), with the schools' effects integrated out, nats."""
    mu, tau = outer["mu"], outer["tau"]
    five = mu.new_full((), 5.0)
    prior = dist.Normal(0 * five, five).log_prob(mu) + dist.HalfCauchy(five).log_prob(tau)
    return prior + dist.Normal(mu, (tau**2 + sigma**2).sqrt()).log_prob(y).sum(-1)


def sample_effects(outer: Latents, noise: Tensor, y: Tensor, sigma: Tensor) -> Latents:
    """theta given mu, tau and y, from noise `(J,)`."""
    return {"theta": outer["mu"] + outer["tau"] * sample_distances(outer, noise, y, sigma)["eta"]}


def sample_distances(outer: Latents, noise: Tensor, y: Tensor, sigma: Tensor) -> Latents:
    """eta = (theta - mu) / tau given mu, tau and y, from noise `(J,)`."""
    mu, tau = outer["mu"], outer["tau"]
    variance = tau**2 + sigma**2
    return {"eta": tau * (y - mu) / variance + sigma / variance.sqrt() * noise}


MODELS = {"centred": (centred, sample_effects), "non_centred": (non_centred, sample_distances)}


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
    model, sample = MODELS[parametrisation]
    conditional = Conditional(("mu", "tau"), log_marginal, sample, len(EFFECTS))
    return Target(model, args, name=f"eight_schools_{parametrisation}", dtype=dtype, conditional=conditional)
