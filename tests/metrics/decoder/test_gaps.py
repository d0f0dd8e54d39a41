"""The split of an amortized guide's gap: closed forms of a linear decoder, other rules, and modes a start can miss."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from models.vae import VAE, target
from ppl_vi.guides.amortized import AMORTIZED, Head
from ppl_vi.guides.amortized.diagonal import Diagonal
from ppl_vi.guides.amortized.full import Full
from ppl_vi.metrics.decoder.best_members import ascend, best_members, embed, rivals
from ppl_vi.metrics.decoder.divergences import divergences
from ppl_vi.metrics.decoder.elbo import elbo, settled_prior_kl
from ppl_vi.metrics.decoder.elbo_expansion import elbo_expansion
from ppl_vi.metrics.decoder.gaps import amortized_gaps, iwae
from ppl_vi.metrics.decoder.lattice_values import CachedLattice
from ppl_vi.metrics.decoder.starts import multistart
from ppl_vi.numerics.gaussian_kl import gaussian_kl
from ppl_vi.numerics.mixtures import GaussianMixtures
from ppl_vi.target.decoder import Decoded, log_prior
from ppl_vi.target.target import Target
from ppl_vi.truth.result import Truth

NUM_PIXELS, NUM_DATA = 6, 7


def truth_of(of: Target, log_evidence: Tensor, error: float = 0.0) -> Truth:
    return Truth(of, "by hand", log_evidence.numpy(), np.full(len(log_evidence), error), ())


class Linear:
    """x = W z + b + sigma e: posterior Normal(m, P^-1), P = I + W'W / sigma^2, evidence Normal(b, W W' + sigma^2 I)."""

    def __init__(self, num_latents: int = 2, sigma: float = 0.7, simulated: bool = False) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            head = Full(num_latents)
            vae = VAE(NUM_PIXELS, head, hidden=(), likelihood="gaussian", sigma=sigma).double()
            x = 1.5 * torch.randn(NUM_DATA, NUM_PIXELS, dtype=torch.float64)
        weight, bias = vae.decoder[0].weight.detach(), vae.decoder[0].bias.detach()
        if simulated:
            x = x[:, :num_latents] @ weight.T + bias + sigma * x.roll(1, 0)
        self.target = target(vae, x)
        eye = torch.eye(num_latents, dtype=torch.float64)
        self.precision = eye + weight.T @ weight / sigma**2
        self.cov = torch.linalg.inv(self.precision)
        self.loc = (x - bias) @ weight @ self.cov / sigma**2
        spread = weight @ weight.T + sigma**2 * torch.eye(NUM_PIXELS, dtype=torch.float64)
        self.log_evidence = MultivariateNormal(bias, spread).log_prob(x)
        self.truth = truth_of(self.target, self.log_evidence)

    def perturbed(self, head: Head) -> Tensor:
        """Local parameters of an encoder that is off, differently at each data point."""
        exact = head.initial(self.loc, self.precision.expand(NUM_DATA, -1, -1))
        generator = torch.Generator().manual_seed(3)
        return exact + 0.4 * torch.randn(exact.shape, dtype=torch.float64, generator=generator)


def covariance(head: Head, local: Tensor) -> tuple[Tensor, Tensor]:
    _, locs, trils = head.components(local)
    return locs[:, 0], (trils @ trils.mT)[:, 0]


@pytest.mark.parametrize("num_latents", [1, 2, 3])
def test_the_exact_posterior_has_the_log_evidence_for_elbo(num_latents: int) -> None:
    linear, head = Linear(num_latents), Full(num_latents)
    local = head.initial(linear.loc, linear.precision.expand(NUM_DATA, -1, -1))
    found = elbo(linear.target, head, local)
    torch.testing.assert_close(found.value, linear.log_evidence, rtol=0, atol=1e-10)
    assert float(found.error.max()) < 1e-10


@pytest.mark.parametrize("num_latents", [1, 2, 3])
@pytest.mark.parametrize("family", ["diagonal", "full"])
def test_gaps_of_a_linear_decoder_are_their_closed_forms(family: str, num_latents: int) -> None:
    linear, head = Linear(num_latents), AMORTIZED[family](num_latents)
    local = linear.perturbed(head)
    card = amortized_gaps(linear.target, linear.truth, head, local, num_repeats=5)
    total = gaussian_kl(*covariance(head, local), linear.loc, linear.cov).numpy()
    # reverse KL's best diagonal has the posterior's mean and precision's diagonal
    log_diagonal = torch.diagonal(linear.precision).log().sum()
    diagonal_gap = float(log_diagonal - torch.logdet(linear.precision)) / 2
    approximation = 0.0 if family == "full" else diagonal_gap
    assert diagonal_gap > 1e-3 or num_latents == 1
    assert card.converged.all()
    assert card.trusted.all()
    np.testing.assert_allclose(card.total, total, rtol=0, atol=1e-9)
    np.testing.assert_allclose(card.approximation, approximation, rtol=0, atol=1e-9)
    np.testing.assert_allclose(card.amortization, total - approximation, rtol=0, atol=2e-9)
    np.testing.assert_allclose(card.reverse_kl, total, rtol=0, atol=1e-6)
    forward = gaussian_kl(linear.loc, linear.cov, *covariance(head, local)).numpy()
    np.testing.assert_allclose(card.forward_kl, forward, rtol=0, atol=1e-6)
    zero, eye = torch.zeros(num_latents).double(), torch.eye(num_latents).double()
    prior_kl = gaussian_kl(*covariance(head, local), zero, eye).numpy()
    np.testing.assert_allclose(card.prior_kl, prior_kl, rtol=1e-12, atol=1e-12)
    if family == "diagonal":
        np.testing.assert_allclose(card.prior_kl_by_latent.sum(-1), prior_kl, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(card.activity, local[:, :num_latents].var(0, correction=0).numpy(), rtol=1e-12)
    assert card.num_active == num_latents
    # KL bounds the total variation (Pinsker)
    assert (card.total_variation <= np.sqrt(total / 2) + card.total_variation_error).all()


@pytest.mark.parametrize(("num_latents", "sigma"), [(1, 1e-4), (2, 2e-3), (2, 3e-4)])
def test_a_posterior_that_slips_between_a_lattices_nodes_gets_its_own(num_latents: int, sigma: float) -> None:
    linear, head = Linear(num_latents, sigma, simulated=True), Full(num_latents)
    scale = torch.linalg.cholesky(linear.cov)
    local = head.initial(linear.loc + 0.5 * scale.sum(-1), linear.precision.expand(NUM_DATA, -1, -1))
    found = divergences(linear.target, linear.log_evidence, head, local)
    exact = torch.full((NUM_DATA,), 0.125 * num_latents).double()  # |L^-1 (0.5 L 1)|^2 / 2
    torch.testing.assert_close(found.reverse_kl, exact, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.forward_kl, exact, rtol=0, atol=1e-6)


def test_a_likelihood_far_below_1_still_lets_a_search_converge() -> None:
    x = torch.linspace(0.5, 3, 6, dtype=torch.float64)[:, None]

    def log_likelihood(z: Tensor, x: Tensor) -> Tensor:
        return -1e4 + 2 * torch.cos(x * (z[:, 0] - 0.3))

    def model(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))

    of = Target(model, (x,), decoded=Decoded(log_likelihood, lambda x: torch.full((len(x),), 2.0 - 1e4).double()))
    best = best_members(of, Diagonal(1), torch.zeros(6, 2).double())
    assert best.converged.all()
    check = elbo(of, Diagonal(1), best.local)
    torch.testing.assert_close(best.elbo, check.value, rtol=0, atol=1e-8)


def random_vae(head: Head, seed: int, likelihood: str) -> tuple[VAE, Tensor]:
    """A tanh decoder whose weights are large enough to bend posteriors, and data from its own model."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = VAE(12, head, hidden=(16,), likelihood=likelihood, sigma=0.5).double()
        for layer in (vae.decoder[0], vae.decoder[2]):
            torch.nn.init.normal_(layer.weight, std=1.0)
        with torch.no_grad():
            x = vae.observation(torch.randn(8, head.num_latents, dtype=torch.float64)).sample()
    return vae, x


