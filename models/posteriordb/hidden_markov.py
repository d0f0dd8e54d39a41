"""Hidden Markov models of two states: an example of 100 steps, and the drives of basketball players, 416 steps.

Source: Damiano, Peterson and Weylandt (2017), A tutorial on hidden Markov models using Stan.

Stan leaves the probabilities of the first state out; here they are 1/2 each. Two ordered numbers are written as the
first and the gap to the second, whose density `pyro.factor` puts right; the part of the priors where the order does not
hold is left out, as in Stan, and not normalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from models.posteriordb.posterior import Draws, Posterior, numbered, stacked, tensors
from ppl_vi.target.sites import Latents

NOTE = "the first state has probabilities 1/2, which Stan leaves out: log p(x) is that of Stan's density - log 2"


def forward(log_theta: Tensor, emission: Tensor) -> Tensor:
    """log p of the data by the forward algorithm, from log p(y_t | state) `(T, 2)`."""
    alpha = emission[0] + math.log(0.5)
    for t in range(1, len(emission)):
        alpha = torch.logsumexp(alpha[:, None] + log_theta, 0) + emission[t]
    return alpha.logsumexp(0)


def ordered_pair(name: str, first: Any, second: Any, gap: Any) -> Tensor:
    """Two numbers `(2,)` with priors of their own where the first is the smaller, by the gap between them."""
    low = pyro.sample(f"{name}_1", first)
    between = pyro.sample(f"{name}_gap", gap)
    pyro.factor(f"{name}_order", second.log_prob(low + between) - gap.log_prob(between))
    return torch.stack([low, low + between], -1)


def example(y: Tensor) -> None:
    """Means of about 3 and 10, and noise of 1."""
    theta = torch.stack([pyro.sample(f"theta{k}", dist.Dirichlet(torch.ones(2))) for k in (1, 2)])
    # mu_1 > 0, which Stan asks for too, leaves out e^-6.6 of the prior's mass
    low = dist.Normal(3.0, 1.0)
    first = pyro.sample("mu_1", dist.HalfCauchy(3.0))
    pyro.factor("mu_positive", low.log_prob(first) - dist.HalfCauchy(3.0).log_prob(first))
    between = pyro.sample("mu_gap", dist.HalfNormal(10.0))
    second = first + between
    pyro.factor("mu_order", dist.Normal(10.0, 1.0).log_prob(second) - dist.HalfNormal(10.0).log_prob(between))
    emission = dist.Normal(torch.stack([first, second]), 1.0).log_prob(y[:, None])
    pyro.factor("likelihood", forward(theta.log(), emission))


def drive(u: Tensor, v: Tensor, prior: Tensor, noise: tuple[float, float] | None) -> None:
    """Speed u and distance v: normal with known noise, or, without, exponential."""
    theta = torch.stack([pyro.sample(f"theta{k + 1}", dist.Dirichlet(prior[k])) for k in (0, 1)])
    positive = noise is None
    first = dist.HalfNormal(1.0) if positive else dist.Normal(0.0, 1.0)
    phi, lam = (ordered_pair(name, first, dist.Normal(3.0, 1.0), dist.HalfNormal(3.0)) for name in ("phi", "lambda"))
    of_u = dist.Exponential(phi) if noise is None else dist.Normal(phi, noise[0])
    of_v = dist.Exponential(lam) if noise is None else dist.Normal(lam, noise[1])
    pyro.factor("likelihood", forward(theta.log(), of_u.log_prob(u[:, None]) + of_v.log_prob(v[:, None])))


def pairs(latents: Latents, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Transition probabilities and ordered numbers by posteriordb's names."""
    found = {**numbered("theta1", latents["theta1"]), **numbered("theta2", latents["theta2"])}
    for name in names:
        low = latents[f"{name}_1"]
        found |= {f"{name}[1]": low, f"{name}[2]": low + latents[f"{name}_gap"]}
    return found


def of_pairs(draws: Draws, names: tuple[str, ...]) -> Latents:
    """The inverse of `pairs`."""
    found = {f"theta{k}": stacked(draws[f"theta{k}[1]"], draws[f"theta{k}[2]"]) for k in (1, 2)}
    for name in names:
        low, high = draws[f"{name}[1]"], draws[f"{name}[2]"]
        found |= {f"{name}_1": low[None], f"{name}_gap": (high - low)[None]}
    return found


def _posterior(model: Callable[..., None], args: tuple[Any, ...], names: tuple[str, ...], note: str) -> Posterior:
    return Posterior(
        model, args, note=note, quantities=partial(pairs, names=names), latents=partial(of_pairs, names=names)
    )


def hmm_example(raw: Mapping[str, Any]) -> Posterior:
    """The posterior of `example`."""
    return _posterior(example, (tensors(raw)["y"],), ("mu",), NOTE)


def basketball(raw: Mapping[str, Any]) -> Posterior:
    """The posterior of `drive`."""
    d = tensors(raw)
    noise = (float(d["tau"]), float(d["rho"])) if "tau" in raw else None
    note = f"{NOTE}{'' if noise else '; first numbers are HalfNormal(1), which adds 2 log 2'}"
    return _posterior(drive, (d["u"], d["v"], d["alpha"], noise), ("phi", "lambda"), note)


POSTERIORS: dict[str, Callable[[Mapping[str, Any]], Posterior]] = {
    "hmm_example-hmm_example": hmm_example,
    "bball_drive_event_0-hmm_drive_0": basketball,
    "bball_drive_event_1-hmm_drive_1": basketball,
}
