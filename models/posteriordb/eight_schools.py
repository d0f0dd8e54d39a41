"""Eight schools, centred and not: mu ~ Normal(0, 5), tau ~ HalfCauchy(5), theta ~ Normal(mu, tau).

Source: Rubin (1981), Estimation in parallel randomized experiments; the models are those of `models.eight_schools`.

Given mu and tau the data are independent, y_j ~ Normal(mu, sqrt(tau^2 + sigma_j^2)), so that log p(y) is also a nested
quadrature over mu and tau, by SciPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from scipy import integrate, stats
from torch import Tensor

from models.eight_schools import centred, non_centred
from models.posteriordb.posterior import Draws, Posterior, numbered, stacked, tensors
from ppl_vi.target.sites import Latents


def log_evidence(y: np.ndarray, sigma: np.ndarray) -> float:
    """log p(y), nats: quadrature over log tau; given tau the integral over mu is normal."""

    def given(tau: float) -> float:
        weight = 1 / (tau**2 + sigma**2)
        precision = 1 / 25 + weight.sum()
        mean = (weight * y).sum() / precision
        quadratic = (weight * y**2).sum() - precision * mean**2
        normal = -len(y) / 2 * math.log(2 * math.pi) + np.log(weight).sum() / 2
        return float(normal - math.log(25 * precision) / 2 - quadratic / 2)

    def density(t: float) -> float:
        tau = math.exp(t)
        return math.exp(given(tau) - given(1.0)) * float(stats.halfcauchy.pdf(tau, scale=5)) * tau

    mass, _ = integrate.quad(density, -40, 40, points=[-2, 0, 2, 4], epsabs=0, epsrel=1e-11, limit=500)
    return given(1.0) + math.log(mass)


def effects(latents: Latents) -> dict[str, Tensor]:
    """The schools' effects with mu and tau."""
    mu, tau = latents["mu"], latents["tau"]
    theta = latents["theta"] if "theta" in latents else mu[..., None] + tau[..., None] * latents["eta"]
    return {"mu": mu, "tau": tau, **numbered("theta", theta)}


def distances(draws: Draws) -> Latents:
    """Their distances from the mean, in units of tau."""
    mu, tau = draws["mu"][None], draws["tau"][None]
    eta = [(draws[f"theta[{j}]"] - draws["mu"]) / draws["tau"] for j in range(1, 9)]
    return {"mu": mu, "tau": tau, "eta": stacked(*eta)}


def schools(raw: Mapping[str, Any], which: str) -> Posterior:
    """One of the two."""
    d = tensors(raw)
    args = (d["y"], d["sigma"])
    exact = partial(log_evidence, d["y"].numpy(), d["sigma"].numpy())
    return Posterior(
        {"centred": centred, "non_centred": non_centred}[which],
        args,
        quantities=effects,
        latents=distances if which == "non_centred" else None,
        exact=exact,
        exact_by="quadrature over tau, given which all is normal",
    )


POSTERIORS: dict[str, Callable[[Mapping[str, Any]], Posterior]] = {
    "eight_schools-eight_schools_centered": partial(schools, which="centred"),
    "eight_schools-eight_schools_noncentered": partial(schools, which="non_centred"),
}
