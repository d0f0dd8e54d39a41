"""The toy's closed form against 50 digits of mpmath's quadrature."""

import math

import mpmath
import pyro.poutine as poutine
import pytest
import torch
from mpmath import mpf

from models.exponential_normal import log_evidence, model, target

TABLE = [
    -1e4, -1234.5, -300.0, -100.0, -40.0, -30.0, -10.0, -5.0, -3.0, -1.0, -0.1, 0.0, 1e-8, 0.5, 1.0, 1.5, 2.0, 4.0, 7.5,
    10.0, 30.0, 100.0, 1e4,
]  # fmt: skip


def by_quadrature(x: float) -> mpf:
    """log of the integral of exp(-z) Normal(x; z, 1) over z > 0, the largest value of the integrand taken out."""
    with mpmath.workdps(50):
        x = mpf(x)
        top = max(x - 1, mpf(0))
        peak = -top - (x - top) ** 2 / 2
        width = 1 / max(1 - x, mpf(1))
        edges = [max(mpf(0), top + k * width) for k in (-25, -10, -4, -1, 0, 1, 4, 10, 25, 60, 130)]
        edges = sorted(set(edges))
        total = mpmath.quad(lambda z: mpmath.exp(-z - (x - z) ** 2 / 2 - peak), edges)
        return peak + mpmath.log(total) - mpmath.log(2 * mpmath.pi) / 2


@pytest.mark.parametrize("x", TABLE)
def test_the_log_evidence(x: float) -> None:
    found = float(log_evidence(torch.tensor(x, dtype=torch.float64)))
    expected = by_quadrature(x)
    # three terms, each right to an ulp or two: 4 eps of the sum of their sizes
    size = 0.5 + abs(x) + abs(float(expected) - 0.5 + x)
    assert abs(mpf(found) - expected) <= 4 * 2.3e-16 * size


def test_a_batch_is_its_rows() -> None:
    problems = target(TABLE)
    rows = [float(log_evidence(torch.tensor(x, dtype=torch.float64))) for x in TABLE]
    assert problems.closed_form is log_evidence
    torch.testing.assert_close(problems.closed_form(*problems.args), torch.tensor(rows).double(), rtol=1e-6, atol=0)
    assert problems.num_problems == len(TABLE)
    assert problems.args[0].dtype == torch.float64


def test_the_model_says_what_the_text_says() -> None:
    trace = poutine.trace(poutine.condition(model, data={"z": torch.tensor(0.7)})).get_trace(torch.tensor(-0.4))
    expected = -0.7 - 1.1**2 / 2 - math.log(2 * math.pi) / 2
    assert float(trace.log_prob_sum()) == pytest.approx(expected, rel=1e-6)  # float32
    assert (trace.nodes["z"]["is_observed"], trace.nodes["x"]["is_observed"]) == (True, True)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_observation_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=f"x must be finite, got {bad}"):
        target([1.5, bad])
