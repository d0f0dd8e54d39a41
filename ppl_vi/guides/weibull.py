"""z ~ Weibull(scale, concentration)."""

from pyro.distributions import Weibull
from torch.distributions import constraints

from ppl_vi.guides.mean_field import Form

weibull = Form(
    summary="z is Weibull(scale, concentration)",
    constraints={"scale": constraints.positive, "concentration": constraints.positive},
    distribution=Weibull,
    # the density of log z has its mode at log(scale) and the curvature concentration^2
    initial=lambda loc, scale: {"scale": loc.exp(), "concentration": 1 / scale},
)
