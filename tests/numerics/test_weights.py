"""Importance weights, held to arithmetic with the weights themselves and to weights of a known tail."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ppl_vi.numerics.weights import (
    check_draws,
    importance_evidence,
    log_mean,
    log_mean_error,
    log_mean_weights,
    pareto_khat,
)

WEIGHTS = np.array([[0.5, 3.0, 1.25, 7.0], [2.0, 0.125, 0.0, 1.5]])


def test_the_mean_and_its_error_are_those_of_the_weights() -> None:
    with np.errstate(divide="ignore"):
        log_weights = np.log(WEIGHTS)
    np.testing.assert_allclose(log_mean(log_weights), np.log(WEIGHTS.mean(1)), rtol=1e-14)
    np.testing.assert_allclose(log_mean(log_weights, axis=None), math.log(WEIGHTS.mean()), rtol=1e-14)
    expected = WEIGHTS.std(1, ddof=1) / WEIGHTS.mean(1) / 2
    np.testing.assert_allclose(log_mean_error(log_weights), expected, rtol=1e-14)
    found = importance_evidence(log_weights[1])
    assert (found.value, found.std_error) == pytest.approx((math.log(WEIGHTS[1].mean()), expected[1]), rel=1e-14)


def test_weights_may_differ_by_any_factor() -> None:
    shifted = np.log(WEIGHTS[0]) - 2000.0  # exp of which is 0
    found = importance_evidence(shifted)
    assert found.value == pytest.approx(math.log(WEIGHTS[0].mean()) - 2000.0, rel=1e-14)
    assert found.std_error == pytest.approx(WEIGHTS[0].std(ddof=1) / WEIGHTS[0].mean() / 2, rel=1e-11)


def test_without_any_weight_there_is_no_error_to_tell() -> None:
    nowhere = np.full(5, -np.inf)
    assert log_mean(nowhere) == -np.inf
    assert np.isnan(log_mean_error(nowhere))


@pytest.mark.parametrize("shape", [0.25, 0.6, 0.9])
def test_khat_is_the_shape_of_a_pareto_distribution(shape: float) -> None:
    """Weights U^(-k) have the shape k; its estimate from the largest M = 3 sqrt(N) weights has the standard error
    (1 + k) / sqrt(M), and a prior as good as 10 of them draws it to 0.5."""
    num = 40_000
    log_weights = -shape * np.log(np.random.default_rng(3).uniform(size=num))
    largest = 3 * math.sqrt(num)
    drawn_by = abs(0.5 - shape) * 10 / (largest + 10)
    assert pareto_khat(log_weights) == pytest.approx(shape, abs=drawn_by + 4 * (1 + shape) / math.sqrt(largest))


def test_weights_without_a_tail_have_no_khat() -> None:
    assert math.isnan(pareto_khat(np.zeros(1000)))


def test_bounds_of_several_draws_are_means_of_consecutive_weights() -> None:
    log_weights = torch.from_numpy(WEIGHTS[:1]).log()
    expected = torch.tensor([[1.75, 4.125]], dtype=torch.float64).log()
    torch.testing.assert_close(log_mean_weights(log_weights, 2), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("num", [(0, 2), (1, 1)])
def test_too_few_draws_are_refused(num: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"needs 1 particle and 2 repeats at least, got {num[0]} and {num[1]}"):
        check_draws(*num)
