"""Models whose matrices can't be factorised everywhere, and Pyro's models of time series."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.func import grad, vmap

from ppl_vi import Target, ground_truth
from ppl_vi.numerics.newton import eigen
from ppl_vi.target.factorising import Factorising

REAL = torch.float64
POINTS = torch.linspace(0.0, 3.0, 7, dtype=REAL)
VALUES = 0.8 * torch.sin(1.7 * POINTS) + 0.1


def gaussian_process() -> None:
    """A covariance of rank one where the length is large: no jitter but the noise's 1e-4."""
    length = pyro.sample("length", dist.LogNormal(0.0, 1.5))
    variance = pyro.sample("variance", dist.LogNormal(0.0, 1.5))
    squares = (POINTS[:, None] - POINTS) ** 2
    covariance = variance * torch.exp(-0.5 * squares / length**2) + 1e-2 * torch.eye(len(POINTS), dtype=REAL)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(POINTS), dtype=REAL), covariance), obs=VALUES)


def log_evidence_on_a_grid() -> float:
    """The trapezoid rule in both logarithms, by SciPy's density."""
    axis = np.linspace(-7.2, 7.2, 73)
    x, y = POINTS.numpy(), VALUES.numpy()
    squares = (x[:, None] - x) ** 2
    total = np.empty((len(axis), len(axis)))
    for (i, a), (j, b) in itertools.product(enumerate(axis), enumerate(axis)):
        covariance = math.exp(b) * np.exp(-0.5 * squares / math.exp(2 * a)) + 1e-2 * np.eye(len(x))
        total[i, j] = stats.multivariate_normal.logpdf(y, np.zeros(len(x)), covariance, allow_singular=True)
        total[i, j] += stats.norm.logpdf(a, 0, 1.5) + stats.norm.logpdf(b, 0, 1.5)
    return float(np.logaddexp.reduce(total.ravel()) + 2 * math.log(axis[1] - axis[0]))


def test_a_gaussian_process_whose_covariance_is_singular_at_wild_points_is_answered() -> None:
    truth = ground_truth(Target.of(gaussian_process))
    assert truth.grade == "checked"
    # halving the trapezoid's spacing moves its value by less than 1e-5
    assert truth.log_evidence[0] == pytest.approx(log_evidence_on_a_grid(), abs=1e-4)


MATRICES = torch.stack([torch.eye(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.diag(torch.tensor([4.0, 0.25]))])


@pytest.mark.parametrize("name", ["cholesky", "inv", "solve"])
def test_what_fails_is_remembered_and_has_finite_derivatives(name: str) -> None:
    """The second matrix has no Cholesky factor; minus its first row twice it would be singular."""
    matrices = MATRICES.to(REAL).clone()
    if name != "cholesky":
        matrices[1] = 1.0

    def value(matrix: Tensor) -> tuple[Tensor, Tensor]:
        with Factorising() as factorising:
            rest = (torch.ones(2, 1, dtype=REAL),) if name == "solve" else ()
            found = getattr(torch.linalg, name)(matrix, *rest).sum()
        return found, factorising.failed[0]

    slope, failed = vmap(grad(value, has_aux=True))(matrices)
    assert failed.tolist() == [False, True, False]
    assert bool(slope.isfinite().all())
    with pytest.raises(torch.linalg.LinAlgError):
        getattr(torch.linalg, name)(matrices, *([torch.ones(2, 1, dtype=REAL)] if name == "solve" else []))


def test_the_density_is_0_where_a_matrix_fails_and_as_it_was_elsewhere() -> None:
    def model(y: Tensor) -> None:
        r = pyro.sample("r", dist.Normal(0.0, 1.0))
        matrix = torch.eye(2, dtype=REAL) + r * torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=REAL)
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2, dtype=REAL), matrix), obs=y)

    y = torch.tensor([0.4, -0.2], dtype=REAL)
    found = Target.of(model, (y,)).log_joint({"r": torch.tensor([[0.5, 1.5, -2.0]], dtype=REAL)})[0]
    expected = stats.norm.logpdf(0.5) + stats.multivariate_normal.logpdf(y.numpy(), [0, 0], [[1, 0.5], [0.5, 1]])
    assert float(found[0]) == pytest.approx(expected, rel=1e-12)
    assert found[1:].tolist() == [-math.inf, -math.inf]


