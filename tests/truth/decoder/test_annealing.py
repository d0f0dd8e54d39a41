"""Annealed importance sampling: closed forms of a linear decoder, quadrature in 2-D, what it promises on average."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models import ppca, vae
from models.images import binarise, load
from ppl_vi.guides.amortized import AMORTIZED
from ppl_vi.target.decoder import Decoded
from ppl_vi.target.isolation import isolated
from ppl_vi.target.target import Target
from ppl_vi.truth import AnnealedBound, Annealing, annealed_bound, annealed_sandwich, ground_truth
from ppl_vi.truth.decoder import annealing
from ppl_vi.truth.decoder.hmc import TemperedChains, transition

NUM_PIXELS = 8


class Linear:
    """Probabilistic PCA, off-origin, with columns of unequal length at an angle; data from the model."""

    def __init__(self, num_latents: int, sigma: float = 0.5, num: int = 12, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(NUM_PIXELS, num_latents, generator=generator, dtype=torch.float64)
        self.weight[:, -1] += 0.7 * self.weight[:, 0]
        self.bias = 2 + torch.randn(NUM_PIXELS, generator=generator, dtype=torch.float64)
        self.sigma = sigma
        self.x, self.z = ppca.simulate(self.weight, self.bias, sigma, num, seed=seed + 1)

    def target(self, x: Tensor | None = None) -> Target:
        return ppca.target(self.weight, self.bias, self.sigma, self.x if x is None else x)

    def log_evidence(self) -> np.ndarray:
        return ppca.log_evidence(self.weight, self.bias, self.sigma, self.x).numpy()


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


# ---- against closed forms


@pytest.mark.parametrize("num_latents", [1, 6])
def test_the_lower_bound_is_tight_for_a_linear_decoder(num_latents: int) -> None:
    linear = Linear(num_latents)
    found = annealed_bound(linear.target(), Annealing(150, 40), seed=3)
    difference = found.log_evidence - linear.log_evidence()
    # of 12 points, 40 chains each, whose standard errors are known to a tenth
    assert np.all(np.abs(difference) < 5 * found.std_error)
    assert found.std_error.mean() < 0.35
    assert abs(difference.mean()) < 0.1
    assert found.finite.all()
    assert np.all((found.effective_chains > 5) & (found.effective_chains <= 40))
    assert np.all((found.acceptance > 0.6) & (found.acceptance < 0.85))  # 0.75 is aimed at
    assert found.log_weights.shape == (12, 40)
    recomputed = np.log(np.exp(found.log_weights - found.log_evidence[:, None]).mean(-1))
    np.testing.assert_allclose(recomputed, 0, atol=1e-12)


def test_the_mean_weight_is_the_evidence_however_few_temperatures() -> None:
    """E[w] = p(x), where most of the weight is on few chains: a log mean would be far off."""
    linear = Linear(3, sigma=0.8, num=6)
    found = annealed_bound(linear.target(), Annealing(6, 40_000), seed=1)
    ratio = np.exp(found.log_weights - linear.log_evidence()[:, None])
    error = ratio.std(-1, ddof=1) / ratio.shape[1] ** 0.5
    assert np.all(found.effective_chains < 0.25 * ratio.shape[1])  # they do differ
    assert np.all(error < 0.1)  # yet a mean off by half would show
    assert np.all(np.abs(ratio.mean(-1) - 1) < 4.5 * error)  # six problems: once in 25,000 tests, were they normal
    assert np.all(found.log_weights.mean(-1) < linear.log_evidence() - 0.5)


def test_backward_chains_are_forward_chains_in_reverse() -> None:
    """With r = w / p(x), E[r h(r)] over forward chains is E[h(r)] over backward ones from exact draws (Crooks 2000).

    Here h(r) = 1 / (1 + r), which no heavy tail can spoil; for h = 1 / r it says that E[1 / w] = 1 / p(x).
    """
    linear = Linear(3, sigma=0.8, num=1)
    loc, precision = ppca.posterior(linear.weight, linear.bias, linear.sigma, linear.x)
    num = 5000  # of one x, with another z each time
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(num, 3, generator=generator, dtype=torch.float64)
    exact = loc + torch.linalg.solve_triangular(torch.linalg.cholesky(precision).mT, noise.mT, upper=True).mT

    def apart(start: Tensor) -> tuple[float, float]:
        found = annealed_sandwich(linear.target(linear.x.expand(num, -1)), start, Annealing(12, 2), seed=2)
        forward = np.exp(found.lower.log_weights - linear.log_evidence())
        backward = np.exp(-found.upper.log_weights - linear.log_evidence())
        # the two chains of a start belong together
        one, one_error = mean_and_error((forward / (1 + forward)).mean(-1))
        other, other_error = mean_and_error((1 / (1 + backward)).mean(-1))
        return one - other, float(np.hypot(one_error, other_error))

    difference, error = apart(exact)
    assert error < 0.006
    assert abs(difference) < 4 * error
    difference, error = apart(noise)  # from the prior it would show
    assert abs(difference) > 20 * error


def test_the_sandwich_holds_the_closed_form_and_closes() -> None:
    linear = Linear(5, num=40)
    widths = []
    for num_temperatures in (30, 120):
        found = annealed_sandwich(linear.target(), linear.z, Annealing(num_temperatures, 8), seed=4)
        below, below_error = mean_and_error(linear.log_evidence() - found.lower.log_evidence)
        above, above_error = mean_and_error(found.upper.log_evidence - linear.log_evidence())
        # the bounds hold for the mean over data and chains: 4 standard errors
        assert below > -4 * below_error
        assert above > -4 * above_error
        widths.append(found.width.mean())
        assert found.width.mean() == pytest.approx(below + above)
    assert widths[0] > 1.0
    assert 0 < widths[1] < widths[0] / 2
    # backward chains have the forward ones' steps at the same temperatures
    np.testing.assert_allclose(found.upper.acceptance, found.lower.acceptance, atol=0.05)


# ---- against quadrature


def test_the_lower_bound_is_quadratures_evidence_of_real_digits() -> None:
    """A decoder of random weights, large enough to bend the posteriors, that has never seen the digits."""
    with isolated(seed=2):
        network = vae.VAE(64, AMORTIZED["diagonal"](2), hidden=(16,), likelihood="bernoulli").double()
        for layer in network.decoder[::2]:
            torch.nn.init.normal_(layer.weight, std=0.7)
    x = binarise(load("digits").test[:12], seed=8)
    target = vae.target(network, x)
    truth = ground_truth(target)
    assert truth.trusted.all()
    found = annealed_bound(target, Annealing(200, 24), seed=0)
    difference = found.log_evidence - truth.log_evidence
    # of 24 chains, some of whose weights are heavy-tailed
    assert np.all(np.abs(difference) < 5 * found.std_error)
    assert abs(difference.mean()) < 0.1
    assert found.std_error.mean() < 0.2


# ---- the transitions


@pytest.mark.parametrize(("beta", "step"), [(1.0, 0.22), (0.3, 0.3)])
def test_transitions_keep_the_density_on_the_path(beta: float, step: float) -> None:
    """From Normal(m, P^-1), P = I + beta W'W / sigma^2, with steps long enough that Metropolis has to refuse many."""
    linear = Linear(3, num=1)
    # beta times the log likelihood of sigma is that of sigma / sqrt(beta), but for a constant
    loc, precision = ppca.posterior(linear.weight, linear.bias, linear.sigma / beta**0.5, linear.x)
    covariance = torch.linalg.inv(precision)
    num = 20_000
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(1, num, 3, generator=generator, dtype=torch.float64)
    target = linear.target()
    decoded = target.decoded
    assert decoded is not None
    start = loc + noise @ torch.linalg.cholesky(covariance).mT
    chains = TemperedChains.at(decoded, target.args, start)
    for _ in range(8):
        chains, accepted = transition(
            decoded, target.args, chains, beta, torch.tensor([step], dtype=torch.float64), 3, generator
        )
    assert 0.3 < float(accepted.mean()) < 0.85
    assert float((chains.z != start).any(-1).double().mean()) > 0.95
    away = chains.z[0] - loc
    variances = covariance.diagonal()
    error_of_mean = (variances / num).sqrt()
    error_of_covariance = ((variances[:, None] * variances + covariance.square()) / num).sqrt()
    # twelve numbers at 4.5 standard errors, once in 12,000 tests
    assert bool((away.mean(0).abs() < 4.5 * error_of_mean).all())
    assert bool(((away.mT @ away / num - covariance).abs() < 4.5 * error_of_covariance).all())
    # what a chain carries is what the decoder says where it stands
    again = TemperedChains.at(decoded, target.args, chains.z)
    torch.testing.assert_close(again.log_likelihood, chains.log_likelihood)
    torch.testing.assert_close(again.slope, chains.slope)


