"""z ~ Gamma(concentration, rate), drawn by rejection and differentiated implicitly."""

from pyro.distributions import Gamma
from torch.distributions import constraints

from ppl_vi.guides.mean_field import Form

gamma = Form(
    summary="z is Gamma(concentration, rate)",
    constraints={"concentration": constraints.positive, "rate": constraints.positive},
    distribution=Gamma,
    # the density of log z has its mode at log(c / r) and the curvature c
    initial=lambda loc, scale: {"concentration": scale**-2, "rate": scale**-2 * (-loc).exp()},
)
