"""Probabilistic PCA against scipy's density of x, quadrature over z, and a search over diagonal Gaussians."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from torch import Tensor

from models.ppca import diagonal_gap, log_evidence, posterior, simulate, target

NUM_PIXELS = 7
SIGMA = 0.6


def problem(num_latents: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, bias and five data points: off-origin, with columns of unequal length at an angle."""
    draws = np.random.default_rng(seed)
    weight = torch.tensor(draws.normal(size=(NUM_PIXELS, num_latents)))
    weight[:, -1] += 0.7 * weight[:, 0]
    return (
        weight,
        torch.tensor(draws.normal(2.0, 1.0, NUM_PIXELS)),
        torch.tensor(draws.normal(1.0, 2.0, (5, NUM_PIXELS))),
    )


def lattice(half_width: float, spacing: float) -> tuple[Tensor, float]:
    """Points `(S, 2)` and the log area of each."""
    axis = torch.arange(-half_width, half_width + spacing / 2, spacing, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), 2 * math.log(spacing)


def log_prior(z: Tensor) -> Tensor:
    return -z.square().sum(-1) / 2 - z.shape[-1] * math.log(2 * math.pi) / 2


@pytest.mark.parametrize("num_latents", [1, 2, 5])
@pytest.mark.parametrize("sigma", [0.05, SIGMA, 3.0])
def test_the_log_evidence_is_scipys(num_latents: int, sigma: float) -> None:
    weight, bias, x = problem(num_latents)
    covariance = (weight @ weight.mT).numpy() + sigma**2 * np.eye(NUM_PIXELS)
    expected = multivariate_normal(bias.numpy(), covariance).logpdf(x.numpy())
    ours = target(weight, bias, sigma, x)
    np.testing.assert_allclose(ours.closed_form(*ours.args), expected, rtol=1e-10)  # condition number 1e4 times eps


def test_the_log_evidence_keeps_its_digits_at_a_small_sigma() -> None:
    """One latent, x on the line that W spans: x'C^-1 x = t^2 |w|^2 / (|w|^2 + sigma^2), exact where a solve is not."""
    weight, bias, _ = problem(1)
    sigma, t, length = 1e-6, 3.0, float(weight.square().sum())
    found = float(log_evidence(weight, bias, sigma, (bias + t * weight[:, 0])[None]))
    log_det = (NUM_PIXELS - 1) * 2 * math.log(sigma) + math.log(length + sigma**2)
    expected = -(NUM_PIXELS * math.log(2 * math.pi) + log_det + t**2 * length / (length + sigma**2)) / 2
    # x is rounded to 2e-16 |x|: residual over sigma, 1e-9, squared, costs nothing; the mean cancels to 1e-10
    assert found == pytest.approx(expected, rel=1e-9)


def test_quadrature_over_z_agrees() -> None:
    """The model's own log joint, summed on a lattice: the trapezoid converges geometrically on a Gaussian."""
    weight, bias, x = problem()
    ours = target(weight, bias, SIGMA, x)
    loc, precision = posterior(weight, bias, SIGMA, x)
    z, log_area = lattice(9.0, 0.1)
    log_joint = ours.log_joint({"z": z.expand(len(x), -1, -1)})
    log_z = log_joint.logsumexp(-1) + log_area
    # spacing 0.1 is at most 0.6 posterior standard deviations: exp(-2 pi^2 / 0.6^2) is below 1e-20
    assert float(precision.diagonal().max().rsqrt()) > 0.1 / 0.6
    torch.testing.assert_close(log_z, ours.closed_form(x), rtol=0, atol=1e-10)
    weights = (log_joint + log_area - log_z[:, None]).exp()
    torch.testing.assert_close(weights @ z, loc, rtol=0, atol=1e-10)
    centred = z - loc[:, None]
    covariance = torch.einsum("bs,bsi,bsj->bij", weights, centred, centred)
    expected = torch.linalg.inv(precision).expand(len(x), 2, 2)
    torch.testing.assert_close(covariance, expected, rtol=0, atol=1e-10)


def test_what_is_decoded_is_what_the_model_says() -> None:
    weight, bias, x = problem()
    ours = target(weight, bias, SIGMA, x)
    z = torch.tensor([[0.3, -1.2], [2.0, 0.1], [-4.0, 5.0]], dtype=torch.float64)
    expected = ours.log_joint({"z": z.expand(len(x), -1, -1)}) - log_prior(z)
    torch.testing.assert_close(ours.decoded.log_likelihood(z, x), expected, rtol=1e-12, atol=1e-12)


