"""log z ~ Normal(loc, scale): the family of Pyro's `AutoNormal` on a positive site."""

from pyro.distributions import LogNormal
from torch.distributions import constraints

from ppl_vi.guides.mean_field import Form

lognormal = Form(
    summary="log z is Normal(loc, scale)",
    constraints={"loc": constraints.real, "scale": constraints.positive},
    distribution=LogNormal,
    initial=lambda loc, scale: {"loc": loc, "scale": scale},
)
