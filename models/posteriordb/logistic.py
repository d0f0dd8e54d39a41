"""Logistic and Poisson regressions, and two models of dogs that learn to avoid a shock.

- wells: who changes the well, in a region of Bangladesh with arsenic in the water; nes_logit: who votes for the
  Republicans; dogs: learning in the Solomon-Wynne experiment. Gelman and Hill (2006), Data analysis using regression
  and multilevel/hierarchical models, chapters 5 and 24.
- GLM_Binomial, GLM_Poisson: peregrine falcons by year. Kéry and Schaub (2012), Bayesian population analysis using
  WinBUGS, chapters 3 and 4.

The coefficients of wells and nes_logit are flat, as in Stan's models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from models.posteriordb.linear import columns
from models.posteriordb.posterior import Draws, Posterior, by_name, flat, numbered, tensors
from ppl_vi.target.sites import Latents

FLAT = "flat priors of the coefficients"


def flat_logistic(X: Tensor, y: Tensor) -> None:
    """Flat intercept and coefficients; X `(N, F)`, y `(N,)` of 0 and 1."""
    alpha = flat("alpha", dist.Normal(0.0, 10.0))
    size = 10 / X.square().mean(0).sqrt()
    beta = flat("beta", dist.Normal(torch.zeros(X.shape[-1]), size).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=alpha + X @ beta), obs=y)


def intercept_first(latents: Latents) -> dict[str, Tensor]:
    """posteriordb's `beta`, whose first is the intercept."""
    return {"beta[1]": latents["alpha"], "beta[2]": latents["beta"][..., 0]}


def alpha_and_beta(latents: Latents) -> dict[str, Tensor]:
    """The intercept and the vector of coefficients, of one number as well."""
    return {"alpha": latents["alpha"], **numbered("beta", latents["beta"])}


def of_draws(draws: Draws) -> Latents:
    """The inverse of `intercept_first`."""
    return {"alpha": draws["beta[1]"][None], "beta": draws["beta[2]"][None, :, None]}


def wells(raw: Mapping[str, Any], which: str) -> Posterior:
    """Who changes, by distance, arsenic, membership of an association, and schooling."""
    d = tensors(raw)
    far, arsenic, member, school = d["dist"] / 100, d["arsenic"], d["assoc"], d["educ"] / 4
    c_far, c_arsenic, c_school = far - far.mean(), arsenic - arsenic.mean(), school - school.mean()
    parts = {
        "daae_c_model": (c_far, c_arsenic, c_far * c_arsenic, member, school),
        "dae_c_model": (c_far, c_arsenic, c_far * c_arsenic, school),
        "dae_inter_model": (
            c_far,
            c_arsenic,
            c_school,
            c_far * c_arsenic,
            c_far * c_school,
            c_arsenic * c_school,
        ),
        "dae_model": (far, arsenic, school),
        "dist": (d["dist"],),
        "dist100_model": (far,),
        "dist100ars_model": (far, arsenic),
        "interaction_c_model": (c_far, c_arsenic, c_far * c_arsenic),
        "interaction_model": (far, arsenic, far * arsenic),
    }
    args = (columns(*parts[which]), d["switched"])
    if which == "dist":
        return Posterior(flat_logistic, args, FLAT, quantities=intercept_first, latents=of_draws)
    return Posterior(flat_logistic, args, FLAT, quantities=alpha_and_beta)


def votes(raw: Mapping[str, Any]) -> Posterior:
    """Votes by income."""
    d = tensors(raw)
    return Posterior(flat_logistic, (columns(d["income"]), d["vote"]), FLAT, quantities=alpha_and_beta)


def falcon_pairs(year: Tensor, total: Tensor, successful: Tensor) -> None:
    """Successful pairs among all, by a parabola in the year."""
    alpha, beta1, beta2 = (pyro.sample(name, dist.Normal(0.0, 100.0)) for name in ("alpha", "beta1", "beta2"))
    with pyro.plate("years", len(year)):
        logits = alpha + beta1 * year + beta2 * year**2
        pyro.sample("C", dist.Binomial(total, logits=logits), obs=successful)


