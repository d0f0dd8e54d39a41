"""Hierarchies: hospitals, seeds, rats, growth of claims, flight simulators, and counts with an effect for each year.

- surgical, seeds, rats: Spiegelhalter, Thomas, Best and Gilks (1996), BUGS 0.5 examples.
- GLMM_Poisson: peregrine falcons. Kéry and Schaub (2012), Bayesian population analysis using WinBUGS, chapter 4.
- loss_curves: Cooney (2017), Modelling loss curves in insurance with RStan.
- pilots: Gelman and Hill (2006), Data analysis using regression and multilevel/hierarchical models, chapter 13.
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
from scipy import special, stats
from torch import Tensor

from models.posteriordb.posterior import Posterior, by_name, flat, numbered, tensors
from ppl_vi.target.sites import Latents


def surgical(r: Tensor, n: Tensor) -> None:
    """Deaths among operations, in hospitals of their own rates."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1000.0))
    variance = pyro.sample("sigmasq", dist.InverseGamma(0.001, 0.001))
    with pyro.plate("hospitals", len(n)):
        b = pyro.sample("b", dist.Normal(mu, variance.sqrt()))
        pyro.sample("r", dist.Binomial(n, logits=b), obs=r)


def surgical_evidence(r: np.ndarray, n: np.ndarray) -> float:
    """log p(r), nats: trapezoids over mu and log sigma^2, and inside, for each hospital, over its effect."""
    z = np.linspace(-8.5, 8.5, 500)
    log_z = stats.norm.logpdf(z) + math.log(z[1] - z[0])
    mu, t = np.linspace(-6, 1, 141), np.linspace(-12, 5, 171)
    table = np.empty((len(t), len(mu)))
    for i, log_variance in enumerate(t):
        b = mu[:, None] + math.exp(log_variance / 2) * z
        inner = [
            special.logsumexp(stats.binom.logpmf(deaths, num, special.expit(b)) + log_z, axis=1)
            for deaths, num in zip(r, n, strict=True)
        ]
        prior = stats.invgamma.logpdf(math.exp(log_variance), 0.001, scale=0.001) + log_variance
        table[i] = np.sum(inner, axis=0) + prior + stats.norm.logpdf(mu, 0, 1000)
    return float(special.logsumexp(table) + math.log((mu[1] - mu[0]) * (t[1] - t[0])))


def seed_likelihood(b: Tensor, data: tuple[Tensor, ...], scale: float) -> None:
    """Germinated n of N seeds on a plate: kind of seed x1, kind of root x2, and an effect b of the plate."""
    n, total, x1, x2 = data
    a0, a1, a2, a12 = (pyro.sample(name, dist.Normal(0.0, scale)) for name in ("alpha0", "alpha1", "alpha2", "alpha12"))
    logits = a0 + a1 * x1 + a2 * x2 + a12 * x1 * x2 + b
    pyro.sample("n", dist.Binomial(total, logits=logits).to_event(1), obs=n)


def seeds(*data: Tensor) -> None:
    """Gentle priors."""
    sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
    with pyro.plate("plates", len(data[0])):
        b = pyro.sample("b", dist.Normal(0.0, sigma))
    seed_likelihood(b, data, 1.0)


def seeds_centred(*data: Tensor) -> None:
    """The plates' effects are taken from their mean."""
    sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
    with pyro.plate("plates", len(data[0])):
        c = pyro.sample("c", dist.Normal(0.0, sigma))
    seed_likelihood(c - c.mean(), data, 1.0)


def seeds_vague(*data: Tensor) -> None:
    """The vague priors of BUGS."""
    tau = pyro.sample("tau", dist.Gamma(1e-3, 1e-3))
    with pyro.plate("plates", len(data[0])):
        b = pyro.sample("b", dist.Normal(0.0, tau.rsqrt()))
    seed_likelihood(b, data, 1e3)


def rats(x: Tensor, y: Tensor) -> None:
    """Weights y `(rats, weighings)` at centred ages x `(weighings,)`; the standard deviations are flat."""
    mu_alpha = pyro.sample("mu_alpha", dist.Normal(0.0, 100.0))
    mu_beta = pyro.sample("mu_beta", dist.Normal(0.0, 100.0))
    sigma_y = flat("sigma_y", dist.HalfCauchy(10.0))
    sigma_alpha = flat("sigma_alpha", dist.HalfCauchy(10.0))
    sigma_beta = flat("sigma_beta", dist.HalfCauchy(1.0))
    with pyro.plate("rats", len(y)):
        alpha = pyro.sample("alpha", dist.Normal(mu_alpha, sigma_alpha))
        beta = pyro.sample("beta", dist.Normal(mu_beta, sigma_beta))
        pyro.sample("y", dist.Normal(alpha[..., None] + beta[..., None] * x, sigma_y).to_event(1), obs=y)


