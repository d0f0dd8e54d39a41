"""q(z | x) = Normal(loc, diag(scale^2)); local parameters: loc, log scale."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.guides.amortized.head import Head


class Diagonal(Head):
    """A Gaussian whose latents are independent given x."""

    summary = "Gaussian with diagonal covariance"

    def __init__(self, num_latents: int) -> None:
        super().__init__(num_latents, 2 * num_latents)

    def forward(self, local: Tensor) -> dist.Independent:
        """Local parameters `(..., 2 D)`."""
        loc, log_scale = local.chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def components(self, local: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One Gaussian."""
        loc, log_scale = local.chunk(2, -1)
        return (
            local.new_zeros((*local.shape[:-1], 1)),
            loc[..., None, :],
            torch.diag_embed(log_scale.exp())[..., None, :, :],
        )

    def initial(self, loc: Tensor, precision: Tensor) -> Tensor:
        """Reverse KL wants the precision's diagonal."""
        diagonal = torch.diagonal(precision, dim1=-2, dim2=-1)
        return torch.cat([loc, -diagonal.log() / 2], -1)
