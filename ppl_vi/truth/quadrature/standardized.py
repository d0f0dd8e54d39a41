"""TODO."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ppl_vi.target.log_density import Density

VANISHED = 750.0  # nats below the highest: e^-746 is 0 in float64
HALVINGS = 20  # of the way from there to a point where the density is no number


def vanished(function: Callable[[Tensor], Tensor], points: Tensor, top: Tensor) -> Tensor:
    """Whether a log density has fallen below e^-750 of what it is at `top` `(D,)`, where it was a number for the last
    time on the straight way from there to points `(S, D)`, at which it is none: `(S,)`.

    So it does where a model's own numbers overflow, as (y / scale)^shape; a root of what is below 0 begins where the
    density is anything but 0.
    """
    level = function(top[None])
    last = level.expand(len(points))
    near, far = points.new_zeros(len(points)), points.new_ones(len(points))
    for _ in range(HALVINGS):
        middle = (near + far) / 2
        value = function(top + middle[:, None] * (points - top))
        known = ~value.isnan()
        near, far, last = (
            torch.where(known, middle, near),
            torch.where(known, far, middle),
            torch.where(known, value, last),
        )
    return last < level - VANISHED


class Standardized:
    """The same density over `s` with u = center + factor t, t = 2 sinh(s / 2) number by number.

    Heavy tails fall exponentially in s, and what is near looks as it does in t. A nan is taken for a density of 0 where
    this has `vanished` before.

    Source: Schwartz (1969), Numerical integration of analytic functions (the sinh transformation).
    """

    def __init__(self, density: Density, center: Tensor, factor: Tensor, top: Tensor) -> None:
        """The density in coordinates of that centre and factor; it is about highest at `top`, all in terms of u."""
        self.density, self.center, self.factor = density, center, factor
        self.log_scale = float(torch.linalg.slogdet(factor)[1])
        self.top = self.inverse(top[None])[0]

    def at(self, s: Tensor) -> Tensor:
        """u of points `(S, D)`."""
        return self.center + (2 * torch.sinh(s / 2)) @ self.factor.mT

    def inverse(self, u: Tensor) -> Tensor:
        """s of points `(S, D)`."""
        return 2 * torch.asinh(torch.linalg.solve(self.factor, (u - self.center).mT).mT / 2)

    def __call__(self, s: Tensor) -> Tensor:
        """The log density of s at points `(S, D)`, `(S,)`."""
        value = self._plain(s)
        lost = value.isnan()
        if bool(lost.any()):
            value[lost] = torch.where(vanished(self._plain, s[lost], self.top), -torch.inf, torch.nan)
        half = s.abs() / 2
        log_cosh = half + torch.log1p((-2 * half).exp()) - math.log(2)
        return value + log_cosh.sum(-1) + self.log_scale

    def _plain(self, s: Tensor) -> Tensor:
        """The log density of u at points `(S, D)`, `(S,)`."""
        return self.density(self.at(s))
