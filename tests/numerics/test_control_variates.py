"""Control variates leave a mean what it is, and take most of its error away."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ppl_vi.numerics.control_variates import controlled_means, hermite_products
from ppl_vi.svi.randomness import Draw, quasi_random

NUM_SETS = 8


def points(dim: int, num: int, seed: int) -> Tensor:
    return quasi_random([Draw("normal", torch.Size([dim]), torch.float64)], num, NUM_SETS, seed)[0]


def wave(x: Tensor) -> Tensor:
    """exp(0.3 sum x) + (sum x)^2, with a mean of its own: exp(0.045 D) + D."""
    total = x.sum(-1)
    return (0.3 * total).exp() + total.square()


@pytest.mark.parametrize(("dim", "num", "block", "share"), [(3, 128, 1, 0.3), (4, 256, 16, 0.3), (30, 128, 1, 1.1)])
def test_means_are_right_within_their_spread_which_is_smaller(dim: int, num: int, block: int, share: float) -> None:
    """Over 40 randomisations: Student's statistic of 8 sets has the standard deviation sqrt(7 / 5) = 1.18.

    In 30 dimensions there are too few points for the products of two numbers, so that nothing is gained.
    """
    truth, scores, ratios = math.exp(0.045 * dim) + dim, [], []
    for seed in range(40):
        x = points(dim, num, seed)
        controls = hermite_products(x, block)
        assert controls is not None
        found = controlled_means(wave(x).unflatten(1, (-1, block)).mean(2)[None], controls)[0]
        error = found.std() / NUM_SETS**0.5
        scores.append(float((found.mean() - truth) / error))
        ratios.append(float(error / (wave(x).mean(1).std() / NUM_SETS**0.5)))
    t = torch.tensor(scores)
    assert abs(float(t.mean())) < 4 * 1.18 / 40**0.5
    assert float(t.std()) < 1.18 * 1.6
    assert float(torch.tensor(ratios).median()) < share


def test_polynomials_have_no_error() -> None:
    """Of a degree of at most 4, whatever else there is of the points."""
    x = points(2, 128, 3)
    controls = hermite_products(x)
    assert controls is not None
    values = 2 + x[..., 0] ** 3 * x[..., 1] - 5 * x[..., 1] ** 4  # the mean is 2 - 15
    torch.testing.assert_close(controlled_means(values, controls), torch.full((NUM_SETS,), -13.0, dtype=torch.float64))


def test_what_is_not_finite_has_the_plain_mean_and_spoils_nothing() -> None:
    x = points(2, 128, 3)
    controls = hermite_products(x)
    assert controls is not None
    both = torch.stack([wave(x), wave(x)])
    both[0, 2, 5] = math.inf
    found = controlled_means(both, controls)
    assert found[0, 2] == math.inf
    torch.testing.assert_close(found[1], controlled_means(wave(x), controls))


def test_there_are_none_for_too_few_points() -> None:
    assert hermite_products(points(40, 4, 0)) is None
