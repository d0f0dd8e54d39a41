"""z = |v|, v ~ Normal(loc, scale)."""

from pyro.distributions import FoldedDistribution, Normal
from torch.distributions import constraints

from ppl_vi.guides.mean_field import Form

folded_normal = Form(
    summary="z is |v| with v Normal(loc, scale)",
    constraints={"loc": constraints.real, "scale": constraints.positive},
    distribution=lambda loc, scale: FoldedDistribution(Normal(loc, scale)),
    initial=lambda loc, scale: {"loc": loc.exp(), "scale": loc.exp() * scale},
)