def lattice_log_evidence(of: Target, half_width: float = 8.0, num: int = 801) -> Tensor:
    axis = torch.linspace(-half_width, half_width, num, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    assert of.decoded is not None
    log_joint = of.decoded.log_likelihood(z, *of.args) - z.square().sum(-1) / 2 - np.log(2 * np.pi)
    return log_joint.logsumexp(-1) + 2 * (axis[1] - axis[0]).log()


@pytest.mark.parametrize(("seed", "likelihood"), [(0, "bernoulli"), (1, "gaussian"), (2, "bernoulli")])
def test_full_is_never_worse_than_diagonal_and_the_other_rule_agrees(seed: int, likelihood: str) -> None:
    vae, x = random_vae(Diagonal(2), seed, likelihood)
    of = target(vae, x)
    truth = truth_of(of, lattice_log_evidence(of), 1e-8)
    local = Diagonal(2).initial(of.laplace.loc, of.laplace.precision)
    local = local + torch.tensor([0.15, -0.1, 0.2, -0.3]).double()
    diagonal = amortized_gaps(of, truth, Diagonal(2), local, num_repeats=40)
    others = {"diagonal": Diagonal(2)}
    full = amortized_gaps(of, truth, Full(2), embed(Full(2), Diagonal(2), local), others=others)
    np.testing.assert_allclose(full.best_elbo_by_family["diagonal"], diagonal.best_elbo, rtol=0, atol=1e-7)
    assert (full.approximation <= full.approximation_by_family["diagonal"] + 1e-9).all()
    assert (full.approximation_by_family["diagonal"] - full.approximation).max() > 1e-3
    for card in (diagonal, full):
        assert card.converged.all()
        assert (np.abs(card.reverse_kl - card.total) <= card.total_error + card.reverse_kl_error + 1e-9).all()
        np.testing.assert_allclose(card.reverse_kl, card.total, rtol=0, atol=1e-6)
        assert card.approximation.min() > -1e-6
        assert card.amortization.min() > -1e-6
    np.testing.assert_allclose(full.total, diagonal.total, rtol=0, atol=1e-7)
    assert (full.best_elbo >= diagonal.best_elbo - 1e-7).all()
    assert full.approximation.mean() < diagonal.approximation.mean()
    # five standard errors, and the skew of a log mean
    assert (diagonal.iwae_bias >= -5 * diagonal.iwae_std_error - 1e-6).all()
    assert (diagonal.iwae_bias <= diagonal.total + 5 * diagonal.iwae_std_error).all()


def two_modes(x: Tensor) -> Target:
    """x = z^2 + z / 5 + e / 4: two modes a data point, the right one the higher, since it is nearer to the prior's."""

    def mean(z: Tensor) -> Tensor:
        return z.square() + 0.2 * z

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(mean(z), 0.25).to_event(1), obs=x)

    def log_likelihood(z: Tensor, x: Tensor) -> Tensor:
        return dist.Normal(mean(z[:, 0]), 0.25).log_prob(x)

    def ceiling(x: Tensor) -> Tensor:
        return torch.full_like(x[:, 0], -np.log(0.25) - np.log(2 * np.pi) / 2)

    return Target(model, (x,), decoded=Decoded(log_likelihood, ceiling))


