"""Mixtures of Gaussian and of Student t distributions: their draws and densities, entropies, and a fit to draws.

`StudentMixture` is one mixture, fitted to draws and then used as a proposal. `GaussianMixtures` are many at once, of
which each is the guide of one problem.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vi.numerics.rules import gaussian_rule

# A fitted mixture has at most MAX_COMPONENTS components, and so few that there are at least MIN_DRAWS_PER_NUMBER draws
# for each free number of a component.
MAX_COMPONENTS = 6
# What is added to each variance of standardized points that lie in a plane, so that their covariance is not singular.
SINGULAR_RAISE = 1e-6
MIN_DRAWS_PER_NUMBER = 10
# Degrees of freedom of a proposal whose tails are to be heavier than those of what it is to propose for.
DEGREES = 5.0
# The scales of a heavy-tailed proposal are those fitted times this, since the draws may not have reached all the mass.
WIDENING = 1.2

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class StudentMixture:
    """A mixture of normal densities, of Student t ones, or of both.

    Attributes:
        log_share: the logarithm of each component's mass, `(K,)`.
        loc: the components' locations, `(K, D)`.
        factor: Cholesky factors of their matrices, `(K, D, D)`.
        degrees: of freedom of each component; inf for a normal one.
    """

    log_share: Tensor
    loc: Tensor
    factor: Tensor
    degrees: tuple[float, ...]

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        """Random points, `(num, D)`."""
        which = torch.multinomial(self.log_share.exp(), num, replacement=True, generator=generator)
        noise = torch.randn(num, self.loc.shape[1], generator=generator, dtype=self.loc.dtype)
        for degrees in sorted({one for one in self.degrees if math.isfinite(one)}):
            heavy = torch.tensor([one == degrees for one in self.degrees])[which]
            normal = torch.randn(int(heavy.sum()), round(degrees), generator=generator, dtype=self.loc.dtype)
            noise[heavy] = noise[heavy] / normal.square().mean(1, keepdim=True).sqrt()
        for k, factor in enumerate(self.factor):  # a factor for each point would be D times as many numbers
            noise[which == k] = noise[which == k] @ factor.mT
        return self.loc[which] + noise

    def log_prob(self, u: Tensor) -> Tensor:
        """The log density at points `(S, D)`, `(S,)`, nats."""
        return (self.log_share + self.component_log_prob(u)).logsumexp(1)

    def component_log_prob(self, u: Tensor) -> Tensor:
        """The log density of each component at points `(S, D)`, `(S, K)`, nats."""
        dim, parts = u.shape[1], []
        for k, loc, factor in zip(self.degrees, self.loc, self.factor, strict=True):
            square = torch.linalg.solve_triangular(factor, (u - loc).mT, upper=False).square().sum(0)
            log_det = torch.diagonal(factor).log().sum()
            if math.isfinite(k):
                constant = math.lgamma((k + dim) / 2) - math.lgamma(k / 2) - dim / 2 * math.log(k * math.pi)
                shape = constant - (k + dim) / 2 * torch.log1p(square / k)
            else:
                shape = -square / 2 - dim / 2 * math.log(2 * math.pi)
            parts.append(shape - log_det)
        return torch.stack(parts, 1)

    def defended(self, share: float) -> StudentMixture:
        """This mixture with a heavy-tailed copy of each component, of that share of its mass.

        Weights of draws, with respect to any density, are then at most 1 / (1 - share) times what they would be
        without the copies, and stay bounded in tails where those of the copies are bounded.

        Source: Hesterberg (1995), Weighted average importance sampling and defensive mixture distributions.
        """
        copy = StudentMixture(self.log_share, self.loc, WIDENING * self.factor, (DEGREES,) * len(self.degrees))
        return self.beside(copy, share)

    def beside(self, other: StudentMixture | None, share: float) -> StudentMixture:
        """This mixture with another one beside it that has a share of the mass; itself where there is none."""
        if other is None:
            return self
        log_share = torch.cat([self.log_share + math.log1p(-share), other.log_share + math.log(share)])
        loc, factor = torch.cat([self.loc, other.loc]), torch.cat([self.factor, other.factor])
        return StudentMixture(log_share, loc, factor, self.degrees + other.degrees)


def fit_student_mixture(u: Tensor, degrees: float, seed: int) -> StudentMixture:
    """A mixture fitted to draws `(S, D)` by expectation maximisation.

    Args:
        u: the draws.
        degrees: of freedom of the components; inf for normal ones.
        seed: of the fit's start.
    """
    num, dim = u.shape
    size = min(MAX_COMPONENTS, max(1, num // (MIN_DRAWS_PER_NUMBER * dim * (dim + 3))))
    center, scale = u.mean(0), u.std(0)
    scale = torch.where(scale > 0, scale, 1.0)  # coordinates may differ by many powers of 10
    share, locs, covariances = _gaussian_mixture(((u - center) / scale).cpu().numpy(), size, seed)
    factor = torch.linalg.cholesky(torch.from_numpy(covariances).to(u)) * scale[:, None]
    widened = 1.0 if math.isinf(degrees) else WIDENING
    loc = torch.from_numpy(locs).to(u) * scale + center
    return StudentMixture(torch.from_numpy(np.log(share)).to(u), loc, widened * factor, (degrees,) * len(share))


def _gaussian_mixture(points: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares `(K,)`, means `(K, D)` and covariances `(K, D, D)` of a Gaussian mixture fitted to points `(S, D)`.

    A component may collapse to a point or a plane, where its covariance is singular. Then there are half as many
    components, and of a single one the variances are raised until it is not singular.
    """
    from sklearn.mixture import GaussianMixture  # imported here since it takes a second

    for num in (size >> halving for halving in range(size.bit_length())):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a mixture that has not converged is as good a proposal
                fitted = GaussianMixture(num, random_state=seed, max_iter=100, reg_covar=1e-9).fit(points)
            np.linalg.cholesky(fitted.covariances_)
        except (ValueError, np.linalg.LinAlgError):
            continue
        if bool((fitted.weights_ > 0).all()):
            return fitted.weights_, fitted.means_, fitted.covariances_
    covariance = np.cov(points.T).reshape(points.shape[1], -1)
    raised = covariance + SINGULAR_RAISE * np.eye(len(covariance))
    return np.ones(1), points.mean(0)[None], raised[None]


