"""Mixtures of two normals: `low_dim_gauss_mix` (1,000 points, its means ordered or not) and `normal_2`.

Stan's ordered means, each Normal(0, 2), are written by their middle and half distance: (mu_1 + mu_2) / sqrt 2 is
Normal(0, 2) and (mu_2 - mu_1) / sqrt 2 HalfNormal(2), independent. That is the same density, normalised on mu_1 < mu_2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from models.posteriordb.posterior import Draws, Posterior, numbered, stacked, tensors
from ppl_vi.target.sites import Latents


def likelihood(y: Tensor, theta: Tensor, mu: Tensor, sigma: Tensor) -> None:
    """Each point of the first normal with probability theta."""
    components = dist.Categorical(torch.stack([theta, 1 - theta], -1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(components, dist.Normal(mu, sigma)), obs=y)


def widths_and_share() -> tuple[Tensor, Tensor]:
    """The priors of both standard deviations and of theta."""
    sigma = pyro.sample("sigma", dist.HalfNormal(torch.full((2,), 2.0)).to_event(1))
    return sigma, pyro.sample("theta", dist.Beta(5.0, 5.0))


def ordered(y: Tensor) -> None:
    """Two normals, the left one first."""
    middle = pyro.sample("middle", dist.Normal(0.0, 2.0))
    apart = pyro.sample("apart", dist.HalfNormal(2.0))
    sigma, theta = widths_and_share()
    likelihood(y, theta, torch.stack([middle - apart, middle + apart], -1) / math.sqrt(2.0), sigma)


def unordered(y: Tensor) -> None:
    """Two normals in any order, so that the posterior has both labellings."""
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    sigma, theta = widths_and_share()
    likelihood(y, theta, mu, sigma)


def of_unit_width(y: Tensor) -> None:
    """Two normals of standard deviation 1 in any order."""
    theta = pyro.sample("theta", dist.Uniform(0.0, 1.0))
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 10.0).to_event(1))
    likelihood(y, theta, mu, torch.ones(2))


def means(latents: Latents) -> dict[str, Tensor]:
    """The numbers of `ordered` by posteriordb's names."""
    middle, apart = latents["middle"], latents["apart"]
    mu = torch.stack([middle - apart, middle + apart], -1) / math.sqrt(2.0)
    return {**numbered("mu", mu), **numbered("sigma", latents["sigma"]), "theta": latents["theta"]}


def of_means(draws: Draws) -> Latents:
    """The inverse of `means`."""
    one, two = draws["mu[1]"], draws["mu[2]"]
    return {
        "middle": (one + two)[None] / math.sqrt(2.0),
        "apart": (two - one)[None] / math.sqrt(2.0),
        "sigma": stacked(draws["sigma[1]"], draws["sigma[2]"]),
        "theta": draws["theta"][None],
    }


def low_dim(raw: Mapping[str, Any]) -> Posterior:
    """The posterior of `ordered`."""
    note = "the means' prior is normalised on mu[1] < mu[2]: log p(x) is that of Stan's density + log 2"
    return Posterior(ordered, (tensors(raw)["y"],), note=note, quantities=means, latents=of_means)


POSTERIORS: dict[str, Callable[[Mapping[str, Any]], Posterior]] = {
    "low_dim_gauss_mix-low_dim_gauss_mix": low_dim,
    "low_dim_gauss_mix_collapse-low_dim_gauss_mix_collapse": lambda raw: Posterior(unordered, (tensors(raw)["y"],)),
    "normal_2-normal_mixture": lambda raw: Posterior(of_unit_width, (tensors(raw)["y"],)),
}
