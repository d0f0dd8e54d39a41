"""Modes, and what stands in where there is none: symmetric densities, funnels, hard edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from models import funnel, mixture
from ppl_vi.numerics.laplace import centred_on_mass, laplace_approximation
from ppl_vi.target.isolation import isolated


def test_a_mode_that_symmetry_hides() -> None:
    """From x = y no slope leads aside, and both modes lie aside.

    log p = -(x + y - 1)^2 / 2 - ((x - y)^2 - 4)^2 / 8 is highest where x + y = 1 and x - y = 2 or -2.
    """

    def log_density(u: Tensor) -> Tensor:
        return -((u.sum() - 1) ** 2) / 2 - ((u[0] - u[1]) ** 2 - 4) ** 2 / 8

    with isolated():
        found = laplace_approximation(log_density, torch.zeros(1, 2, dtype=torch.float64), (), 1e-12)
    assert bool(found.converged)
    assert abs(float(found.loc[0, 0] - found.loc[0, 1])) == pytest.approx(2, abs=1e-5)
    assert float(found.loc.sum()) == pytest.approx(1, abs=1e-5)
    # second derivative of ((d^2 - 4)^2) / 8 at d = 2 is 4, of d = x - y; that of the sum is 1
    np.testing.assert_allclose(found.precision[0], [[5, -3], [-3, 5]], atol=1e-4)


@pytest.mark.parametrize("dim", [3, pytest.param(45, marks=pytest.mark.slow)])
def test_the_nearest_independent_gaussian_stands_in_for_a_useless_mode(dim: int) -> None:
    """The funnel's, known in closed form: 64 points of its noise put its scale within a fifth of the best."""
    target = funnel.target(dim)
    best = 3 / math.sqrt(1 + 9 * (dim - 1) / 2)
    assert float(target.start.loc[0].abs().max()) < 0.3
    assert float(target.start.scale[0, 0]) == pytest.approx(best, rel=0.2)
    assert float(target.start.scale[0, 1:].mean()) == pytest.approx(math.exp(-(best**2) / 4), rel=0.1)


def test_a_mode_with_its_mass_around_it_stays_where_it_is() -> None:
    target = mixture.target()
    assert bool(target.laplace.converged)
    assert torch.equal(target.start.loc, target.laplace.loc)
    assert torch.equal(target.start.precision, target.laplace.precision)


def test_only_those_problems_that_need_it_are_moved() -> None:
    """A funnel beside a Gaussian, in one batch: exp(-v) x^2 counts in the first alone."""

    def log_density(u: Tensor, bent: Tensor) -> Tensor:
        v, x = u[0], u[1:]
        slope = bent * v
        return -(v**2) / 18 - (x.square() * torch.exp(-slope)).sum() / 2 - slope * len(x) / 2

    args = (torch.tensor([1.0, 0.0], dtype=torch.float64),)
    start = torch.full((2, 4), 0.5, dtype=torch.float64)
    with isolated():
        mode = laplace_approximation(log_density, start, args, 1e-10)
        moved = centred_on_mass(mode, log_density, start, args, 1e-10)
    assert mode.converged.tolist() == [True, True]
    assert float(mode.loc[0, 0]) == pytest.approx(-27 / 2, abs=1e-3)
    assert abs(float(moved.loc[0, 0])) < 0.3
    assert torch.equal(moved.loc[1], mode.loc[1])
    np.testing.assert_allclose(moved.precision[1], np.diag([1 / 9, 1, 1, 1]), atol=1e-9)
    assert moved.converged.tolist() == [False, True]


def test_a_density_that_ends_at_a_hard_edge_has_a_start_inside() -> None:
    """Exponential beyond 2, with no mode inside and none at the edge that a slope leads to."""

    def log_density(u: Tensor) -> Tensor:
        return torch.where(u > 2, -u, -torch.inf).sum()

    with isolated():
        found = laplace_approximation(log_density, torch.full((1, 1), 2.01, dtype=torch.float64), (), 1e-10)
    assert not bool(found.converged)
    assert float(found.loc) > 2
    assert 0 < float(found.scale) < 1
