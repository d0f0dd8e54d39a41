"""q(z | x) = Normal(loc, L L'); local parameters: loc, log of L's diagonal, what lies below it row by row."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.guides.amortized.head import Head


class Full(Head):
    """A Gaussian with any covariance."""

    summary = "Gaussian with full covariance, by its Cholesky factor"

    def __init__(self, num_latents: int) -> None:
        super().__init__(num_latents, num_latents + num_latents * (num_latents + 1) // 2)

    def forward(self, local: Tensor) -> dist.MultivariateNormal:
        """Local parameters `(..., D + D (D + 1) / 2)`."""
        loc, scale_tril = self.split(local)
        return dist.MultivariateNormal(loc, scale_tril=scale_tril)

    def split(self, local: Tensor) -> tuple[Tensor, Tensor]:
        """loc `(..., D)` and L `(..., D, D)`."""
        num = self.num_latents
        loc, log_diagonal, below = local.split([num, num, num * (num - 1) // 2], -1)
        rows, columns = torch.tril_indices(num, num, -1, device=local.device)
        # by a product with constants, which any transform of torch.func can take
        place = local.new_zeros(below.shape[-1], num, num)
        place[torch.arange(below.shape[-1], device=local.device), rows, columns] = 1.0
        return loc, torch.diag_embed(log_diagonal.exp()) + (below[..., None, None] * place).sum(-3)

    def components(self, local: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One Gaussian."""
        loc, scale_tril = self.split(local)
        return local.new_zeros((*local.shape[:-1], 1)), loc[..., None, :], scale_tril[..., None, :, :]

    def initial(self, loc: Tensor, precision: Tensor) -> Tensor:
        """The Cholesky factor of the inverse."""
        return self.packed(loc, torch.linalg.cholesky(torch.linalg.inv(precision)))

    def packed(self, loc: Tensor, scale_tril: Tensor) -> Tensor:
        """`split` the other way round."""
        rows, columns = torch.tril_indices(self.num_latents, self.num_latents, -1, device=loc.device)
        diagonal = torch.diagonal(scale_tril, dim1=-2, dim2=-1)
        return torch.cat([loc, diagonal.log(), scale_tril[..., rows, columns]], -1)
