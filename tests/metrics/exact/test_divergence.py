"""Divergences: closed forms, directions, and what is infinite. Every metric by a second route: `test_table.py`."""

from itertools import pairwise
from types import SimpleNamespace

import mpmath as mp
import numpy as np
import pytest
from scipy import integrate, special, stats

from ppl_vi.metrics import METRICS
from ppl_vi.metrics.exact import divergence as d
from ppl_vi.metrics.exact.grid import quadrature_grid


def value(estimate):
    return float(estimate.value[0, 0])


def error(estimate):
    return float(estimate.error[0, 0])


def assert_within(estimate, exact, rounding=1e-14):
    """The stated error bounds the true one, up to the rounding of `exact`, and is small itself."""
    assert abs(value(estimate) - exact) <= error(estimate) + rounding * max(1.0, abs(exact)), (value(estimate), exact)
    assert error(estimate) <= 1e-9 * max(1.0, abs(exact))


def log_evidence(x):
    return 0.5 - x + special.log_ndtr(x - 1)


def truncated_normal(loc, scale):
    """The family's parameters from those of the normal: loc = m (1 - 1/c), scale = m / sqrt(c)."""
    root = (loc + np.sqrt(loc**2 + 4 * scale**2)) / (2 * scale)
    return {"mode": scale * root, "curvature": root**2}


# ---- KL and ELBO


@pytest.mark.parametrize(
    ("family", "x", "parameters", "q"),
    [
        ("gamma", 1.5, {"concentration": 2.3, "rate": 1.7}, stats.gamma(2.3, scale=1 / 1.7)),
        ("weibull", -3.0, {"scale": 0.2, "concentration": 1.2}, stats.weibull_min(1.2, scale=0.2)),
        ("lognormal", 4.0, {"loc": 1.2, "scale": 0.35}, stats.lognorm(0.35, scale=np.exp(1.2))),
    ],
)
def test_log_evidence_minus_elbo_is_the_reverse_kl(place, family, x, parameters, q):
    """Two integrals by QUADPACK, one of the model and one of the posterior, and both of ours."""
    cuts = [0.0, *q.ppf([1e-9, 1e-3, 0.1, 0.5, 0.9, 1 - 1e-3, 1 - 1e-9]), q.ppf(1 - 1e-15)]

    def log_joint(z):
        return stats.expon.logpdf(z) + stats.norm.logpdf(x, z)

    def log_posterior(z):
        return stats.norm.logpdf(z, x - 1) - special.log_ndtr(x - 1)

    def expectation(f):
        def weighted(z):
            return q.pdf(z) * f(z) if z > 0 else 0.0

        return sum(integrate.quad(weighted, a, b, epsabs=1e-13)[0] for a, b in pairwise(cuts))

    elbo = expectation(lambda z: log_joint(z) - q.logpdf(z))
    kl = expectation(lambda z: q.logpdf(z) - log_posterior(z))
    pair = place(family, x, **parameters)
    assert kl > 0.01
    assert abs(log_evidence(x) - elbo - kl) <= 1e-10
    assert abs(value(d.elbo(pair)) - elbo) <= 1e-10
    assert abs(value(d.reverse_kl(pair)) - kl) <= 1e-10
    assert abs(log_evidence(x) - value(d.elbo(pair)) - value(d.reverse_kl(pair))) <= 1e-12


def test_the_two_directions_are_not_each_other(place):
    """Exponential guides: both closed, from E z = 1/r and the posterior's own mean and hazard."""
    x, rate = 0.4, 5.2
    m = x - 1
    hazard = np.exp(stats.norm.logpdf(m) - special.log_ndtr(m))
    mean = m + hazard
    log_normaliser = np.log(hazard)  # p(z) = hazard exp(m z - z^2 / 2)
    second = 1 + m * mean
    reverse = np.log(rate) - 1 - log_normaliser - m / rate + 1 / rate**2
    forward = log_normaliser + m * mean - second / 2 - np.log(rate) + rate * mean
    pair = place("exponential", x, rate=rate)
    assert abs(reverse - forward) > 0.1
    assert_within(d.reverse_kl(pair), reverse)
    assert_within(d.forward_kl(pair), forward)


