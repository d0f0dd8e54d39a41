"""Models and guides that keep tensors of single precision from outside, against densities and integrals by SciPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from scipy import integrate, stats
from torch import Tensor
from torch.distributions.transforms import AffineTransform

from ppl_vi import Target, compare, fit, ground_truth
from ppl_vi.guides.own import family_of
from ppl_vi.target.evaluation import prior_draws
from ppl_vi.target.precision import in_dtype

Y = np.array([1.0, 2.0, 0.5, 1.5])


def single(*numbers: float) -> Tensor:
    held = torch.tensor(numbers, dtype=torch.float32)
    return held[0] if len(numbers) == 1 else held


TWO, ONE = single(2.0), single(1.0)  # from outside of the models, as are these:
SIMPLEX, ZEROS, PAIR = single(1.0, 2.0, 3.0), torch.zeros(2, dtype=torch.float32), single(1.0, 2.0)
COVARIANCE = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float32)
THIRD = single(1 / 3)
THIRD64 = float(THIRD)
NARROW, CERTAIN = dist.Normal(THIRD, THIRD), dist.Bernoulli(ONE)
NETWORK = torch.nn.Linear(1, 1, dtype=torch.float32).requires_grad_(False)
torch.nn.init.constant_(NETWORK.weight, 1.0)
torch.nn.init.constant_(NETWORK.bias, 0.5)
MADE_OUTSIDE = dist.Normal(ZEROS, 2.0, validate_args=True).expand([2]).to_event(1)

PRIORS: dict[str, tuple[Callable[[], Any], Callable[[np.ndarray], float]]] = {
    "Normal": (lambda: dist.Normal(0.0, TWO), stats.norm(0, 2).logpdf),
    "HalfNormal": (lambda: dist.HalfNormal(TWO), stats.halfnorm(scale=2).logpdf),
    "LogNormal": (lambda: dist.LogNormal(ONE, ONE), stats.lognorm(1, scale=math.e).logpdf),
    "Gamma": (lambda: dist.Gamma(TWO, ONE), stats.gamma(2).logpdf),
    "Uniform": (lambda: dist.Uniform(-TWO, TWO), stats.uniform(-2, 4).logpdf),
    "shifted": (
        lambda: dist.TransformedDistribution(dist.Exponential(ONE), [AffineTransform(ONE, TWO)]),
        stats.expon(1, 2).logpdf,
    ),
    "Dirichlet": (lambda: dist.Dirichlet(SIMPLEX), lambda k: stats.dirichlet([1, 2, 3]).logpdf(k.T)),
    "MultivariateNormal": (
        lambda: dist.MultivariateNormal(ZEROS, COVARIANCE),
        stats.multivariate_normal([0, 0], [[2, 0.5], [0.5, 1]]).logpdf,
    ),
    "made outside": (lambda: MADE_OUTSIDE, lambda k: stats.norm(0, 2).logpdf(k).sum(-1)),
}


def rows(prior: Callable[[], Any]) -> Callable[[Tensor], None]:
    """A latent for each row, and a number that is it or its last element with noise of standard deviation 1."""

    def model(y: Tensor) -> None:
        with pyro.plate("rows", len(y)):
            k = pyro.sample("k", prior())
            pyro.sample("y", dist.Normal(k if k.dim() == 1 else k[..., -1], ONE), obs=y)

    return model


@pytest.mark.parametrize("num", [1, 4])
@pytest.mark.parametrize("name", PRIORS)
def test_priors_of_tensors_from_outside(name: str, num: int) -> None:
    """Latents and log joint are in double precision: SciPy's sum at draws of the prior, to rounding."""
    prior, log_prior = PRIORS[name]
    target = Target.of(rows(prior), (Y[:num],))
    u = prior_draws(target, 0, num=3)
    assert u.dtype == torch.float64
    latents, _ = target.constrain(u[None])
    k = latents["k"][0].numpy()
    assert k.dtype == np.float64
    found = target.log_joint(latents)[0].numpy()
    for value, log_joint in zip(k, found, strict=True):
        mean = value if value.ndim == 1 else value[:, -1]
        expected = np.sum(log_prior(value)) + stats.norm.logpdf(Y[:num], mean, 1).sum()
        assert log_joint == pytest.approx(expected, rel=1e-12)


