"""Expectations under mixtures of Gaussians by deterministic quadrature: the exact ELBO of an amortized guide."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vi.guides.amortized import Head
from ppl_vi.target.target import LOG_2PI, Decoded, Target

HERMITE = (8, 12)  # nodes an axis of the coarse rules, exact for polynomials
# of the finer rules' nodes, by the number of latents: where q is wide beside the decoder's features, the trapezoid's
# evenly spaced nodes reach in hundreds what Gauss-Hermite, whose nodes run off into the tails, needs thousands for
SPACINGS = {
    1: (0.7, 0.5, 0.35, 0.25, 0.18, 0.125, 0.09, 0.06),
    2: (0.7, 0.5, 0.35, 0.25, 0.18, 0.125, 0.09),
    3: (0.7, 0.5, 0.35, 0.25),
}
REACH = 7.5  # of their nodes, standard deviations
NEGLIGIBLE = 1e-14  # of a rule's largest weight
DECODED_NUMBERS = 1 << 24  # of decoded points held at once: 128 MB
BLOCK = 8192  # points decoded at once: their activations stay in the cache


class Mixture(NamedTuple):
    """Gaussian mixtures of `N` problems: `Head.components`."""

    log_weights: Tensor  # (N, K)
    locs: Tensor  # (N, K, D)
    trils: Tensor  # (N, K, D, D)

    def rows(self, index: Tensor | slice) -> Mixture:
        """Some of the problems."""
        return Mixture(self.log_weights[index], self.locs[index], self.trils[index])

    def points(self, nodes: Tensor) -> Tensor:
        """Standard normal points `(S, D)` carried to each component, `(N, K, S, D)`."""
        return self.locs[..., None, :] + nodes @ self.trils.mT

    def mean(self) -> Tensor:
        """`(N, D)`."""
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
        nodes, weights = rule(level, dim)
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


@dataclass(frozen=True)
class Elbo:
    """The ELBO of each problem, or a part of it.

    Attributes:
        value: `(N,)`, nats.
        error: what the last two rules differ by, or the square of the difference before, `(N,)`, nats.
    """

    value: Tensor
    error: Tensor


def num_levels(dim: int) -> int:
    """How many rules there are."""
    return len(HERMITE) + len(SPACINGS[dim])


@lru_cache(maxsize=64)
def rule(level: int, dim: int) -> tuple[Tensor, Tensor]:
    """Nodes `(S, D)` and weights `(S,)` of E[f(e)], e ~ Normal(0, I), finer with the level.

    Two tensor rules of Gauss and Hermite, then trapezoids, whose error falls exponentially with the inverse spacing.

    Source: Trefethen and Weideman (2014), The exponentially convergent trapezoidal rule.
    """
    x: np.ndarray
    w: np.ndarray
    if level < len(HERMITE):
        x, w = np.polynomial.hermite_e.hermegauss(HERMITE[level])
    else:
        spacing = SPACINGS[dim][level - len(HERMITE)]
        half = math.ceil(REACH / spacing)
        x = spacing * (np.arange(2 * half) - half + 0.5)
        w = np.exp(-(x**2) / 2)
    nodes = np.stack(np.meshgrid(*[x] * dim, indexing="ij"), -1).reshape(-1, dim)
    weights = np.stack(np.meshgrid(*[w / w.sum()] * dim, indexing="ij"), -1).reshape(-1, dim).prod(-1)
    kept = weights > weights.max() * NEGLIGIBLE
    return torch.from_numpy(nodes[kept]), torch.from_numpy(weights[kept] / weights[kept].sum())


def decoded_of(target: Target) -> Decoded:
    """What the target decodes.

    Raises:
        ValueError: it decodes nothing, or too many latents for quadrature.
    """
    if target.decoded is None:
        raise ValueError(f"target '{target.name}' has no decoder: amortized gaps need z ~ Normal(0, I) and one decoder")
    if target.dim not in SPACINGS:
        raise ValueError(f"quadrature reaches {max(SPACINGS)} latents, target '{target.name}' has {target.dim}")
    return target.decoded


def log_likelihood_at(target: Target, z: Tensor, index: Tensor) -> Tensor:
    """log p(x | z) at each problem's own points, nats.

    Args:
        target: with a decoder.
        z: `(N, S, D)`.
        index: the problem of each row, `(N,)`.

    Returns:
        `(N, S)`.
    """
    decoded, out, points = decoded_of(target), [], points_at_once(target)
    for few in torch.arange(len(z), device=z.device).split(max(1, points // z.shape[1])):
        rows = tuple(arg[index[few]] for arg in target.args)
        out.append(torch.cat([decoded.log_likelihood_at(part, *rows) for part in z[few].split(points, 1)], 1))
    return torch.cat(out)


def points_at_once(target: Target) -> int:
    """How many points may be decoded together: each takes as many numbers as its problem has data, several times."""
    return max(1, DECODED_NUMBERS // sum(arg[0].numel() for arg in target.args))


def blocks(num_rows: int, num_points: int) -> Iterator[slice]:
    """Slices of rows that have about `BLOCK` points together."""
    size = max(1, BLOCK // num_points)
    return (slice(first, first + size) for first in range(0, num_rows, size))


def expect(mixture: Mixture, function: Callable[[Tensor, slice], Tensor], nodes: Tensor, weights: Tensor) -> Tensor:
    """E_q of `function(points (M, S, D), slice of rows) -> (M, S)`, `(N,)`."""
    out = []
    for block in blocks(len(mixture.locs), mixture.locs.shape[1] * len(nodes)):
        part = mixture.rows(block)
        z = part.points(nodes)
        value = function(z.flatten(1, 2), block).unflatten(1, z.shape[1:3])
        out.append((part.log_weights.exp() * (value @ weights)).sum(-1))
    return torch.cat(out)


@torch.no_grad()
def elbo_by(target: Target, head: Head, local: Tensor, index: Tensor, level: int) -> Tensor:
    """The ELBO of the problems `index` `(N,)` by one rule, `(N,)`, nats."""
    mixture = Mixture(*head.components(local))
    nodes, weights = (part.to(local) for part in rule(level, target.dim))
    likelihood = expect(mixture, lambda z, block: log_likelihood_at(target, z, index[block]), nodes, weights)
    return likelihood - mixture.prior_kl(level)


def elbo(
    target: Target,
    head: Head,
    local: Tensor,
    *,
    index: Tensor | None = None,
    tolerance: float = 1e-8,
) -> Elbo:
    """E_q[log p(x | z)] - KL(q || Normal(0, I)) by deterministic quadrature, for any mixture of Gaussians.

    Tensor rules around each component grow until three in a row agree. The KL is in closed form for one
    Gaussian; for a mixture, log q is that of the whole mixture at every node.

    Args:
        target: with a decoder.
        head: the guide's family.
        local: its local parameters, `(N, num_outputs)`, float64.
        index: the problem of each row, `(N,)`; all in order by default.
        tolerance: two rules agree when they differ by less, relative to max(1, |ELBO|).

    Raises:
        ValueError: the target has no decoder or more latents than quadrature reaches.
    """
    decoded_of(target)
    index = torch.arange(len(local), device=local.device) if index is None else index
    return _settled(
        lambda rows, level: elbo_by(target, head, local[rows], index[rows], level),
        len(local), target.dim, tolerance,
    )  # fmt: skip


def settled_prior_kl(mixture: Mixture, tolerance: float = 1e-8) -> Elbo:
    """KL(q || Normal(0, I)) and its error, `(N,)`, nats: closed form for one Gaussian, else by rules that agree."""
    if mixture.locs.shape[1] == 1:
        value = mixture.prior_kl(0)
        return Elbo(value, torch.zeros_like(value))
    dim = mixture.locs.shape[-1]
    return _settled(lambda rows, level: mixture.rows(rows).prior_kl(level), len(mixture.locs), dim, tolerance)


def _settled(evaluate: Callable[[Tensor, int], Tensor], num_rows: int, dim: int, tolerance: float) -> Elbo:
    """Evaluates rows by finer and finer rules until three in a row agree."""
    everyone = torch.arange(num_rows)
    value = evaluate(everyone, 0)
    error, change = torch.full_like(value, torch.inf), torch.full_like(value, torch.inf)
    for level in range(1, num_levels(dim)):
        pending = (error > tolerance * value.abs().clamp(min=1)).nonzero()[:, 0]
        if not len(pending):
            break
        new = evaluate(pending, level)
        # two rules may agree by chance; they converge no faster than that a change is the square of the one before
        new_change = (new - value[pending]).abs()
        error = error.index_copy(0, pending, torch.maximum(new_change, change[pending].square()))
        change = change.index_copy(0, pending, new_change)
        value = value.index_copy(0, pending, new)
    return Elbo(value, error)
