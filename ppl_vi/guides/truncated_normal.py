"""z ~ Normal(loc, scale) truncated to z >= 0: contains the posterior of a normal likelihood under an exponential prior.

The parameters are those of a Laplace approximation to log z: `mode` m, where z q(z) is largest, and `curvature` c, with
1 + c the curvature of log(z q(z)) in log z there. Setting the derivative to zero gives

    loc = m (1 - 1/c),    scale = m / sqrt(c).

(loc, scale) themselves serve badly: far below zero only scale^2 / loc matters, and both run to infinity together along a
valley where Adam crawls. Here c runs to 0 on a log scale, and m stays where the mass is."""

from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ppl_vi.distributions import TruncatedNormal
from ppl_vi.guides.mean_field import Form


def _distribution(mode: Tensor, curvature: Tensor) -> TorchDistribution:
    return TruncatedNormal(mode * (1 - 1 / curvature), mode * curvature.rsqrt(), low=0.0)


truncated_normal = Form(
    summary="z is Normal(loc, scale) truncated to z >= 0: contains the toy's posterior",
    constraints={"mode": constraints.positive, "curvature": constraints.positive},
    distribution=_distribution,
    # 1 + c is the precision in log z; a flatter start than c = 0.01 is next to an exponential
    initial=lambda loc, scale: {"mode": loc.exp(), "curvature": (scale**-2 - 1).clamp(min=0.01)},
)