def test_what_a_distribution_makes_of_its_arguments_is_exact_too() -> None:
    """A mixture with weights 1 to 2, which torch makes thirds and their logarithms of, and a discrete latent's."""

    def model(y: Tensor) -> None:
        k = pyro.sample("k", dist.Normal(0.0, 1.0))
        kind = pyro.sample("kind", dist.Categorical(PAIR))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(PAIR), dist.Normal(k + PAIR.to(y), ONE)), obs=y)
        pyro.sample("last", dist.Normal(k + kind, ONE), obs=y[0])

    found = float(Target.of(model, (Y,)).log_joint({"k": torch.full((1, 1), 0.3, dtype=torch.float64)}))
    thirds = np.log([1 / 3, 2 / 3])
    mixed = np.logaddexp(*(thirds[i] + stats.norm.logpdf(Y, 0.3 + (1, 2)[i], 1) for i in range(2)))
    last = np.logaddexp(*(thirds[i] + stats.norm.logpdf(Y[0], 0.3 + i, 1) for i in range(2)))
    assert found == pytest.approx(stats.norm.logpdf(0.3) + mixed.sum() + last, rel=1e-13)


def evidence_of(prior: Callable[[np.ndarray], float], y: float, low: float) -> float:
    """log of the integral of prior times likelihood, by SciPy's adaptive quadrature."""
    return math.log(integrate.quad(lambda k: np.exp(prior(k) + stats.norm.logpdf(y, k)), low, 20, epsabs=1e-13)[0])


@pytest.mark.parametrize("num", [1, 4])
@pytest.mark.parametrize(("name", "low"), [("Normal", -20), ("HalfNormal", 0), ("Gamma", 0)])
def test_their_log_evidence(name: str, low: float, num: int) -> None:
    """Four latents had ended the process: machine code for doubles was handed single precision."""
    prior, log_prior = PRIORS[name]
    truth = ground_truth(Target.of(rows(prior), (Y[:num],)))
    expected = sum(evidence_of(log_prior, float(y), low) for y in Y[:num])
    error = float(truth.log_evidence_error[0]) + 4 * float(truth.log_evidence_std_error[0])
    assert truth.grade == "checked"
    assert error < 0.02
    assert float(truth.log_evidence[0]) == pytest.approx(expected, abs=error + 1e-10)


def test_the_closed_form_of_four_rows() -> None:
    expected = stats.norm.logpdf(Y, 0, math.sqrt(5)).sum()
    assert expected == pytest.approx(-7.644630, abs=1e-6)
    assert sum(evidence_of(stats.norm(0, 2).logpdf, float(y), -20) for y in Y) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("engine", ["compiled", "batched", "pyro"])
def test_fits_to_such_priors(engine: str) -> None:
    """The posterior of each row is Normal(0.8 y, sqrt 0.8), a member of the family; means to 5 standard errors."""
    target = Target.of(rows(PRIORS["Normal"][0]), (Y,))
    fitted = fit(target, "AutoNormal", engine=engine, num_steps=100, num_particles=32, num_replicas=2)
    draws = fitted.draw(2000, seed=1)["k"]
    assert (fitted.engine, draws.dtype) == (engine, torch.float64)
    sd = math.sqrt(0.8)
    away = draws.mean((0, 1, 2)).numpy() - 0.8 * Y
    # 4,000 draws; 32 particles of each of two replicas in the last of a hundred steps
    assert np.abs(away).max() < 5 * sd * (4000**-0.5 + 64**-0.5)


def test_a_comparison_on_such_a_prior() -> None:
    result = compare(rows(PRIORS["HalfNormal"][0]), ["AutoNormal"], (Y[:1],), num_steps=100, num_particles=16)
    expected = evidence_of(PRIORS["HalfNormal"][1], float(Y[0]), 0)
    assert float(result.truth.log_evidence[0]) == pytest.approx(expected, abs=1e-9)
    assert result["AutoNormal"].theta.dtype == torch.float64


def starts_in_single(y: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(4, dtype=torch.float32))
    scale = pyro.param("scale", torch.ones(4, dtype=torch.float32), constraint=dist.constraints.positive)
    with pyro.plate("rows", 4):
        pyro.sample("k", dist.Normal(loc, scale))


def draws_in_single(y: Tensor) -> None:
    loc = pyro.param("loc", lambda: torch.zeros(4))
    noise = dist.Normal(torch.zeros(4, dtype=torch.float32), ONE)
    with pyro.plate("rows", 4):
        pyro.sample("k", dist.TransformedDistribution(noise, [AffineTransform(loc, 1.0)]))


def placed_in_single(model: Any) -> AutoNormal:
    return AutoNormal(model, init_loc_fn=init_to_value(values={"k": single(*Y)}))


@pytest.mark.parametrize("engine", ["compiled", "batched"])
@pytest.mark.parametrize("guide", [starts_in_single, draws_in_single, placed_in_single])
def test_guides_of_tensors_from_outside(guide: Any, engine: str) -> None:
    target = Target.of(rows(lambda: dist.Normal(0.0, 2.0)), (Y,))
    fitted = fit(target, family_of(target, guide), engine=engine, num_steps=60, num_particles=16, num_replicas=2)
    assert fitted.engine == engine
    assert fitted.theta.dtype == fitted.draw(2, seed=0)["k"].dtype == torch.float64


