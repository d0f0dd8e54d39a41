"""Radon in the houses of counties: intercepts and slopes of each county, centred and not.

Source: Gelman and Hill (2006), Data analysis using regression and multilevel/hierarchical models, chapter 12.

Given the standard deviations all is normal, so that log p(y) is also an integral over one or two of them, by SciPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import optimize, special, stats
from torch import Tensor

from models.posteriordb.linear_evidence import by_quadrature, half_normal
from models.posteriordb.posterior import Posterior, by_name, numbered
from ppl_vi.target.sites import Latents

WIDE = 10.0  # standard deviation of the priors of coefficients and means
NODES = 100  # of Gauss-Legendre along each standard deviation
Counties = tuple[str, ...]  # which of "alpha" (intercepts) and "beta" (slopes) each county has of its own


def effects(name: str, num: int, centred: bool) -> Tensor:
    """One number for each county, `(counties,)`, about a mean of their own."""
    mu = pyro.sample(f"mu_{name}", dist.Normal(0.0, WIDE))
    sigma = pyro.sample(f"sigma_{name}", dist.HalfNormal(1.0))
    with pyro.plate(f"counties_{name}", num):
        if centred:
            return pyro.sample(name, dist.Normal(mu, sigma))
        return mu + sigma * pyro.sample(f"{name}_raw", dist.Normal(0.0, 1.0))


def model(y: Tensor, county: Tensor, floor: Tensor, uranium: Tensor, own: Counties, common: str, centred: bool) -> None:
    """log radon `(N,)` of houses in counties `(N,)`.

    Args:
        y: log radon.
        county: which county.
        floor: 1 on the first floor.
        uranium: log uranium of the county.
        own: which of "alpha" and "beta" each county has of its own.
        common: what all share: "slope" of the floor, "slopes" of uranium and floor, "intercept", or "".
        centred: how the counties' numbers are written.
    """
    num = int(county.max()) + 1
    mean = torch.zeros_like(y)
    if common == "intercept":
        mean = mean + pyro.sample("alpha", dist.Normal(0.0, WIDE))
    if common == "slope":
        mean = mean + pyro.sample("beta", dist.Normal(0.0, WIDE)) * floor
    if common == "slopes":
        beta = pyro.sample("beta", dist.Normal(torch.zeros(2), WIDE).to_event(1))
        mean = mean + beta[..., :1] * uranium + beta[..., 1:] * floor
    for name in own:
        mean = mean + effects(name, num, centred)[..., county] * (1.0 if name == "alpha" else floor)
    sigma = pyro.sample("sigma_y", dist.HalfNormal(1.0))
    pyro.sample("y", dist.Normal(mean, sigma).to_event(1), obs=y)


def unpooled(y: Tensor, county: Tensor, floor: Tensor) -> None:
    """An intercept for each county, of a wide prior."""
    sigma = pyro.sample("sigma_y", dist.HalfNormal(1.0))
    beta = pyro.sample("beta", dist.Normal(0.0, WIDE))
    with pyro.plate("counties", int(county.max()) + 1):
        alpha = pyro.sample("alpha", dist.Normal(0.0, WIDE))
    pyro.sample("y", dist.Normal(alpha[..., county] + beta * floor, sigma).to_event(1), obs=y)


def not_raw(latents: Latents) -> dict[str, Tensor]:
    """The counties' numbers themselves."""
    found = by_name({name: value for name, value in latents.items() if not name.endswith("_raw")})
    for name in ("alpha", "beta"):
        if f"{name}_raw" in latents:
            mu, sigma = latents[f"mu_{name}"][..., None], latents[f"sigma_{name}"][..., None]
            found |= numbered(name, mu + sigma * latents[f"{name}_raw"])
    return found


class GivenScales:
    """log p(y given the standard deviations) of a normal model with independent normal coefficients of mean 0."""

    def __init__(self, X: np.ndarray, y: np.ndarray) -> None:
        self.gram, self.moment, self.square, self.num = X.T @ X, X.T @ y, float(y @ y), len(y)

    def __call__(self, sd: np.ndarray, sigma: float) -> float:
        """With D = diag(sd), by the matrix I + D X'X D / sigma^2; nats."""
        inner = np.eye(len(sd)) + sd[:, None] * self.gram * sd / sigma**2
        b = sd * self.moment / sigma**2
        lower = np.linalg.cholesky(inner)
        half = np.linalg.solve(lower, b)
        determinant = np.log(np.diag(lower)).sum()
        return float(
            -self.num / 2 * math.log(2 * math.pi * sigma**2) - determinant - (self.square / sigma**2 - half @ half) / 2
        )