def test_one_start_stays_on_its_mode_and_many_find_the_higher() -> None:
    of = two_modes(torch.tensor([[2.0], [3.0]]).double())
    local = torch.tensor([[-1.5, -2.0], [-1.8, -2.0]]).double()  # the encoder sits left
    head = Diagonal(1)
    alone = ascend(CachedLattice(of), head, local, torch.arange(2), 3, 1e-10).theta
    assert (alone[:, 0] < 0).all()
    best = best_members(of, head, local)
    assert best.converged.all()
    assert (best.local[:, 0] > 0).all()
    gain = best.elbo - elbo(of, head, alone).value
    assert (gain > 0.1).all()
    for row in range(2):

        def joint(z: float, row: int = row) -> float:
            x = float(of.args[0][row])
            return float(np.exp(-(((x - z * z - 0.2 * z) / 0.25) ** 2) / 2 - z * z / 2) / (0.25 * 2 * np.pi))

        evidence = scipy.integrate.quad(joint, -6, 6, points=[-2, -1.5, 1.3, 1.6], epsabs=1e-13, limit=200)[0]
        assert np.log(evidence) >= float(best.elbo[row])


def test_candidates_stand_on_every_mode_that_matters() -> None:
    of = two_modes(torch.tensor([[2.0], [3.0]]).double())
    local = torch.tensor([[-1.5, -2.0], [-1.8, -2.0]]).double()
    found, problem = multistart(CachedLattice(of), Diagonal(1), local)
    for row in range(2):
        x = float(of.args[0][row, 0])
        at = found[problem == row][:, 0]
        for top in (-0.1 - (0.01 + x) ** 0.5, -0.1 + (0.01 + x) ** 0.5):  # z^2 + z / 5 = x
            assert float((at - top).abs().min()) < 0.1


