"""z ~ Exponential(rate): one parameter, exact far below zero."""

from pyro.distributions import Exponential
from torch.distributions import constraints

from ppl_vi.guides.mean_field import Form

exponential = Form(
    summary="z is Exponential(rate)",
    constraints={"rate": constraints.positive},
    distribution=Exponential,
    initial=lambda loc, scale: {"rate": (-loc).exp()},
)
