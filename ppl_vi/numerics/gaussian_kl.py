"""Kullback-Leibler divergences between Gaussians in closed form."""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian_kl(loc0: Tensor, cov0: Tensor, loc1: Tensor, cov1: Tensor) -> Tensor:
    """D(Normal(loc0, cov0) || Normal(loc1, cov1)), nats.

    `(tr(cov1^-1 cov0) + (loc1 - loc0)' cov1^-1 (loc1 - loc0) - k + log det cov1 - log det cov0) / 2`; from a standard
    normal, as in a variational autoencoder's objective, `(tr cov0 + loc0' loc0 - k - log det cov0) / 2`.

    Args:
        loc0: `(..., k)`; leading axes broadcast.
        cov0: `(..., k, k)`.
        loc1: `(..., k)`.
        cov1: `(..., k, k)`.

    Returns:
        `(...)`.

    Raises:
        ValueError: a shape does not fit, or a covariance is not symmetric and positive definite.

    Source: Kullback (1959), Information theory and statistics, chapter 9.
    """
    k = loc0.shape[-1]
    shapes = {"loc1": loc1.shape[-1:], "cov0": cov0.shape[-2:], "cov1": cov1.shape[-2:]}
    for name, shape in shapes.items():
        if any(size != k for size in shape) or len(shape) != (1 if name == "loc1" else 2):
            raise ValueError(f"loc0 has {k} coordinates, but {name} ends in shape {tuple(shape)}")
    return gaussian_kl_tril(loc0, _cholesky(cov0, "cov0"), loc1, _cholesky(cov1, "cov1"))


def gaussian_kl_tril(loc0: Tensor, tril0: Tensor, loc1: Tensor, tril1: Tensor) -> Tensor:
    """`gaussian_kl` of covariances given by their Cholesky factors `(..., k, k)`; nothing is checked."""
    both = torch.cat(torch.broadcast_tensors(tril0, tril1), -1)
    whitened = torch.linalg.solve_triangular(tril1, both[..., : tril0.shape[-1]], upper=False)
    moved = torch.linalg.solve_triangular(tril1, (loc1 - loc0)[..., None], upper=False).squeeze(-1)
    # log det and trace together: x - 1 - log x of each diagonal ratio is small where the two are close
    ratio = torch.diagonal(whitened, dim1=-2, dim2=-1)
    below = whitened.square().sum((-2, -1)) - ratio.square().sum(-1)
    return ((ratio.square() - 1 - 2 * ratio.log()).sum(-1) + below + moved.square().sum(-1)) / 2


def _cholesky(covariance: Tensor, name: str) -> Tensor:
    symmetric = torch.allclose(covariance, covariance.mT, rtol=1e-6, atol=0.0) if covariance.numel() else True
    factor, info = torch.linalg.cholesky_ex(covariance)
    if not symmetric or bool((info != 0).any()):
        raise ValueError(f"{name} must be symmetric and positive definite")
    return factor