def test_a_proposal_without_a_density_is_refused() -> None:
    """p(x | z) is no number for z > 0: chains stay below."""
    decoded = Decoded(
        lambda z, x: torch.where(z[:, 0] > 0, torch.nan, -z.square().sum(-1)).expand(len(x), -1), lambda x: x
    )
    args = (torch.zeros(2, 1, dtype=torch.float64),)
    generator = torch.Generator().manual_seed(0)
    chains = TemperedChains.at(decoded, args, torch.full((2, 500, 1), -0.3, dtype=torch.float64))
    for _ in range(5):
        chains, accepted = transition(decoded, args, chains, 1.0, torch.full((2,), 0.5).double(), 2, generator)
        assert bool(accepted.isfinite().all())
    assert float(chains.z.max()) <= 0
    assert float(chains.z.std()) > 0.1


# ---- its promises


def test_seeds_and_the_callers_generator() -> None:
    linear = Linear(4, num=3)
    state = torch.get_rng_state()
    settings = Annealing(20, 4)
    first, again, other = (annealed_sandwich(linear.target(), linear.z, settings, seed=s) for s in (7, 7, 8))
    for one in (first.lower, first.upper):
        assert np.all(np.isfinite(one.std_error))
    np.testing.assert_array_equal(first.lower.log_weights, again.lower.log_weights)
    np.testing.assert_array_equal(first.upper.log_weights, again.upper.log_weights)
    assert np.all(first.lower.log_weights != other.lower.log_weights)
    assert np.all(first.upper.log_weights != other.upper.log_weights)
    alone = annealed_bound(linear.target(), settings, seed=7)
    np.testing.assert_array_equal(alone.log_weights, first.lower.log_weights)
    assert torch.equal(torch.get_rng_state(), state)


