"""A wide scan for modes that searches from dispersed starts have missed.

Seen from a known mode, the log density of most posteriors falls on all sides: its slope leads back. A place where it
leads aside or away, as seen from every known mode, belongs to something else, however narrow that is, and a search for
a mode begins there. A point needs one gradient, so that hundreds of thousands can be looked at where these are cheap.

Half of the points are spread as the prior is, number by number, and beyond it. The other half lie around the known
modes, in all directions, at distances of every order of magnitude up to the prior's: the slope of a narrow mode that
lies d away from a normal bulk overrules the bulk's within about d times the ratio of the two widths, so that the share
of such points does not depend on d.
"""

from __future__ import annotations

import math

import torch
from scipy import optimize, special
from torch import Tensor

from ppl_vi.compiler.many_points import chunks
from ppl_vi.target.log_density import Density
from ppl_vi.truth.chains.sampler import chains_at

# All points together may cost as much as this many numbers, of which each point takes the width of the density's
# largest temporary and POINT_OVERHEAD more, but there are at most MAX_POINTS. More points find narrower modes.
MAX_NUMBERS, POINT_OVERHEAD, MAX_POINTS = 2**25, 20, 2**20
# So many are looked at together: what they need stays in the processor's cache.
CHUNK_SIZE = 2**14
# A slope leads elsewhere if the angle between it and the way back to the mode, in coordinates in which the mode is
# round, has a smaller cosine than this. With 0 a half of the points around a hidden mode would not show it.
MAX_COSINE = 0.5
# Distances of points from modes, in standard deviations, begin at this share of the root of the number of dimensions,
# where most of a normal density lies.
NEAREST = 0.25
# Points around modes reach at least this many times as far out as most of a normal density lies, and at most
# MAX_REACH times, whatever the prior is: nobody needs to look where a posterior of a scale of 1e-6 is hopeless.
MIN_REACH, MAX_REACH = 8.0, 2.0**20
# The slopes of no more modes than this, the heaviest, are asked for.
MAX_MODES = 16
# Of the points whose slopes lead elsewhere, searches begin at so many, and all together take at most this share of the
# gradients of the scan.
MAX_STARTS, MAX_SEARCH_SHARE, STEPS_OF_A_SEARCH = 256, 0.5, 20
# Of the points, a share that is missed with a probability of e^-3, or 5%.
MISSED = 3.0


def what_may_hide(density: Density) -> str:
    """How narrow a part of a density must be so that a scan may miss it, in words."""
    num = num_scanned(density)
    return (
        f"a part narrower than {narrowest(num, density.dim):.1g} times its distance from the modes found may hide from "
        f"the {num:,} points of a wide scan"
    )


def narrowest(num_points: int, dim: int) -> float:
    """The radius of a ball, as a share of its distance from a mode, that a scan meets with a probability of 95%.

    A ball of radius r at the distance 1 takes the share I(r^2; (D - 1) / 2, 1 / 2) / 2 of all directions, where I is
    the regularised incomplete beta function, and about 2 r / log MIN_REACH of the distances.
    """

    def excess(r: float) -> float:
        cap = special.betainc((dim - 1) / 2, 0.5, r * r) / 2 if dim > 1 else 0.5
        return num_points / 2 * cap * min(1.0, 2 * r / math.log(MIN_REACH / NEAREST)) - MISSED

    return float(optimize.brentq(excess, 0.0, 1.0)) if excess(1.0) > 0 else 1.0


