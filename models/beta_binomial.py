"""The share of girls among births with placenta previa: a binomial proportion with a beta prior.

    theta ~ Beta(1, 1),  y ~ Binomial(n, theta)

The posterior is Beta(1 + y, 1 + n - y), and p(y) = 1 / (n + 1) whatever y is.

Source: Gelman et al. (2013), Bayesian data analysis, section 2.4: 437 girls in 980 births.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.target.target import Target

GIRLS, BIRTHS = 437.0, 980.0
PRIOR = (1.0, 1.0)  # the two concentrations of the beta prior, which is uniform


def model(girls: Tensor, births: Tensor) -> None:
    """The number of girls among a number of births."""
    theta = pyro.sample("theta", dist.Beta(*PRIOR))
    pyro.sample("girls", dist.Binomial(births, theta), obs=girls)


def posterior(girls: Tensor, births: Tensor) -> tuple[Tensor, Tensor]:
    """Both concentrations of the beta posterior, `(B,)` each."""
    return PRIOR[0] + girls, PRIOR[1] + births - girls


def log_evidence(girls: Tensor, births: Tensor) -> Tensor:
    """log p(y) = log C(n, y) + log B(a + y, b + n - y) - log B(a, b), `(B,)`, nats."""
    choose = (births + 1).lgamma() - (girls + 1).lgamma() - (births - girls + 1).lgamma()
    prior = tuple(torch.full_like(girls, number) for number in PRIOR)
    return choose + _log_beta(*posterior(girls, births)) - _log_beta(*prior)


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return a.lgamma() + b.lgamma() - (a + b).lgamma()


def target(girls: float = GIRLS, births: float = BIRTHS, dtype: torch.dtype = torch.float64) -> Target:
    """One problem of one latent.

    Args:
        girls, births: the counts.
        dtype: of every computation.

    Raises:
        ValueError: the counts are not 0 <= girls <= births.
    """
    if not 0 <= girls <= births:
        raise ValueError(f"counts must be 0 <= girls <= births, got {girls} and {births}")
    args = torch.tensor([[girls], [births]], dtype=dtype)
    return Target(model, (args[0], args[1]), closed_form=log_evidence, name="beta_binomial", dtype=dtype)
