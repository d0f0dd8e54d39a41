"""Coordinates for hierarchies: bijections with the right Jacobian, exact where the model is normal, honest draws."""

import math
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import special, stats
from torch.func import vmap

from models import eight_schools, funnel
from ppl_vi.target import Target
from ppl_vi.truth import ground_truth, reference_truth
from ppl_vi.truth.coordinates import Coordinates, Pull
from ppl_vi.truth.reference import Settings, reference
from ppl_vi.truth.search import prior_draws

REAL = torch.float64


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def points(num, dim, seed=0):
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed), dtype=REAL)


def nested(y):
    """Locations and scales that move, in plates, by `expand` and `to_event`, on the line and as logarithms."""
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    top = pyro.sample("top", dist.Normal(1.0, 2.0))
    with pyro.plate("groups", 2):
        rate = pyro.sample("rate", dist.LogNormal(top, scale))
    inner = pyro.sample("inner", dist.StudentT(3.0, rate.sum(), scale).expand([3]).to_event(1))
    simplex = pyro.sample("simplex", dist.Dirichlet(torch.ones(3, dtype=y.dtype)))
    pyro.sample("last", dist.Laplace(inner[0], 1.0))
    pyro.sample("y", dist.Normal(inner * simplex, 1.0).to_event(1), obs=y)


NESTED = Target.of(nested, (torch.tensor([0.5, -1.0, 2.0], dtype=REAL),))


def test_sites_whose_prior_moves_are_found():
    assert set(Coordinates.of(NESTED, 0).pulls) == {"rate", "inner", "last"}
    assert set(Coordinates.of(eight_schools.target("centred"), 0).pulls) == {"theta"}
    assert not Coordinates.of(eight_schools.target("non_centred"), 0).pulls


@pytest.mark.parametrize("pulled", [False, True])
def test_coordinates_are_a_bijection_with_its_jacobian(pulled):
    start = Coordinates.of(NESTED, 0)
    numbers = {name: points(2, pull.slope.numel(), seed=3) for name, pull in start.pulls.items()}
    pulls = {
        name: Pull(numbers[name][0].reshape(pull.slope.shape), numbers[name][1].square().reshape(pull.slope.shape))
        for name, pull in start.pulls.items()
    }
    coordinates = start.pulled(pulls) if pulled else start
    u = points(5, NESTED.dim)
    v = coordinates.outward(u)
    torch.testing.assert_close(coordinates.inward(v), u, rtol=1e-9, atol=1e-9)
    jacobian = vmap(torch.func.jacrev(lambda one: coordinates.outward(one[None])[0]))(u)
    moved = coordinates.plain(v) + torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(coordinates.density(u), moved, rtol=1e-10, atol=1e-9)
    assert float((v - u).abs().max()) > 1


def test_a_normal_likelihood_is_found_exactly_whatever_the_points():
    """theta_j | mu, tau, y is normal with h = y_j / sigma_j^2 and w = 1 / sigma_j^2, and u then Normal(0, 1)."""
    target = replace(eight_schools.target("centred"), conditional=None)
    start = Coordinates.of(target, 0)
    u = points(40, target.dim)
    fitted = start.fitted(u, start.density.slope(u)[1])
    y, sigma = target.row(0)
    torch.testing.assert_close(fitted.pulls["theta"].precision, sigma**-2)
    torch.testing.assert_close(fitted.pulls["theta"].slope, y / sigma**2)
    _, slope = fitted.density.slope(u)
    torch.testing.assert_close(slope[:, 2:], -u[:, 2:])
    again = fitted.fitted(u, slope)
    torch.testing.assert_close(again.pulls["theta"].precision, sigma**-2)


def test_a_prior_alone_is_non_centred():
    start = Coordinates.of(funnel.target(4), 0)
    u = points(40, 4)
    (pull,) = start.fitted(u, start.density.slope(u)[1]).pulls.values()
    assert float(pull.precision.abs().max()) < 1e-12
    assert float(pull.slope.abs().max()) < 1e-12


# ---- draws


@pytest.mark.slow
def test_draws_of_the_funnel_against_its_closed_form():
    target = replace(funnel.target(5), conditional=None, closed_form=None)
    truth = reference_truth(target)
    assert truth.grade == "checked", truth.reasons
    assert any("x" in assumed for assumed in truth.assumptions)
    assert abs(float(truth.log_evidence[0])) < 4 * float(truth.log_evidence_std_error[0]) < 0.02
    v = truth.points[0].u[0, :, 0].numpy()
    # 10,000 draws, nearly independent: the mean of the squares has a standard error of 1.4%
    assert np.square(v).mean() == pytest.approx(9.0, rel=0.06)
    assert stats.kstest(v, stats.norm(0, 3).cdf).pvalue > 1e-3
    noise = truth.points[0].u[0, :, 1:].numpy() * np.exp(-v / 2)[:, None]
    assert all(stats.kstest(row, stats.norm.cdf).pvalue > 1e-3 for row in noise.T)


