"""Prices of 5,000 diamonds by 24 strongly correlated predictors, centred: 26 numbers.

Source: a model of brms for the data set of the R package ggplot2; posteriordb's `diamonds`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from models.posteriordb.posterior import Posterior, stated, tensors


def diamonds(X: Tensor, y: Tensor) -> None:
    """Centred predictors X `(N, K)` and log prices y `(N,)`. sigma's prior is half of a Student t of 3 degrees."""
    b = pyro.sample("b", dist.Normal(torch.zeros(X.shape[-1]), 1.0).to_event(1))
    intercept = pyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
    half = dist.StudentT(3.0, 0.0, 10.0)
    sigma = stated("sigma", dist.HalfCauchy(y.std()), lambda value: half.log_prob(value) + math.log(2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("Y", dist.Normal(intercept + X @ b, sigma), obs=y)


def posterior(raw: Mapping[str, Any]) -> Posterior:
    """The posterior of `diamonds`."""
    d = tensors(raw)
    X = d["X"][:, 1:]
    return Posterior(diamonds, (X - X.mean(0), d["Y"]))


POSTERIORS: dict[str, Callable[[Mapping[str, Any]], Posterior]] = {"diamonds-diamonds": posterior}
