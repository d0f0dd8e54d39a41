"""A Gaussian bent into a banana.

    x ~ Normal(0, 10),  y | x ~ Normal(0.03 (x^2 - 100), 1)

There are no data: prior and posterior are the same, and the evidence is 1. The means of x and y are 0, and
Var y = 1 + 2 (0.03 100)^2 = 19.

Source: Haario, Saksman and Tamminen (1999), Adaptive proposal distribution for random walk Metropolis algorithm.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.target.target import Target

SD, BEND = 10.0, 0.03


def model(data: Tensor) -> None:
    """Two latents. There are no data: `data` is an empty tensor `(0,)`, which gives the dtype and the device."""
    x = pyro.sample("x", dist.Normal(data.new_zeros(()), SD))
    pyro.sample("y", dist.Normal(BEND * (x**2 - SD**2), 1.0))


def moments() -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of x and y, `(2,)` each."""
    sd = torch.tensor([SD, math.sqrt(1 + 2 * (BEND * SD**2) ** 2)], dtype=torch.float64)
    return torch.zeros_like(sd), sd


def log_evidence(data: Tensor) -> Tensor:
    """0 for each problem, `(B,)`."""
    return data.new_zeros(len(data))


def target(dtype: torch.dtype = torch.float64) -> Target:
    """One problem of two latents."""
    return Target(model, (torch.zeros(1, 0, dtype=dtype),), closed_form=log_evidence, name="banana", dtype=dtype)