@pytest.mark.parametrize("scale", [0.8, 1e-2, 1e-4])
def test_a_spike_is_resolved(place, scale):
    """Lognormal moments are closed, so is the ELBO; a spike 1e-4 wide fools rules that do not look for it."""
    x, loc = 1.5, 0.3
    first, second = np.exp(loc + scale**2 / 2), np.exp(2 * loc + 2 * scale**2)
    entropy = loc + 0.5 * np.log(2 * np.pi * np.e * scale**2)
    elbo = -first - (x**2 - 2 * x * first + second) / 2 - 0.5 * np.log(2 * np.pi) + entropy
    pair = place("lognormal", x, loc=loc, scale=scale)
    for grid in pair.grids:
        assert abs(float(grid.integral(grid.q)[0]) - 1) <= 1e-13
        assert abs(float(grid.integral(grid.p)[0]) - 1) <= 1e-13
    # the width enters as a difference of logs of z, of which 1e-4 has 12 digits
    assert_within(d.elbo(pair), elbo, rounding=1e-12)
    assert_within(d.reverse_kl(pair), log_evidence(x) - elbo, rounding=1e-12)


def test_all_distances_vanish_for_the_posterior_itself(place):
    pair = place("truncated_normal", 1.5, **truncated_normal(0.5, 1.0))
    assert abs(value(d.elbo(pair)) - log_evidence(1.5)) <= 1e-14
    for name in ("reverse_kl", "forward_kl", "chi_square", "hellinger", "total_variation", "wasserstein"):
        found = METRICS[name].on_grid(pair)
        # sums of squares of differences that are rounding themselves, and sums of their sizes
        assert abs(value(found)) <= error(found) + 1e-14, name


def test_replicas_and_problems_keep_their_places(place):
    rates = np.array([0.5, 1.0, 2.0, 4.0])
    found = d.reverse_kl(place("exponential", 0.4, rate=rates))
    alone = [value(d.reverse_kl(place("exponential", 0.4, rate=rate))) for rate in rates]
    assert found.value.shape == (1, 4)
    np.testing.assert_allclose(found.value[0], alone, rtol=1e-12)


# ---- a guide that leaks


@pytest.mark.parametrize("x", [1.5, 0.0, -3.0])
def test_the_normal_guide_that_svi_converges_to(place, x):
    """q = Normal(x-1, 1) leaks Phi(1-x); where both are, q = Phi(x-1) p, so that most scores are closed."""
    pair = place("normal", x, loc=x - 1, scale=1.0)
    leak, log_kept = special.ndtr(1 - x), special.log_ndtr(x - 1)
    assert_within(METRICS["leaked_mass"].on_grid(pair), leak)
    assert_within(d.total_variation(pair), leak)
    assert_within(d.forward_kl(pair), -log_kept)
    assert_within(d.chi_square(pair), special.ndtr(1 - x) / special.ndtr(x - 1))
    assert_within(d.hellinger(pair), np.sqrt(1 - np.exp(log_kept / 2)))
    assert_within(d.surrogate_elbo(pair), 0.5 - x)
    assert value(d.reverse_kl(pair)) == np.inf
    assert value(d.elbo(pair)) == -np.inf
    assert value(d.surrogate_elbo(pair)) > log_evidence(x)  # "a bound" above what it bounds
    for infinite in (d.reverse_kl(pair), d.elbo(pair)):
        assert "no" in infinite.reason
        assert error(infinite) == 0


def test_mass_too_small_for_a_number_leaks_all_the_same(place):
    """Normal(1.5, 0.02) has mass exp(-2816) below 0, so its ELBO is -inf although no node has a positive density."""
    pair = place("normal", 1.5, loc=1.5, scale=0.02)
    assert special.log_ndtr(-75.0) < -2800
    assert value(METRICS["leaked_mass"].on_grid(pair)) == 0
    assert value(d.elbo(pair)) == -np.inf
    assert value(d.reverse_kl(pair)) == np.inf
    assert np.isfinite(value(d.surrogate_elbo(pair)))