def evidence(X: np.ndarray, y: np.ndarray, num: int) -> float:
    """log p(y), nats: the first `num` columns have the standard deviation sigma of counties, the others `WIDE`.

    Both sigma and sigma_y are HalfNormal(1). Gauss-Legendre runs over ten standard deviations of sigma_y either side of
    its mode, and over sigma from 0 to its mode and ten times its width.
    """
    given, rest = GivenScales(X, y), np.full(X.shape[1] - num, WIDE)

    def log_density(sigma: float, sigma_y: float) -> float:
        sd = np.concatenate([np.full(num, sigma), rest])
        return given(sd, sigma_y) + sum(float(stats.halfnorm.logpdf(value)) for value in (sigma, sigma_y))

    found = optimize.minimize(lambda t: -log_density(*np.exp(t)), np.log([0.3, 0.7]), method="Nelder-Mead")
    sigma, sigma_y = np.exp(found.x)
    width_y = sigma_y / math.sqrt(2 * len(y))
    x, w = np.polynomial.legendre.leggauss(NODES)
    ends = ((0.0, max(2.0, 3 * sigma)), (sigma_y - 10 * width_y, sigma_y + 10 * width_y))
    nodes = [(low + high) / 2 + (high - low) / 2 * x for low, high in ends]
    weights = [(high - low) / 2 * w for low, high in ends]
    table = np.array([[log_density(a, b) for b in nodes[1]] for a in nodes[0]])
    return float(special.logsumexp(table, b=np.outer(*weights)))


def _data(raw: Mapping[str, Any]) -> tuple[Tensor, ...]:
    y, floor, uranium = (
        torch.tensor(raw[name], dtype=torch.float64) for name in ("log_radon", "floor_measure", "log_uppm")
    )
    return y, torch.tensor(raw["county_idx"]) - 1, floor, uranium


def partly_pooled(raw: Mapping[str, Any], own: Counties, common: str, centred: bool) -> Posterior:
    """The posterior of `model`; where one number of each county is its own, log p(y) by quadrature as well."""
    y, county, floor, uranium = _data(raw)
    port = Posterior(model, (y, county, floor, uranium, own, common, centred), quantities=not_raw)
    if len(own) > 1:
        return port
    times = torch.ones_like(y) if own == ("alpha",) else floor
    shared = {"intercept": [torch.ones_like(y)], "slope": [floor], "slopes": [uranium, floor], "": []}[common]
    dummies = torch.nn.functional.one_hot(county).double() * times[:, None]
    X = torch.cat([dummies, torch.stack([times, *shared], -1)], -1).numpy()
    exact = partial(evidence, X, y.numpy(), dummies.shape[1])
    return Posterior(port.model, port.args, quantities=not_raw, exact=exact, exact_by="quadrature over two sds")


def unpooled_posterior(raw: Mapping[str, Any]) -> Posterior:
    """The posterior of `unpooled`."""
    y, county, floor, _ = _data(raw)
    X = torch.cat([torch.nn.functional.one_hot(county).double(), floor[:, None]], -1).numpy()
    given = partial(GivenScales(X, y.numpy()), np.full(X.shape[1], WIDE))
    exact = partial(by_quadrature, given, half_normal(1.0), 0.7)
    by = "closed form given sigma, and quadrature over sigma"
    return Posterior(unpooled, (y, county, floor), exact=exact, exact_by=by)


WRITTEN = {"centered": True, "noncentered": False}
KINDS: dict[str, tuple[Counties, str]] = {
    "hierarchical_intercept": (("alpha",), "slopes"),
    "partially_pooled": (("alpha",), ""),
    "variable_intercept": (("alpha",), "slope"),
    "variable_slope": (("beta",), "intercept"),
    "variable_intercept_slope": (("alpha", "beta"), ""),
}
POSTERIORS: dict[str, Callable[[Mapping[str, Any]], Posterior]] = {
    "radon_mn-radon_county_intercept": unpooled_posterior,
    **{
        f"radon_mn-radon_{kind}_{how}": partial(partly_pooled, own=own, common=common, centred=centred)
        for kind, (own, common) in KINDS.items()
        for how, centred in WRITTEN.items()
    },
}
