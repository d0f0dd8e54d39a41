"""Bricks: where points lie, and what the values in a brick tell, against polynomials and parabolas known exactly."""

import numpy as np
import pytest
import torch

from ppl_vi.truth.quadrature.bricks import BrickRule, evaluated_bricks, rise_between_nodes
from ppl_vi.truth.quadrature.tree import grow_tree

REAL = torch.float64


def test_each_point_is_found_in_the_brick_that_holds_it():
    """Looked up along the first axis, and in every brick; some points are in none."""

    def density(s):
        return -(s.square() * torch.tensor([1.0, 30.0, 4.0])).sum(-1) / 2 + torch.cos(3 * s[:, 0])

    rule = BrickRule.of(5, 3, torch.zeros((), dtype=REAL))
    start = evaluated_bricks(density, torch.zeros((1, 3), dtype=REAL), torch.full((1, 3), 6.0, dtype=REAL), rule)
    bricks = grow_tree(density, start, rule, 1e-4).leaves
    assert len(bricks) > 500
    points = 2 * torch.randn((1000, 3), generator=torch.Generator().manual_seed(1), dtype=REAL)
    inside = ((points[:, None] - bricks.center).abs() <= bricks.half_width).all(-1)
    held = inside.any(1)
    assert 100 < int(held.sum()) < 900
    assert torch.equal(bricks.holding(points), torch.where(held, inside.to(torch.uint8).argmax(1), -1))


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_ridge_between_the_nodes_is_foreseen(dim: int) -> None:
    """A Gaussian log density is a parabola along each axis: its rise above the best node is known exactly."""
    rule = BrickRule.of(7, dim, torch.zeros((), dtype=REAL))
    peak = torch.tensor([0.17, -0.55, 0.3], dtype=REAL)[:dim]
    curvature = torch.tensor([400.0, 90.0, 3.0], dtype=REAL)[:dim]
    values = -(curvature * (rule.nodes - peak).square()).sum(-1)[None] / 2 + 5.3
    torch.testing.assert_close(rise_between_nodes(values, rule), 5.3 - values.amax(1), rtol=1e-12, atol=1e-12)


def test_signs_of_error_of_a_density_whose_legendre_series_is_known() -> None:
    """1 + 0.1 P3(x) + 0.02 P2(y) + 0.05 P3(y) on four nodes an axis, and a corner that the density leaves."""
    rule = BrickRule.of(4, 2, torch.zeros((), dtype=REAL))
    legendre = np.polynomial.legendre.Legendre

    def density(s: torch.Tensor) -> torch.Tensor:
        x, y = ((s.numpy() - np.array([3.0, -1.0])) / np.array([2.0, 0.5])).T
        value = 1 + 0.1 * legendre([0, 0, 0, 1])(x) + legendre([0, 0, 0.02, 0.05])(y)
        return torch.from_numpy(np.log(value + 0.3 * ((x > 0.999) & (y > 0.999))))

    center, half_width = torch.tensor([[3.0, -1.0]], dtype=REAL), torch.tensor([[2.0, 0.5]], dtype=REAL)
    seen = evaluated_bricks(density, center, half_width, rule)
    assert float(seen.log_mass.exp()) == pytest.approx(4.0, rel=1e-14)
    # the last coefficient along x is 0.1 on every line, that along y is 0.05
    np.testing.assert_allclose(seen.log_tail.exp() / 4, [[0.1, 0.05]], rtol=1e-12)
    assert float(seen.log_jump.exp() / 4) == pytest.approx(0.3, rel=1e-12)
    first, second = seen.halves()[0]
    assert (first.tolist(), second.tolist()) == ([2.0, -1.0], [4.0, -1.0])
