"""z ~ Exponential(rate), a family of one parameter. The toy's posterior tends to it as x goes to minus infinity."""

from pyro.distributions import Exponential
from torch.distributions import constraints

from ppl_vi.guides.mean_field import Form

exponential = Form(
    summary="z is Exponential(rate)",
    constraints={"rate": constraints.positive},
    distribution=Exponential,
    initial=lambda loc, scale: {"rate": (-loc).exp()},
)
