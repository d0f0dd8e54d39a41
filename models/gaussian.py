"""A correlated Gaussian of any dimension: the innovations of a moving average.

    z ~ Normal(0, I_D),  y_d ~ Normal(z_d + z_(d-1), 1),  z_(-1) = 0

In matrices y = B z + noise with a bidiagonal B. The posterior is a Gaussian of the tridiagonal precision I + B'B, and

    log p(y) = log Normal(y; 0, I + B B').

The log joint density costs O(D), and neighbouring latents are negatively correlated in the posterior.

Source: Box and Jenkins (1970), Time series analysis: the moving average of first order.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import pad

from ppl_vi.target.target import Target


def model(y: Tensor) -> None:
    """One series `(D,)`."""
    zero = torch.zeros_like(y)
    z = pyro.sample("z", dist.Normal(zero, zero + 1).to_event(1))
    pyro.sample("y", dist.Normal(z + pad(z[..., :-1], (1, 0)), zero + 1).to_event(1), obs=y)


def log_evidence(y: Tensor) -> Tensor:
    """log p(y) of series `(B, D)`: `(B,)`, nats."""
    design = _design(y.shape[-1], y.dtype)
    factor = torch.linalg.cholesky(torch.eye(y.shape[-1], dtype=y.dtype) + design @ design.mT)
    white = torch.linalg.solve_triangular(factor, y[..., None], upper=False)[..., 0]
    log_det = 2 * torch.diagonal(factor).log().sum()
    return -(white.square().sum(-1) + log_det + y.shape[-1] * math.log(2 * math.pi)) / 2


def posterior(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(B, D)` and precision `(D, D)` for series `(B, D)`."""
    design = _design(y.shape[-1], y.dtype)
    precision = torch.eye(y.shape[-1], dtype=y.dtype) + design.mT @ design
    return torch.linalg.solve(precision, y @ design, left=False), precision


def _design(dim: int, dtype: torch.dtype) -> Tensor:
    """B, `(D, D)`."""
    one = torch.ones(dim, dtype=dtype)
    return torch.diag(one) + torch.diag(one[:-1], -1)


def target(dim: int = 10, seed: int = 0, dtype: torch.dtype = torch.float64) -> Target:
    """One series, drawn from the model.

    Args:
        dim: `D`.
        seed: of the series.
        dtype: of every computation.

    Raises:
        ValueError: the dimension is not positive.
    """
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}")
    noise = torch.randn(2, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = noise[0] @ _design(dim, torch.float64).mT + noise[1]
    return Target(model, (y[None],), closed_form=log_evidence, name="gaussian", dtype=dtype)