def test_wasserstein_of_a_guide_that_leaks(place):
    """By quantiles, int |F^-1 - G^-1| du; the posterior lies above the guide, so it is the difference of means."""
    x = 0.0
    exact = (x - 1 + np.exp(stats.norm.logpdf(x - 1) - special.log_ndtr(x - 1))) - (x - 1)
    p = stats.truncnorm(1 - x, np.inf, loc=x - 1)
    q = stats.norm(x - 1)
    by_quantiles = integrate.quad(lambda u: abs(p.ppf(u) - q.ppf(u)), 0, 1, limit=200)[0]
    found = d.wasserstein(place("normal", x, loc=x - 1, scale=1.0))
    assert abs(by_quantiles - exact) <= 1e-7  # the infinite ends of the guide's quantiles
    assert_within(found, exact)


@pytest.mark.parametrize(("loc", "scale"), [(0.4, 2.0), (2.5, 0.5)])
def test_wasserstein_by_quantiles_where_the_cdfs_cross(place, loc, scale):
    p = stats.truncnorm(-0.5, np.inf, loc=0.5)
    q = stats.truncnorm(-loc / scale, np.inf, loc=loc, scale=scale)
    exact = integrate.quad(lambda u: abs(p.ppf(u) - q.ppf(u)), 0, 1, limit=400, epsabs=1e-10)[0]
    found = d.wasserstein(place("truncated_normal", 1.5, **truncated_normal(loc, scale)))
    assert abs(value(found) - exact) <= 1e-7
    assert found.unit == "z"


@pytest.mark.parametrize(("scale", "crossings"), [(0.8, 1), (1.1, 2), (2.0, 1)])
def test_total_variation_at_its_kinks(place, scale, crossings):
    """Half-normal guides: densities cross at the roots of a quadratic, and cdfs there give the distance."""
    x, m = 1.2, 0.2
    log_ratio = -special.log_ndtr(m) - m**2 / 2 - np.log(2 / scale)  # log p - log q = log_ratio + m z + a z^2
    roots = np.roots([(scale**-2 - 1) / 2, m, log_ratio])
    roots = np.sort(roots[(np.isreal(roots)) & (roots.real > 0)].real)
    p, q = stats.truncnorm(-m, np.inf, loc=m), stats.halfnorm(scale=scale)
    masses = np.diff([0.0, *(p.cdf(roots) - q.cdf(roots)), 0.0])
    assert len(roots) == crossings
    assert_within(d.total_variation(place("half_normal", x, scale=scale)), np.abs(masses).sum() / 2)


# ---- chi-square


def exact_chi_square(family, x, **parameters):
    """With 40 digits, by parts where the integrand is singular."""
    with mp.workdps(40):
        m = mp.mpf(x) - 1
        hazard = mp.npdf(m) / mp.ncdf(m) * mp.exp(m**2 / 2) * mp.sqrt(2 * mp.pi)
        front = (hazard / mp.sqrt(2 * mp.pi) * mp.exp(-(m**2) / 2)) ** 2  # p^2 = front exp(2 m z - z^2)
        if family == "exponential":
            b = 2 * m + parameters["rate"]
            normal = mp.sqrt(mp.pi) * mp.exp(b**2 / 4) * mp.ncdf(b / mp.sqrt(2))
            return float(front / parameters["rate"] * normal - 1)
        c, r = mp.mpf(parameters["concentration"]), mp.mpf(parameters["rate"])
        b = 2 * m + r
        parts = mp.quad(lambda z: z ** (2 - c) * (2 * z - b) * mp.exp(b * z - z**2), [0, 1, 3, mp.inf]) / (2 - c)
        return float(front * mp.gamma(c) / r**c * parts - 1)


@pytest.mark.parametrize(
    ("family", "x", "parameters"),
    [
        ("exponential", 0.0, {"rate": 1.4}),
        ("exponential", -3.0, {"rate": 6.0}),
        ("exponential", 4.0, {"rate": 0.3}),
        ("gamma", 0.0, {"concentration": 0.7, "rate": 1.1}),
        ("gamma", 0.0, {"concentration": 1.5, "rate": 1.1}),
        ("gamma", 1.5, {"concentration": 1.9, "rate": 1.3}),
    ],
)
def test_chi_square_closed_forms(place, family, x, parameters):
    assert_within(d.chi_square(place(family, x, **parameters)), exact_chi_square(family, x, **parameters))


