"""z ~ Gamma(concentration, concentration / mean), drawn by rejection and differentiated implicitly.

By its mean rather than its rate: mean and concentration are orthogonal (their Fisher information is diagonal), while
concentration and rate run together along a valley where Adam crawls.
"""

from pyro.distributions import Gamma
from torch.distributions import constraints

from ppl_vi.guides.mean_field import Form

gamma = Form(
    summary="z is Gamma with a mean and a concentration",
    constraints={"mean": constraints.positive, "concentration": constraints.positive},
    distribution=lambda mean, concentration: Gamma(concentration, concentration / mean),
    # the density of log z has its mode at log(mean) and the curvature concentration
    initial=lambda loc, scale: {"mean": loc.exp(), "concentration": scale**-2},
)
