"""Quadrature of any model of one to three numbers, where a naive rule is wrong: right, or refused."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from scipy import integrate, special, stats

from ppl_vi.target.target import Target
from ppl_vi.truth import ground_truth
from ppl_vi.truth.quadrature.adaptive import Integral, joint_truth
from ppl_vi.truth.result import Check, Points

REAL = torch.float64
NOTHING = (torch.zeros(1, 1, dtype=REAL),)


def truth_of(model, *args):
    return ground_truth(Target(model, args or NOTHING, name=model.__name__))


def assert_right(truth, exact):
    assert truth.grade == "checked", truth.reasons
    assert truth.assumptions
    assert abs(truth.log_evidence[0] - exact) <= truth.log_evidence_error[0] + 4e-15 * abs(exact)
    assert truth.log_evidence_error[0] < 2e-8
    assert all(check.error <= check.tolerance for check in truth.checks)


def log_mixture(*parts):
    return torch.stack(parts).logsumexp(0)


# ---- narrow, wide, bent


def spike(y):
    """0.5 N(0, 1) + 0.5 N(7.3, 0.001^2) on [-20, 20], where three of SciPy's rules report success at 0.5."""
    z = pyro.sample("z", dist.Uniform(-20.0, 20.0))
    broad = dist.Normal(0.0, 1.0).log_prob(z)
    narrow = dist.Normal(7.3, 1e-3).log_prob(z)
    pyro.factor("density", log_mixture(broad, narrow) + math.log(0.5) + math.log(40.0))


@pytest.mark.slow
def test_a_narrow_spike_beside_a_broad_hill():
    truth = truth_of(spike)
    assert_right(truth, math.log((1 + math.erf(20 / math.sqrt(2))) / 2))
    above = truth.expectation(lambda latents: (latents["z"] > 6).double())
    mean = truth.expectation(lambda latents: latents["z"])
    assert float(above.value) == pytest.approx(0.5, abs=1e-9)  # no node lies between the two
    assert float(mean.value) == pytest.approx(3.65, abs=1e-8)


def funnel(y):
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(0.0, torch.exp(v / 2)))


@pytest.mark.slow
def test_a_funnel_of_two_numbers():
    truth = truth_of(funnel)
    assert_right(truth, 0.0)
    for rule in truth.points:
        v = rule.u[..., 0]
        # the second rule is there for the error of the first: its tree is coarser
        assert float(rule.mean(v)) == pytest.approx(0.0, abs=2e-4)
        assert float(rule.mean(v**2)) == pytest.approx(9.0, abs=2e-3)
        assert float(rule.mean(rule.u[..., 1] ** 2 * (-v).exp())) == pytest.approx(1.0, abs=2e-4)


def heavy(y):
    a = pyro.sample("a", dist.Cauchy(0.0, 1.0))
    b = pyro.sample("b", dist.StudentT(2.0, 1.0, 3.0))
    pyro.sample("y", dist.Cauchy(a, 1.0), obs=y[0])
    pyro.sample("w", dist.Normal(0.1 * b, 40.0), obs=y[0])


@pytest.mark.slow
def test_heavy_tails():
    truth = truth_of(heavy, torch.tensor([[2.5]], dtype=REAL))

    def density(b):
        return stats.t(2, 1, 3).pdf(b) * stats.norm(0.1 * b, 40.0).pdf(2.5)

    # the sum of two Cauchy variables is one of scale 2
    pieces = ((-np.inf, 0), (0, 5), (5, np.inf))
    second = sum(integrate.quad(density, *ends, epsabs=1e-16, epsrel=1e-12)[0] for ends in pieces)
    assert_right(truth, stats.cauchy(0, 2).logpdf(2.5) + math.log(second))