def test_any_symmetric_matrix_has_eigenvalues() -> None:
    plain = torch.tensor([[2.0, 0.3], [0.3, -1.0]], dtype=REAL)
    bad = torch.tensor([[math.nan, 1.0], [1.0, 3.0]], dtype=REAL)
    values, vectors = eigen(torch.stack([plain, plain * 1e300, bad, torch.zeros(2, 2, dtype=REAL)]))
    expected = np.linalg.eigvalsh(plain.numpy())
    np.testing.assert_allclose(values[0], expected, rtol=1e-14)
    np.testing.assert_allclose(values[1], expected * 1e300, rtol=1e-14)
    assert values[2].tolist() == [1.0, 3.0]
    assert values[3].tolist() == [0.0, 0.0]
    assert bool(vectors.isfinite().all())


Y = torch.tensor([0.3, 1.2, -0.4, 0.8], dtype=REAL)


def two_states(y: Tensor) -> None:
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    stay = torch.stack([torch.stack([p, 1 - p]), torch.stack([1 - p, p])])
    levels = dist.Normal(torch.tensor([-1.0, 1.5], dtype=REAL), 1.0)
    pyro.sample("y", dist.DiscreteHMM(torch.tensor([0.3, 0.7], dtype=REAL).log(), stay.log(), levels), obs=y)


def test_pyros_discrete_hmm_is_summed_over_its_paths() -> None:
    """At p = 0.35, by a sum over the paths: Pyro's first transition is before the first datum."""
    p, start, levels = 0.35, [0.3, 0.7], [-1.0, 1.5]
    total = 0.0
    for path in itertools.product((0, 1), repeat=len(Y) + 1):
        steps = [p if a == b else 1 - p for a, b in itertools.pairwise(path)]
        data = [stats.norm.pdf(float(y), levels[state]) for y, state in zip(Y, path[1:], strict=True)]
        total += start[path[0]] * math.prod(steps) * math.prod(data)
    target = Target.of(two_states, (Y,))
    found = float(target.log_joint({"p": torch.tensor([[p]], dtype=REAL)}))
    assert found == pytest.approx(math.log(total) + stats.beta.logpdf(p, 2, 3), rel=1e-12)
    points = vmap(grad(target.log_density_of_row))(torch.zeros(2, 1, dtype=REAL))
    assert bool(points.isfinite().all())


def random_walk(y: Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    one, zero = torch.eye(1, dtype=REAL), torch.zeros(1, dtype=REAL)
    start, noise = dist.MultivariateNormal(zero, one), dist.MultivariateNormal(zero, 0.25 * one)
    step = dist.MultivariateNormal(zero, one * scale**2)
    pyro.sample("y", dist.GaussianHMM(start, one, step, one, noise, duration=len(y)), obs=y[:, None])


def test_pyros_gaussian_hmm_is_a_normal_density() -> None:
    """The states' covariance is 1 + min(i, j) scale^2: Pyro's first step is before the first datum."""
    truth = ground_truth(Target.of(random_walk, (Y,)))
    assert truth.grade == "checked"
    times = np.arange(1, len(Y) + 1)
    axis = np.linspace(-4, 4, 801)  # a trapezoid of a density that is analytic in log scale: exact to 1e-12
    values = [
        stats.norm.logpdf(u, 0, 0.5)
        + stats.multivariate_normal.logpdf(
            Y.numpy(), cov=1 + np.minimum.outer(times, times) * math.exp(2 * u) + 0.25 * np.eye(len(Y))
        )
        for u in axis
    ]
    expected = np.logaddexp.reduce(values) + math.log(axis[1] - axis[0])
    assert truth.log_evidence[0] == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("x", [1e-200, 1e-16, 0.3, 1 - 1e-12])
def test_kumaraswamys_density_is_exact_at_both_ends(x: float) -> None:
    def model() -> None:
        pyro.sample("p", dist.Kumaraswamy(2.0, 3.0))

    found = float(Target.of(model).log_joint({"p": torch.tensor([[x]], dtype=REAL)}))
    expected = math.log(6) + math.log(x) + 2 * (math.log1p(-x) + math.log1p(x))
    assert found == pytest.approx(expected, rel=1e-12)


def pair(y: Any) -> None:
    p = pyro.sample("p", dist.Dirichlet(torch.tensor([2.0, 3.0])))
    pyro.sample("y", dist.Multinomial(10, p), obs=torch.tensor([3.0, 7.0]))


def test_a_site_of_several_numbers_with_one_degree_of_freedom_is_answered() -> None:
    """The evidence of a Dirichlet prior: choose(10, 3) B(2 + 3, 3 + 7) / B(2, 3)."""
    truth = ground_truth(Target.of(pair, ([],)))
    log_beta = [math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b) for a, b in ((5, 10), (2, 3))]
    assert truth.log_evidence[0] == pytest.approx(math.log(120) + log_beta[0] - log_beta[1], abs=1e-8)
    mean = truth.expectation(lambda latents: latents["p"]).value[0]
    np.testing.assert_allclose(mean, [5 / 15, 10 / 15], atol=1e-8)
