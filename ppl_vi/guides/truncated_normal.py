"""z ~ Normal(loc, scale) truncated to z >= 0: contains the posterior of a normal likelihood under an exponential prior.

The parameters are those of a Laplace approximation to log z: `mode` m, where z q(z) is largest, and `curvature` c, with
1 + c the curvature of log(z q(z)) in log z there. Setting the derivative to zero gives

    loc = m (1 - 1/c),    scale = m / sqrt(c).

The parameters loc and scale themselves would be a bad choice. Where loc is far below zero only scale^2 / loc matters,
and both go to infinity together along a valley in which Adam moves slowly. With m and c, only c goes to 0, on a log
scale, and m stays where the mass is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.special import erfcx, ndtri

from ppl_vi.distributions import TruncatedNormal
from ppl_vi.guides.mean_field import Form

# Where the interval begins at least this many standard deviations above loc, draws are found by Newton's method on the
# cumulated hazard. Where it begins below, they are found by `ndtri`, which loses digits far out in the tail.
NEWTON_FROM = 1.0
NUM_NEWTON_STEPS = 5


def _hazard(x: Tensor) -> Tensor:
    """The normal density over the mass above it."""
    return math.sqrt(2 / math.pi) / erfcx(x * math.sqrt(0.5))


class PositiveNormal(TruncatedNormal):
    """A normal truncated to z >= 0, with draws several times as cheap as those of a general interval.

    With x = (z - loc) / scale and a = -loc / scale, the mass above z over the mass above 0 is uniform, S(x) / S(a) = w:
    `x = -ndtri(w S(a))` near the peak and Newton's method on the cumulated hazard in the tail. Holding w fixed,
    `dx = da h(a) / h(x)` with the hazard h, which gives the path's derivatives.
    """

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draws of shape `sample_shape + batch_shape`, differentiable once in loc and scale."""
        shape = self._extended_shape(sample_shape)
        uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
        with torch.no_grad():
            above = 1 - uniform  # in (0, 1]
            start = -self.loc / self.scale
            beyond = torch.where(start < NEWTON_FROM, _near_peak(above, start), _in_tail(above, start))
            x = start + beyond
            ratio = _hazard(start) / _hazard(x)
        return (
            self.scale.detach() * beyond
            + (1 - ratio) * (self.loc - self.loc.detach())
            + (x - start * ratio) * (self.scale - self.scale.detach())
        )


def _near_peak(above: Tensor, start: Tensor) -> Tensor:
    """x - a from the inverse of the normal cdf; rounding may not carry it below 0."""
    mass = torch.special.erfc(start.clamp(max=NEWTON_FROM) * math.sqrt(0.5)) / 2
    return (-ndtri(above * mass) - start).clamp(min=0)


def _in_tail(above: Tensor, start: Tensor) -> Tensor:
    """Solves `a d + d^2/2 + log(h(a + d) / h(a)) = -log w` for `d = x - a`."""
    a = start.clamp(min=NEWTON_FROM)
    goal, at_start = -above.log(), _hazard(a)
    d = 2 * goal / (at_start + (at_start.square() + 2 * goal).sqrt())
    for _ in range(NUM_NEWTON_STEPS):
        here = _hazard(a + d)
        d = (d + (goal - d * (a + d / 2) - (here / at_start).log()) / here).clamp(min=0)
    return d


def _distribution(mode: Tensor, curvature: Tensor) -> PositiveNormal:
    return PositiveNormal(mode * (1 - 1 / curvature), mode * curvature.rsqrt(), low=0.0)


truncated_normal = Form(
    summary="z is Normal(loc, scale) truncated to z >= 0: contains the toy's posterior",
    constraints={"mode": constraints.positive, "curvature": constraints.positive},
    distribution=_distribution,
    # 1 + c is the precision in log z; a flatter start than c = 0.01 is next to an exponential
    initial=lambda loc, scale: {"mode": loc.exp(), "curvature": (scale**-2 - 1).clamp(min=0.01)},
)