@pytest.mark.parametrize("concentration", [1.99, 1.999])
def test_chi_square_next_to_infinity_owns_up(place, concentration):
    """p^2/q falls as z^(1-c) at 0: part of it lies below the smallest float, so the stated error must be large."""
    found = d.chi_square(place("gamma", 0.0, concentration=concentration, rate=1.1))
    exact = exact_chi_square("gamma", 0.0, concentration=concentration, rate=1.1)
    assert abs(value(found) - exact) > 1e-4 * exact
    assert abs(value(found) - exact) <= error(found) * (1 + 1e-6)
    assert error(found) <= exact


@pytest.mark.parametrize("variance", [0.52, 0.6, 1.7])
def test_chi_square_of_truncated_normals(place, variance):
    """p^2/q is a Gaussian of precision 2 - 1/s^2: integrable over the half line if that is positive."""
    x, loc, scale = 1.5, 0.3, variance**0.5
    m = x - 1
    precision = 2 - 1 / variance
    slope = 2 * m - loc / variance
    log_q0 = -np.log(scale) - special.log_ndtr(loc / scale) - loc**2 / (2 * variance)
    log_p0 = -special.log_ndtr(m) - m**2 / 2
    log_mass = slope**2 / (2 * precision) + special.log_ndtr(slope / precision**0.5) - np.log(precision) / 2
    found = d.chi_square(place("truncated_normal", x, **truncated_normal(loc, scale)))
    assert_within(found, np.exp(2 * log_p0 - log_q0 + log_mass) - 1, rounding=1e-12)


@pytest.mark.parametrize(
    ("family", "parameters"),
    [
        ("gamma", {"concentration": 2.0, "rate": 1.0}),
        ("gamma", {"concentration": 4.5, "rate": 1.0}),
        ("truncated_normal", truncated_normal(0.3, 0.48**0.5)),
        ("truncated_normal", truncated_normal(0.3, 0.3)),
        ("half_normal", {"scale": 0.7}),
        ("weibull", {"scale": 1.0, "concentration": 2.5}),
        ("lognormal", {"loc": -0.3, "scale": 3.0}),
        ("softplus_normal", {"loc": 0.3, "scale": 1.5}),
    ],
)
def test_chi_square_is_infinite_where_a_tail_is_too_light(place, family, parameters):
    found = d.chi_square(place(family, 1.5, **parameters))
    assert value(found) == np.inf
    assert "not integrable" in found.reason


def test_more_than_one_latent_number_is_refused(fits):
    two = SimpleNamespace(target=SimpleNamespace(dim=2))
    with pytest.raises(ValueError, match="one latent number; the target has 2"):
        quadrature_grid(fits("lognormal", (1.5,)), two)


KINKED = {
    "widths": [[0.5, -0.4, 0.9, -1.0, 0.2]],
    "heights": [[-0.7, 0.6, 0.1, 0.8, -0.5]],
    "derivatives": [[0.6, -0.8, 0.5, -0.3]],
}


@pytest.mark.parametrize(
    ("family", "parameters"),
    [
        ("gamma", {"concentration": np.array([2.3, 0.4, 700.0]), "rate": np.array([1.7, 2.0, 900.0])}),
        ("truncated_normal", {"mode": [0.5, 0.501, 30.0], "curvature": [0.25, 0.25, 90.0]}),
        ("spline_flow", KINKED),
    ],
)
def test_unrefined_panels_show_what_the_refined_ones_do(place, family, parameters):
    """To a thousandth, whether the unrefined panels were enough (smooth densities) or not (a spline's kinks)."""
    pair = place(family, 1.5, **parameters)
    exact = d.reverse_kl(pair).value
    np.testing.assert_allclose(d.reverse_kl_of_many(pair), exact, rtol=2e-3)
    assert (exact > 0).all()
    alone = pair.unrefined[0].reshape(exact.shape)
    assert np.allclose(alone, exact, rtol=1e-8) == (family != "spline_flow")


def test_unrefined_panels_do_not_overlook_leaked_mass(place):
    pair = place("normal", 0.0, loc=1.0, scale=0.5)
    assert np.isinf(d.reverse_kl_of_many(pair)).all()