def test_the_ceiling_is_the_largest_log_likelihood() -> None:
    weight, bias, x = problem()
    ours = target(weight, bias, SIGMA, x)
    best = torch.linalg.lstsq(weight, (x - bias).mT).solution.mT
    at_best = ours.decoded.log_likelihood(best, x).diagonal()
    torch.testing.assert_close(ours.decoded.ceiling(x), at_best, rtol=1e-12, atol=0)
    around, _ = lattice(9.0, 0.25)
    assert bool((ours.decoded.log_likelihood(around, x).amax(-1) <= ours.decoded.ceiling(x)).all())


def test_a_weight_of_less_than_full_rank_has_a_ceiling() -> None:
    weight, bias, x = problem()
    weight[:, 1] = 2 * weight[:, 0]
    ours = target(weight, bias, SIGMA, x)
    around, _ = lattice(9.0, 0.1)
    lacking = ours.decoded.ceiling(x) - ours.decoded.log_likelihood(around, x).amax(-1)
    # a lattice point lies within 0.05 of the best line: half the curvature |w|^2 / sigma^2 there, times 0.05^2 each way
    assert bool((lacking >= 0).all())
    assert float(lacking.max()) < float(weight.square().sum()) / SIGMA**2 * 0.05**2


@pytest.mark.parametrize("num_latents", [1, 2, 3])
def test_the_diagonal_gap_is_what_a_search_finds(num_latents: int) -> None:
    weight, bias, x = problem(num_latents)
    _, precision = posterior(weight, bias, SIGMA, x)
    P = precision.numpy()

    def reverse_kl(theta: np.ndarray) -> float:
        """KL(Normal(d, diag(s^2)) || Normal(0, P^-1)), nats."""
        shift, log_scale = theta[:num_latents], theta[num_latents:]
        trace = np.diag(P) @ np.exp(2 * log_scale) + shift @ P @ shift
        return (trace - num_latents - np.linalg.slogdet(P)[1]) / 2 - log_scale.sum()

    found = minimize(reverse_kl, np.full(2 * num_latents, 0.3), tol=1e-12)
    gap = float(diagonal_gap(precision))
    assert gap == pytest.approx(found.fun, abs=1e-8)
    assert (gap == pytest.approx(0.0, abs=1e-12)) == (num_latents == 1)


def test_the_gap_of_many_at_once() -> None:
    precision = torch.tensor([[[2.0, 0.0], [0.0, 3.0]], [[2.0, 1.0], [1.0, 3.0]]], dtype=torch.float64)
    expected = torch.tensor([0.0, math.log(6 / 5) / 2], dtype=torch.float64)
    torch.testing.assert_close(diagonal_gap(precision), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": 0.0}, "sigma must be positive and finite, got 0.0"),
        ({"sigma": math.nan}, "sigma must be positive and finite, got nan"),
        ({"bias": torch.zeros(3)}, r"must be \(P, D\), \(P,\) and \(B, P\), got \(7, 2\), \(3,\), \(5, 7\)"),
        ({"x": torch.zeros(7)}, r"got \(7, 2\), \(7,\), \(7,\)"),
        ({"weight": torch.zeros(7)}, r"got \(7,\), \(7,\), \(5, 7\)"),
        ({"x": torch.full((5, 7), math.inf)}, "x must be finite, got inf"),
        ({"weight": torch.full((7, 2), math.nan)}, "weight must be finite, got nan"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(changes: dict, message: str) -> None:
    weight, bias, x = problem()
    with pytest.raises(ValueError, match=message):
        target(**({"weight": weight, "bias": bias, "sigma": SIGMA, "x": x} | changes))


def test_simulated_data_have_the_models_moments_and_their_latents() -> None:
    weight, bias, _ = problem(3)
    num = 40_000
    state = torch.get_rng_state()
    x, z = simulate(weight, bias, SIGMA, num, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(simulate(weight, bias, SIGMA, num, seed=4)[0], x)
    assert not torch.equal(simulate(weight, bias, SIGMA, num, seed=5)[0], x)
    together = torch.cat([x - bias, z], -1)
    eye = torch.eye(3, dtype=torch.float64)
    noise = SIGMA**2 * torch.eye(NUM_PIXELS, dtype=torch.float64)
    expected = torch.cat([torch.cat([weight @ weight.mT + noise, weight], -1), torch.cat([weight.mT, eye], -1)])
    products = together[:, :, None] * together[:, None, :]
    # 65 numbers at 5 standard errors: once in 25,000 tests
    assert bool(((products.mean(0) - expected).abs() < 5 * products.std(0) / num**0.5).all())
    assert bool((together.mean(0).abs() < 5 * together.std(0) / num**0.5).all())