def num_scanned(density: Density) -> int:
    """How many points a scan of a density has."""
    return max(1, min(MAX_POINTS, MAX_NUMBERS // (density.width + POINT_OVERHEAD)))


def scanned(density: Density, prior: Tensor, loc: Tensor, factor: Tensor, seed: int) -> Tensor:
    """Points of finite density whose slopes lead to no known mode, where searches should begin, `(K, D)`.

    Args:
        density: unnormalised.
        prior: draws of the prior, `(S, D)`.
        loc: the known modes, the heaviest first, `(M, D)`.
        factor: L of normal densities there with the covariances L L', `(M, D, D)`.
        seed: of the points.
    """
    generator, num, found = torch.Generator().manual_seed(seed), num_scanned(density), []
    points = _Points(prior, loc[:MAX_MODES], factor[:MAX_MODES], generator)
    for few in chunks(num, CHUNK_SIZE):
        u = points.draw(min(few.stop, num) - few.start)
        state = chains_at(density, u)
        found.append(u[points.lead_elsewhere(u, state.slope) & state.value.isfinite()])
    starts = torch.cat(found)
    most = int(min(MAX_STARTS, MAX_SEARCH_SHARE * num / (STEPS_OF_A_SEARCH * (density.dim + 1))))
    return starts[torch.randperm(len(starts), generator=generator)[:most]]


class _Points:
    """Where a scan looks.

    Args:
        prior: draws of the prior, `(S, D)`.
        loc: the known modes, `(M, D)`.
        factor: of normal densities there, `(M, D, D)`.
        generator: of all points.
    """

    def __init__(self, prior: Tensor, loc: Tensor, factor: Tensor, generator: torch.Generator) -> None:
        self.loc, self.factor, self.generator = loc, factor, generator
        self.inverse = torch.linalg.inv(self.factor)
        self.sorted, self.middle = prior.sort(0).values, prior.median(0).values
        away = ((prior[:, None] - self.loc)[..., None, :] @ self.inverse.mT).norm(dim=-1)[..., 0].amax(0)  # (K,)
        typical = math.sqrt(prior.shape[1])
        self.nearest = NEAREST * typical
        self.farthest = away.clamp(MIN_REACH * typical, MAX_REACH * typical)

    def draw(self, num: int) -> Tensor:
        """So many points, `(num, D)`."""
        return torch.cat([self._by_prior(num // 2), self._around_modes(num - num // 2)])

    def _rand(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, dtype=self.sorted.dtype)

    def _by_prior(self, num: int) -> Tensor:
        """Each number has its prior's distribution, from quantile to quantile, stretched by a factor of 1/2 to 2."""
        last, dim = len(self.sorted) - 1, self.sorted.shape[1]
        place = self._rand(num, dim) * last
        below = place.long().clamp(max=max(0, last - 1))
        low = self.sorted.gather(0, below)
        high = self.sorted.gather(0, (below + 1).clamp(max=last))
        stretch = 2 ** (2 * self._rand(num, 1) - 1)
        return self.middle + stretch * (low + (place - below) * (high - low) - self.middle)

    def _around_modes(self, num: int) -> Tensor:
        """Around the modes in turn, in any direction, the logarithm of the distance uniform."""
        mode = torch.arange(num) % len(self.loc)
        direction = torch.randn(num, self.loc.shape[1], generator=self.generator, dtype=self.loc.dtype)
        direction = direction / direction.norm(dim=1, keepdim=True)
        distance = self.nearest * (self.farthest[mode] / self.nearest) ** self._rand(num)
        white = distance[:, None] * direction
        parts = torch.zeros_like(white)
        for k in range(len(self.loc)):
            parts[k :: len(self.loc)] = self.loc[k] + white[k :: len(self.loc)] @ self.factor[k].mT
        return parts

    def lead_elsewhere(self, u: Tensor, slope: Tensor) -> Tensor:
        """Whether slopes `(S, D)` at points `(S, D)` lead to none of the modes, `(S,)`."""
        elsewhere = torch.ones(len(u), dtype=torch.bool)
        for loc, factor, inverse in zip(self.loc, self.factor, self.inverse, strict=True):
            back, along = (loc - u) @ inverse.mT, slope @ factor
            cosine = (back * along).sum(1) / (back.norm(dim=1) * along.norm(dim=1))
            elsewhere &= cosine < MAX_COSINE
        return elsewhere
