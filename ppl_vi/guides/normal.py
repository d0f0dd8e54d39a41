"""z ~ Normal(loc, scale) on the whole line: a common first choice of guide, but wrong for a positive latent.

It puts mass where the posterior has none, so its reverse KL is infinite; see `ppl_vi.svi.support`."""

from pyro.distributions import Normal
from torch.distributions import constraints

from ppl_vi.guides.mean_field import Form

normal = Form(
    summary="z is Normal(loc, scale): leaks mass below 0 on a positive site",
    constraints={"loc": constraints.real, "scale": constraints.positive},
    distribution=Normal,
    initial=lambda loc, scale: {"loc": loc.exp(), "scale": loc.exp() * scale},
)
