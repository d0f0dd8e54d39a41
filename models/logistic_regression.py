"""Bayesian logistic regression: a standard normal prior on the coefficients and on the intercept.

    w ~ Normal(0, I_F),  b ~ Normal(0, 1),  y_n ~ Bernoulli(1 / (1 + exp(-(w x_n + b))))

The posterior is log-concave. `target` takes data of any size that are simulated from the model itself. `shuttle` takes
those of the space shuttle: in which of 23 flights an O-ring was damaged, and the temperature at launch.

Source of the shuttle's data: Dalal, Fowlkes and Hoadley (1989), Risk analysis of the space shuttle: pre-Challenger
prediction of failure.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.target.target import Target

TEMPERATURES = (  # at the launch of each flight, degrees Fahrenheit
    66, 70, 69, 68, 67, 72, 73, 70, 57, 63, 70, 78, 67, 53, 67, 75, 70, 81, 76, 79, 75, 76, 58,
)  # fmt: skip
DAMAGED = (0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1)  # 1 where an O-ring was damaged


def model(features: Tensor, labels: Tensor) -> None:
    """Features `(N, F)` and labels 0 or 1 `(N,)`."""
    zero = features.new_zeros(features.shape[-1])
    coefficients = pyro.sample("coefficients", dist.Normal(zero, zero + 1).to_event(1))
    intercept = pyro.sample("intercept", dist.Normal(zero.new_zeros(()), 1.0))
    with pyro.plate("data", len(labels)):
        pyro.sample("labels", dist.Bernoulli(logits=features @ coefficients + intercept), obs=labels)


def simulated(num_points: int = 20, num_features: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Standard normal features `(N, F)` and labels `(N,)` at a coefficient vector drawn from the prior, float64.

    Raises:
        ValueError: there would be no point or no feature.
    """
    if num_points < 1 or num_features < 1:
        raise ValueError(f"at least one point and one feature are needed, got {num_points} and {num_features}")
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(num_features + 1, generator=generator, dtype=torch.float64)
    features = torch.randn(num_points, num_features, generator=generator, dtype=torch.float64)
    uniform = torch.rand(num_points, generator=generator, dtype=torch.float64)
    return features, (uniform < torch.sigmoid(features @ truth[:-1] + truth[-1])).double()


def target(num_points: int = 20, num_features: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> Target:
    """Simulated data as one problem of `num_features + 1` latents.

    Args:
        num_points, num_features, seed: the arguments of `simulated`.
        dtype: of every computation.
    """
    features, labels = simulated(num_points, num_features, seed)
    return Target(model, (features[None], labels[None]), name="logistic_regression", dtype=dtype)


def shuttle(dtype: torch.dtype = torch.float64) -> Target:
    """The 23 flights as one problem of two latents: an intercept, and a coefficient of (temperature - 70) / 10."""
    features = (torch.tensor(TEMPERATURES, dtype=torch.float64) - 70) / 10
    labels = torch.tensor(DAMAGED, dtype=torch.float64)
    return Target(model, (features[None, :, None], labels[None]), name="logistic_regression", dtype=dtype)
