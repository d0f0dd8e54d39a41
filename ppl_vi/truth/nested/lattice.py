"""The integral of a density of up to five numbers, by two trapezoid lattices that interlock, and draws from them.

In coordinates in which the posterior has about mean 0 and covariance I, a lattice of the spacing h is exact for a
normal density to e^(-2 pi^2 / h^2). Its nodes are found by spreading from the modes for as long as the density is not
negligible, so that their number grows with the volume of a ball and not with that of a cube. A second lattice lies in
the middles of the first one's cells. The leading errors of the two have opposite signs; their difference bounds the
error of their mean.

Source: Trefethen and Weideman (2014), The exponentially convergent trapezoidal rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_vi.target.log_density import Density
from ppl_vi.truth.quadrature.adaptive import MIN_CORRELATION
from ppl_vi.truth.quadrature.standardized import vanished

MAX_LATTICE_DIM = 5
# The first spacing that is tried, in standard deviations, by the number of dimensions. Each further one is SHRINKAGE
# times as wide, until the two lattices agree or there would be too many nodes.
FIRST_SPACING = {1: 0.5, 2: 0.6, 3: 0.7, 4: 0.9, 5: 0.9}
SHRINKAGE, NUM_SPACINGS = 0.65, 5
# The difference at which no finer lattice is tried, and the largest one at which the result is taken, nats.
GOOD_DIFFERENCE, MAX_DIFFERENCE = 1e-9, 1e-6
# A finer lattice that lowers the difference by less than this factor has met the noise of the density itself.
MIN_GAIN = 3.0
# Nodes whose mass lies this many nats below the heaviest one's have no neighbours, by the number of dimensions: what is
# left out then is a share of the integral of 1e-10 in one dimension, and of 1e-8 in five.
DEPTH = {1: 30.0, 2: 30.0, 3: 28.0, 4: 26.0, 5: 26.0}
# The lattice that only tells where the mass is has wide spacing, and leaves out a share of about 1e-4.
ROUGH_SPACING, ROUGH_DEPTH = 1.2, 14.0
# Nodes of one lattice at most, and fewer where their temporaries have more numbers than MAX_NUMBERS.
MAX_NODES, MAX_NUMBERS = 2**17, 2**27
# Beyond it nodes are spaced exponentially, for densities with heavier tails than a normal one has.
STRETCH = 4.0
# A node's place along an axis takes BITS of a number, and begins in the middle of what they hold.
BITS, MIDDLE = 12, 2**11


@dataclass(frozen=True, eq=False)
class Standardized:
    """A density of s, with u = center + factor t and t = 4 sinh(s / 4), number by number.

    Attributes:
        density: of u.
        center: u of s = 0, `(d,)`.
        factor: `(d, d)`.
        tops: the u of modes, `(M, d)`.
    """

    density: Density
    center: Tensor
    factor: Tensor
    tops: Tensor

    @staticmethod
    def of(density: Density, u: Tensor, log_weight: Tensor, tops: Tensor) -> Standardized:
        """Coordinates in which weighted points `(S, d)` have the mean 0 and the covariance I."""
        weight = log_weight.softmax(0)
        center = weight @ u
        covariance = (weight[:, None] * (u - center)).mT @ (u - center)
        scale = torch.diagonal(covariance).sqrt()
        correlation = covariance / (scale[:, None] * scale)
        if bool((correlation - torch.eye(density.dim).to(u)).abs().max() > MIN_CORRELATION):
            factor, failed = torch.linalg.cholesky_ex(covariance)
            if not bool(failed):
                return Standardized(density, center, factor, tops)
        return Standardized(density, center, torch.diag(scale), tops)

    def at(self, s: Tensor) -> Tensor:
        """u of points s `(S, d)`."""
        return self.center + (STRETCH * torch.sinh(s / STRETCH)) @ self.factor.mT

    def inverse(self, u: Tensor) -> Tensor:
        """s of points u `(S, d)`."""
        t = torch.linalg.solve(self.factor, (u - self.center).mT).mT
        return STRETCH * torch.asinh(t / STRETCH)

    def log_jacobian(self, s: Tensor) -> Tensor:
        """log |du / ds| at points `(S, d)`, `(S,)`."""
        return (s / STRETCH).cosh().log().sum(-1) + torch.linalg.slogdet(self.factor)[1]

    def __call__(self, s: Tensor) -> Tensor:
        """The log density of s at points `(S, d)`, `(S,)`, nats."""
        value = self._density_of_u(s)
        lost = value.isnan()
        if bool(lost.any()):
            top = self.inverse(self.tops[:1])[0]
            value[lost] = torch.where(vanished(self._density_of_u, s[lost], top), -torch.inf, torch.nan)
        return value + self.log_jacobian(s)

    def _density_of_u(self, s: Tensor) -> Tensor:
        return self.density(self.at(s))


@dataclass(frozen=True, eq=False)
class Lattice:
    """The nodes of a lattice at which the density is not negligible, and their neighbours.

    Attributes:
        spacing: of the nodes in s.
        shift: of the lattice, in spacings.
        key: each node's places along all axes in one number, rising, `(N,)`.
        log_mass: of the node's cell, `(N,)`, nats.
        rim: the share of the integral in nodes whose neighbours were not looked at, or have the density 0.
    """

    spacing: float
    shift: float
    key: np.ndarray
    log_mass: np.ndarray
    rim: float

    @property
    def log_total(self) -> float:
        """Log of the integral, nats."""
        return float(np.logaddexp.reduce(self.log_mass))

    def nodes(self, dim: int) -> Tensor:
        """s of the nodes, `(N, d)`."""
        return (_places(self.key, dim).double() + self.shift) * self.spacing


def spread(standardized: Standardized, spacing: float, shift: float, depth: float) -> Lattice | str:
    """A lattice that spreads from the modes; or why there is none, in words.

    Args:
        standardized: the density.
        spacing: of the nodes.
        shift: of the lattice, in spacings.
        depth: nodes whose density lies so many nats below the highest one have no neighbours.
    """
    dim, most = len(standardized.center), _max_nodes(standardized)
    steps = np.array([sign << (BITS * axis) for axis in range(dim) for sign in (1, -1)])
    tops = standardized.inverse(torch.cat([standardized.tops, standardized.center[None]]))
    new = np.unique(keys_of((tops / spacing - shift).round().long()))
    seen, keys, values, top = new, [], [], -math.inf
    while len(new):
        if len(seen) > most:
            return f"a lattice would have more than {most} nodes"
        value = standardized((_places(new, dim).double() + shift) * spacing).numpy()
        if np.isnan(value).any() or (value == math.inf).any():
            return "the density is nan or infinite at a node"
        top = max(top, float(value.max()))
        keys.append(new)
        values.append(value)
        new = np.setdiff1d((new[value > top - depth][:, None] + steps).ravel(), seen)
        seen = np.union1d(seen, new)
    key, joint = np.concatenate(keys), np.concatenate(values)
    if top == -math.inf:
        return "the density is 0 at all modes"
    vanishing = key[joint == -math.inf]
    beside_zero = np.isin(key[:, None] + steps, vanishing).any(1)
    share = np.exp(joint - np.logaddexp.reduce(joint))
    rim = float(share[beside_zero | (joint <= top - depth)].sum())
    order = np.argsort(key)
    return Lattice(spacing, shift, key[order], joint[order] + dim * math.log(spacing), rim)


def _max_nodes(standardized: Standardized) -> int:
    return max(1, min(MAX_NODES, MAX_NUMBERS // standardized.density.width))


def keys_of(places: Tensor) -> np.ndarray:
    """Each node's places `(N, d)` along all axes in one number, `(N,)`."""
    shifted = places.numpy() + MIDDLE
    return sum(shifted[:, axis] << (BITS * axis) for axis in range(shifted.shape[1]))  # type: ignore[return-value]


