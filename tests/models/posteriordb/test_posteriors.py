"""The ports against densities written with SciPy, and their evidence by routes that need no ppl_vi."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats

import ppl_vi
from models.posteriordb import POSTERIORS, PosteriorDatabase, posterior, radon, rates
from models.posteriordb.eight_schools import log_evidence
from models.posteriordb.linear_evidence import by_quadrature, flat_evidence, flat_given_sigma, normal_given_sigma
from models.posteriordb.posterior import by_name, flat
from ppl_vi.target.target import Target
from tests.models.posteriordb.conftest import DATA, NAME

X = np.column_stack([np.ones(8), DATA["mom_hs"]])
Y = np.array(DATA["kid_score"])


def test_the_density_of_a_port_is_stan_s(clone: Path) -> None:
    """Flat coefficients add nothing; sigma is half Cauchy of scale 2.5."""
    target = posterior(PosteriorDatabase.at(clone), NAME).target("line")
    beta, sigma = np.array([70.0, 12.0]), 19.0
    expected = stats.norm.logpdf(Y, X @ beta, sigma).sum() + stats.halfcauchy.logpdf(sigma, scale=2.5)
    latents = {"beta": torch.tensor(beta)[None, None], "sigma": torch.tensor([[sigma]], dtype=torch.float64)}
    assert target.log_joint(latents).item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.slow
def test_the_truth_of_a_port_is_its_second_route(clone: Path) -> None:
    port = posterior(PosteriorDatabase.at(clone), NAME)
    truth = ppl_vi.ground_truth(port.target("line"))
    assert port.exact is not None
    assert truth.grade == "checked"
    assert abs(truth.log_evidence[0] - port.exact()) <= truth.log_evidence_error[0]
    assert set(port.quantities(truth.target.constrain(truth.points[0].u)[0])) == {"beta[1]", "beta[2]", "sigma"}


def test_where_a_flat_latent_is_guessed_does_not_matter() -> None:
    def model(y: torch.Tensor, loc: float, scale: float) -> None:
        mu = flat("mu", dist.Normal(loc, scale))
        pyro.sample("y", dist.Normal(mu, torch.full((3,), 2.0)).to_event(1), obs=y)

    y = torch.tensor([3.0, 4.5, 9.0], dtype=torch.float64)
    # the integral over mu of three normals of variance 4: mu's own normal has the variance 4 / 3
    spread = ((y - y.mean()) ** 2).sum().item() / 8
    expected = -1.5 * math.log(8 * math.pi) - spread + math.log(2 * math.pi * 4 / 3) / 2
    for guess in ((0.0, 10.0), (6.0, 3.0)):
        truth = ppl_vi.ground_truth(Target.of(model, (y, *guess)))
        assert abs(truth.log_evidence[0] - expected) <= truth.log_evidence_error[0]


def test_a_flat_regression_s_closed_form_is_its_quadrature() -> None:
    def given(sigma: float) -> float:
        return flat_given_sigma(X, Y, sigma)

    found = by_quadrature(given, lambda sigma: 0.0, float(Y.std()))
    assert found == pytest.approx(flat_evidence(X, Y), abs=1e-8)


def test_a_normal_prior_given_sigma_is_a_normal_of_the_data() -> None:
    mean, sd, sigma = np.array([80.0, 3.0]), np.array([20.0, 6.0]), 11.0
    covariance = sigma**2 * np.eye(8) + (X * sd**2) @ X.T
    expected = stats.multivariate_normal(X @ mean, covariance).logpdf(Y)
    assert normal_given_sigma(X, Y, mean, sd, sigma) == pytest.approx(expected, rel=1e-12)


def test_given_scales_is_a_normal_of_the_data() -> None:
    sd, sigma = np.array([20.0, 6.0]), 11.0
    expected = stats.multivariate_normal(np.zeros(8), sigma**2 * np.eye(8) + (X * sd**2) @ X.T).logpdf(Y)
    assert radon.GivenScales(X, Y)(sd, sigma) == pytest.approx(expected, rel=1e-12)


def test_the_schools_evidence_is_that_of_a_double_integral() -> None:
    y, sigma = np.array([28.0, 8, -3, 7]), np.array([15.0, 10, 16, 11])

    def density(mu: float, tau: float) -> float:
        likelihood = stats.norm.pdf(y, mu, np.sqrt(tau**2 + sigma**2)).prod()
        return float(likelihood * stats.norm.pdf(mu, 0, 5) * stats.halfcauchy.pdf(tau, scale=5))

    pieces = [integrate.dblquad(density, low, high, -40, 40)[0] for low, high in ((0, 20), (20, 200), (200, 1e5))]
    assert log_evidence(y, sigma) == pytest.approx(math.log(sum(pieces)), abs=1e-6)


def test_the_evidence_of_captures_is_an_integral_over_both_numbers() -> None:
    y = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 0]])

    def density(p: float, omega: float) -> float:
        seen = stats.binom.pmf([2, 1], 3, p).prod() * omega**2
        return float(seen * (omega * (1 - p) ** 3 + 1 - omega) ** 2)

    expected = math.log(integrate.dblquad(density, 0, 1, 0, 1)[0])
    assert rates.same_for_all_evidence(y) == pytest.approx(expected, abs=1e-8)
    target = Target.of(rates.same_for_all, (torch.tensor(y, dtype=torch.float64),))
    latents = {name: torch.tensor([[value]], dtype=torch.float64) for name, value in (("omega", 0.7), ("p", 0.4))}
    assert target.log_joint(latents).item() == pytest.approx(math.log(density(0.4, 0.7)), abs=1e-12)


def test_the_evidence_of_rates_and_surveys_is_an_integral() -> None:
    n, k = np.array([10.0, 12.0]), np.array([5.0, 9.0])
    rate = integrate.quad(lambda theta: stats.binom.pmf(k, n, theta).prod(), 0, 1)[0]
    assert rates.rate_evidence(n, k) == pytest.approx(math.log(rate), abs=1e-10)

    def mixed(theta: float) -> float:
        return sum(stats.binom.pmf([3, 5], num, theta).prod() for num in range(1, 21)) / 20

    expected = math.log(integrate.quad(mixed, 0, 1)[0])
    assert rates.survey_evidence(np.array([3.0, 5.0]), 20) == pytest.approx(expected, abs=1e-9)
    target = Target.of(rates.survey, (torch.tensor([3.0, 5.0], dtype=torch.float64), 20))
    found = target.log_joint({"theta": torch.tensor([[0.3]], dtype=torch.float64)}).item()
    assert found == pytest.approx(math.log(mixed(0.3)), abs=1e-12)


def test_bones_are_graded_by_their_edges() -> None:
    gamma, delta = np.array([[1.0, 4.0, -1, -1], [2.0, -1, -1, -1]]), np.array([2.0, 0.5])
    num_grades, grade = np.array([3, 2]), np.array([[2, -1], [3, 1]])

    def likelihood(theta: float, row: np.ndarray) -> float:
        logit = [1 / (1 + math.exp(-delta[0] * (theta - gamma[0, k]))) for k in (0, 1)]
        first = [1 - logit[0], logit[0] - logit[1], logit[1]][row[0] - 1]
        above = 1 / (1 + math.exp(-delta[1] * (theta - gamma[1, 0])))
        return first * (1.0 if row[1] < 0 else [1 - above, above][row[1] - 1])

    def one(row: np.ndarray) -> float:
        def density(theta: float) -> float:
            return likelihood(theta, row) * float(stats.norm.pdf(theta, 0, 36))

        return math.log(integrate.quad(density, -200, 200, points=[0, 2, 5], limit=500)[0])

    expected = sum(one(row) for row in grade)
    assert rates.bones_evidence(gamma, delta, num_grades, grade) == pytest.approx(expected, abs=1e-7)
    tensors = [torch.tensor(value) for value in (gamma, delta, num_grades, grade)]
    theta = np.array([1.5, -0.7])
    found = Target.of(rates.bones, tuple(tensors)).log_joint({"theta": torch.tensor(theta)[None, None]}).item()
    product = math.prod(likelihood(t, row) * stats.norm.pdf(t, 0, 36) for t, row in zip(theta, grade, strict=True))
    assert found == pytest.approx(math.log(product), abs=1e-10)


def test_names_are_posteriordb_s() -> None:
    latents = {"a": torch.zeros(1, 2), "b": torch.arange(12.0).reshape(1, 2, 3, 2)}
    found = by_name(latents)
    assert list(found) == ["a", "b[1,1]", "b[1,2]", "b[2,1]", "b[2,2]", "b[3,1]", "b[3,2]"]
    assert found["b[2,1]"].tolist() == [[2.0, 8.0]]


def summaries(cases: Path) -> list[str]:
    return sorted(path.stem for path in (cases / "reference").glob("*.json"))


def port_of(cases: Path, name: str) -> Any:
    return POSTERIORS[name](json.loads((cases / "data" / f"{name.split('-')[0]}.json").read_text()))


def test_every_posterior_with_published_draws_is_ported_with_their_names(cases: Path) -> None:
    names = summaries(cases)
    assert len(names) == 45
    for name in names:
        port, published = port_of(cases, name), json.loads((cases / "reference" / f"{name}.json").read_text())
        target = port.target(name)
        latents, _ = target.constrain(torch.zeros(1, 1, target.dim, dtype=torch.float64))
        assert set(published["parameters"]) == set(port.quantities(latents)), name
        if port.latents is not None:
            draws = {key: value[0] for key, value in port.quantities(latents).items()}
            back = target.unconstrain(port.latents(draws))
            assert back.abs().max().item() < 1e-6, name


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["earnings-logearn_interaction", "gp_pois_regr-gp_regr", "low_dim_gauss_mix-low_dim_gauss_mix"]
)
def test_moments_are_those_of_the_published_draws(cases: Path, name: str) -> None:
    """Within 4.5 of the draws' own standard errors, one in 10,000 for each of some 20 moments."""
    port, published = port_of(cases, name), json.loads((cases / "reference" / f"{name}.json").read_text())
    truth = ppl_vi.ground_truth(port.target(name))
    for key, row in published["parameters"].items():
        mean = truth.expectation(lambda latents, key=key: port.quantities(latents)[key])
        error = math.hypot(row["mcse"], mean.std_error.item(), mean.error.item())
        assert abs(mean.value.item() - row["mean"]) < 4.5 * error, key