class Pair(Head):
    """Two Gaussians and their odds: a mixture to see more than one component through the machinery."""

    def __init__(self, num_latents: int) -> None:
        super().__init__(num_latents, 4 * num_latents + 1)

    def components(self, local: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        num = self.num_latents
        odds, loc, log_scale = local.split([1, 2 * num, 2 * num], -1)
        log_weights = torch.cat([odds, torch.zeros_like(odds)], -1).log_softmax(-1)
        scales = log_scale.exp().unflatten(-1, (2, num))
        return log_weights, loc.unflatten(-1, (2, num)), torch.diag_embed(scales)

    def initial(self, loc: Tensor, precision: Tensor) -> Tensor:
        log_scale = -torch.diagonal(precision, dim1=-2, dim2=-1).log() / 2
        # apart, since two equal components are a saddle
        return torch.cat([loc[..., :1] * 0, loc - 0.3, loc + 0.3, log_scale, log_scale], -1)


def test_a_mixture_has_the_same_gap_by_both_rules_and_beats_one_gaussian() -> None:
    of = two_modes(torch.tensor([[2.0], [3.0]]).double())
    axis = torch.linspace(-6, 6, 20001, dtype=torch.float64)[:, None]
    assert of.decoded is not None
    log_joint = of.decoded.log_likelihood(axis, *of.args) - axis[:, 0].square() / 2 - np.log(2 * np.pi) / 2
    truth = truth_of(of, log_joint.logsumexp(-1) + (axis[1] - axis[0]).log())
    local = torch.tensor([[0.3, -1.5, 1.4, -2.0, -2.0], [-0.4, -1.8, 1.6, -1.5, -2.0]]).double()
    card = amortized_gaps(of, truth, Pair(1), local)
    np.testing.assert_allclose(card.reverse_kl, card.total, rtol=0, atol=1e-6)
    assert card.converged.all()
    one = best_members(of, Diagonal(1), local[:, [1, 3]])
    assert (card.best_elbo > one.elbo.numpy() + 0.3).all()
    assert (card.approximation > -1e-7).all()


def test_a_mixtures_best_is_no_worse_than_one_gaussians() -> None:
    of = two_modes(torch.tensor([[2.0], [0.5]]).double())
    truth, head = truth_of(of, torch.zeros(2).double()), AMORTIZED["mixture"](1)
    local = head.initial(torch.tensor([[-1.5], [0.3]]).double(), 20 * torch.ones(2, 1, 1).double())
    others = {name: AMORTIZED[name](1) for name in ("diagonal", "full")}
    card = amortized_gaps(of, truth, head, local, others=others, num_repeats=2)
    for value in card.best_elbo_by_family.values():
        assert (card.best_elbo >= value - card.best_elbo_error - 1e-8).all()
    assert (card.best_elbo - card.best_elbo_by_family["full"]).max() > 0.5


def bent_ring(x: Tensor) -> Target:
    """x = (|z|^2 + z_1 z_2 / 2, z_1 - z_2 / 5) + noise: two bent modes in the plane, one on each side of a line."""

    def mean(z: Tensor) -> Tensor:
        return torch.stack([z.square().sum(-1) + 0.5 * z[..., 0] * z[..., 1], z[..., 0] - 0.2 * z[..., 1]], -1)

    scales = torch.tensor([0.5, 0.25]).double()

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(mean(z), scales).to_event(1), obs=x)

    def log_likelihood(z: Tensor, x: Tensor) -> Tensor:
        return dist.Normal(mean(z), scales).log_prob(x[:, None]).sum(-1)

    def ceiling(x: Tensor) -> Tensor:
        return torch.full_like(x[:, 0], float(-scales.log().sum()) - np.log(2 * np.pi))

    return Target(model, (x,), decoded=Decoded(log_likelihood, ceiling))


