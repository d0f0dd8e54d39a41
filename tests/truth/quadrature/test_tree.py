"""The tree of bricks where a density jumps: it finds the jump, or says that it doesn't."""

import math

import pytest
import torch
from scipy import stats

from ppl_vi.truth.quadrature.bricks import BrickRule, evaluated_bricks
from ppl_vi.truth.quadrature.tree import grow_tree

REAL = torch.float64


@pytest.mark.parametrize("share", [0.001, 0.003, 0.004, 0.9965, 0.999])
@pytest.mark.parametrize("dim", [1, 2])
def test_a_jump_at_the_rim_of_a_brick_is_seen(dim: int, share: float) -> None:
    """No node of ten lies in the outermost 1.3% of a brick, nor in the half of that in its halves."""
    order, tolerance = 10, 1e-10
    center = torch.cartesian_prod(*[torch.arange(-7.0, 8.0, 2.0, dtype=REAL)] * dim).reshape(-1, dim)
    rule = BrickRule.of(order, dim, center)
    end = 2 * share  # in the brick from 0 to 2

    def density(s: torch.Tensor) -> torch.Tensor:
        return torch.where(s[:, 0] < end, -s.square().sum(1) / 2 - dim * math.log(2 * math.pi) / 2, -torch.inf)

    tree = grow_tree(density, evaluated_bricks(density, center, torch.ones_like(center), rule), rule, tolerance)
    assert tree.reason or abs(tree.log_mass - stats.norm.logcdf(end)) < 1e-8


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_smooth_density_has_no_jump(dim: int) -> None:
    """What the corners promise is met where the tails of the Legendre series are small: nothing more is halved."""
    center = torch.cartesian_prod(*[torch.arange(-7.0, 8.0, 2.0, dtype=REAL)] * dim).reshape(-1, dim)
    rule = BrickRule.of(7, dim, center)

    def density(s: torch.Tensor) -> torch.Tensor:
        return -s.square().sum(1) / 2 - dim * math.log(2 * math.pi) / 2

    start = evaluated_bricks(density, center, torch.ones_like(center), rule)
    tree = grow_tree(density, start, rule, 1e-10)
    assert tree.reason == ""
    assert tree.log_mass == pytest.approx(0.0, abs=1e-9)
    assert len(tree.bricks) == len(grow_tree(density, start, rule, 1e-10, min_jump=math.inf).bricks)
