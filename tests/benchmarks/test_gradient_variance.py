"""Both estimators of the gradient are unbiased, and the one along the path is the less noisy."""

from __future__ import annotations

from benchmarks import gradient_variance


def test_on_the_toy() -> None:
    spreads = gradient_variance.toy(seed=1)
    assert all(spread.disagreement < 4 for spread in spreads)  # standard errors
    assert all(spread.ratio > 1.2 for spread in spreads)
    assert abs(spreads[0].path.mean()) > 20 * spreads[0].path.std() / len(spreads[0].path) ** 0.5  # not all zero
