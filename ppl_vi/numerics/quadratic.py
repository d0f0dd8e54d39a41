"""The Gaussian whose log density is known at points: a quadratic function of them, found by least squares."""

from __future__ import annotations

import numpy as np


def gaussian_through(
    points: np.ndarray, log_density: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean `(D,)` and Cholesky factor `(D, D)` of a Gaussian, from its log density at points; None where it is none.

    Args:
        points: `(N, D)`, of which there are more than the 1 + D + D (D + 1) / 2 coefficients.
        log_density: `(N,)`, nats, up to a constant.
        tolerance: nats by which it may differ from a quadratic function, as a root mean square over the points.

    Raises:
        ValueError: there are too few points.
    """
    num, dim = points.shape
    coefficients = 1 + dim + dim * (dim + 1) // 2
    if num <= coefficients:
        raise ValueError(f"a Gaussian of {dim} numbers needs more than {coefficients} points; got {num}")
    centre, rough = points.mean(0), np.linalg.cholesky(np.atleast_2d(np.cov(points.T)))
    white = np.linalg.solve(rough, (points - centre).T).T
    rows, columns = np.tril_indices(dim)
    features = np.column_stack([np.ones(num), white, white[:, rows] * white[:, columns]])
    solution, *_ = np.linalg.lstsq(features, log_density, rcond=None)
    if not np.sqrt(np.mean((features @ solution - log_density) ** 2)) <= tolerance:
        return None
    precision = np.zeros((dim, dim))
    precision[rows, columns] = -solution[1 + dim :]
    precision = precision + precision.T  # the density is ... - z' P z / 2, of which each product stands once
    if not (np.linalg.eigvalsh(precision) > 0).all():
        return None
    loc = np.linalg.solve(precision, solution[1 : 1 + dim])
    covariance = rough @ np.linalg.inv(precision) @ rough.T
    return centre + rough @ loc, np.linalg.cholesky((covariance + covariance.T) / 2)
