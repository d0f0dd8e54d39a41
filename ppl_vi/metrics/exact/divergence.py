"""Distances between a guide and the posterior, by quadrature: exact to the error that each carries.

Each is a small function of a `QuadratureGrid`. KL(q || p) is the integral of `q log(q/p) - q + p` over both densities,
which is nowhere negative, so that nothing cancels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from ppl_vi.metrics.estimate import LEAK, ROUNDING, SMALLER, Estimate
from ppl_vi.metrics.exact.grid import Grid, QuadratureGrid

# The divergence of a member that is only plotted is computed on unrefined panels, provided that the masses of guide and
# posterior on them are off by at most this share of the divergence: a plot shows no more digits.
PLOT_TOLERANCE = 1e-3


def by_quadrature(
    quadrature: QuadratureGrid,
    function: Callable[[Grid], np.ndarray],
    unit: str,
    scale: np.ndarray | float = 1.0,
    reason: str = "",
    only_guide: bool = False,
) -> Estimate:
    """A functional of both densities on the finer of two grids.

    The stated error is the sum of the difference of the two grids, what the masses lack of 1 (since densities are
    themselves rounded, or no node saw some mass), and rounding.

    Args:
        quadrature: the members and the posteriors.
        function: of a grid, to its values `(F,)`.
        unit: of the values.
        scale: how large the terms are that sum to the value, where that is more than the value itself: the last two
            errors are relative to it.
        reason: why values are infinite, where some are.
        only_guide: whether the functional is of the guide's density alone, so that the posterior's mass does not count.
    """
    coarse, fine = (function(grid) for grid in quadrature.grids)
    error = np.zeros_like(fine)
    np.subtract(fine, coarse, out=error, where=coarse != fine)  # equal also where both are infinite
    grid = quadrature.grids[1]
    missing = np.abs(grid.integral(grid.q) - 1) + (0.0 if only_guide else np.abs(grid.integral(grid.p) - 1))
    size = np.where(np.isfinite(fine), np.maximum(np.abs(fine), scale), 0.0)
    # log p at each node is log p(x, z) - log p(x), both rounded as numbers of the size of log p(x). A small divergence
    # changes by about its square root times as much: its integrand is quadratic in the densities' difference.
    rounding = ROUNDING * np.abs(quadrature.truth.log_evidence).repeat(quadrature.shape[1])
    error = np.abs(error) + (missing + ROUNDING) * size + rounding * np.sqrt(np.minimum(size, 1.0))
    value, error = fine.reshape(quadrature.shape), error.reshape(quadrature.shape)
    infinite = reason if bool(np.isinf(value).any()) else ""
    return Estimate(value, np.zeros(quadrature.shape), error, unit, infinite)


def relative(over: np.ndarray, log_over: np.ndarray, log_under: np.ndarray, under: np.ndarray) -> np.ndarray:
    """`a log(a/b) - a + b` at each node: the integrand of KL(a || b), nowhere negative, so that nothing cancels."""
    both = np.isfinite(log_over) & np.isfinite(log_under)
    ratio = np.where(both, log_over - np.where(both, log_under, 0.0), 0.0)
    value = over * ratio - over + under
    return np.where((over > 0) & np.isneginf(log_under), np.inf, value)


def reverse_kl(quadrature: QuadratureGrid) -> Estimate:
    """KL(q || p) = E_q[log q - log p], nats; infinite for a guide that leaks mass."""

    def function(grid: Grid) -> np.ndarray:
        found = _divergence(grid, relative(grid.q, grid.log_q, grid.log_p, grid.p))
        return np.where(_leaks(quadrature, grid), np.inf, found)

    return by_quadrature(quadrature, function, "nats", reason=LEAK)


def _leaks(quadrature: QuadratureGrid, grid: Grid) -> np.ndarray:
    """Whether there is a guide's mass where the posterior has none, `(F,)`.

    Of a guide whose support is too wide it need not be large enough to be a number: the mass of a normal guide below
    0, forty standard deviations from its mean, is not.
    """
    has_mass = np.isfinite(grid.log_q) if quadrature.fit.support_mismatch else grid.q > 0
    return np.asarray((has_mass & np.isneginf(grid.log_p) & (grid.weight > 0)).any((1, 2)))


def reverse_kl_of_many(quadrature: QuadratureGrid) -> np.ndarray:
    """KL(q || p) of members so many that they are only plotted, `(B, R)`, nats, without an error.

    Panels are not refined where both masses come out right to a thousandth of the divergence, which is more than a plot
    shows; the other members get theirs by `reverse_kl`.
    """
    value, missing = quadrature.unrefined
    members = (~(missing <= PLOT_TOLERANCE * value)).reshape(quadrature.shape).any(0)
    found = value.reshape(quadrature.shape)
    if members.any():
        index = torch.from_numpy(members).to(quadrature.theta.device)
        found[:, members] = reverse_kl(replace(quadrature, theta=quadrature.theta[:, index])).value
    return found


def forward_kl(quadrature: QuadratureGrid) -> Estimate:
    """KL(p || q) = E_p[log p - log q], nats."""
    return by_quadrature(
        quadrature, lambda g: _divergence(g, relative(g.p, g.log_p, g.log_q, g.q)), "nats", reason=SMALLER
    )


def _divergence(grid: Grid, integrand: np.ndarray) -> np.ndarray:
    """The integral of a divergence's integrand, infinite where that is infinite at a node with weight."""
    infinite = (np.isinf(integrand) & (grid.weight > 0)).any((1, 2))
    return np.where(infinite, np.inf, grid.integral(np.where(np.isinf(integrand), 0.0, integrand)))


