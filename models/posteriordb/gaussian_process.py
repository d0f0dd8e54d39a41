"""Gaussian processes on 11 points: a regression of three numbers and a Poisson regression of thirteen.

Source: Betancourt (2017), Robust Gaussian processes in Stan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from models.posteriordb.posterior import Draws, Posterior, numbered, tensors
from ppl_vi.target.sites import Latents

JITTER = 1e-10  # Stan's, on the diagonal of the covariance of the Poisson regression


def kernel(x: Tensor, alpha: Tensor, rho: Tensor) -> Tensor:
    """alpha^2 exp(-(x - x')^2 / (2 rho^2)), `(..., N, N)`."""
    distance = (x[:, None] - x) / rho[..., None, None]
    return alpha[..., None, None] ** 2 * torch.exp(-distance.square() / 2)


def factor(x: Tensor, alpha: Tensor, rho: Tensor) -> Tensor:
    """The Cholesky factor of the covariance of f."""
    return torch.linalg.cholesky(kernel(x, alpha, rho) + JITTER * torch.eye(len(x), dtype=x.dtype))


def hyperparameters() -> tuple[Tensor, Tensor]:
    """The priors of length and height."""
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    return rho, pyro.sample("alpha", dist.HalfNormal(2.0))


def regression(x: Tensor, y: Tensor) -> None:
    """sigma stands on the diagonal as it is, not squared, as in Stan's model."""
    rho, alpha = hyperparameters()
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    covariance = kernel(x, alpha, rho) + sigma * torch.eye(len(x), dtype=x.dtype)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)


def poisson(x: Tensor, k: Tensor) -> None:
    """f = L f_tilde is the log rate."""
    rho, alpha = hyperparameters()
    f_tilde = pyro.sample("f_tilde", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
    with pyro.plate("counts", len(k)):
        pyro.sample("k", dist.Poisson((factor(x, alpha, rho) @ f_tilde).exp()), obs=k)


def log_rates(latents: Latents, x: Tensor) -> dict[str, Tensor]:
    """f by posteriordb's names."""
    rho, alpha = latents["rho"], latents["alpha"]
    f = (factor(x, alpha, rho) @ latents["f_tilde"][..., None])[..., 0]
    return {"rho": rho, "alpha": alpha, **numbered("f", f)}


def of_log_rates(draws: Draws, x: Tensor) -> Latents:
    """The inverse of `log_rates`."""
    rho, alpha = draws["rho"], draws["alpha"]
    f = torch.stack([draws[f"f[{i + 1}]"] for i in range(len(x))], -1)
    f_tilde = torch.linalg.solve_triangular(factor(x, alpha, rho), f[..., None], upper=False)[..., 0]
    return {"rho": rho[None], "alpha": alpha[None], "f_tilde": f_tilde[None]}


def counts(raw: Mapping[str, Any]) -> Posterior:
    """The posterior of `poisson`."""
    d = tensors(raw)
    x = d["x"]
    return Posterior(poisson, (x, d["k"]), quantities=partial(log_rates, x=x), latents=partial(of_log_rates, x=x))


def values(raw: Mapping[str, Any]) -> Posterior:
    """The posterior of `regression`."""
    d = tensors(raw)
    return Posterior(regression, (d["x"], d["y"]))


POSTERIORS: dict[str, Callable[[Mapping[str, Any]], Posterior]] = {
    "gp_pois_regr-gp_regr": values,
    "gp_pois_regr-gp_pois_regr": counts,
}
