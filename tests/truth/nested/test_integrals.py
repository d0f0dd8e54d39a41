"""Inner integrals, draws given outer latents, and lattices, against SciPy and closed forms."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, special, stats

from ppl_vi.target.factorisation import factorisation
from ppl_vi.target.log_density import Density
from ppl_vi.target.target import Target
from ppl_vi.truth.nested import lattice as nested_lattice
from ppl_vi.truth.nested.blocks import RULES
from ppl_vi.truth.nested.lattice import Standardized, lattice_integral, rough_lattice
from ppl_vi.truth.nested.marginal import inner_of
from ppl_vi.truth.nested.rejection import Rejection
from ppl_vi.truth.nested.slices import sliced_integral
from tests.hierarchies import COUNTS, REAL, counts


def heavy(y):
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("groups", len(y)):
        e = pyro.sample("e", dist.StudentT(3.0, a, sigma))
        pyro.sample("y", dist.Normal(e, 1.0), obs=y)


def pairs(y):
    scales = pyro.sample("scales", dist.HalfNormal(torch.ones(2, dtype=REAL)).to_event(1))
    with pyro.plate("groups", len(y)):
        a = pyro.sample("a", dist.Normal(0.0, scales[0]))
        b = pyro.sample("b", dist.Normal(0.0, scales[1]))
        t = torch.tensor([-1.0, 0.0, 1.0], dtype=REAL)
        pyro.sample("y", dist.Binomial(5.0, logits=a[..., None] + b[..., None] * t).to_event(1), obs=y)


def inner_latents(model, args):
    target = Target.of(model, args)
    structure = factorisation(target, 0)
    points = torch.randn(20, target.dim, generator=torch.Generator().manual_seed(1), dtype=REAL)
    return target, inner_of(target, structure, torch.cat([torch.zeros_like(points[:1]), points]))


def log_prior(a, u):
    return stats.norm(0, 2).logpdf(a) + stats.halfnorm.logpdf(math.exp(u)) + u


@pytest.mark.parametrize(("a", "u"), [(1.0, 0.2), (-2.0, 0.5), (3.0, -3.0), (0.0, -9.0)])
def test_counts_are_integrated_as_scipy_does(a, u):
    _, inner = inner_latents(counts, (COUNTS,))
    sigma = math.exp(u)

    def of_one(y):
        mode = special.lambertw(sigma**2 * math.exp(a + sigma**2 * y)).real  # e = sigma^2 y - W(...)
        e0 = sigma**2 * y - mode

        def log_f(e):
            return stats.poisson.logpmf(y, math.exp(a + e)) + stats.norm.logpdf(e, 0, sigma)

        sd = 1 / math.sqrt(math.exp(a + e0) + sigma**-2)
        ends = (e0 - 14 * sd, e0 + 14 * sd)
        found, _ = integrate.quad(lambda e: math.exp(log_f(e) - log_f(e0)), *ends, epsrel=1e-12, points=[e0])
        return math.log(found) + log_f(e0)

    expected = sum(of_one(y) for y in COUNTS.tolist()) + log_prior(a, u)
    outer = torch.tensor([[a, u]], dtype=REAL)
    while (error := float(inner.error_at(outer).abs())) > 1e-7:
        inner = inner.refined()
    assert float(inner.density(outer)) == pytest.approx(expected, abs=2 * error + 1e-10)


def test_heavy_tails_are_integrated_and_a_finer_rule_tells_the_error():
    y = torch.tensor([0.5, 9.0, -4.0], dtype=REAL)
    _, inner = inner_latents(heavy, (y,))
    a, u = 0.3, -1.0

    def of_one(x):
        def f(e):
            return stats.t(3, a, math.exp(u)).pdf(e) * stats.norm.pdf(x, e, 1)

        return math.log(integrate.quad(f, -40, 40, epsrel=1e-12, limit=400, points=[a, x])[0])

    expected = sum(of_one(x) for x in y.tolist()) + log_prior(a, u)
    outer = torch.tensor([[a, u]], dtype=REAL)
    errors = []
    while (finer := inner.refined()) is not None:
        away = abs(float(inner.density(outer)) - expected)
        errors.append(away)
        assert away <= 3 * float(inner.error_at(outer).abs()) + 1e-9  # the estimate is no smaller than a third of it
        inner = finer
    assert len(errors) == len(RULES) - 1
    assert errors[-1] < 1e-8 < 1e-3 < errors[0]


def test_pairs_are_integrated_as_scipy_does():
    y = torch.tensor([[2.0, 3.0, 5.0], [1.0, 1.0, 0.0]], dtype=REAL)
    _, inner = inner_latents(pairs, (y,))
    u = np.array([0.1, -0.5])
    one, other = np.exp(u)
    # The trapezoid rule on a wide, fine lattice: the integrand is analytic.
    a, b = np.meshgrid(np.linspace(-9, 9, 361) * one, np.linspace(-9, 9, 361) * other, indexing="ij")
    cell = (18 / 360) ** 2 * one * other
    expected = stats.halfnorm.logpdf(np.exp(u)).sum() + u.sum()
    for row in y.tolist():
        log_f = stats.norm.logpdf(a, 0, one) + stats.norm.logpdf(b, 0, other)
        for t, k in zip((-1, 0, 1), row, strict=True):
            log_f = log_f + stats.binom.logpmf(k, 5, special.expit(a + b * t))
        expected += math.log(np.exp(log_f).sum() * cell)
    assert float(inner.density(torch.from_numpy(u)[None])) == pytest.approx(expected, abs=1e-7)


def test_the_slope_of_the_marginal_is_that_of_its_differences():
    _, inner = inner_latents(counts, (COUNTS,))
    u = torch.tensor([[1.0, -0.3], [0.5, 0.4]], dtype=REAL)
    _, slope = inner.density.slope(u)
    h = 1e-4
    for axis in range(2):
        step = h * torch.eye(2, dtype=REAL)[axis]
        by_differences = (inner.density(u + step) - inner.density(u - step)) / (2 * h)
        assert torch.allclose(slope[:, axis], by_differences, atol=1e-3)


def test_draws_by_rejection_have_the_distribution_of_their_block():
    _, inner = inner_latents(counts, (COUNTS,))
    num, a, u = 4000, 1.0, 0.2
    outer = torch.tensor([[a, u]], dtype=REAL).repeat(num, 1)
    drawn, log_correction = Rejection.of(inner.blocks, outer).drawn(torch.Generator().manual_seed(0))
    assert float((log_correction != 0).double().mean()) < 1e-3
    grid = np.linspace(-9, 9, 20001)
    for place, y in enumerate(COUNTS.tolist()):
        density = np.exp(stats.poisson.logpmf(y, np.exp(a + grid)) + stats.norm.logpdf(grid, 0, math.exp(u)))
        cdf = np.cumsum(density) / density.sum()
        result = stats.kstest(drawn[:, place].numpy(), lambda x, cdf=cdf: np.interp(x, grid, cdf))
        assert result.pvalue > 1e-5


def test_the_model_tells_of_a_wrong_marginal():
    target, inner = inner_latents(counts, (COUNTS,))
    outer = torch.tensor([[1.0, -0.5]], dtype=REAL).repeat(2000, 1)
    drawn = inner.drawn(outer, Density.of(target, 0), torch.Generator().manual_seed(0))
    ratio = drawn.log_ratio.exp()
    assert float((ratio.mean() - 1).abs()) < 5 * float(ratio.std()) / math.sqrt(len(ratio))


def plain(log_density, dim):
    return Density(log_density, dim, REAL, lambda u: u.isfinite().all(1))


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
def test_lattices_integrate_correlated_normal_densities(dim):
    generator = torch.Generator().manual_seed(dim)
    root = torch.randn(dim, dim, generator=generator, dtype=REAL) + torch.eye(dim, dtype=REAL)
    covariance, mean = (
        root @ root.mT + 0.1 * torch.eye(dim, dtype=REAL),
        3 * torch.randn(dim, generator=generator, dtype=REAL),
    )
    precision, factor = torch.linalg.inv(covariance), torch.linalg.cholesky(covariance)
    density = plain(lambda u: -(u - mean) @ precision @ (u - mean) / 2, dim)
    u = mean + torch.randn(4000, dim, generator=generator, dtype=REAL) @ factor.mT
    rough = rough_lattice(density, u, torch.zeros(4000, dtype=REAL), mean[None])
    assert not isinstance(rough, str)
    found = lattice_integral(*rough)
    expected = dim / 2 * math.log(2 * math.pi) + float(torch.logdet(covariance)) / 2
    assert abs(found.log_evidence - expected) < found.difference + 10 * found.rim + 1e-12
    assert found.difference < 1e-6


def test_lattices_reach_far_into_an_exponential_tail():
    density = plain(lambda u: (2 * u - u.exp()).sum(), 1)  # the logarithm of a number with a Gamma(2, 1) density
    u = torch.from_numpy(np.log(stats.gamma(2).rvs(4000, random_state=0)))[:, None]
    found = lattice_integral(
        *rough_lattice(density, u, torch.zeros(4000, dtype=REAL), torch.tensor([[math.log(2)]], dtype=REAL))
    )
    assert abs(found.log_evidence) < found.difference + 10 * found.rim + 1e-12 < 1e-8


def test_lattices_too_coarse_for_a_comb_are_given_up_early(monkeypatch):
    """Teeth of width 0.01 between which the density is low: no lattice of the last spacing would see their shape."""
    density = plain(lambda u: -(u.square().sum()) / 2 + 30 * torch.cos(300 * u).sum(), 1)
    u = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=REAL)
    rough = rough_lattice(density, u, torch.zeros(4000, dtype=REAL), torch.zeros(1, 1, dtype=REAL))
    spacings = []

    given = nested_lattice.spread
    monkeypatch.setattr(nested_lattice, "spread", lambda *args: spacings.append(args[1]) or given(*args))
    assert "differ by" in lattice_integral(*rough)
    assert 2 <= len(set(spacings)) < nested_lattice.NUM_SPACINGS


def test_slices_along_the_skewed_number_integrate_the_others():
    def log_density(u):  # u[0] is the logarithm of a scale; given it the others are correlated and normal
        others = u[1:] - 0.3 * u[0]
        return 2 * u[0] - u[0].exp() - others.square().sum() / 2 - 0.4 * others.sum().square() / 2

    generator = torch.Generator().manual_seed(0)
    log_scale = torch.from_numpy(np.log(stats.gamma(2).rvs(4000, random_state=0)))[:, None]
    others = 0.3 * log_scale + torch.randn(4000, 4, generator=generator, dtype=REAL)
    u, density = torch.cat([log_scale, others], 1), plain(log_density, 5)
    top = torch.tensor([[math.log(2)] + [0.3 * math.log(2)] * 4], dtype=REAL)
    standardized = Standardized.of(density, u, torch.zeros(4000, dtype=REAL), top)
    found = sliced_integral(standardized, u, torch.zeros(4000, dtype=REAL))
    precision = torch.eye(4, dtype=REAL) + 0.4
    expected = 2 * math.log(2 * math.pi) - float(torch.logdet(precision)) / 2
    assert abs(found.log_evidence - expected) < found.difference + 10 * found.rim + 1e-9 < 1e-6
