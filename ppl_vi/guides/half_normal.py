"""z = |v|, v ~ Normal(0, scale): a family of one parameter."""

from pyro.distributions import HalfNormal
from torch.distributions import constraints

from ppl_vi.guides.mean_field import Form

half_normal = Form(
    summary="z is HalfNormal(scale)",
    constraints={"scale": constraints.positive},
    distribution=HalfNormal,
    initial=lambda loc, scale: {"scale": loc.exp()},
)