def test_the_users_distribution_stays_as_it_was() -> None:
    converted = in_dtype(MADE_OUTSIDE, torch.float64)
    assert converted.base_dist.loc.dtype == torch.float64
    assert MADE_OUTSIDE.base_dist.loc.dtype == torch.float32
    assert in_dtype(converted, torch.float64) is converted


# The distributions that are made of others, by transforms and their inverses, of numbers that single precision holds.
COMPOSED = [
    dist.Gumbel, dist.Weibull, dist.Kumaraswamy, dist.LogNormal, dist.Pareto, dist.InverseGamma, dist.Logistic,
    dist.LogisticNormal, dist.RelaxedBernoulli, dist.FoldedDistribution,
]  # fmt: skip


def composed(kind: Any, dtype: torch.dtype) -> Any:
    half = torch.full((2,), 0.5, dtype=dtype)
    return kind(dist.Normal(half, half)) if kind is dist.FoldedDistribution else kind(half, half)


@pytest.mark.parametrize("kind", COMPOSED)
def test_composed_distributions_are_those_made_in_double_precision(kind: Any) -> None:
    converted, made = in_dtype(composed(kind, torch.float32), torch.float64), composed(kind, torch.float64)
    at = torch.tensor([0.1, 0.2, 0.7] if kind is dist.LogisticNormal else [0.6, 0.7], dtype=torch.float64)
    torch.testing.assert_close(converted.log_prob(at), made.log_prob(at))
    assert in_dtype(converted, torch.float64) is converted


def test_a_likelihood_by_inverse_transforms_is_fitted() -> None:
    def model(y: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 4):
            pyro.sample("y", dist.Gumbel(loc, 0.5), obs=y)

    fitted = fit(Target.of(model, (Y,)), AutoNormal, num_steps=20, num_particles=16)
    assert bool(fitted.theta.isfinite().all())


def test_a_target_made_by_hand_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"site 'k' draws numbers of torch.float32, .* of its Normal with dtype=torch"):
        _ = Target(rows(PRIORS["Normal"][0]), (torch.from_numpy(Y)[None],)).latents


# Operations on tensors from outside that torch computes in their dtype, and the number that they give exactly.
ALONE: dict[str, tuple[Callable[[], Tensor], float]] = {
    "logarithm": (lambda: THIRD.log(), math.log(THIRD64)),
    "density": (lambda: NARROW.log_prob(torch.tensor(0.5)), stats.norm(THIRD64, THIRD64).logpdf(0.5)),
    "made": (lambda: torch.full((), 3.0, dtype=torch.float32).reciprocal(), 1 / 3),
    "cast": (lambda: torch.tensor(1.0).float() / 3, 1 / 3),
    "network": (lambda: NETWORK(torch.tensor([1.0]))[0] / 3, 0.5),
    "clone": (lambda: _written(ZEROS.clone()), 1 / 3),
    "edge": (lambda: CERTAIN.log_prob(torch.tensor(1.0)), math.log1p(-torch.finfo(torch.float64).eps)),
}


def _written(into: Tensor) -> Tensor:
    into[0] = torch.tensor(1.0) / 3
    return into[0]


@pytest.mark.parametrize("name", ALONE)
def test_what_is_computed_with_them_alone_is_exact_too(name: str) -> None:
    """The error of such a number in single precision is some 1e-8, and that of this log joint 1e-14."""
    compute, exact = ALONE[name]

    def model(y: Tensor) -> None:
        k = pyro.sample("k", dist.Normal(0.0, 1.0))
        pyro.factor("alone", compute() + k)

    target = Target.of(model, (Y,))
    points = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    expected = stats.norm.logpdf(points.numpy()) + exact + points.numpy()
    assert target.log_joint({"k": points}).numpy() == pytest.approx(expected, rel=1e-14, abs=0)


class OfConstant(dist.Normal):
    """Its density has a constant that it doesn't hold, in single precision."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) + THIRD.log()


def of_constant(y: Tensor) -> None:
    pyro.sample("k", OfConstant(0.0, 1.0))
    pyro.factor("data", y.sum() + ONE)


def into_outside(y: Tensor) -> None:
    k = pyro.sample("k", dist.Normal(0.0, 1.0))
    ZEROS[0] = k.detach() + y[0]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (of_constant, "site 'k': the log_prob of its OfConstant computes with tensors that are not of torch.float64"),
        (into_outside, "'__setitem__' writes into a tensor of torch.float32 that was made outside"),
    ],
)
def test_single_precision_that_stays_is_refused(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Target.of(model, (Y,))