def _places(key: np.ndarray, dim: int) -> Tensor:
    """The inverse of `_keys`, `(N, d)`."""
    return torch.from_numpy((key[:, None] >> (BITS * np.arange(dim))) % (2 * MIDDLE) - MIDDLE)


@dataclass(frozen=True, eq=False)
class LatticeIntegral:
    """The integral of a density by two lattices.

    Attributes:
        lattices: the two.
        rule_difference: of two rules for what was integrated out before, nats.
    """

    lattices: tuple[Lattice, Lattice]
    rule_difference: float = 0.0

    @property
    def log_evidence(self) -> float:
        """Log of the mean of the two integrals, nats."""
        return float(np.logaddexp(self.lattices[0].log_total, self.lattices[1].log_total)) - math.log(2)

    @property
    def difference(self) -> float:
        """Of the two logarithms, and of the two rules, nats."""
        return abs(self.lattices[0].log_total - self.lattices[1].log_total) + self.rule_difference

    @property
    def rim(self) -> float:
        """The larger one of the lattices' rims."""
        return max(one.rim for one in self.lattices)


def rough_lattice(density: Density, u: Tensor, log_weight: Tensor, tops: Tensor) -> tuple[Standardized, Lattice] | str:
    """Coordinates that fit a density of up to five numbers, and a rough lattice in them; or why there is none.

    Args:
        density: unnormalised.
        u: weighted points about where its mass is, `(S, d)`.
        log_weight: of the points, `(S,)`.
        tops: the modes, the highest first, `(M, d)`.
    """
    before = Standardized.of(density, u, log_weight, tops)
    first = spread(before, ROUGH_SPACING, 0.0, ROUGH_DEPTH)
    if isinstance(first, str):
        return first
    u = before.at(first.nodes(density.dim))
    standardized = Standardized.of(density, u, torch.from_numpy(first.log_mass), tops)
    second = spread(standardized, ROUGH_SPACING, 0.0, ROUGH_DEPTH)
    return second if isinstance(second, str) else (standardized, second)


