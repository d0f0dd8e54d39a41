"""How far a guide's moments, intervals and mass are from the posterior's."""

from __future__ import annotations

import numpy as np

from ppl_vi.metrics.estimate import Estimate
from ppl_vi.metrics.exact.divergence import by_quadrature
from ppl_vi.metrics.exact.grid import Grid, QuadratureGrid


def _repeated(quadrature: QuadratureGrid, values: np.ndarray) -> np.ndarray:
    """Values of each problem `(B,)` for each quadrature, `(F,)`."""
    return np.repeat(values, quadrature.shape[1])


def mean_error(quadrature: QuadratureGrid) -> Estimate:
    """(E_q z - E_p z) / sd_p: positive where the guide sits too high."""
    mean, sd = _repeated(quadrature, quadrature.truth.mean), _repeated(quadrature, quadrature.truth.sd)
    return by_quadrature(quadrature, lambda g: g.integral(g.q * (g.z - mean[:, None, None])) / sd, "sd")


def sd_ratio(quadrature: QuadratureGrid) -> Estimate:
    """sd_q / sd_p: below 1 where the guide is too narrow."""
    mean, sd = _repeated(quadrature, quadrature.truth.mean), _repeated(quadrature, quadrature.truth.sd)

    def function(grid: Grid) -> np.ndarray:
        centred = grid.z - mean[:, None, None]
        shift = grid.integral(grid.q * centred)
        return np.sqrt(grid.integral(grid.q * (centred - shift[:, None, None]) ** 2)) / sd

    return by_quadrature(quadrature, function, "1")


def coverage_90(quadrature: QuadratureGrid) -> Estimate:
    """The posterior mass of the guide's central 90% interval: 0.9 where the guide is right."""
    return by_quadrature(
        quadrature, lambda g: g.mass_below_quantile(g.p, g.q, 0.95) - g.mass_below_quantile(g.p, g.q, 0.05), "1"
    )


def leaked_mass(quadrature: QuadratureGrid) -> Estimate:
    """The guide's mass outside the posterior's support."""
    return by_quadrature(quadrature, lambda g: g.integral(np.where(np.isneginf(g.log_p), g.q, 0.0)), "1")
