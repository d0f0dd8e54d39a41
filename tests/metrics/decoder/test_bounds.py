"""Bounds on an amortized guide's gap: closed forms of a linear decoder in five dimensions, a grid in two, edges."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np
import pytest
import torch
from torch import Tensor

from models import ppca, vae
from ppl_vi.guides.amortized import AMORTIZED, Head
from ppl_vi.metrics.decoder import bounds
from ppl_vi.metrics.decoder.bounds import BoundsScorecard, amortized_bounds, weighted_draws
from ppl_vi.numerics.gaussian_kl import gaussian_kl
from ppl_vi.target.isolation import isolated
from ppl_vi.target.target import Target
from ppl_vi.truth import AnnealedBound, Annealing, Sandwich, annealed_bound, annealed_sandwich

NUM_PIXELS, NUM_DATA, SIGMA = 9, 6, 1.5
NAMES = sorted(AMORTIZED)


class Linear:
    """Probabilistic PCA with five latents, its data simulated."""

    def __init__(self, num_latents: int = 5) -> None:
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(NUM_PIXELS, num_latents, generator=generator, dtype=torch.float64)
        bias = 1 + torch.randn(NUM_PIXELS, generator=generator, dtype=torch.float64)
        x, self.z = ppca.simulate(weight, bias, SIGMA, NUM_DATA, seed=1)
        self.target = ppca.target(weight, bias, SIGMA, x)
        self.loc, self.precision = ppca.posterior(weight, bias, SIGMA, x)
        self.log_evidence = ppca.log_evidence(weight, bias, SIGMA, x)

    def exact(self, head: Head) -> Tensor:
        return head.initial(self.loc, self.precision.expand(NUM_DATA, -1, -1))

    @cached_property
    def annealed(self) -> tuple[AnnealedBound, Sandwich]:
        settings = Annealing(100, 24)
        return (
            annealed_bound(self.target, settings, seed=2),
            annealed_sandwich(self.target, self.z, settings, seed=3),
        )

    def card(self, head: Head, local: Tensor, **knobs: int) -> BoundsScorecard:
        return amortized_bounds(self.target, *self.annealed, head, local, **knobs)


@pytest.fixture(scope="module")
def linear() -> Linear:
    return Linear()


def test_the_exact_posterior_has_one_weight_the_evidence(linear: Linear) -> None:
    head = AMORTIZED["full"](5)
    card = linear.card(head, linear.exact(head))
    for value, error in ((card.elbo, card.elbo_std_error), (card.iwae, card.iwae_std_error)):
        np.testing.assert_allclose(value, linear.log_evidence, rtol=0, atol=1e-9)
        np.testing.assert_allclose(error, 0, atol=1e-9)
    # there is no gap, so what is left is AIS's own error; six points, standard errors of 24 chains
    assert np.all(np.abs(card.total_lower) < 5 * card.total_lower_std_error)
    np.testing.assert_allclose(card.total_lower_std_error, card.ais_std_error, rtol=1e-6)
    assert card.width.shape == (NUM_DATA,)
    assert card.finite.all()


@pytest.mark.parametrize("family", ["diagonal", "full"])
def test_gaps_of_a_linear_decoder_lie_above_their_bounds(linear: Linear, family: str) -> None:
    head = AMORTIZED[family](5)
    generator = torch.Generator().manual_seed(3)
    local = linear.exact(head)
    local = local + 0.3 * torch.randn(local.shape, dtype=torch.float64, generator=generator)
    card = linear.card(head, local, num_particles=30, num_repeats=200)
    _, locs, trils = head.components(local)
    loc, covariance = locs[:, 0], (trils @ trils.mT)[:, 0]
    gap = gaussian_kl(loc, covariance, linear.loc, torch.linalg.inv(linear.precision)).numpy()
    prior_kl = gaussian_kl(loc, covariance, torch.zeros(5).double(), torch.eye(5).double()).numpy()
    evidence = linear.log_evidence.numpy()
    assert gap.min() > 0.1
    # six points at 4.5 standard errors each: once in 20,000 tests
    assert np.all(np.abs(card.elbo - (evidence - gap)) < 4.5 * card.elbo_std_error)
    assert np.all(np.abs(card.prior_kl - prior_kl) < 4.5 * card.prior_kl_std_error)
    assert np.all(card.elbo_std_error < 0.15)
    assert np.all(card.elbo < card.iwae)
    assert np.all(card.iwae < evidence + 4.5 * card.iwae_std_error)
    assert np.all(np.abs(card.total_lower - gap) < 5 * card.total_lower_std_error)
    np.testing.assert_allclose(card.activity, loc.var(0, correction=0), atol=0.05)
    assert card.num_active == 5
    assert card.num_particles == 30


@pytest.mark.parametrize("name", NAMES)
def test_the_elbo_of_every_family_is_that_of_a_grid(name: str) -> None:
    """In two dimensions, where q (log p(x, z) - log q) can be summed; a flow is asked for its density alone."""
    with isolated(seed=6):
        head = AMORTIZED[name](2)
        for parameter in head.parameters():
            parameter.requires_grad_(False).mul_(3.0)
        network = vae.VAE(NUM_PIXELS, head, hidden=(8,), likelihood="bernoulli").double()
        local = 0.1 + 0.3 * torch.randn(3, head.num_outputs)
    x, _ = vae.simulate(network, 3, seed=4)
    target, head = vae.target(network, x), head.double()
    axis = torch.linspace(-9, 9, 180, dtype=torch.float64)
    z, area = torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2
    log_q = head(local).log_prob(z[:, None]).T
    log_prior = -z.square().sum(-1) / 2 - np.log(2 * np.pi)
    log_joint = target.decoded.log_likelihood(z, x) + log_prior
    mass = log_q.exp() * area
    expected = (mass * (log_joint - log_q)).sum(-1)
    np.testing.assert_allclose(mass.sum(-1), 1, atol=5e-3)
    drawn = weighted_draws(target, head, local, 4000, seed=1)
    error = drawn.log_weight.std(-1) / 4000**0.5
    # a flow's density has kinks, which costs the grid a little
    assert bool(((drawn.log_weight.mean(-1) - expected).abs() < 4.5 * error + 0.01).all())
    prior_kl = (mass * (log_q - log_prior)).sum(-1)
    error = drawn.log_ratio.std(-1) / 4000**0.5
    assert bool(((drawn.log_ratio.mean(-1) - prior_kl).abs() < 4.5 * error + 0.01).all())
    assert float((expected - expected.mean()).abs().min()) > 0.05  # no two points could be mistaken


def test_draws_are_seeded_blocked_and_leave_the_callers_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, head = Linear(4), AMORTIZED["flow"](4).double()
    local = linear.exact(head)
    state = torch.get_rng_state()
    first, again, other = (weighted_draws(linear.target, head, local, 300, seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.log_weight, again.log_weight)
    assert not bool((first.log_weight == other.log_weight).any())
    monkeypatch.setattr(bounds, "DRAWS_AT_ONCE", 700)  # two points
    parts = weighted_draws(linear.target, head, local, 300, 7)
    assert parts.log_weight.shape == first.log_weight.shape == (NUM_DATA, 300)
    errors = (parts.log_weight.var(-1) / 300 + first.log_weight.var(-1) / 300).sqrt()
    assert bool(((parts.log_weight.mean(-1) - first.log_weight.mean(-1)).abs() < 5 * errors).all())
    assert parts.mean.shape == (NUM_DATA, 4)


@pytest.mark.parametrize(("num_particles", "num_repeats"), [(1, 4), (5, 10)])
def test_a_guide_that_uses_no_latent_is_not_called_active_for_its_few_draws(
    linear: Linear, num_particles: int, num_repeats: int
) -> None:
    head, knobs = AMORTIZED["diagonal"](5), {"num_particles": num_particles, "num_repeats": num_repeats}
    found = [linear.card(head, torch.zeros(NUM_DATA, 10).double(), **knobs, seed=seed) for seed in range(40)]
    activity = np.stack([card.activity for card in found])
    # the variance of NUM_DATA means of N draws, less 1 / N: its expectation is -1 / (N NUM_DATA)
    num = num_particles * num_repeats
    error = activity.std(0, ddof=1).mean() / 40**0.5
    assert np.abs(activity.mean() + 1 / (num * NUM_DATA)) < 5 * error
    assert activity.mean() < 0.5 / num  # not what the draws alone would say


def test_a_point_without_a_finite_bound_is_marked(linear: Linear) -> None:
    head = AMORTIZED["full"](5)
    card = linear.card(head, linear.exact(head))
    for name in ("ais_lower", "iwae", "elbo"):
        broken = getattr(card, name).copy()
        broken[1] = np.nan
        assert replace(card, **{name: broken}).finite.tolist() == [True, False, True, True, True, True]


def test_what_cannot_be_bounded_is_refused(linear: Linear) -> None:
    head = AMORTIZED["full"](5)
    local = linear.exact(head)
    blind: Target = replace(linear.target, decoded=None)
    with pytest.raises(ValueError, match="has no decoder"):
        weighted_draws(blind, head, local, 10, 0)
    with pytest.raises(ValueError, match="the target has 6 problems, got 3 rows"):
        linear.card(head, local[:3])
    with pytest.raises(ValueError, match="needs 1 particle and 2 repeats at least, got 5 and 1"):
        linear.card(head, local, num_particles=5, num_repeats=1)