def _has_settled(before: LatticeIntegral, after: LatticeIntegral) -> bool:
    """Whether the lattices differ by the density's own noise, which finer lattices do not lower."""
    return before.difference <= MAX_DIFFERENCE and after.difference > before.difference / MIN_GAIN


def _is_hopeless(difference: float, refinement: int) -> bool:
    """Whether even the last refinement would not agree, if it converged as fast as that of a normal density.

    There the logarithm of the difference goes with 1 / h^2. The first lattice may differ by anything.
    """
    if not refinement:
        return False
    finer = SHRINKAGE ** (refinement + 1 - NUM_SPACINGS)  # h now relative to h of the last refinement
    return math.log(difference) * finer**2 > math.log(MAX_DIFFERENCE) if difference > 0 else False


def lattice_integral(standardized: Standardized, rough: Lattice) -> LatticeIntegral | str:
    """The integral of a density, or why there is none, in words.

    Args:
        standardized: the density.
        rough: a lattice from whose number of nodes those of others are estimated.
    """
    dim, best = len(standardized.center), None
    for refinement in range(NUM_SPACINGS):
        spacing = FIRST_SPACING[dim] * SHRINKAGE**refinement
        ratio = (ROUGH_SPACING / spacing) ** dim * (DEPTH[dim] / ROUGH_DEPTH) ** (dim / 2)
        if len(rough.key) * ratio > _max_nodes(standardized):
            break
        one, other = (spread(standardized, spacing, shift, DEPTH[dim]) for shift in (0.0, 0.5))
        if isinstance(one, str) or isinstance(other, str):
            break
        before, best = best, LatticeIntegral((one, other))
        settled = before is not None and _has_settled(before, best)
        if best.difference <= GOOD_DIFFERENCE or settled or _is_hopeless(best.difference, refinement):
            break
    if best is not None and best.difference <= MAX_DIFFERENCE:
        return best
    return "it would take too many nodes" if best is None else f"two lattices differ by {best.difference:.1e} nats"
