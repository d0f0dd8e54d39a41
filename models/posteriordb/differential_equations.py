"""Populations of hare and lynx by Lotka and Volterra, and a drug in one compartment, by classical Runge-Kutta.

- hudson_lynx_hare: Carpenter (2018), Predator-prey population dynamics: the Lotka-Volterra model in Stan. The equations
  are integrated in the logarithms of both populations.
- one_comp_mm_elim_abs: absorption of first order, elimination by Michaelis-Menten kinetics; Margossian and Gillespie,
  Stan case studies in pharmacometrics. What is taken up is known exactly; what is eliminated is integrated.
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
from ppl_vi.distributions import TruncatedNormal
from ppl_vi.target.sites import Latents

STEPS_A_YEAR = 5
STEPS_BETWEEN = 5  # two measurements of the drug
RATES = ("alpha", "beta", "gamma", "delta")


def populations(rates: tuple[Tensor, ...], start: tuple[Tensor, Tensor], years: int) -> Tensor:
    """log of both populations after each year, `(years, 2)`."""
    alpha, beta, gamma, delta = rates
    h = 1.0 / STEPS_A_YEAR

    def slope(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        return alpha - beta * q.exp(), delta * p.exp() - gamma

    p, q = start
    found = []
    for _ in range(years):
        for _ in range(STEPS_A_YEAR):
            a, b = slope(p, q)
            c, d = slope(p + h / 2 * a, q + h / 2 * b)
            e, f = slope(p + h / 2 * c, q + h / 2 * d)
            g, i = slope(p + h * e, q + h * f)
            p, q = p + h / 6 * (a + 2 * c + 2 * e + g), q + h / 6 * (b + 2 * d + 2 * f + i)
        found.append(torch.stack([p, q], -1))
    return torch.stack(found, -2)


def lotka_volterra(y_init: Tensor, y: Tensor) -> None:
    """Both populations in the first year `(2,)` and in the years after `(N, 2)`."""
    priors = ((1.0, 0.5), (0.05, 0.05)) * 2
    rates = tuple(
        pyro.sample(name, TruncatedNormal(loc, scale, low=0.0, high=math.inf))
        for name, (loc, scale) in zip(RATES, priors, strict=True)
    )
    z_init = pyro.sample("z_init", dist.LogNormal(torch.full((2,), math.log(10.0)), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(torch.full((2,), -1.0), 1.0).to_event(1))
    pyro.sample("y_init", dist.LogNormal(z_init.log(), sigma).to_event(1), obs=y_init)
    log_z = populations(rates, (z_init[..., 0].log(), z_init[..., 1].log()), len(y))
    pyro.sample("y", dist.LogNormal(log_z, sigma).to_event(2), obs=y)


def thetas(latents: Latents) -> dict[str, Tensor]:
    """The numbers of `lotka_volterra` by posteriordb's names."""
    found = {f"theta[{i + 1}]": latents[name] for i, name in enumerate(RATES)}
    return {**found, **numbered("z_init", latents["z_init"]), **numbered("sigma", latents["sigma"])}


def of_thetas(draws: Draws) -> Latents:
    """The inverse of `thetas`."""
    found = {name: draws[f"theta[{i + 1}]"][None] for i, name in enumerate(RATES)}
    return found | {name: stacked(draws[f"{name}[1]"], draws[f"{name}[2]"]) for name in ("z_init", "sigma")}


def concentration(k_a: Tensor, K_m: Tensor, V_m: Tensor, dose: float, volume: float, times: list[float]) -> Tensor:
    """At times, with nothing there at 0."""

    def taken_up(t: float) -> Tensor:
        return dose / volume * (-torch.expm1(-k_a * t))

    def slope(t: float, gone: Tensor) -> Tensor:
        left = taken_up(t) - gone
        return V_m / volume * left / (K_m + left)

    gone, now, found = 0.0 * k_a, 0.0, []
    for until in times:
        h = (until - now) / STEPS_BETWEEN
        for j in range(STEPS_BETWEEN):
            t = now + j * h
            a = slope(t, gone)
            b = slope(t + h / 2, gone + h / 2 * a)
            c = slope(t + h / 2, gone + h / 2 * b)
            d = slope(t + h, gone + h * c)
            gone = gone + h / 6 * (a + 2 * b + 2 * c + d)
        now = until
        found.append(taken_up(until) - gone)
    return torch.stack(found, -1)


def one_compartment(times: list[float], measured: Tensor, dose: float, volume: float) -> None:
    """Concentrations measured at times."""
    k_a, K_m, V_m, sigma = (pyro.sample(name, dist.HalfCauchy(1.0)) for name in ("k_a", "K_m", "V_m", "sigma"))
    c = concentration(k_a, K_m, V_m, dose, volume, times)
    pyro.sample("measured", dist.LogNormal(c.clamp(min=1e-6).log(), sigma).to_event(1), obs=measured)


def hares(raw: Mapping[str, Any]) -> Posterior:
    """The posterior of `lotka_volterra`."""
    d = tensors(raw)
    note = (
        f"Runge-Kutta of {STEPS_A_YEAR} steps a year; the truncated normal priors are normalised: log p(x) is that of "
        "Stan's density - 2 log P(Normal(1, 0.5) > 0) - 2 log P(Normal(0.05, 0.05) > 0)"
    )
    return Posterior(lotka_volterra, (d["y_init"], d["y"]), note=note, quantities=thetas, latents=of_thetas)


def drug(raw: Mapping[str, Any]) -> Posterior:
    """The posterior of `one_compartment`."""
    args = (list(raw["times"]), tensors(raw)["C_hat"], float(raw["D"]), float(raw["V"]))
    note = f"Runge-Kutta of {STEPS_BETWEEN} steps between two measurements; a concentration counts as 1e-6 at least"
    return Posterior(one_compartment, args, note=note)


POSTERIORS: dict[str, Callable[[Mapping[str, Any]], Posterior]] = {
    "hudson_lynx_hare-lotka_volterra": hares,
    "one_comp_mm_elim_abs-one_comp_mm_elim_abs": drug,
}
