"""A correlated Gaussian of any dimension and condition number.

    z ~ Normal(0, I_D),  y ~ Normal(A z, I_D)

The posterior is a Gaussian of precision P = I + A'A, and log p(y) = log Normal(y; 0, I + A A'). The matrix A is chosen
so that the eigenvalues of P go from 1 to the condition number, evenly spaced in their logarithms, along random axes.

The best Gaussian with independent latents has variances 1 / P_ii. Its reverse KL, which `mean_field_kl` gives, is
(1/2) log(prod_i P_ii / det P) nats.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from models.ppca import diagonal_gap
from ppl_vi.target.target import Target


def model(design: Tensor, y: Tensor) -> None:
    """One problem: the matrix A `(D, D)`, called the design, and observations `(D,)`."""
    zero = torch.zeros_like(y)
    z = pyro.sample("z", dist.Normal(zero, zero + 1).to_event(1))
    pyro.sample("y", dist.Normal(design @ z, zero + 1).to_event(1), obs=y)


def posterior(design: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(B, D)` and precision `(B, D, D)` for designs `(B, D, D)` and observations `(B, D)`."""
    precision = torch.eye(y.shape[-1], dtype=y.dtype, device=y.device) + design.mT @ design
    return torch.linalg.solve(precision, (design.mT @ y[..., None])[..., 0]), precision


def log_evidence(design: Tensor, y: Tensor) -> Tensor:
    """log p(y), `(B,)`, nats. Its quadratic form is computed as |y - A m|^2 + |m|^2 at the mean m: nothing cancels."""
    loc, precision = posterior(design, y)
    residual = y - (design @ loc[..., None])[..., 0]
    quadratic = residual.square().sum(-1) + loc.square().sum(-1)
    return -(y.shape[-1] * math.log(2 * math.pi) + precision.logdet() + quadratic) / 2


def mean_field_kl(design: Tensor, y: Tensor) -> Tensor:
    """Reverse KL of the best Gaussian with independent latents, `(B,)`, nats."""
    return diagonal_gap(posterior(design, y)[1])


def target(dim: int = 10, condition: float = 100.0, seed: int = 0, dtype: torch.dtype = torch.float64) -> Target:
    """One problem, its observations drawn from the model.

    Args:
        dim: `D`.
        condition: the largest eigenvalue of the posterior's precision divided by the smallest. At `dim` 1, where there
            is only one, the precision is 1 + condition.
        seed: of the axes and the observations.
        dtype: of every computation.

    Raises:
        ValueError: dim is not positive, or condition is below 1 or not finite.
    """
    if dim < 1 or not 1 <= condition < math.inf:
        raise ValueError(f"dim and condition must be at least 1 and finite, got {dim} and {condition}")
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
    eigenvalues = (
        torch.logspace(0, math.log10(condition), dim, dtype=torch.float64) if dim > 1 else axes[0] * 0 + 1 + condition
    )
    design = (eigenvalues - 1).clamp(min=0).sqrt()[:, None] * axes.mT
    noise = torch.randn(2, dim, generator=generator, dtype=torch.float64)
    y = design @ noise[0] + noise[1]
    return Target(model, (design[None], y[None]), closed_form=log_evidence, name="correlated_gaussian", dtype=dtype)
