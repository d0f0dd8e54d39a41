"""z ~ Gamma(concentration, concentration / mean), drawn by rejection and differentiated implicitly.

The parameters are the mean and the concentration, which are orthogonal (their Fisher information is diagonal). With the
rate in place of the mean, the ELBO would have a long narrow valley along which Adam moves slowly.
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
