"""Neal's funnel: one latent is the logarithm of the others' variance.

    v ~ Normal(0, 3),  x_i | v ~ Normal(0, exp(v / 2)),  i = 1 .. dim - 1

There are no data: prior and posterior are the same, and the evidence is 1. The density is largest in the neck, at
v = -9 (dim - 1) / 2 and x = 0, where there is no mass.

The best Gaussian with independent latents has loc 0, Var q(v) = 9 / (1 + 9 (dim - 1) / 2), and

    min KL(q || p) = (1/2) log(1 + 9 (dim - 1) / 2).

To see this, give v the mean m and the variance s^2, and each of the n = dim - 1 others the mean 0 and the variance t^2:

    KL = -log(s / 3) - n log t + (s^2 + m^2) / 18 + n m / 2 + n t^2 exp(-m + s^2 / 2) / 2 - (n + 1) / 2.

The best t^2 is exp(m - s^2 / 2), which leaves -log(s / 3) + (1 / 9 + n / 2) s^2 / 2 + m^2 / 18 - 1 / 2. The
minimum is at m = 0 and s^2 = 9 / (1 + 9 n / 2).

Source: Neal (2003), Slice sampling.
"""

from __future__ import annotations

import math
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.target.conditional import Conditional
from ppl_vi.target.sites import Latents
from ppl_vi.target.target import Target

SD = 3.0


def model(data: Tensor, dim: int) -> None:
    """`dim` latents. There are no data: `data` is an empty tensor `(0,)`, which gives the dtype and the device."""
    v = pyro.sample("v", dist.Normal(0.0, SD))
    with pyro.plate("others", dim - 1):
        pyro.sample("x", dist.Normal(data.new_zeros(()), torch.exp(v / 2)))


def log_marginal(outer: Latents, data: Tensor) -> Tensor:
    """log p(v), nats."""
    return -(outer["v"] / SD).square() / 2 - math.log(SD) - math.log(2 * math.pi) / 2


def sample_given_v(outer: Latents, noise: Tensor, data: Tensor) -> Latents:
    """x given v, from standard normal noise `(dim - 1,)`."""
    return {"x": torch.exp(outer["v"] / 2) * noise}


def moments(dim: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of v and of the x, `(dim,)` each: Var x = E exp(v) = exp(9 / 2)."""
    sd = torch.full((dim,), math.exp(SD**2 / 4), dtype=torch.float64)
    sd[0] = SD
    return torch.zeros_like(sd), sd


def mean_field_kl(dim: int) -> float:
    """Reverse KL of the best Gaussian with independent latents, nats."""
    return math.log1p(SD**2 * (dim - 1) / 2) / 2


def log_evidence(data: Tensor) -> Tensor:
    """0 for each problem, `(B,)`."""
    return data.new_zeros(len(data))


def target(dim: int = 10, dtype: torch.dtype = torch.float64) -> Target:
    """One problem.

    Args:
        dim: number of latents, v included.
        dtype: of every computation.

    Raises:
        ValueError: there would be no x.
    """
    if dim < 2:
        raise ValueError(f"dim must be at least 2, got {dim}")
    return Target(
        partial(model, dim=dim),
        (torch.zeros(1, 0, dtype=dtype),),
        closed_form=log_evidence,
        name="funnel",
        dtype=dtype,
        conditional=Conditional(("v",), log_marginal, sample_given_v, dim - 1),
    )