def mass_below(edges):
    """P(tau < edge | y) of eight schools, by sums over mu and log tau with the schools' effects integrated out."""
    log_tau, mu = np.meshgrid(np.linspace(-18, 7, 1001), np.linspace(-30, 40, 141), indexing="ij")
    value = stats.norm.logpdf(mu, 0, 5) + stats.halfcauchy.logpdf(np.exp(log_tau), scale=5) + log_tau
    for effect, error in zip(eight_schools.EFFECTS, eight_schools.ERRORS, strict=True):
        value = value + stats.norm.logpdf(effect, mu, np.sqrt(np.exp(2 * log_tau) + error**2))
    mass = np.exp(value - value.max()).sum(1)
    return np.interp(np.log(edges), log_tau[:, 0], (mass.cumsum() - mass / 2) / mass.sum())


@pytest.mark.slow
def test_draws_of_centred_eight_schools_reach_the_neck():
    exact = ground_truth(eight_schools.target("centred"))
    target = replace(eight_schools.target("centred"), conditional=None)
    drawn = reference_truth(target)
    assert drawn.grade == "checked", drawn.reasons
    off = abs(float(drawn.log_evidence[0] - exact.log_evidence[0]))
    assert off < 4 * float(drawn.log_evidence_std_error[0]) < 0.02

    def told(latents):
        mu, tau, theta = latents["mu"], latents["tau"], latents["theta"]
        return torch.cat([mu[..., None], tau.log()[..., None], theta, theta.square()], -1)

    one, other = exact.expectation(told), drawn.expectation(told)
    std_error = (one.std_error.square() + other.std_error.square()).sqrt()
    assert ((one.value - other.value).abs() < 4.5 * std_error).all()
    edges = np.array([0.1, 0.5, 2.0])
    necks = drawn.expectation(lambda z: torch.stack([z["tau"] < edge for edge in edges], -1).to(REAL))
    mass = torch.from_numpy(mass_below(edges))  # 0.020, 0.101, 0.382
    assert ((necks.value[0] - mass).abs() < 4.5 * necks.std_error[0]).all()
    assert (necks.std_error < 0.01).all()
    # without the coordinates the same chains are refused
    few = Settings(num_chains=30, num_draws=60, num_warmup=40, num_proposed=1000)
    moved = Coordinates.of(target, 0)
    plain = reference(replace(moved, pulls={}, density=moved.plain), prior_draws(target, 0, 30, 0), few, 0)
    assert "effective size" in plain.reason


def counts(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("groups", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Poisson(theta.exp()), obs=y)


def log_evidence_of_counts(y):
    """By sums over mu and log tau of the groups' integrals over theta = mu + tau x, each by a rule of Gauss-Hermite."""
    x, weight = special.roots_hermitenorm(60)  # as good as 200 to 1e-7
    mu, log_tau = np.meshgrid(np.linspace(-6, 8, 113), np.linspace(-14, 3, 137), indexing="ij")
    theta = mu[..., None] + np.exp(log_tau)[..., None] * x
    log_weight = np.log(weight / weight.sum())
    total = stats.norm.logpdf(mu, 0, 2) + stats.halfnorm.logpdf(np.exp(log_tau)) + log_tau
    for count in y:
        total = total + special.logsumexp(
            count * theta - np.exp(theta) - special.gammaln(count + 1) + log_weight, axis=-1
        )
    below = np.exp(total[:, 0]).sum() * 0.125  # where log tau < -14 the density falls as tau
    return math.log(np.exp(total).sum() * 0.125**2 + below)


@pytest.mark.slow
def test_draws_of_a_hierarchy_of_counts_against_quadrature():
    y = [2.0, 2.0, 1.0, 3.0, 2.0, 1.0, 3.0, 2.0, 6.0, 1.0]
    exact = log_evidence_of_counts(y)
    truth = ground_truth(Target.of(counts, (torch.tensor(y, dtype=REAL),)))
    assert truth.grade == "checked", truth.reasons
    assert abs(float(truth.log_evidence[0]) - exact) < 4 * float(truth.log_evidence_std_error[0]) < 0.02
