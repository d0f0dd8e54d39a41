"""Truths of hierarchies against nested computations by SciPy and numpy, and what is left to other routes."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, optimize, special, stats

from models.exponential_normal import target as toy
from ppl_vi.target.target import Target
from ppl_vi.target.terms import Terms
from ppl_vi.truth import ground_truth, nested_truth
from ppl_vi.truth.nested import truth as nested
from ppl_vi.truth.quadrature.one_number import quadrature_truth
from tests.hierarchies import COUNTS, REAL, SD, Y, centred, counts, non_centred


def within_error(truth, expected, its_error=1e-9):
    """Whether log p(x) is what was expected, to the stated error, 1e-6 at most, and that of the other computation."""
    assert truth.grade == "checked"
    assert truth.method.startswith("nested quadrature (")
    assert 0 < float(truth.log_evidence_error[0]) < 1e-6
    assert float(truth.log_evidence_std_error[0]) == 0
    assert abs(float(truth.log_evidence[0]) - expected) < float(truth.log_evidence_error[0]) + its_error


@pytest.mark.parametrize("model", [centred, non_centred])
def test_eight_schools_need_no_conditional_however_they_are_written(model):
    y, sd = Y.numpy(), SD.numpy()

    def of_tau(u, power=0):
        tau = math.exp(u)
        covariance = np.diag(sd**2 + tau**2) + 25
        return tau**power * tau * stats.halfcauchy(scale=5).pdf(tau) * stats.multivariate_normal(cov=covariance).pdf(y)

    mass, first = (
        integrate.quad(of_tau, -30, 8, args=(power,), limit=500, epsabs=0, epsrel=1e-12)[0] for power in (0, 1)
    )
    truth = ground_truth(Target.of(model, (Y, SD)))
    within_error(truth, math.log(mass))
    assert "1 outer latent number, 1 normal given it, 8 blocks of 1" in truth.method
    tau = truth.expectation(lambda latents: latents["tau"])
    assert abs(float(tau.value) - first / mass) < 5 * float(tau.std_error)
    # The neck, where chains stick: the draws are independent, and reach it.
    neck = truth.expectation(lambda latents: (latents["tau"] < 0.1).double())
    below = integrate.quad(of_tau, -30, math.log(0.1), limit=500, epsabs=0, epsrel=1e-12)[0] / mass
    assert abs(float(neck.value) - below) < 5 * float(neck.std_error)


def one_way(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    tau, sigma = (pyro.sample(name, dist.HalfNormal(1.0)) for name in ("tau", "sigma"))
    with pyro.plate("groups", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta[..., None], sigma).to_event(1), obs=y)


def one_way_evidence(y):
    """log p(y) of `one_way` by the trapezoid rule over the logs of both scales; the rest is normal."""
    num, size = y.shape
    mean = y.mean(1)
    log_tau, log_sigma = np.linspace(-30, 2, 1601)[:, None], np.linspace(-1.2, 0.6, 901)[None]
    tau, sigma = np.exp(log_tau), np.exp(log_sigma)
    variance, within = tau**2 + sigma**2 / size, ((y - mean[:, None]) ** 2).sum()
    joint = -num * (size - 1) / 2 * np.log(2 * np.pi * sigma**2) - within / 2 / sigma**2 - num / 2 * np.log(size)
    precision = num / variance + 1 / 100
    square = (mean**2).sum() / variance - (mean.sum() / variance) ** 2 / precision
    joint = joint - num / 2 * np.log(2 * np.pi * variance) - np.log(100 * precision) / 2 - square / 2
    joint = joint + stats.halfnorm.logpdf(tau) + stats.halfnorm.logpdf(sigma) + log_tau + log_sigma
    return special.logsumexp(joint) + math.log((log_tau[1, 0] - log_tau[0, 0]) * (log_sigma[0, 1] - log_sigma[0, 0]))


def test_rounding_at_small_scales_of_centred_effects_is_within_the_stated_error():
    """With effects near 0 a part of log p(x) has few digits, on which two lattices agree all the same."""
    noise = np.random.default_rng(3)
    y = 0.3 + 0.02 * noise.standard_normal((60, 1)) + 0.8 * noise.standard_normal((60, 8))
    truth = ground_truth(Target.of(one_way, (torch.from_numpy(y),)), seed=1)
    within_error(truth, one_way_evidence(y), its_error=1e-10)


def nested_counts(y):
    """log p(x) of `counts` by the trapezoid rule over a and log sigma, and for each group over z = e / sigma."""
    z = np.linspace(-9, 9, 401)
    weight = stats.norm.pdf(z) * (z[1] - z[0])
    a, u = np.arange(-6, 7, 0.12), np.arange(-22, 2.3, 0.1)
    log_mean = a[:, None, None] + np.exp(u)[:, None] * z
    joint = stats.norm(0, 2).logpdf(a)[:, None] + stats.halfnorm.logpdf(np.exp(u)) + u
    for count in y:
        with np.errstate(divide="ignore"):  # far from the data nothing is left
            joint = joint + np.log(np.exp(count * log_mean - np.exp(log_mean) - special.gammaln(count + 1)) @ weight)
    return special.logsumexp(joint) + math.log(0.12 * 0.1)


def test_counts_with_random_effects():
    truth = ground_truth(Target.of(counts, (COUNTS,)))
    within_error(truth, nested_counts(COUNTS.numpy()))
    assert "2 outer latent numbers, 6 blocks of 1" in truth.method


def growth(y, t):
    means = pyro.sample("means", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
    sd = pyro.sample("sd", dist.LogNormal(torch.zeros(3, dtype=REAL), 1.0).to_event(1))
    with pyro.plate("groups", len(y)):
        a = pyro.sample("a", dist.Normal(means[0], sd[0]))
        b = pyro.sample("b", dist.Normal(means[1], sd[1]))
        pyro.sample("y", dist.Normal(a[..., None] + b[..., None] * t, sd[2]).to_event(1), obs=y)


@pytest.mark.slow
def test_growth_curves_with_their_means_and_lines_in_closed_form():
    """Three scales are left; numpy integrates over them by a lattice, with the covariance of all data at each node."""
    generator = torch.Generator().manual_seed(0)
    t = torch.tensor([-1.0, -0.3, 0.4, 1.0], dtype=REAL)
    lines = torch.randn(6, 2, generator=generator, dtype=REAL) * torch.tensor([1.5, 0.7]) + torch.tensor([4.0, 2.0])
    y = lines[:, :1] + lines[:, 1:] * t + 0.5 * torch.randn(6, 4, generator=generator, dtype=REAL)
    design = np.stack([np.ones(4), t.numpy()], 1)
    one = np.arange(-6.4, 6.4, 0.2)
    u = np.stack(np.meshgrid(one, one, np.arange(-4.0, 4.0, 0.125), indexing="ij"), -1).reshape(-1, 3)
    square = np.exp(2 * u)
    own = np.einsum("ti,ni,si->nts", design, square[:, :2], design) + square[:, 2, None, None] * np.eye(4)
    inverse, shared = np.linalg.inv(own), np.eye(2) / 100
    precision = shared + 6 * np.einsum("ti,nts,sj->nij", design, inverse, design)
    force = np.einsum("ti,nts,gs->ni", design, inverse, y.numpy())
    fit = np.einsum("gt,nts,gs->n", y.numpy(), inverse, y.numpy())
    fit = fit - np.einsum("ni,ni->n", force, np.linalg.solve(precision, force[..., None])[..., 0])
    log_det = 6 * np.linalg.slogdet(own)[1] + np.linalg.slogdet(precision)[1] + 2 * math.log(100)
    joint = stats.norm.logpdf(u).sum(1) - (24 * math.log(2 * math.pi) + log_det + fit) / 2
    truth = ground_truth(Target.of(growth, (y, t)))
    within_error(truth, special.logsumexp(joint) + math.log(0.2 * 0.2 * 0.125), 5e-8)
    assert "3 outer latent numbers, 2 normal given them, 6 blocks of 2" in truth.method


def regression(x, y):
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    pyro.sample("y", dist.Normal(x @ w, sigma).to_event(1), obs=y)


def test_a_regression_is_left_with_its_noise():
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(1), dtype=REAL)
    y = x @ torch.tensor([1.0, -0.5, 0.0, 2.0], dtype=REAL) + 0.3

    def of_noise(u):
        covariance = math.exp(2 * u) * np.eye(12) + (x @ x.T).numpy()
        return stats.norm.pdf(u) * stats.multivariate_normal(cov=covariance).pdf(y.numpy())

    truth = ground_truth(Target.of(regression, (x, y)))
    within_error(truth, math.log(integrate.quad(of_noise, -6, 6, points=[-1, 0], epsabs=0, epsrel=1e-12, limit=300)[0]))


def known_noise(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    b = pyro.sample("b", dist.Normal(0.0, 3.0))
    pyro.sample("y", dist.Normal(x @ w + b, 0.5).to_event(1), obs=y)


def test_what_is_normal_altogether_needs_no_quadrature():
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(1), dtype=REAL)
    y = x[:, 0] + 0.3
    truth = ground_truth(Target.of(known_noise, (x, y)))
    covariance = 0.25 * np.eye(12) + (x @ x.T).numpy() + 9
    within_error(truth, stats.multivariate_normal(cov=covariance).logpdf(y.numpy()))


def chain(y):
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    x = pyro.sample("steps", dist.Normal(0.0, sigma).expand([6]).to_event(1)).cumsum(-1)
    pyro.sample("y", dist.Poisson(x.exp()).to_event(1), obs=y)


def test_latents_that_hang_together_are_left_to_the_other_routes(monkeypatch):
    target = Target.of(chain, (COUNTS,))
    assert nested_truth(target) is None
    other, asked = quadrature_truth(toy([1.5])), []
    monkeypatch.setattr("ppl_vi.truth.reference_truth", lambda target, seed: asked.append(seed) or other)
    assert ground_truth(target, seed=3) is other
    assert asked == [3]


def test_a_structure_that_is_wrong_is_noticed(monkeypatch):
    """With the dependence of each count on its predecessor hidden, blocks are made that are none."""

    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        e = pyro.sample("e", dist.Normal(0.0, sigma).expand([6]).to_event(1))
        pyro.sample("y", dist.Poisson((a + e + 0.7 * e.roll(1)).exp()).to_event(1), obs=y)

    target = Target.of(model, (COUNTS,))
    assert nested_truth(target) is None
    dependencies = Terms.dependencies

    def without_predecessors(terms, points):
        depends = dependencies(terms, points)
        for column in depends.T:
            effects = column[2:].nonzero()[:, 0]
            if len(effects) == 2:
                # The first of two neighbours, and of the last and the first the last, is the predecessor.
                column[2 + int(effects[0] if effects[1] - effects[0] == 1 else effects[1])] = False
        return depends

    monkeypatch.setattr(Terms, "dependencies", without_predecessors)
    assert nested.factorisation(target, 0) is not None
    assert nested_truth(target) is None


def seeds(n, total, x1, x2):
    a0, a1, a2, a12 = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in ("a0", "a1", "a2", "a12"))
    sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
    with pyro.plate("plates", len(n)):
        b = pyro.sample("b", dist.Normal(0.0, sigma))
        pyro.sample("n", dist.Binomial(total, logits=a0 + a1 * x1 + a2 * x2 + a12 * x1 * x2 + b), obs=n)


# Crowder (1978), Beta-binomial ANOVA for proportions: germinated seeds of 21 plates, by seed and root extract.
GERMINATED = [10, 23, 23, 26, 17, 5, 53, 55, 32, 46, 10, 8, 10, 8, 23, 0, 3, 22, 15, 32, 3]
SOWN = [39, 62, 81, 51, 39, 6, 74, 72, 51, 79, 13, 16, 30, 28, 45, 4, 12, 41, 30, 51, 7]
SEED = [0] * 11 + [1] * 10
EXTRACT = [0] * 5 + [1] * 6 + [0] * 5 + [1] * 5


def nested_seeds(n, total, design, step):
    """log p(x) of `seeds`: effects by the trapezoid rule, coefficients by Gauss-Hermite, log sigma by a trapezoid."""
    constant = special.gammaln(total + 1) - special.gammaln(n + 1) - special.gammaln(total - n + 1)
    z = np.arange(-15, 16) * 0.55

    def log_marginal(coefficients, sigma):
        eta = coefficients @ design.T
        e = np.zeros_like(eta)
        for _ in range(12):
            p = special.expit(eta + e)
            e += np.clip((n - total * p - e / sigma**2) / (total * p * (1 - p) + 1 / sigma**2), -2, 2)
        p = special.expit(eta + e)
        sd = 1 / np.sqrt(total * p * (1 - p) + 1 / sigma**2)
        at = (e + sd * z[:, None, None], eta)
        log_f = n * sum(at) - total * np.logaddexp(0, sum(at)) - at[0] ** 2 / (2 * sigma**2)
        inner = special.logsumexp(log_f, 0) + np.log(0.55 * sd / sigma) - math.log(2 * math.pi) / 2 + constant
        return inner.sum(1) + stats.norm.logpdf(coefficients).sum(1)

    nodes, weights = np.polynomial.hermite_e.hermegauss(6)
    grid = np.stack(np.meshgrid(*[nodes] * 4, indexing="ij"), -1).reshape(-1, 4)
    log_weight = sum(np.meshgrid(*[np.log(weights)] * 4, indexing="ij")).ravel() + (grid**2).sum(1) / 2
    found, best = [], np.array([-0.5, 0.0, 1.2, -0.6])
    for u in np.arange(-20, 3, step):
        sigma = math.exp(u)
        best = optimize.minimize(lambda c, s=sigma: -log_marginal(c[None], s)[0], best, options={"gtol": 1e-4}).x
        moves = 2e-3 * np.eye(4)
        points = best + np.array([moves[i] * s + moves[j] * r for i in range(4) for j in range(4) for s, r in SIGNS])
        values = log_marginal(points, sigma).reshape(4, 4, 4)
        hessian = (values[..., 1] + values[..., 2] - values[..., 0] - values[..., 3]) / 1.6e-5
        factor = np.linalg.cholesky(np.linalg.inv((hessian + hessian.T) / 2))
        value = special.logsumexp(log_marginal(best + grid @ factor.T, sigma) + log_weight)
        found.append(value + np.log(np.diag(factor)).sum() + stats.halfcauchy.logpdf(sigma) + u)
    return special.logsumexp(found) + math.log(step)


SIGNS = ((1, 1), (1, -1), (-1, 1), (-1, -1))


@pytest.mark.slow
def test_seeds_with_five_outer_latents():
    n, total, x1, x2 = (torch.tensor(values, dtype=REAL) for values in (GERMINATED, SOWN, SEED, EXTRACT))
    truth = ground_truth(Target.of(seeds, (n, total, x1, x2)))
    design = np.stack([np.ones(21), x1.numpy(), x2.numpy(), (x1 * x2).numpy()], 1)
    expected = nested_seeds(n.numpy(), total.numpy(), design, 0.17)
    assert abs(float(truth.log_evidence[0]) - expected) < float(truth.log_evidence_error[0]) + 2e-7
    assert float(truth.log_evidence_error[0]) < 1e-6
    assert "5 outer latent numbers, 21 blocks of 1" in truth.method