def side_by_side(x: list[float]) -> tuple[Target, Tensor, Tensor]:
    """`two_modes` at x or, for two numbers, `bent_ring`; its log evidence and the mass beyond 0 by a fine lattice."""
    of = (two_modes if len(x) == 1 else bent_ring)(torch.tensor([x]).double())
    axis = torch.linspace(-7, 7, 20001 if len(x) == 1 else 1401, dtype=torch.float64)
    z = torch.cartesian_prod(*[axis] * len(x)).reshape(-1, len(x))
    assert of.decoded is not None
    log_joint = of.decoded.log_likelihood(z, *of.args) + log_prior(z)
    beyond = log_joint.softmax(-1)[:, z[:, -1] > 0].sum(-1)
    return of, log_joint.logsumexp(-1) + len(x) * (axis[1] - axis[0]).log(), beyond


@pytest.mark.parametrize("x", [[2.0], [3.0], [2.0, 0.3], [2.5, 0.4]])
def test_components_that_all_start_on_one_mode_find_the_other(x: list[float]) -> None:
    dim = len(x)
    of, log_evidence, beyond = side_by_side(x)
    families = {name: AMORTIZED[name](dim) for name in ("diagonal", "full", "mixture")}
    head = families.pop("mixture")
    top = torch.tensor([-1.5] if dim == 1 else [-0.2, -1.3]).double()  # the mode below 0
    local = head.initial(top[None], 30 * torch.eye(dim)[None].double())
    card = amortized_gaps(of, truth_of(of, log_evidence), head, local, others=families, num_repeats=2)
    assert card.converged.all()
    gaps = card.approximation_by_family
    assert float(card.approximation[0]) <= float(gaps["full"][0]) + 1e-6
    assert float(gaps["full"][0]) <= float(gaps["diagonal"][0]) + 1e-6
    # one mode alone leaves at least minus the log of its mass
    assert float(gaps["full"][0]) > 0.3
    assert 0 < float(card.approximation[0]) < 0.1
    weights, locs, _ = head.components(torch.from_numpy(card.best))
    share = (weights.exp() * (locs[..., -1] > 0)).sum(-1)
    assert 0.05 < float(beyond) < 0.95
    assert float((share - beyond).abs()) < 0.05


def test_an_optimum_that_four_components_share_is_certified() -> None:
    linear, head = Linear(1), AMORTIZED["mixture"](1)
    best = best_members(linear.target, head, linear.perturbed(head))
    assert best.converged.all()
    # along a floor as flat as this the search ends where 3e-8 |ELBO| is promised, and |ELBO| is 8 to 20
    torch.testing.assert_close(best.elbo, linear.log_evidence, rtol=0, atol=6e-7)


