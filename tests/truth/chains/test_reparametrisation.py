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
from ppl_vi.target.evaluation import prior_draws
from ppl_vi.target.sites import split
from ppl_vi.target.target import Target
from ppl_vi.truth import ground_truth, reference_truth
from ppl_vi.truth.chains.reference import ChainSettings, sampled_reference
from ppl_vi.truth.chains.reparametrisation import Reparametrisation
from ppl_vi.truth.chains.site_terms import GaussianSiteTerm

REAL = torch.float64


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def points(num, dim, seed=0):
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed), dtype=REAL)


def nested(y):
    """Locations and scales that move, in plates, by `expand` and `to_event`, on the line, as logarithms, as vectors."""
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    top = pyro.sample("top", dist.Normal(1.0, 2.0))
    with pyro.plate("groups", 2):
        rate = pyro.sample("rate", dist.LogNormal(top, scale))
        matrix = scale * torch.tensor([[1.0, 0.0], [0.7, 0.5]], dtype=y.dtype)
        pair = pyro.sample("pair", dist.MultivariateNormal(top.expand(2), scale_tril=matrix))
    inner = pyro.sample("inner", dist.StudentT(3.0, rate.sum(), scale).expand([3]).to_event(1))
    simplex = pyro.sample("simplex", dist.Dirichlet(torch.ones(3, dtype=y.dtype)))
    pyro.sample("last", dist.Laplace(inner[0], 1.0))
    pyro.sample("y", dist.Normal(inner * simplex + pair.sum(), 1.0).to_event(1), obs=y)


NESTED = Target.of(nested, (torch.tensor([0.5, -1.0, 2.0], dtype=REAL),))


def test_sites_whose_prior_moves_are_found():
    assert set(Reparametrisation.of(NESTED, 0).site_terms) == {"rate", "pair", "inner", "last"}
    assert set(Reparametrisation.of(eight_schools.target("centred"), 0).site_terms) == {"theta"}
    assert not Reparametrisation.of(eight_schools.target("non_centred"), 0).site_terms


def term_like(term, seed):
    center, precision, powers = (points(1, n.numel(), seed)[0].reshape(n.shape) for n in term.numbers)
    return GaussianSiteTerm(center, precision.square(), powers)


@pytest.mark.parametrize("with_terms", [False, True])
def test_coordinates_are_a_bijection_with_its_jacobian(with_terms):
    start = Reparametrisation.of(NESTED, 0)
    site_terms = {name: term_like(term, seed) for seed, (name, term) in enumerate(start.site_terms.items())}
    coordinates = start.with_site_terms(site_terms) if with_terms else start
    u = points(5, NESTED.dim)
    v = coordinates.to_unconstrained(u)
    torch.testing.assert_close(coordinates.from_unconstrained(v), u, rtol=1e-9, atol=1e-9)
    jacobian = vmap(torch.func.jacrev(lambda one: coordinates.to_unconstrained(one[None])[0]))(u)
    moved = coordinates.unconstrained_density(v) + torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(coordinates.density(u), moved, rtol=1e-10, atol=1e-9)
    assert float((v - u).abs().max()) > 1


def test_without_a_term_a_vector_is_non_centred():
    """pair = (top, top) + scale L u, with the matrix L of the model `nested`."""
    coordinates = Reparametrisation.of(NESTED, 0)
    u = points(5, NESTED.dim)
    given = split(NESTED.latents, u)
    latents, _ = NESTED.constrain(coordinates.to_unconstrained(u))
    scaled = given["pair"] @ torch.tensor([[1.0, 0.7], [0.0, 0.5]], dtype=REAL)
    expected = latents["top"].reshape(-1, 1, 1) + latents["scale"].reshape(-1, 1, 1) * scaled
    torch.testing.assert_close(latents["pair"].reshape(expected.shape), expected)


def precision_and_height(term, log_scales):
    """w and h, the sum of all terms, where the scales have these logarithms."""
    w = term.precision * (term.powers * log_scales).sum(-1).exp()
    return w.sum(-1), (w * term.center).sum(-1)


def test_a_normal_likelihood_is_found_exactly_whatever_the_points():
    """theta_j | mu, tau, y is normal with h = y_j / sigma_j^2 and w = 1 / sigma_j^2, and u then Normal(0, 1)."""
    target = replace(eight_schools.target("centred"), conditional=None)
    start = Reparametrisation.of(target, 0)
    u = points(40, target.dim)
    fitted = start.fitted(u, start.density.slope(u)[1])
    y, sigma = target.row(0)
    for log_tau in (-2.0, 1.0):
        w, h = precision_and_height(fitted.site_terms["theta"], torch.tensor([log_tau], dtype=REAL))
        torch.testing.assert_close(w, sigma**-2)
        torch.testing.assert_close(h, y / sigma**2)
    _, slope = fitted.density.slope(u)
    torch.testing.assert_close(slope[:, 2:], -u[:, 2:])


