"""Moments, coverage and leaked mass: closed forms and signs. Every metric by a second route: `test_table.py`."""

import numpy as np
import pytest
from scipy import special, stats

from ppl_vi.metrics.exact import moments


def value(estimate):
    return float(estimate.value[0, 0])


def posterior_moments(x):
    m = x - 1
    hazard = np.exp(stats.norm.logpdf(m) - special.log_ndtr(m))
    return m + hazard, np.sqrt(1 - m * hazard - hazard**2)


@pytest.mark.parametrize("x", [1.5, 0.0, -3.0, 4.0])
@pytest.mark.parametrize(("up", "times"), [(0.7, 0.8), (-0.4, 1.3), (0.0, 0.5), (0.2, 1.0)])
def test_mean_and_sd_of_gammas_placed_around_the_posterior(place, x, up, times):
    """A gamma with mean `up` posterior sds above the posterior's and `times` its sd scores just that."""
    mean, sd = posterior_moments(x)
    wanted_mean, wanted_sd = mean + up * sd, times * sd
    pair = place("gamma", x, concentration=(wanted_mean / wanted_sd) ** 2, rate=wanted_mean / wanted_sd**2)
    shift, ratio = moments.mean_error(pair), moments.sd_ratio(pair)
    # here 1 - m h - h^2 cancels: at x = -3 it is 0.05 of terms of 17, each with a few eps
    assert abs(value(shift) - up) <= 1e-12
    assert abs(value(ratio) - times) <= 1e-12
    assert (shift.unit, ratio.unit) == ("sd", "1")
    assert (shift.error < 1e-12).all()
    assert (ratio.error < 1e-12).all()


def test_signs(place):
    high = place("lognormal", 4.0, loc=np.log(4.0), scale=0.1)
    low = place("lognormal", 4.0, loc=np.log(2.0), scale=0.6)
    assert value(moments.mean_error(high)) > 0.5
    assert value(moments.mean_error(low)) < -0.5
    assert value(moments.sd_ratio(high)) < 0.5  # too narrow
    assert value(moments.sd_ratio(low)) > 1.2
    assert value(moments.coverage_90(high)) < 0.5  # sure of too little
    assert 0.9 < value(moments.coverage_90(place("half_normal", 4.0, scale=20.0))) < 1


@pytest.mark.parametrize(("x", "rate"), [(0.0, 1.9), (-3.0, 7.0), (1.5, 0.9), (4.0, 0.1)])
def test_coverage_is_the_posterior_mass_of_the_guides_interval(place, x, rate):
    low, high = -np.log([0.95, 0.05]) / rate
    exact = (special.ndtr(x - 1 - low) - special.ndtr(x - 1 - high)) / special.ndtr(x - 1)
    assert abs(exact - 0.9) > 0.01
    found = moments.coverage_90(place("exponential", x, rate=rate))
    assert abs(value(found) - exact) <= found.error[0, 0] + 1e-14
    assert found.error[0, 0] < 1e-11


def test_coverage_of_the_posterior_itself(place):
    root = (0.5 + np.sqrt(0.25 + 4)) / 2  # Normal(0.5, 1) truncated, as mode and curvature
    assert abs(value(moments.coverage_90(place("truncated_normal", 1.5, mode=root, curvature=root**2))) - 0.9) <= 1e-13


@pytest.mark.parametrize(("loc", "scale"), [(0.8, 1.1), (-2.0, 0.7), (3.0, 1.0)])
def test_leaked_mass(place, loc, scale):
    found = moments.leaked_mass(place("normal", 1.5, loc=loc, scale=scale))
    assert abs(value(found) - special.ndtr(-loc / scale)) <= found.error[0, 0] + 1e-15
    assert value(moments.leaked_mass(place("half_normal", 1.5, scale=scale))) == 0


def test_moments_count_what_leaks(place):
    mean, sd = posterior_moments(0.0)
    pair = place("normal", 0.0, loc=-0.3, scale=1.7)
    assert abs(value(moments.mean_error(pair)) - (-0.3 - mean) / sd) <= 1e-13
    assert abs(value(moments.sd_ratio(pair)) - 1.7 / sd) <= 1e-13