def _smaller(grid: Grid) -> np.ndarray:
    """Whether there is posterior mass where the guide has none, `(F,)`."""
    lacking = np.isneginf(grid.log_q) & (grid.p > 0) & (grid.weight > 0)
    return np.asarray(lacking.any((1, 2)))


def total_variation(quadrature: QuadratureGrid) -> Estimate:
    """sup_A |P(A) - Q(A)| = 1/2 int |p - q|."""
    return by_quadrature(quadrature, lambda g: g.absolute_integral(g.p - g.q) / 2, "1")


def hellinger(quadrature: QuadratureGrid) -> Estimate:
    """(1/2 int (sqrt p - sqrt q)^2)^(1/2), between 0 and 1."""
    return by_quadrature(quadrature, lambda g: np.sqrt(g.integral((np.sqrt(g.p) - np.sqrt(g.q)) ** 2) / 2), "1")


def wasserstein(quadrature: QuadratureGrid) -> Estimate:
    """The Wasserstein-1 distance int |P(Z <= z) - Q(Z <= z)| dz, in the unit of the latent."""
    return by_quadrature(quadrature, lambda g: g.absolute_integral(g.cumulative(g.p - g.q)), "z")


def chi_square(quadrature: QuadratureGrid) -> Estimate:
    """int p^2 / q - 1, the variance of the normalised importance weights p/q under q; often infinite.

    It is infinite where the guide has no mass and the posterior has some. Otherwise the tails tell whether the integral
    exists: `2 log p - log q + log |dz/du|` must fall outwards at the far ends of the panels, which are those of the
    floating-point numbers. What lies beyond them is part of the stated error.
    """
    beyond = _beyond(quadrature)
    smaller = _smaller(quadrature.grids[0])
    diverges = np.isinf(beyond) | smaller

    def finite(grid: Grid) -> np.ndarray:
        log_q = np.where(np.isfinite(grid.log_q), grid.log_q, 0.0)
        with np.errstate(over="ignore"):
            ratio = np.exp(np.where(np.isneginf(grid.log_p), -np.inf, 2 * grid.log_p - log_q))
        counts = ~diverges[:, None, None] & (grid.weight > 0)
        excess = np.where(counts, ratio - 2 * grid.p + grid.q, 0.0)
        return np.where(diverges, np.inf, grid.integral(excess))

    reason = "p^2 / q exceeds the largest floating-point number"
    if diverges.any():
        reason = SMALLER if smaller.any() else "the tails of p^2 / q are not integrable"
    found = by_quadrature(quadrature, finite, "1", reason=reason)
    return replace(found, error=found.error + np.where(diverges, 0.0, beyond).reshape(quadrature.shape))


def _beyond(quadrature: QuadratureGrid) -> np.ndarray:
    """The integral of p^2 / q beyond both ends of the panels, `(F,)`.

    The integrand is continued there as an exponential of u; the integral is infinite where that does not fall.
    """
    out = np.zeros(quadrature.shape[0] * quadrature.shape[1])
    rows = np.arange(len(out))
    for tail in quadrature.tails:
        u, usable = tail.u, np.isfinite(tail.log_p) & np.isfinite(tail.log_q)
        log_p, log_q = np.where(usable, tail.log_p, 0.0), np.where(usable, tail.log_q, 0.0)
        value = np.where(usable, 2 * log_p - log_q + tail.log_slope, -np.inf)
        last = np.where(usable, np.arange(value.shape[1]), 0).max(1)
        before = np.maximum(last - 1, 0)
        fall = value[rows, before] - value[rows, last]
        known = (last > 0) & (fall > 0)
        rate = np.where(known, fall, 1.0) / np.abs(u[rows, last] - u[rows, before]).clip(min=np.finfo(float).tiny)
        with np.errstate(over="ignore"):
            rest = np.where(known, np.exp(value[rows, last]) / rate, np.inf)
        out += np.where(last > 0, rest, 0.0)
    return out


def elbo(quadrature: QuadratureGrid) -> Estimate:
    """E_q[log p(x, z) - log q(z)], nats; -inf for a guide that leaks mass."""

    def function(grid: Grid) -> np.ndarray:
        return np.where(_leaks(quadrature, grid), -np.inf, _continued(grid))

    scale = np.abs(np.repeat(quadrature.truth.log_evidence, quadrature.shape[1]))
    return by_quadrature(quadrature, function, "nats", scale, reason=LEAK, only_guide=True)


def surrogate_elbo(quadrature: QuadratureGrid) -> Estimate:
    """The ELBO that Pyro reports without validation: the model's formula continued outside its support, nats.

    Only a guide that leaks mass has one that differs from its ELBO, and it may exceed log p(x).
    """
    scale = np.abs(np.repeat(quadrature.truth.log_evidence, quadrature.shape[1]))
    return by_quadrature(quadrature, _continued, "nats", scale, only_guide=True)


def _continued(grid: Grid) -> np.ndarray:
    """E_q[log p(x, z) - log q(z)] with the model's formula continued outside its support, `(F,)`."""
    present = grid.q > 0
    log_weight = grid.log_joint - np.where(present, grid.log_q, 0.0)
    return grid.integral(np.multiply(grid.q, log_weight, out=np.zeros_like(grid.q), where=present))