def noisy(y):
    tau, sigma = pyro.sample("tau", dist.HalfNormal(1.0)), pyro.sample("sigma", dist.HalfNormal(2.0))
    with pyro.plate("groups", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, tau))
        pyro.sample("y", dist.Normal(z, sigma), obs=y)


def test_noise_that_is_inferred_pulls_by_its_own_size():
    """z_j | tau, sigma, y is normal with w = 1 / sigma^2, whatever tau and sigma are, and u then Normal(0, 1)."""
    y = torch.tensor([0.7, -1.1, 2.0], dtype=REAL)
    target = Target.of(noisy, (y,))
    start = Reparametrisation.of(target, 0)
    u = points(400, target.dim)
    fitted = start.fitted(u, start.density.slope(u)[1])
    for log_sigma in (-3.0, 0.5):  # of a thousandth of the points at most
        w, h = precision_and_height(fitted.site_terms["z"], torch.tensor([0.3, log_sigma], dtype=REAL))
        torch.testing.assert_close(w, torch.full_like(y, math.exp(-2 * log_sigma)), rtol=1e-6, atol=0)
        torch.testing.assert_close(h, y * math.exp(-2 * log_sigma), rtol=1e-6, atol=0)
    _, slope = fitted.density.slope(u)
    torch.testing.assert_close(slope[:, 2:], -u[:, 2:], rtol=1e-5, atol=1e-5)


def test_a_prior_alone_is_non_centred():
    start = Reparametrisation.of(funnel.target(4), 0)
    u = points(40, 4)
    (term,) = start.fitted(u, start.density.slope(u)[1]).site_terms.values()
    assert float(term.precision.abs().max()) < 1e-12


# ---- draws


@pytest.mark.slow
def test_draws_of_the_funnel_against_its_closed_form():
    target = replace(funnel.target(5), conditional=None, closed_form=None)
    truth = reference_truth(target, independent=False)
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
    drawn = reference_truth(target, independent=False)
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
    few = ChainSettings(num_chains=30, num_draws=60, num_warmup=40, num_proposed=1000)
    moved = Reparametrisation.of(target, 0)
    plain = replace(moved, site_terms={}, density=moved.unconstrained_density)
    assert "effective sample size" in sampled_reference(plain, prior_draws(target, 0, 30, 0), few, 0).reason


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
    target = Target.of(counts, (torch.tensor(y, dtype=REAL),))
    truth = reference_truth(target, independent=False)
    assert truth.grade == "checked", truth.reasons
    assert abs(float(truth.log_evidence[0]) - exact) < 4 * float(truth.log_evidence_std_error[0]) < 0.02
    assert float(ground_truth(target).log_evidence[0]) == pytest.approx(exact, abs=1e-7)  # by nested quadrature


def walk(y):
    z, step, noise = 0.0, pyro.sample("step", dist.HalfNormal(1.0)), pyro.sample("noise", dist.HalfNormal(1.0))
    for i, value in enumerate(y):
        z = pyro.sample(f"z{i}", dist.Normal(z, step))
        pyro.sample(f"y{i}", dist.Normal(z, noise), obs=value)


def filtered(y, num=501):
    """log p(y), E[step] and E[noise] by sums over the two scales' logarithms of Kalman's filter."""
    line = np.linspace(-20, 2.2, num)
    log_step, log_noise = np.meshgrid(line, line, indexing="ij")
    step, noise = np.exp(log_step), np.exp(log_noise)
    total = stats.halfnorm.logpdf(step) + log_step + stats.halfnorm.logpdf(noise) + log_noise
    mean, variance = np.zeros_like(step), np.zeros_like(step)
    for value in y:
        variance = variance + step**2
        spread = variance + noise**2
        total += stats.norm.logpdf(value, mean, np.sqrt(spread))
        mean, variance = mean + variance / spread * (value - mean), variance * noise**2 / spread
    mass = np.exp(total - total.max())
    log_evidence = math.log(mass.sum()) + total.max() + 2 * math.log(line[1] - line[0])
    return log_evidence, [(mass * scale).sum() / mass.sum() for scale in (step, noise)]


@pytest.mark.slow
def test_draws_of_a_random_walk_against_the_kalman_filter():
    y = [0.6, 0.1, 0.9, 1.3, 1.1, 2.2, 1.7, 1.9, 0.8, 0.4]
    exact, means = filtered(y)
    target = Target.of(walk, (torch.tensor(y, dtype=REAL),))
    truth = reference_truth(target, independent=False)
    assert truth.grade == "checked", truth.reasons
    assert abs(float(truth.log_evidence[0]) - exact) < 4 * float(truth.log_evidence_std_error[0]) < 0.04
    found = truth.expectation(lambda z: torch.stack([z["step"], z["noise"]], -1))
    assert ((found.value[0] - torch.tensor(means, dtype=REAL)).abs() < 4.5 * found.std_error[0]).all()
    assert (found.std_error < 0.01).all()
    assert float(ground_truth(target).log_evidence[0]) == pytest.approx(exact, abs=1e-7)  # by nested quadrature


