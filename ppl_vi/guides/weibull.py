"""z ~ Weibull(scale, concentration)."""

import torch
from pyro.distributions import Weibull
from torch import Tensor
from torch.distributions import constraints

from ppl_vi.guides.mean_field import Form


class LogWeibull(Weibull):
    """Torch's Weibull, its density in logarithms: torch's is -inf once (z / scale)^concentration underflows."""

    def log_prob(self, value: Tensor) -> Tensor:
        """log k - log s + (k - 1) log(z/s) - (z/s)^k, nats."""
        log_ratio = value.log() - self.scale.log()
        k = self.concentration
        return k.log() - self.scale.log() + (k - 1) * log_ratio - torch.exp(k * log_ratio)


weibull = Form(
    summary="z is Weibull(scale, concentration)",
    constraints={"scale": constraints.positive, "concentration": constraints.positive},
    distribution=LogWeibull,
    # the density of log z has its mode at log(scale) and the curvature concentration^2
    initial=lambda loc, scale: {"scale": loc.exp(), "concentration": 1 / scale},
)