def test_blocks_keep_the_problems_apart_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = Linear(2, num=7)
    settings = Annealing(60, 16)
    whole = annealed_sandwich(linear.target(), linear.z, settings, seed=0)
    held: list[int] = []
    log_likelihood_at = Decoded.log_likelihood_at

    def counted(self: Decoded, z: Tensor, *args: Tensor) -> Tensor:
        held.append(z.shape[0] * z.shape[1])
        return log_likelihood_at(self, z, *args)

    monkeypatch.setattr(annealing, "MAX_CHAINS_AT_ONCE", 40)
    monkeypatch.setattr(Decoded, "log_likelihood_at", counted)
    parts = annealed_sandwich(linear.target(), linear.z, settings, seed=0)
    assert max(held) == 32
    for one, other in ((whole.lower, parts.lower), (whole.upper, parts.upper)):
        assert np.all(np.abs(other.log_evidence - one.log_evidence) < 5 * np.hypot(one.std_error, other.std_error))
    assert linear.log_evidence().std() > 5 * parts.lower.std_error.max()  # no two problems could be mistaken


def test_a_problem_without_numbers_is_told_and_spoils_no_other() -> None:
    linear = Linear(2, num=3)
    target = linear.target()
    decoded = target.decoded
    assert decoded is not None

    def broken(z: Tensor, x: Tensor) -> Tensor:
        return decoded.log_likelihood(z, x) + torch.where(x[:, :1] == linear.x[1, 0], torch.nan, 0.0)

    found = annealed_bound(replace(target, decoded=replace(decoded, log_likelihood=broken)), Annealing(100, 16))
    assert found.finite.tolist() == [True, False, True]
    assert math.isnan(found.log_evidence[1])
    others = [0, 2]
    assert np.all(np.abs(found.log_evidence - linear.log_evidence())[others] < 5 * found.std_error[others])


def test_weights_of_zero_count_and_no_weight_at_all_is_no_bound() -> None:
    log_weights = torch.tensor([[0.0, -math.inf], [-math.inf, -math.inf]], dtype=torch.float64)
    found: AnnealedBound = annealing.bound_from_weights([(log_weights, torch.ones(2))])
    assert found.log_evidence[0] == pytest.approx(-math.log(2))
    assert found.effective_chains[0] == pytest.approx(1)
    assert found.log_evidence[1] == -math.inf
    assert found.finite.tolist() == [True, False]


def test_the_temperatures_rise_from_prior_to_posterior() -> None:
    betas = np.array(Annealing(50).betas)
    assert (len(betas), betas[0], betas[-1]) == (51, 0.0, 1.0)
    steps = np.diff(betas)
    assert np.all(steps > 0)
    np.testing.assert_allclose(steps, steps[::-1], rtol=1e-9)
    assert steps[0] < steps[25] / 10


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_temperatures": 1}, "num_temperatures must be at least 2, got 1"),
        ({"num_chains": 1}, "num_chains must be at least 2, got 1"),
        ({"num_leapfrog": 0}, "num_leapfrog must be at least 1, got 0"),
        ({"acceptance": 1.0}, r"acceptance must be between 0 and 1, got 1\.0"),
    ],
)
def test_bad_settings_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Annealing(**wrong)


def test_what_cannot_be_annealed_is_refused() -> None:
    linear = Linear(2, num=3)
    with pytest.raises(ValueError, match="target 'ppca' has no decoder"):
        annealed_bound(replace(linear.target(), decoded=None))
    with pytest.raises(ValueError, match=r"z must be \(3, 2\), one row a problem, got \(2, 2\)"):
        annealed_sandwich(linear.target(), linear.z[:2])
