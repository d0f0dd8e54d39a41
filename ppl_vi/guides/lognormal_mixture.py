"""A mixture of K lognormals, with pathwise gradients in the weights too."""

from __future__ import annotations

import torch
from pyro.distributions import Categorical, LogNormal, MixtureSameFamily
from torch import Tensor
from torch.distributions import constraints

from ppl_vi.guides.mean_field import Form

NUM_COMPONENTS = 5  # K; more components bring the best member nearer, and give its search more local optima


class PathwiseMixture(MixtureSameFamily):
    """A mixture on the line whose draws have a path for gradients, which torch's `MixtureSameFamily` lacks.

    A component is chosen, then drawn from; the draw is differentiated implicitly in all parameters, the weights
    included, by holding its cdf fixed: `dz = -dF(z) / q(z)`. Second derivatives are not those of any path.

    Source: Figurnov, Mohamed and Mnih (2018), Implicit reparameterization gradients.
    """

    has_rsample = True

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draws of shape `sample_shape + batch_shape`."""
        weights = self.mixture_distribution.probs
        with torch.no_grad():
            uniform = torch.rand(self._extended_shape(sample_shape), dtype=weights.dtype, device=weights.device)
            last = weights.shape[-1] - 1
            chosen = (uniform[..., None] > weights.cumsum(-1)).sum(-1, keepdim=True).clamp(max=last)
            z = self.component_distribution.sample(sample_shape).gather(-1, chosen).squeeze(-1)
        cdf = self.cdf(z)
        return z - (cdf - cdf.detach()) / self.log_prob(z).exp().detach()

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """The same draws without their path."""
        with torch.no_grad():
            return self.rsample(sample_shape)


def _distribution(loc: Tensor, scale: Tensor, logits: Tensor) -> PathwiseMixture:
    return PathwiseMixture(Categorical(logits=logits), LogNormal(loc, scale))


def _initial(loc: Tensor, scale: Tensor) -> dict[str, Tensor]:
    spread = torch.linspace(-1, 1, NUM_COMPONENTS, dtype=loc.dtype, device=loc.device)
    return {
        "loc": loc[..., None] + scale[..., None] * spread,
        "scale": scale[..., None].expand(*scale.shape, NUM_COMPONENTS).clone(),
        "logits": torch.zeros_like(loc)[..., None].expand(*loc.shape, NUM_COMPONENTS).clone(),
    }


lognormal_mixture = Form(
    summary=f"z is a mixture of {NUM_COMPONENTS} lognormals",
    constraints={"loc": constraints.real, "scale": constraints.positive, "logits": constraints.real},
    distribution=_distribution,
    initial=_initial,
)