def falcon_counts(year: Tensor, count: Tensor) -> None:
    """Counts of pairs, by a cubic in the year."""
    alpha = pyro.sample("alpha", dist.Uniform(-20.0, 20.0))
    beta1, beta2, beta3 = (pyro.sample(name, dist.Uniform(-10.0, 10.0)) for name in ("beta1", "beta2", "beta3"))
    with pyro.plate("years", len(year)):
        pyro.sample("C", dist.Poisson((alpha + beta1 * year + beta2 * year**2 + beta3 * year**3).exp()), obs=count)


def binomial(raw: Mapping[str, Any]) -> Posterior:
    """The posterior of `falcon_pairs`."""
    d = tensors(raw)
    return Posterior(falcon_pairs, (d["year"], d["N"], d["C"]))


def poisson(raw: Mapping[str, Any]) -> Posterior:
    """The posterior of `falcon_counts`. Stan's flat priors have ends, so they are proper."""
    d = tensors(raw)
    return Posterior(
        falcon_counts,
        (d["year"], d["C"]),
        note="Stan's flat priors have ends, and are normalised: log p(x) is that of Stan's density - log 320,000",
    )


def before(y: Tensor) -> Tensor:
    """For each trial, the sum of those before; y `(dogs, trials)`."""
    return y.cumsum(-1) - y


def dogs(shocked: Tensor) -> None:
    """Logistic in the numbers of avoided and of suffered shocks."""
    beta = pyro.sample("beta", dist.Normal(0.0, 100.0).expand([3]).to_event(1))
    logits = beta[..., 0] + beta[..., 1] * before(1 - shocked) + beta[..., 2] * before(shocked)
    pyro.sample("y", dist.Bernoulli(logits=logits).to_event(2), obs=shocked)


def dogs_log(shocked: Tensor) -> None:
    """The same without intercept, with a sign for each."""
    avoided = pyro.sample("avoided", dist.Uniform(-100.0, 0.0))
    suffered = pyro.sample("suffered", dist.Uniform(0.0, 100.0))
    logits = avoided * before(1 - shocked) + suffered * before(shocked)
    pyro.sample("y", dist.Bernoulli(logits=logits).to_event(2), obs=shocked)


def two_signs(latents: Latents) -> dict[str, Tensor]:
    """posteriordb's `beta` of `dogs_log`."""
    return {"beta[1]": latents["avoided"], "beta[2]": latents["suffered"]}


def dogs_product(shocked: Tensor) -> None:
    """The probability of a shock is a^shocks b^avoidances: at each dog's first trial it is 1."""
    a = pyro.sample("a", dist.Uniform(0.0, 1.0))
    b = pyro.sample("b", dist.Uniform(0.0, 1.0))
    log_p = (before(shocked) * a.log() + before(1 - shocked) * b.log())[:, 1:]
    later = shocked[:, 1:]
    pyro.factor("likelihood", torch.where(later > 0, log_p, torch.log1p(-log_p.exp())).sum())


DOGS = {"dogs": (dogs, by_name), "dogs_log": (dogs_log, two_signs), "dogs_hierarchical": (dogs_product, by_name)}


def dogs_posterior(raw: Mapping[str, Any], which: str) -> Posterior:
    """One of the three."""
    model, quantities = DOGS[which]
    return Posterior(model, (tensors(raw)["y"],), quantities=quantities)


POSTERIORS: dict[str, Callable[[Mapping[str, Any]], Posterior]] = {
    **{
        f"wells_data-wells_{w}": partial(wells, which=w)
        for w in (
            "daae_c_model",
            "dae_c_model",
            "dae_inter_model",
            "dae_model",
            "dist",
            "dist100_model",
            "dist100ars_model",
            "interaction_c_model",
            "interaction_model",
        )
    },
    "nes_logit_data-nes_logit_model": votes,
    "GLM_Binomial_data-GLM_Binomial_model": binomial,
    "GLM_Poisson_Data-GLM_Poisson_model": poisson,
    **{f"dogs-{which}": partial(dogs_posterior, which=which) for which in DOGS},
}
