"""z = log(1 + exp(v)), v ~ Normal(loc, scale): like a lognormal near zero, like a normal far from it."""

import torch
from pyro.distributions import Normal, TransformedDistribution
from pyro.distributions.transforms import SoftplusTransform
from torch import Tensor
from torch.distributions import constraints

from ppl_vi.guides.mean_field import Form


def _initial(loc: Tensor, scale: Tensor) -> dict[str, Tensor]:
    z = loc.exp()
    decay = -torch.expm1(-z)  # the slope of softplus at its inverse of z
    return {"loc": z + decay.log(), "scale": scale * z / decay}


softplus_normal = Form(
    summary="softplus^-1(z) is Normal(loc, scale)",
    constraints={"loc": constraints.real, "scale": constraints.positive},
    distribution=lambda loc, scale: TransformedDistribution(Normal(loc, scale), [SoftplusTransform()]),
    initial=_initial,
)