def test_a_light_component_takes_no_long_steps() -> None:
    linear, head = Linear(1), AMORTIZED["mixture"](1)
    local = linear.perturbed(head)
    local[:, 0] = -60.0
    seen = elbo_expansion(CachedLattice(linear.target), head, local, torch.arange(NUM_DATA), 2)
    assert float(torch.linalg.inv(seen.metric).abs().max()) < 1e5  # in units of the weight's root, 1e13


def test_a_shift_of_all_logits_does_not_stop_the_search() -> None:
    linear, head = Linear(1), AMORTIZED["mixture"](1)
    seen = elbo_expansion(CachedLattice(linear.target), head, linear.perturbed(head), torch.arange(NUM_DATA), 2)
    assert seen.gradient.isfinite().all()
    # in Fisher's units curvatures are a few, but for what rounding makes of 0 / 1e-8
    assert float(seen.hessian.abs().max()) < 1e3


def test_an_optimum_whose_components_are_numbered_otherwise_is_the_same() -> None:
    head = AMORTIZED["mixture"](2)
    generator = torch.Generator().manual_seed(2)
    one, other = torch.randn(2, head.num_outputs, dtype=torch.float64, generator=generator)
    turned = torch.cat([one[:4].roll(1), one[4:].reshape(4, 5).roll(1, 0).flatten()])
    theta, index = torch.stack([one, turned, other, one]), torch.tensor([0, 0, 0, 1])
    value = torch.tensor([1.0, 1.0 + 1e-9, 0.9, -3.0]).double()
    assert rivals(head, theta, index, value, 0.2).tolist() == [1, 2, 3]
    assert rivals(head, theta, index, value, 0.05).tolist() == [1, 3]


def test_the_prior_kl_of_a_mixture_is_that_of_a_fine_grid() -> None:
    local = torch.tensor([[0.3, -1.5, 1.4, -1.0, -0.5], [2.0, 0.0, 0.1, 0.2, -1.5]]).double()
    mixture = GaussianMixtures(*Pair(1).components(local))
    axis = torch.linspace(-12, 12, 40001, dtype=torch.float64)[:, None]
    log_q = mixture.log_prob(axis.expand(2, -1, -1))
    expected = (log_q.exp() * (log_q - log_prior(axis))).sum(-1) * (axis[1] - axis[0])
    found = settled_prior_kl(mixture, 1e-10)
    torch.testing.assert_close(found.value, expected, rtol=0, atol=1e-7)
    assert float(found.error.max()) < 1e-6


@pytest.mark.parametrize("make", [Diagonal, Full, Pair])
def test_derivatives_are_those_of_the_elbo(make: Callable[[int], Head]) -> None:
    vae, x = random_vae(Diagonal(2), 4, "bernoulli")
    of, head = target(vae, x[:2]), make(2)
    generator = torch.Generator().manual_seed(1)
    local = 0.5 * torch.randn(2, head.num_outputs, dtype=torch.float64, generator=generator)
    index = torch.arange(2)
    seen = elbo_expansion(CachedLattice(of), head, local, index, 3)
    gradient = (seen.metric @ seen.gradient[..., None])[..., 0]
    curvature = seen.metric @ seen.hessian @ seen.metric.mT
    step = 1e-5

    def slope(at: Tensor) -> Tensor:
        found = elbo_expansion(CachedLattice(of), head, at, index, 3)
        return (found.metric @ found.gradient[..., None])[..., 0]

    for place in range(head.num_outputs):
        move = torch.zeros_like(local).index_fill(-1, torch.tensor([place]), step)
        up, down = (elbo_expansion(CachedLattice(of), head, local + sign * move, index, 3).value for sign in (1, -1))
        # central differences: h^2 times the third derivative, and rounding of 1e-15 x 10 / h
        torch.testing.assert_close(gradient[:, place], -(up - down) / (2 * step), rtol=1e-6, atol=1e-6)
        second = (slope(local + move) - slope(local - move)) / (2 * step)
        torch.testing.assert_close(curvature[:, :, place], second, rtol=1e-5, atol=1e-5)