TIMES = torch.tensor([-1.0, -0.2, 0.4, 0.8], dtype=REAL)  # of mean 0
GROUPS = torch.tensor(
    [[0.4, 1.1, 0.9, 1.6], [2.3, 2.9, 3.4, 3.1], [-0.2, 0.1, -0.4, 0.3], [1.4, 1.0, 2.2, 2.4],
     [0.1, 0.9, 1.7, 1.8], [2.0, 1.7, 1.6, 1.2]], dtype=REAL,
)  # fmt: skip


def varying(t, y):
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2, dtype=y.dtype), 3.0).to_event(1))
    sd = pyro.sample("sd", dist.HalfNormal(torch.ones(2, dtype=y.dtype)).to_event(1))
    factor = pyro.sample("factor", dist.LKJCholesky(2, 2.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("groups", len(y), dim=-2):
        line = pyro.sample("line", dist.MultivariateNormal(mean, scale_tril=sd[:, None] * factor))
        with pyro.plate("times", len(t), dim=-1):
            pyro.sample("y", dist.Normal(line[..., 0] + line[..., 1] * t, noise), obs=y)


def log_evidence_of_lines(t, y, num=(70, 70, 40, 40)):
    """By Gauss' rule over scales, correlation and noise: the groups' least-squares lines are normal given these."""
    groups, times, square = len(y), len(t), (t**2).sum()
    line = np.stack([y.mean(1), y @ t / square], 1)
    rest, mean = ((y - line[:, :1] - line[:, 1:] * t) ** 2).sum(), line.mean(0)
    ends = ((-13, 2.2), (-13, 2.2), (-6, 6), (-3, 1.4))
    rules = [np.polynomial.legendre.leggauss(n) for n in num]
    at = [(high - low) / 2 * x + (low + high) / 2 for (x, _), (low, high) in zip(rules, ends, strict=True)]
    weights = [np.log(w * (high - low) / 2) for (_, w), (low, high) in zip(rules, ends, strict=True)]
    log_a, log_b, turn, log_noise = np.meshgrid(*at, indexing="ij", sparse=True)
    a, b, noise, rho = np.exp(log_a), np.exp(log_b), np.exp(log_noise), np.tanh(turn)
    within = np.broadcast_arrays(a**2 + noise**2 / times, b**2 + noise**2 / square, a * b * rho)

    def normal(matrix, scatter, num):
        det = matrix[0] * matrix[1] - matrix[2] ** 2
        away = (matrix[1] * scatter[0] + matrix[0] * scatter[1] - 2 * matrix[2] * scatter[2]) / det
        return -num * math.log(2 * math.pi) - num / 2 * np.log(det) - away / 2

    def scatter(away):
        return (away[:, 0] ** 2).sum(), (away[:, 1] ** 2).sum(), (away[:, 0] * away[:, 1]).sum()

    between = (9 + within[0] / groups, 9 + within[1] / groups, within[2] / groups)
    total = normal(within, scatter(line - mean), groups - 1) + normal(between, scatter(mean[None]), 1)
    total = total - math.log(groups) - groups / 2 * math.log(times * square)  # from means to sums, from lines to data
    total = total - (times - 2) * groups / 2 * np.log(2 * np.pi * noise**2) - rest / (2 * noise**2)
    for scale, log_scale in ((a, log_a), (b, log_b), (noise, log_noise)):
        total = total + stats.halfnorm.logpdf(scale) + log_scale
    total = total + math.log(0.75) + 2 * np.log1p(-(rho**2))  # LKJ's density of rho, and d rho / d turn
    return float(special.logsumexp(total + sum(np.ix_(*weights))))


@pytest.mark.slow
def test_draws_of_correlated_effects_against_quadrature():
    exact = log_evidence_of_lines(TIMES.numpy(), GROUPS.numpy())
    target = Target.of(varying, (TIMES, GROUPS))
    nested = ground_truth(target)  # by importance sampling of the outer latents
    assert nested.grade == "checked", nested.reasons
    assert abs(float(nested.log_evidence[0]) - exact) < 4 * float(nested.log_evidence_std_error[0]) < 0.01
    truth = reference_truth(target, independent=False)
    assert truth.grade == "checked", truth.reasons
    assert any("line" in assumed for assumed in truth.assumptions)
    assert abs(float(truth.log_evidence[0]) - exact) < 4 * float(truth.log_evidence_std_error[0]) < 0.04
