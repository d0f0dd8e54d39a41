"""Family and optimization gaps against another integrator and another optimiser, densities from SciPy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import optimize, special, stats

from ppl_vi.guides import MULTIMODAL
from ppl_vi.metrics.exact import best_member as exact_best_member
from ppl_vi.metrics.exact.best_member import best_member
from ppl_vi.metrics.exact.divergence import reverse_kl
from ppl_vi.metrics.exact.grid import quadrature_grid
from ppl_vi.metrics.family_gap import optimization_gap
from ppl_vi.numerics.newton import minimize

XS = (1.5, 0.0, -3.0, 4.0)
TOLERANCE = 1e-7  # nats; Newton's method stops below 1e-10, Nelder-Mead and BFGS where the value no longer falls

# log density of each family in its parameters, positive ones as logarithms
GUIDES = {
    "lognormal": lambda z, a, b: stats.lognorm.logpdf(z, np.exp(b), scale=np.exp(a)),
    "softplus_normal": lambda z, a, b: (
        stats.norm.logpdf(z + np.log(-np.expm1(-z)), a, np.exp(b)) - np.log(-np.expm1(-z))
    ),
    "gamma": lambda z, a, b: stats.gamma.logpdf(z, np.exp(a), scale=np.exp(-b)),
    "weibull": lambda z, a, b: b - a + np.expm1(b) * (np.log(z) - a) - np.exp(np.exp(b) * (np.log(z) - a)),
    "exponential": lambda z, a: a - np.exp(a) * z,
    "half_normal": lambda z, a: stats.halfnorm.logpdf(z, scale=np.exp(a)),
    "folded_normal": lambda z, a, b: np.logaddexp(
        stats.norm.logpdf(z, a, np.exp(b)), stats.norm.logpdf(z, -a, np.exp(b))
    ),
}
STARTS = {  # from the posterior's mean and standard deviation: several, since none of these need be convex
    "lognormal": lambda m, s: [(np.log(m), np.log(s / m)), (np.log(m) - 0.5, 0.2)],
    "softplus_normal": lambda m, s: [(m, np.log(s)), (np.log(np.expm1(m)) - 0.5, 0.3)],
    "gamma": lambda m, s: [(2 * np.log(m / s), np.log(m / s**2)), (0.1, -np.log(m))],
    "weibull": lambda m, s: [(np.log(m), np.log(m / s)), (np.log(m), 0.1)],
    "exponential": lambda m, s: [(-np.log(m),), (1.0,)],
    "half_normal": lambda m, s: [(np.log(m),), (0.5,)],
    "folded_normal": lambda m, s: [(m, np.log(s)), (0.1 * m, np.log(2 * s)), (0.7 * m, np.log(1.3 * s))],
}

PLAIN_MEMBER = {"lognormal_mixture": "lognormal", "spline_flow": "softplus_normal"}  # what they contain

# the trapezoid rule on the map z = exp(u); no family's best member here has anything beyond (a lognormal's
# q log(q/p) still has 1e-6 above exp(4))
STEP = 0.01
Z = np.exp(np.arange(-35.0, 9.0, STEP))
DZ = STEP * Z


def family_gap(family, x):
    """min over the family of KL(q || p), as KL of measures so that what little mass lies outside costs nothing."""
    m = x - 1
    log_p = stats.norm.logpdf(Z, m) - special.log_ndtr(m)
    hazard = np.exp(stats.norm.logpdf(m) - special.log_ndtr(m))
    mean, sd = m + hazard, np.sqrt(1 - m * hazard - hazard**2)

    def divergence(parameters):
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            log_q = GUIDES[family](Z, *parameters)
            q = np.exp(log_q)
            value = (DZ * np.where(q > 0, q * (log_q - log_p) - q, 0.0)).sum() + 1
        return value if np.isfinite(value) else 1e10

    found = []
    for start in STARTS[family](mean, sd):
        options = {"xatol": 1e-9, "fatol": 1e-13, "maxiter": 4000, "maxfev": 4000}
        rough = optimize.minimize(divergence, start, method="Nelder-Mead", options=options)
        fine = optimize.minimize(divergence, rough.x, method="BFGS", options={"gtol": 1e-8})
        found.append(min(rough.fun, fine.fun))
    return min(found)


@pytest.fixture(scope="module")
def measured(fits, truths):
    def of(family, replicas=2):
        found, truth = fits(family, XS), truths(XS)
        spread = torch.linspace(0, 0.4, replicas, dtype=torch.float64)[:, None]
        theta = found.theta + spread  # replicas that are not alike
        members = reverse_kl(quadrature_grid(found, truth, theta))
        return found, truth, members, best_member(found, truth, members)

    return of


@pytest.mark.parametrize("family", GUIDES)
def test_family_gap_by_a_second_route(measured, family):
    _, _, members, best = measured(family)
    exact = np.array([family_gap(family, x) for x in XS])
    assert best.converged.all()
    assert not best.upper_bound
    assert best.divergence.reason == ""
    assert best.divergence.value.shape == (4, 1)
    np.testing.assert_allclose(best.divergence.value[:, 0], exact, rtol=0, atol=TOLERANCE)
    assert (best.divergence.error <= 1e-11 + 1e-10).all()  # of quadrature, and what Newton's method may leave
    gap = optimization_gap(members, best)
    np.testing.assert_allclose(gap.value + best.divergence.value, members.value, rtol=1e-14)
    assert gap.value.shape == (4, 2)
    assert (gap.value >= -gap.error).all()
    assert (gap.value > 1e-3).any()  # one step of a fit is short of the best


def test_family_gaps_are_not_all_alike():
    """Families differ at x = 1.5 by far more than the tolerance, so that a wrong one would be seen."""
    gaps = np.sort([family_gap(family, 1.5) for family in GUIDES])
    assert np.diff(gaps).min() > 100 * TOLERANCE


def test_the_family_of_the_posterior_has_no_gap(measured, truths):
    _, _, members, best = measured("truncated_normal")
    assert best.converged.all()
    # the tolerance of Newton's method
    np.testing.assert_allclose(best.divergence.value, 0.0, atol=2e-10)
    np.testing.assert_allclose(optimization_gap(members, best).value, members.value, atol=2e-10)


def test_the_best_members_parameters_give_its_divergence(measured):
    found, truth, _, best = measured("gamma")
    again = reverse_kl(quadrature_grid(found, truth, best.theta[:, None]))
    np.testing.assert_allclose(again.value, best.divergence.value, rtol=1e-12)
    for step in (0.05, -0.05):  # and a step away is worse, by half its square at most scales
        for d in range(2):
            away = best.theta.clone()
            away[:, d] += step
            assert (reverse_kl(quadrature_grid(found, truth, away[:, None])).value > best.divergence.value + 1e-6).all()


def test_rate_of_the_best_exponential(measured):
    """KL is log r - m / r + 1 / r^2 + const: its minimum solves r^2 + m r - 2 = 0."""
    _, _, _, best = measured("exponential")
    m = np.array(XS) - 1
    np.testing.assert_allclose(best.theta[:, 0].exp(), (-m + np.sqrt(m**2 + 8)) / 2, rtol=1e-5)


@pytest.mark.parametrize(("shift", "arrived"), [(1e-5, True), (1e-3, False)])
def test_a_best_member_has_arrived_where_another_search_came_as_low(measured, monkeypatch, shift, arrived):
    """A shift costs half its square times the curvature, of order 1: 1e-10 nats or 1e-6, where 1e-9 are allowed."""
    found, truth, members, plain = measured("gamma")
    left = 6.7e-10

    def stopped(*args, **options):
        """The first search of each problem is the lowest, and stopped short; the other converged."""
        result = minimize(*args, **options)
        first = torch.arange(len(result.x)) % 2 == 0
        x = result.x.reshape(-1, 2, 2)[:, :1].expand(-1, 2, -1).reshape(-1, 2)
        return replace(
            result,
            x=torch.where(first[:, None], x, x + shift),
            converged=~first,
            gain=torch.where(first, left, 0.0),
        )

    monkeypatch.setattr(exact_best_member, "minimize", stopped)
    best = best_member(found, truth, members)
    assert (best.converged == arrived).all()
    np.testing.assert_allclose(best.divergence.value, plain.divergence.value, rtol=0, atol=1e-9)
    added = best.divergence.error - plain.divergence.error
    np.testing.assert_allclose(added, left if arrived else 0.0, rtol=0, atol=1e-10 + 1e-11)


def test_many_moded_families_are_all_tested():
    assert set(PLAIN_MEMBER) == MULTIMODAL


@pytest.mark.parametrize("family", PLAIN_MEMBER)
def test_many_moded_families_are_bounded_above_only(fits, truths, family):
    xs = (1.5,)
    found, truth = fits(family, xs), truths(xs)
    fitted = reverse_kl(quadrature_grid(found, truth))
    best = best_member(found, truth, fitted, upper_bound=True)
    assert best.upper_bound
    assert "upper bound" in best.divergence.reason
    assert 0 <= best.divergence.value[0, 0] <= fitted.value[0, 0]
    assert best.divergence.value[0, 0] < family_gap(PLAIN_MEMBER[family], 1.5)