def test_iwae_grows_from_the_elbo_to_the_evidence_and_repeats_its_draws() -> None:
    linear, head = Linear(), Diagonal(2)
    local = linear.perturbed(head)
    exact = elbo(linear.target, head, local).value
    one, error = iwae(linear.target, head, local, 1, 4000, seed=1)
    assert ((one - exact).abs() < 5 * error).all()
    many, error_many = iwae(linear.target, head, local, 200, 20, seed=1)
    assert (many > one - 5 * (error + error_many)).all()
    assert float((linear.log_evidence - many).mean()) < float((linear.log_evidence - exact).mean()) / 4
    torch.testing.assert_close(iwae(linear.target, head, local, 200, 20, seed=1)[0], many, rtol=0, atol=0)


def test_a_wrong_evidence_shows_in_the_mass() -> None:
    linear, head = Linear(), Diagonal(2)
    found = divergences(linear.target, linear.log_evidence + 0.01, head, linear.perturbed(head))
    # exp(-0.01) = 0.99005
    assert ((found.missing > 0.009) & (found.missing < 0.011)).all()


def test_a_sharp_posterior_gets_a_lattice_of_its_own() -> None:
    linear, head = Linear(sigma=0.01), Full(2)  # standard deviations of 0.01 in a lattice of spacing 0.06
    exact = head.initial(linear.loc, linear.precision.expand(NUM_DATA, -1, -1))
    local = exact + torch.tensor([0.01, -0.02, 0.3, -0.2, 0.003]).double()
    found = divergences(linear.target, linear.log_evidence, head, local)
    expected = gaussian_kl(*covariance(head, local), linear.loc, linear.cov)
    assert (expected > 0.1).all()
    torch.testing.assert_close(found.reverse_kl, expected, rtol=1e-6, atol=1e-6)
    backward = gaussian_kl(linear.loc, linear.cov, *covariance(head, local))
    torch.testing.assert_close(found.forward_kl, backward, rtol=1e-6, atol=1e-6)


def test_what_cannot_be_measured_is_refused() -> None:
    linear, head = Linear(), Diagonal(2)
    local = linear.perturbed(head)
    with pytest.raises(ValueError, match="has no decoder"):
        elbo(replace(linear.target, decoded=None), head, local)
    with pytest.raises(ValueError, match="quadrature reaches 3 latents, target 'vae' has 4"):
        elbo(Linear(4).target, Diagonal(4), torch.zeros(NUM_DATA, 8).double())
    with pytest.raises(ValueError, match="the target has 7 problems, got 3 rows"):
        amortized_gaps(linear.target, linear.truth, head, local[:3])


def test_a_mixture_is_embedded_by_its_mean_and_covariance() -> None:
    local = torch.tensor([[np.log(3.0), 0.5, -1.0, 2.0, 0.3, -0.2, 0.1, 0.4, -0.6]]).double()
    log_weights, locs, trils = Pair(2).components(local)
    weights = log_weights.exp()[0].numpy()
    loc, cov = covariance(Full(2), embed(Full(2), Pair(2), local))
    draws = np.random.default_rng(0)
    which = draws.choice(2, size=200_000, p=weights)
    z = locs[0].numpy()[which] + (trils[0].numpy()[which] @ draws.normal(size=(200_000, 2, 1)))[..., 0]
    np.testing.assert_allclose(loc[0].numpy(), z.mean(0), atol=5 * 2 / 200_000**0.5)
    np.testing.assert_allclose(cov[0].numpy(), np.cov(z.T), atol=5 * 4 / 200_000**0.5)
    one = torch.tensor([[0.5, -1.0, 0.3, -0.2]]).double()
    loc, cov = covariance(Full(2), embed(Full(2), Diagonal(2), one))
    torch.testing.assert_close(torch.cat([loc[0], torch.diagonal(cov[0]).log() / 2]), one[0])