def survival(t, observed):
    shape = pyro.sample("shape", dist.Gamma(2.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(2.0, 1.0))
    with pyro.plate("subjects", len(t)):
        with poutine.mask(mask=observed):
            pyro.sample("t", dist.Weibull(scale, shape), obs=t)
        with poutine.mask(mask=~observed):
            pyro.factor("censored", -((t / scale) ** shape))


def test_a_likelihood_that_overflows_to_no_number_far_out():
    """torch's Weibull is inf - inf where (t / scale)^shape overflows; SciPy's two densities on a fine lattice."""
    t = np.array([0.9, 2.2, 3.1, 4.8, 7.7, 10.4, 12.0, 12.0])
    truth = ground_truth(Target.of(survival, (torch.from_numpy(t), torch.from_numpy(t < 12))))
    shape, scale = np.exp(np.linspace(-4, 3, 561))[:, None, None], np.exp(np.linspace(-2, 8, 801))[:, None]
    with np.errstate(over="ignore"):
        dead = stats.weibull_min.logpdf(t, shape, scale=scale)
        alive = stats.weibull_min.logsf(t, shape, scale=scale)
    prior = stats.gamma.logpdf(shape, 2) + stats.lognorm.logpdf(scale, 1, scale=math.e**2) + np.log(shape * scale)
    log_joint = np.where(t < 12, dead, alive).sum(-1) + prior[..., 0]
    assert_right(truth, special.logsumexp(log_joint) + math.log(7 / 560 * 10 / 800))


def rising(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    pyro.factor("more", a.square() + 0 * b)


def test_a_density_without_bound_is_told():
    with pytest.raises(ValueError, match=r"^rising: the log density grows without bound"):
        truth_of(rising)


def needle(y):
    a = pyro.sample("a", dist.Normal(0.0, 100.0))
    b = pyro.sample("b", dist.Normal(0.0, 100.0))
    pyro.sample("y", dist.Normal(a, 1e-4), obs=y[0])
    pyro.sample("w", dist.Normal(a + b, 1e-3), obs=y[1])


def test_a_needle_of_a_likelihood():
    y = torch.tensor([[37.123, -4.2]], dtype=REAL)
    covariance = np.array([[1e4 + 1e-8, 1e4], [1e4, 2e4 + 1e-6]])
    truth = truth_of(needle, y)
    assert_right(truth, stats.multivariate_normal([0, 0], covariance).logpdf(y[0].numpy()))
    assert float(truth.expectation(lambda latents: latents["a"]).value) == pytest.approx(37.123, abs=1e-8)


def banana(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Normal(2 * a**2, 0.3))


@pytest.mark.slow
def test_a_banana():
    truth = truth_of(banana)
    assert_right(truth, 0.0)
    assert float(truth.expectation(lambda latents: latents["b"]).value) == pytest.approx(2.0, abs=1e-6)
    assert float(truth.expectation(lambda latents: (latents["b"] - 2).square()).value) == pytest.approx(8.09, abs=1e-5)


def edge(y):
    a = pyro.sample("a", dist.Beta(0.5, 1.5))
    b = pyro.sample("b", dist.Exponential(2.0))
    pyro.sample("all of thirty", dist.Binomial(30, a), obs=y[0])
    pyro.sample("none", dist.Poisson(b), obs=0 * y[0])


@pytest.mark.slow
def test_a_posterior_at_the_edge_of_its_support():
    truth = truth_of(edge, torch.tensor([[30.0]], dtype=REAL))
    assert_right(truth, special.betaln(30.5, 1.5) - special.betaln(0.5, 1.5) + math.log(2 / 3))


def flat(y):
    a = pyro.sample("a", dist.Normal(0.3, 1.0))
    b = pyro.sample("b", dist.LogNormal(0.0, 0.5))
    pyro.sample("y", dist.Normal(a, 1e5 * b), obs=y[0])


def test_a_likelihood_that_is_nearly_flat():
    """The posterior is the prior; E[1 / b] = exp(0.125) for b ~ LogNormal(0, 0.5)."""
    truth = truth_of(flat, torch.tensor([[1.0]], dtype=REAL))
    assert truth.grade == "checked"
    # y and a are 1e-5 of the scale: their squares change the density by 1e-10
    assert truth.log_evidence[0] == pytest.approx(0.125 - math.log(1e5) - math.log(2 * math.pi) / 2, abs=1e-8)


def labels(y):
    """Two components that may be swapped: four modes if they are far from the data's order, two that matter."""
    m = pyro.sample("m", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
    parts = [dist.Normal(m[i], 0.7).log_prob(y) for i in range(2)]
    pyro.factor("y", (log_mixture(*parts) - math.log(2)).sum())


@pytest.mark.slow
def test_separate_modes_have_their_masses():
    y = torch.tensor([[-2.1, -1.8, -2.5, 3.0, 2.7, 3.4]], dtype=REAL)
    truth = truth_of(labels, y)
    # each observation belongs to either component: 2^6 conjugate evidences
    total = []
    for pattern in range(64):
        log = -6 * math.log(2)
        for component in (0, 1):
            own = y[0, [(pattern >> i) & 1 == component for i in range(6)]].numpy()
            if len(own):
                log += stats.multivariate_normal(np.zeros(len(own)), 0.49 * np.eye(len(own)) + 25).logpdf(own)
        total.append(log)
    assert_right(truth, special.logsumexp(total))
    lower_first = truth.expectation(lambda latents: (latents["m"][..., 0] < latents["m"][..., 1]).double())
    assert float(lower_first.value) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.slow
def test_robust_regression_of_three_numbers_against_nested_quad():
    x = torch.linspace(-2, 2, 12, dtype=REAL)
    noise = torch.randn(12, generator=torch.Generator().manual_seed(1), dtype=REAL)
    y = (0.7 * x + 0.3 + noise)[None]

    def robust(y):
        a = pyro.sample("a", dist.Normal(0.0, 2.0))
        b = pyro.sample("b", dist.Normal(0.0, 2.0))
        s = pyro.sample("s", dist.HalfNormal(2.0))
        with pyro.plate("data", 12):
            pyro.sample("y", dist.StudentT(4.0, a + b * x, s), obs=y)

    truth = truth_of(robust, y)
    nodes, weights = np.polynomial.legendre.leggauss(100)
    t, step = 4.2 * nodes, 4.2 * weights  # a and b = sinh(t) / 2, up to 17; log s from -4 to 3
    at, log_slope = np.sinh(t) / 2, np.log(np.cosh(t) / 2 * step)
    total = []
    for value, weight in zip(3.5 * nodes - 0.5, 3.5 * weights, strict=True):
        away = (y[0].numpy() - at[:, None, None] - at[:, None] * x.numpy()) / math.exp(value)
        log = -2.5 * np.log1p(away**2 / 4).sum(-1) + 12 * (special.gammaln(2.5) - math.log(4 * math.pi) / 2 - value)
        prior = stats.norm(0, 2).logpdf(at) + log_slope
        log += prior[:, None] + prior
        total.append(special.logsumexp(log) + stats.halfnorm(0, 2).logpdf(math.exp(value)) + value + math.log(weight))
    assert truth.grade == "checked", truth.reasons
    assert truth.log_evidence[0] == pytest.approx(special.logsumexp(total), abs=1e-6)


# ---- refusals


def cliff(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    pyro.factor("cliff", torch.where(a + b > 0.7, 3.0, 0.0))


@pytest.mark.slow
def test_a_jump_is_refused_with_the_reason():
    truth = truth_of(cliff)
    assert truth.grade == "uncertified"
    assert "points are needed" in truth.reasons[0] or "jump" in truth.reasons[0]
    assert not truth.trusted.any()


@pytest.mark.slow
def test_a_wrong_closed_form_is_told():
    def closed_form(y):
        return torch.full_like(y[:, 0], 1e-6)

    truth = ground_truth(Target(banana, NOTHING, closed_form=closed_form))
    assert truth.grade == "uncertified"
    assert "closed form" in truth.reasons[0]


@pytest.mark.slow
def test_several_problems_and_a_closed_form():
    def pair(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("y", dist.Normal(b, 1.0), obs=y)

    def closed_form(y):
        return torch.distributions.Normal(0.0, math.sqrt(3.0)).log_prob(y)

    y = torch.tensor([0.4, -7.0], dtype=REAL)
    truth = ground_truth(Target(pair, (y,), closed_form=closed_form))
    assert (truth.grade, truth.assumptions) == ("certified", ())
    mean = truth.expectation(lambda latents: latents["b"])
    np.testing.assert_allclose(mean.value, 2 / 3 * y, atol=1e-7)
    assert (mean.error <= 1e-7).all()


def test_problems_with_unequal_points_and_checks_make_one_truth():
    """The problem whose tree gave up has one check and few points; the other's checks are shown all the same."""

    def integral(log_evidence, num_points, checks, reason):
        u = torch.arange(1.0, 1 + 2 * num_points, dtype=REAL).reshape(1, num_points, 2)
        log_weight = torch.full((1, num_points), -math.log(num_points), dtype=REAL)
        points = Points(u, log_weight, torch.zeros(num_points, dtype=torch.int64), "rule")
        return Integral(log_evidence, 1e-9, checks, reason, (points,), assumptions=(f"{num_points} points are enough",))

    target = Target(banana, (torch.zeros(2, 1, dtype=REAL),), name="banana")
    settled = integral(-1.0, 3, (Check("tree", 1e-9, 1e-6), Check("chains", 2.0, 5.0)), "")
    truth = joint_truth(target, "tree", [settled, integral(-2.0, 1, (Check("tree", math.inf, 1e-6),), "a jump")])
    assert truth.checks == (Check("tree", math.inf, 1e-6), Check("chains", 2.0, 5.0))
    assert truth.trusted.tolist() == [True, False]
    assert truth.assumptions == ("3 points are enough", "1 points are enough")
    np.testing.assert_allclose(truth.points[0].log_weight.exp(), [[1 / 3] * 3, [1, 0, 0]], rtol=1e-14)
    np.testing.assert_allclose(truth.points[0].mean(truth.points[0].u), [[3.0, 4.0], [1.0, 2.0]], rtol=1e-14)
