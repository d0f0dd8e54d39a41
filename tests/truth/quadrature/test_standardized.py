"""Standardised coordinates: a change of variables, and densities that stop being numbers."""

import math

import pytest
import torch

from ppl_vi.target.log_density import Density
from ppl_vi.truth.quadrature.standardized import StandardizedDensity, WeightedNodes, vanished

REAL = torch.float64


def everywhere(u):
    return torch.ones(len(u), dtype=torch.bool)


def test_the_density_of_s_is_that_of_u_times_the_jacobian() -> None:
    """Against the determinant of the Jacobian by autodiff, at points where sinh is far from the identity."""
    factor = torch.tensor([[2.0, 0.0], [-0.7, 0.3]], dtype=REAL)
    center = torch.tensor([5.0, -1.0], dtype=REAL)
    density = Density(lambda u: -(u[0] ** 2) / 9 - u[1].abs(), 2, REAL, everywhere)
    standardized = StandardizedDensity(density, center, factor, center)
    s = torch.tensor([[0.0, 0.0], [1.3, -4.0], [-9.0, 6.0]], dtype=REAL)
    u = standardized.at(s)
    torch.testing.assert_close(standardized.inverse(u), s, rtol=1e-12, atol=1e-12)
    jacobian = torch.autograd.functional.jacobian(lambda s: standardized.at(s).sum(0), s).transpose(0, 1)
    log_det = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(standardized(s), -(u[:, 0] ** 2) / 9 - u[:, 1].abs() + log_det, rtol=1e-12, atol=1e-12)


def test_nan_counts_as_zero_only_where_the_density_had_vanished() -> None:
    """exp(-u^4) overflows on the way to inf - inf; a root is nan from where the density is still e^-12.5."""

    def overflowing(u):
        return torch.where(u[:, 0].abs() < 30, -(u[:, 0] ** 4), torch.nan)

    def rooted(u):
        return -u[:, 0].square() / 2 + 0 * (5 - u[:, 0]).sqrt()

    points, top = torch.tensor([[40.0], [-90.0]], dtype=REAL), torch.zeros(1, dtype=REAL)
    assert vanished(overflowing, points, top).tolist() == [True, True]
    assert vanished(rooted, points[:1], top).tolist() == [False]
    density = Density(lambda u: -u[0].square() / 2 + 0 * (5 - u[0]).sqrt(), 1, REAL, everywhere)
    standardized = StandardizedDensity(density, top, torch.eye(1, dtype=REAL), top)
    assert standardized(standardized.inverse(torch.tensor([[6.0]], dtype=REAL))).isnan().all()


def test_points_are_normalised_and_leave_out_what_weighs_nothing() -> None:
    center = torch.tensor([3.0], dtype=REAL)
    density = Density(lambda u: -u.square().sum(), 1, REAL, everywhere)
    standardized = StandardizedDensity(density, center, torch.tensor([[2.0]], dtype=REAL), center)
    s, log_mass = torch.tensor([[0.0], [1.0], [2.0]], dtype=REAL), torch.tensor([700.0, 701.0, 670.0], dtype=REAL)
    nodes = WeightedNodes(s, log_mass)
    points = standardized.points(nodes)
    assert points.u[0, :, 0].tolist() == pytest.approx([3.0, 3 + 4 * math.sinh(0.5)])
    assert points.log_weight[0].exp().tolist() == pytest.approx([1 / (1 + math.e), math.e / (1 + math.e)])
    assert nodes.log_total == pytest.approx(701 + math.log1p(math.exp(-1)), rel=1e-15)
