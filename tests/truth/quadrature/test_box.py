"""The box of integration: what it leaves out, and how it is cut before the tree grows."""

import math

import pytest
import torch

from ppl_vi.truth.quadrature.box import cut_around, mass_outside
from ppl_vi.truth.quadrature.bricks import BrickRule, evaluated_bricks
from ppl_vi.truth.quadrature.tree import grow_tree

REAL = torch.float64


def tree_of(function, half_width):
    center = torch.arange(-half_width + 1, half_width, 2, dtype=REAL)[:, None]
    rule = BrickRule.of(16, 1, center)
    return grow_tree(function, evaluated_bricks(function, center, torch.ones_like(center), rule), rule, 1e-12)


@pytest.mark.parametrize("rate", [0.5, 1.0, 2.0])
def test_exponential_tails_have_the_mass_outside_that_the_geometric_series_gives(rate: float) -> None:
    """A logistic density falls by the factor exp(-2 rate) from layer to layer, nearly as an exponential one does."""
    half_width = 12.0

    def logistic(s: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.logsigmoid(rate * s[:, 0]) + torch.nn.functional.logsigmoid(-rate * s[:, 0])

    outside = 2 / (1 + math.exp(rate * half_width))
    # the share of the mass inside, and a slope that is not quite exponential: e^(-rate 8) relative
    assert mass_outside(tree_of(logistic, half_width), half_width) == pytest.approx(
        outside, rel=3 * math.exp(-8 * rate)
    )


def test_a_density_that_does_not_fall_has_no_bound_outside() -> None:
    assert mass_outside(tree_of(lambda s: 0 * s[:, 0], 8.0), 8.0) == math.inf


def test_bricks_around_a_point_are_cut_to_its_width_and_fill_the_box() -> None:
    center = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=REAL)] * 2)
    point, width = torch.tensor([[0.3, -0.8]], dtype=REAL), torch.tensor([[0.01, 5.0]], dtype=REAL)
    cut, half_width = cut_around(center, torch.ones_like(center), point, width)
    assert float((2 * half_width).prod(1).sum()) == pytest.approx(16.0, rel=1e-14)
    holds = ((point - cut).abs() <= half_width).all(1)
    assert half_width[holds].tolist() == [[2**-6, 1.0]]  # the first power of 2 below 0.02; nothing to do along y
    assert len(cut) == 4 + 6


def test_bricks_near_a_point_are_cut_as_well() -> None:
    """Within 0.3 of the point none is wider than 0.1 to either side; those that lie farther away stay as they are."""
    center = torch.cartesian_prod(*[torch.tensor([-3.0, -1.0, 1.0, 3.0], dtype=REAL)] * 2)
    point, width, reach = (torch.full((1, 2), number, dtype=REAL) for number in (0.9, 0.05, 0.3))
    cut, half_width = cut_around(center, torch.ones_like(center), point, width, reach)
    assert float((2 * half_width).prod(1).sum()) == pytest.approx(64.0, rel=1e-14)
    near = ((point - cut).abs() - half_width < reach).all(1)
    assert half_width[near].max() <= 0.1
    assert (half_width == 1).all(1).sum() == 15
