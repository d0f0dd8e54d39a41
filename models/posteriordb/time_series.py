"""ARMA(1, 1) and GARCH(1, 1), 200 steps each, simulated.

Source: the Stan user's guide, chapter on time-series models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from models.posteriordb.posterior import Draws, Posterior, flat, tensors
from ppl_vi.target.sites import Latents


def arma(y: Tensor) -> None:
    """The shock before the first step is 0."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = pyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    expected = [mu + phi * mu]
    for t in range(1, len(y)):
        expected.append(mu + phi * y[t - 1] + theta * (y[t - 1] - expected[-1]))
    pyro.sample("y", dist.Normal(torch.stack(expected), sigma).to_event(1), obs=y)


def garch(y: Tensor, first: Tensor) -> None:
    """alpha1 and beta1 are uniform on the triangle alpha1 + beta1 < 1, where beta1 = share (1 - alpha1)."""
    mu = flat("mu", dist.Normal(y.mean(), 10 * y.std()))
    alpha0 = flat("alpha0", dist.HalfCauchy(y.var()))
    alpha1 = pyro.sample("alpha1", dist.Beta(1.0, 2.0))
    beta1 = pyro.sample("share", dist.Uniform(0.0, 1.0)) * (1 - alpha1)
    variance = [first**2]
    for t in range(1, len(y)):
        variance.append(alpha0 + alpha1 * (y[t - 1] - mu) ** 2 + beta1 * variance[-1])
    scale = torch.stack(torch.broadcast_tensors(*variance)).sqrt()
    pyro.sample("y", dist.Normal(mu, scale).to_event(1), obs=y)


def coefficients(latents: Latents) -> dict[str, Tensor]:
    """The numbers of `garch` by posteriordb's names."""
    found = {name: latents[name] for name in ("mu", "alpha0", "alpha1")}
    return found | {"beta1": latents["share"] * (1 - latents["alpha1"])}


def of_coefficients(draws: Draws) -> Latents:
    """The inverse of `coefficients`."""
    found = {name: draws[name][None] for name in ("mu", "alpha0", "alpha1")}
    return found | {"share": (draws["beta1"] / (1 - draws["alpha1"]))[None]}


def garch_posterior(raw: Mapping[str, Any]) -> Posterior:
    """The posterior of `garch`."""
    d = tensors(raw)
    return Posterior(
        garch,
        (d["y"], d["sigma1"]),
        "flat priors of mu and of alpha0 > 0",
        "alpha1 and beta1 have the density 2 on their triangle: log p(x) is that of Stan's density + log 2",
        quantities=coefficients,
        latents=of_coefficients,
    )


POSTERIORS: dict[str, Callable[[Mapping[str, Any]], Posterior]] = {
    "arma-arma11": lambda raw: Posterior(arma, (tensors(raw)["y"],)),
    "garch-garch11": garch_posterior,
}