class GaussianMixtures(NamedTuple):
    """Gaussian mixtures of `N` problems, one each, such as `Head.components` gives.

    Attributes:
        log_weights: the logarithm of each component's mass, `(N, K)`.
        locs: the components' means, `(N, K, D)`.
        trils: Cholesky factors of their covariances, `(N, K, D, D)`.
    """

    log_weights: Tensor
    locs: Tensor
    trils: Tensor

    def rows(self, index: Tensor | slice) -> GaussianMixtures:
        """The mixtures of some of the problems."""
        return GaussianMixtures(self.log_weights[index], self.locs[index], self.trils[index])

    def points(self, nodes: Tensor) -> Tensor:
        """Standard normal points `(S, D)` carried to each component, `(N, K, S, D)`."""
        return self.locs[..., None, :] + nodes @ self.trils.mT

    def mean(self) -> Tensor:
        """The mean of each mixture, `(N, D)`."""
        return (self.log_weights.exp()[..., None] * self.locs).sum(-2)

    def log_prob(self, z: Tensor) -> Tensor:
        """log q at points `(..., S, D)`, `(..., S)`, nats."""
        away = (z[..., None, :, :] - self.locs[..., None, :]).mT
        white = torch.linalg.solve_triangular(self.trils, away, upper=False)
        log_scale = torch.diagonal(self.trils, dim1=-2, dim2=-1).log().sum(-1)
        constant = self.log_weights - log_scale - z.shape[-1] * LOG_2PI / 2
        return torch.logsumexp(constant[..., None] - white.square().sum(-2) / 2, -2)

    def negative_entropy(self, level: int) -> Tensor:
        """E_q[log q], `(...)`, nats: closed form for one Gaussian, else by the rule of that level."""
        dim = self.locs.shape[-1]
        if self.locs.shape[-2] == 1:
            log_scale = torch.diagonal(self.trils, dim1=-2, dim2=-1).log().sum((-2, -1))
            return -log_scale - dim * (1 + LOG_2PI) / 2
        nodes, weights = gaussian_rule(level, dim)
        z = self.points(nodes.to(self.locs))
        log_q = self.log_prob(z.flatten(-3, -2)).unflatten(-1, z.shape[-3:-1])
        return (self.log_weights.exp() * (log_q @ weights.to(self.locs))).sum(-1)

    def cross_entropy(self) -> Tensor:
        """-E_q[log Normal(z; 0, I)], `(...)`, nats."""
        squares = self.locs.square().sum(-1) + self.trils.square().sum((-2, -1))
        return (self.log_weights.exp() * squares).sum(-1) / 2 + self.locs.shape[-1] * LOG_2PI / 2

    def prior_kl(self, level: int) -> Tensor:
        """KL(q || Normal(0, I)), `(...)`, nats; `level` as in `negative_entropy`."""
        return self.negative_entropy(level) + self.cross_entropy()
