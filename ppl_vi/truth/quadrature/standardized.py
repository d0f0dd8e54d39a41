"""A density in standardised coordinates, in which the posterior has about mean 0, covariance I, and light tails."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vi.target.log_density import Density
from ppl_vi.truth.quadrature.tree import NEGLIGIBLE_NATS
from ppl_vi.truth.result import Points

# A density that has fallen by more nats than this counts as 0: e^-746 is 0 in double precision.
VANISHED_NATS = 750.0
# Bisections on the way from the top of the density to a point where it is nan. Twenty find the last place where it is a
# number to a millionth of the way.
NUM_BISECTIONS = 20


def vanished(function: Callable[[Tensor], Tensor], points: Tensor, top: Tensor) -> Tensor:
    """Whether a log density that is nan at points `(S, D)` had fallen to 0 before it became nan, `(S,)`.

    On the straight line from `top` `(D,)` to each point, bisection finds the last place where the log density is a
    number. The density counts as 0 beyond it if it lies more than 750 nats below the value at `top` there. This is so
    where the model's own numbers overflow, as (y / scale)^shape does. It is not so where the model takes the root of a
    negative number: such a root begins where the density is anything but 0.
    """
    level = function(top[None])
    last = level.expand(len(points))
    near, far = points.new_zeros(len(points)), points.new_ones(len(points))
    for _ in range(NUM_BISECTIONS):
        middle = (near + far) / 2
        value = function(top + middle[:, None] * (points - top))
        known = ~value.isnan()
        near, far = torch.where(known, middle, near), torch.where(known, far, middle)
        last = torch.where(known, value, last)
    return last < level - VANISHED_NATS


class WeightedNodes(NamedTuple):
    """Nodes of a quadrature rule.

    Attributes:
        s: the nodes in standardised coordinates, `(S, D)`.
        log_mass: log of density times weight at each, `(S,)`, nats.
    """

    s: Tensor
    log_mass: Tensor

    @property
    def log_total(self) -> float:
        """Log of the rule's integral, nats."""
        return float(self.log_mass.logsumexp(0))


class StandardizedDensity:
    """The density of `s`, where u = center + factor t with t = 2 sinh(s / 2), number by number.

    Near the center s and t are about the same. Far out the heavy tail of a density in t becomes an exponential one in
    s. Where the density is nan it is 0 if it has `vanished` before, and stays nan otherwise.

    Source: Schwartz (1969), Numerical integration of analytic functions (the sinh transformation).
    """

    def __init__(self, density: Density, center: Tensor, factor: Tensor, top: Tensor) -> None:
        """The density in these coordinates.

        Args:
            density: of u.
            center: u of s = 0, `(D,)`.
            factor: `(D, D)`.
            top: the u at which the density is about highest, `(D,)`.
        """
        self.density, self.center, self.factor = density, center, factor
        self.log_scale = float(torch.linalg.slogdet(factor)[1])
        self.top = self.inverse(top[None])[0]

    def at(self, s: Tensor) -> Tensor:
        """u of points s `(S, D)`, `(S, D)`."""
        return self.center + (2 * torch.sinh(s / 2)) @ self.factor.mT

    def inverse(self, u: Tensor) -> Tensor:
        """s of points u `(S, D)`, `(S, D)`."""
        return 2 * torch.asinh(torch.linalg.solve(self.factor, (u - self.center).mT).mT / 2)

    def __call__(self, s: Tensor) -> Tensor:
        """The log density of s at points `(S, D)`, `(S,)`, nats."""
        value = self._density_of_u(s)
        lost = value.isnan()
        if bool(lost.any()):
            value[lost] = torch.where(vanished(self._density_of_u, s[lost], self.top), -torch.inf, torch.nan)
        half = s.abs() / 2
        log_cosh = half + torch.log1p((-2 * half).exp()) - math.log(2)
        return value + log_cosh.sum(-1) + self.log_scale

    def _density_of_u(self, s: Tensor) -> Tensor:
        """The log density of u at points s `(S, D)`, `(S,)`, nats."""
        return self.density(self.at(s))

    def points(self, nodes: WeightedNodes) -> Points:
        """The posterior of u by a rule's nodes, without those of negligible weight."""
        matters = nodes.log_mass > nodes.log_mass.max() - NEGLIGIBLE_NATS
        kept = nodes.log_mass[matters]
        group = torch.zeros(len(kept), dtype=torch.int64, device=kept.device)
        return Points(self.at(nodes.s[matters])[None], (kept - kept.logsumexp(0))[None], group, "rule")