def falcons(year: Tensor, count: Tensor) -> None:
    """A cubic in the year, and an effect of each year."""
    alpha = pyro.sample("alpha", dist.Uniform(-20.0, 20.0))
    beta1, beta2, beta3 = (pyro.sample(name, dist.Uniform(-10.0, 10.0)) for name in ("beta1", "beta2", "beta3"))
    sigma = pyro.sample("sigma", dist.Uniform(0.0, 5.0))
    with pyro.plate("years", len(year)):
        eps = pyro.sample("eps", dist.Normal(0.0, sigma))
        log_rate = alpha + beta1 * year + beta2 * year**2 + beta3 * year**3 + eps
        pyro.sample("C", dist.Poisson(log_rate.exp()), obs=count)


def claims(cohort: Tensor, time: Tensor, premium: Tensor, loss: Tensor) -> None:
    """Losses of cohorts as they grow by a Weibull curve; `cohort` and `premium` for each loss."""
    omega = pyro.sample("omega", dist.LogNormal(0.0, 0.5))
    theta = pyro.sample("theta", dist.LogNormal(0.0, 0.5))
    mu = pyro.sample("mu_LR", dist.Normal(0.0, 0.5))
    sd = pyro.sample("sd_LR", dist.LogNormal(0.0, 0.5))
    loss_sd = pyro.sample("loss_sd", dist.LogNormal(0.0, 0.7))
    with pyro.plate("cohorts", int(cohort.max()) + 1):
        ratio = pyro.sample("LR", dist.LogNormal(mu, sd))
    grown = -torch.expm1(-((time / theta) ** omega))
    pyro.sample("loss", dist.Normal(ratio[..., cohort] * premium * grown, loss_sd * premium).to_event(1), obs=loss)


def pilots(group: Tensor, scenario: Tensor, y: Tensor) -> None:
    """Success of groups of pilots in scenarios of a simulator."""
    mu_a, mu_b = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in ("mu_a", "mu_b"))
    sigma_a, sigma_b, sigma_y = (
        pyro.sample(name, dist.Uniform(0.0, 100.0)) for name in ("sigma_a", "sigma_b", "sigma_y")
    )
    with pyro.plate("groups", int(group.max()) + 1):
        a = pyro.sample("a", dist.Normal(10 * mu_a, sigma_a))
    with pyro.plate("scenarios", int(scenario.max()) + 1):
        b = pyro.sample("b", dist.Normal(10 * mu_b, sigma_b))
    pyro.sample("y", dist.Normal(a[..., group] + b[..., scenario], sigma_y).to_event(1), obs=y)


def centred_effects(latents: Latents) -> dict[str, Tensor]:
    """The plates' effects from their mean, with the other numbers."""
    c = latents["c"]
    return {**by_name(latents), **numbered("b", c - c.mean(-1, keepdim=True))}


def hospitals(raw: Mapping[str, Any]) -> Posterior:
    """The posterior of `surgical`."""
    d = tensors(raw)
    exact = partial(surgical_evidence, d["r"].numpy(), d["n"].numpy())
    return Posterior(surgical, (d["r"], d["n"]), exact=exact, exact_by="nested trapezoids")


def germination(raw: Mapping[str, Any], model: Callable[..., None]) -> Posterior:
    """The posterior of one of the three models of seeds."""
    d = tensors(raw)
    args = (d["n"], d["N"], d["x1"], d["x2"])
    return Posterior(model, args, quantities=centred_effects if model is seeds_centred else by_name)


def growth_of_rats(raw: Mapping[str, Any]) -> Posterior:
    """The posterior of `rats`, its rows put in order of rat and age."""
    d = tensors(raw)
    ages = d["x"].unique()
    order = np.lexsort((raw["x"], raw["rat"]))
    y = d["y"][torch.from_numpy(order)].reshape(-1, len(ages))
    return Posterior(rats, (ages - d["xbar"], y), "flat priors of the three standard deviations")


def falcon_years(raw: Mapping[str, Any]) -> Posterior:
    """The posterior of `falcons`."""
    d = tensors(raw)
    return Posterior(falcons, (d["year"], d["C"]))


def loss_curves(raw: Mapping[str, Any]) -> Posterior:
    """The posterior of `claims`."""
    d = tensors(raw)
    cohort, time = d["cohort_id"].long() - 1, d["t_value"][d["t_idx"].long() - 1]
    return Posterior(claims, (cohort, time, d["premium"][cohort], d["loss"]))


def simulator(raw: Mapping[str, Any]) -> Posterior:
    """The posterior of `pilots`."""
    d = tensors(raw)
    return Posterior(pilots, (d["group_id"].long() - 1, d["scenario_id"].long() - 1, d["y"]))


POSTERIORS: dict[str, Callable[[Mapping[str, Any]], Posterior]] = {
    "surgical_data-surgical_model": hospitals,
    "seeds_data-seeds_model": partial(germination, model=seeds_vague),
    "seeds_data-seeds_centered_model": partial(germination, model=seeds_centred),
    "seeds_data-seeds_stanified_model": partial(germination, model=seeds),
    "rats_data-rats_model": growth_of_rats,
    "GLMM_Poisson_data-GLMM_Poisson_model": falcon_years,
    "loss_curves-losscurve_sislob": loss_curves,
    "pilots-pilots": simulator,
}
