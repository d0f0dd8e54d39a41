"""What every amortized family has to hold, over the table: a new family is tested by being listed in it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor
from torch.func import grad, vmap

from models.vae import VAE
from ppl_vi.guides.amortized import AMORTIZED, Head
from ppl_vi.guides.amortized.flow import Bent
from ppl_vi.guides.amortized.full import Full
from ppl_vi.guides.amortized.mixture import NUM_COMPONENTS, GaussianMixture, Mixture
from ppl_vi.target.isolation import isolated

NAMES = sorted(AMORTIZED)
NO_MIXTURE = {"flow"}  # of Gaussians, so no components
# A flow's spline has kinks in its second derivative: the trapezoid is of second order, a spacing of 0.05 sd squared.
GRID_ERROR = {"flow": 1e-3}
# Where the first member may be away from the Gaussian asked for, as a share of its standard deviations, and why.
START_ERROR = {"flow": 0.2}  # starts near the identity: exactly there no gradient would reach the context
NUM_GRID = 240


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Double precision, a parameter store and a random state of the test's own."""
    with isolated(seed=5):
        yield


def head_of(name: str, num_latents: int = 2) -> Head:
    """One whose own networks, if it has any, are as far from where they start as training would take them."""
    head = AMORTIZED[name](num_latents)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(3.0)
    return head


def member(head: Head, *batch: int) -> Tensor:
    """Local parameters off-origin, of unequal scales."""
    return 0.3 + 0.6 * torch.randn(*batch, head.num_outputs)


def grid(loc: Tensor, half_width: Tensor) -> tuple[Tensor, float]:
    """A box of NUM_GRID^2 points in two dimensions, and the area of each."""
    axes = [torch.linspace(-1, 1, NUM_GRID) * one for one in half_width]
    return loc + torch.cartesian_prod(*axes), float((2 * half_width / (NUM_GRID - 1)).prod())


def moments(law: dist.TorchDistribution, z: Tensor, area: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mass, mean and covariance in two dimensions by the trapezoid."""
    weights = law.log_prob(z).exp() * area
    mass = weights.sum()
    mean = weights @ z / mass
    return mass, mean, (z - mean).mT @ (weights[:, None] * (z - mean)) / mass


# ---- shapes, types, gradients


@pytest.mark.parametrize("num_latents", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_shapes(name: str, num_latents: int) -> None:
    head = head_of(name, num_latents)
    law = head(member(head, 3, 4))
    assert (law.batch_shape, law.event_shape) == ((3, 4), (num_latents,))
    assert law.has_rsample
    assert law.rsample((5,)).shape == law.sample((5,)).shape == (5, 3, 4, num_latents)
    assert law.log_prob(law.rsample((5,))).shape == (5, 3, 4)
    assert law.log_prob(torch.zeros(num_latents)).shape == (3, 4)
    wider = law.expand((2, 3, 4))
    assert (wider.batch_shape, wider.rsample().shape) == ((2, 3, 4), (2, 3, 4, num_latents))
    z = torch.randn(2, 3, 4, num_latents)
    torch.testing.assert_close(wider.log_prob(z), law.log_prob(z))
    assert 10 < len(head.summary) < 120


@pytest.mark.parametrize("num_latents", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_reaches_every_local_parameter(name: str, num_latents: int) -> None:
    head = head_of(name, num_latents)
    local = member(head, 4).requires_grad_()
    law = head(local)
    z = law.rsample((7,))
    loss = (law.log_prob(z) + (z + 0.2).pow(3).sum(-1)).sum()
    slope, *own = torch.autograd.grad(loss, [local, *head.parameters()])
    assert bool(slope.isfinite().all())
    assert bool((slope != 0).all())
    assert all(bool(one.isfinite().all()) and bool((one != 0).any()) for one in own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_the_dtype_is_that_of_the_parameters(name: str, default: torch.dtype, dtype: torch.dtype) -> None:
    head = head_of(name)
    local = member(head, 4)
    z = head(local).sample().detach()
    with isolated(default, seed=1):
        law = head.to(dtype)(local.to(dtype))
        assert law.rsample().dtype == dtype
        found = law.log_prob(z.to(dtype))
        assert found.dtype == dtype
        loc, precision = torch.zeros(2, dtype=dtype), torch.eye(2, dtype=dtype)
        assert head.initial(loc, precision).dtype == dtype
    expected = head.double()(local).log_prob(z)
    # scales down to exp(-1.5): float32's eps times the squares of about 1e2 in the worst of the terms
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-3 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("name", sorted(set(NAMES) - NO_MIXTURE))
def test_transforms_of_torch_func_are_taken(name: str) -> None:
    """As the engines trace it: a gradient in the local parameters, vectorised over data."""
    head = head_of(name)
    local, z = member(head, 6), torch.randn(6, 2)

    def loss(one: Tensor, at: Tensor) -> Tensor:
        law = head(one)
        drawn = law.rsample().sum() if name == "mixture" else 0.0  # torch's own normal draws in place
        return law.log_prob(at) + drawn

    with isolated():
        slopes = vmap(grad(loss), randomness="different")(local, z)
    assert slopes.shape == local.shape
    assert bool(slopes.isfinite().all())


# ---- density and draws


@pytest.mark.parametrize("name", NAMES)
def test_the_density_integrates_to_one_and_the_draws_have_its_moments(name: str) -> None:
    head = head_of(name)
    law = head(member(head))
    with torch.no_grad():
        draws = law.sample((200_000,))
        spread = (draws - draws.mean(0)).abs().amax(0)  # about 4.5 sd
        mass, mean, covariance = moments(law, *grid(draws.mean(0), 1.4 * spread))
    assert float(mass) == pytest.approx(1.0, abs=GRID_ERROR.get(name, 1e-6))  # what the box leaves out, 6 sd
    centred = draws - mean
    products = centred[:, :, None] * centred[:, None, :]
    num = len(draws)
    # six numbers at 5 standard errors, once in 300,000 tests, beside the grid's own error
    allowed = GRID_ERROR.get(name, 1e-6)
    assert bool(((draws.mean(0) - mean).abs() < 5 * draws.std(0) / num**0.5 + allowed).all())
    assert bool(((products.mean(0) - covariance).abs() < 5 * products.std(0) / num**0.5 + allowed * 3).all())


@pytest.mark.parametrize("name", NAMES)
def test_the_density_of_a_draw_does_not_depend_on_who_drew_it(name: str) -> None:
    head = head_of(name)
    local = member(head, 3)
    law = head(local)
    z = law.rsample((50,))
    torch.testing.assert_close(law.log_prob(z), head(local).log_prob(z.detach().clone()), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_draws_come_with_their_densities(name: str) -> None:
    head = head_of(name, 4)
    local = member(head, 3, 2)
    z, log_q = head.draw(local, 7)
    assert (z.shape, log_q.shape) == ((3, 2, 7, 4), (3, 2, 7))
    for i in range(3):
        expected = head(local[i, 1]).log_prob(z[i, 1].clone())
        torch.testing.assert_close(log_q[i, 1], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_components_are_the_distribution(name: str) -> None:
    head = head_of(name)
    local = member(head, 3)
    if name in NO_MIXTURE:
        with pytest.raises(NotImplementedError, match="its best member is not computed"):
            head.components(local)
        return
    log_weights, locs, scale_trils = head.components(local)
    assert bool((scale_trils.triu(1) == 0).all())
    torch.testing.assert_close(log_weights.logsumexp(-1), torch.zeros(3))
    z = 3 * torch.randn(20, 3, 2)
    each = torch.distributions.MultivariateNormal(locs, scale_tril=scale_trils).log_prob(z[..., None, :])
    expected = (log_weights + each).logsumexp(-1)
    torch.testing.assert_close(head(local).log_prob(z), expected, rtol=1e-12, atol=1e-12)


# ---- where a search starts


@pytest.mark.parametrize("name", NAMES)
def test_the_initial_member_is_near_the_gaussian_asked_for(name: str) -> None:
    head = AMORTIZED[name](2)
    loc = torch.tensor([[0.4, -3.0], [2.0, 0.1]])
    precision = torch.tensor([[[3.0, 1.2], [1.2, 0.8]], [[1.0, -0.3], [-0.3, 2.0]]])
    local = head.initial(loc, precision)
    assert local.shape == (2, head.num_outputs)
    for i in range(2):
        asked = torch.linalg.inv(precision[i])
        if name == "diagonal":  # reverse KL's best
            asked = torch.diag(1 / precision[i].diagonal())
        sd = asked.diagonal().sqrt()
        with torch.no_grad():
            mass, mean, covariance = moments(head(local[i]), *grid(loc[i], 8 * sd))
        allowed = START_ERROR.get(name, 1e-9)
        assert float(mass) == pytest.approx(1.0, abs=GRID_ERROR.get(name, 1e-9))
        assert bool(((mean - loc[i]).abs() < allowed * sd).all())
        assert bool(((covariance - asked).abs() < 2 * allowed * sd[:, None] * sd).all())


@pytest.mark.parametrize("num_latents", [1, 2, 3, 5])
def test_the_initial_mixture_has_its_locs_apart_and_the_gaussians_moments(num_latents: int) -> None:
    head = Mixture(num_latents)
    root = torch.randn(num_latents, num_latents)
    precision, loc = root @ root.mT + torch.eye(num_latents), torch.randn(num_latents)
    log_weights, locs, scale_trils = head.components(head.initial(loc, precision))
    assert float(torch.pdist(locs).min()) > 0.1 * float(torch.linalg.inv(precision).diagonal().min().sqrt())
    torch.testing.assert_close(log_weights.exp(), torch.full((NUM_COMPONENTS,), 1 / NUM_COMPONENTS))
    torch.testing.assert_close(locs.mean(0), loc)
    total = (scale_trils @ scale_trils.mT).mean(0) + torch.cov(locs.mT, correction=0).reshape(num_latents, num_latents)
    torch.testing.assert_close(total, torch.linalg.inv(precision))


# ---- the mixture's path


def test_the_mixtures_gradient_is_unbiased_in_every_parameter() -> None:
    """d E[cos(a.z)] for several a, against E[cos(a.z)] = sum_k w_k cos(a.loc_k) exp(-a' Sigma_k a / 2)."""
    head = Mixture(2)
    local = member(head).requires_grad_()
    a = torch.tensor([[0.7, 0.0], [0.0, 1.1], [0.9, -0.8], [1.5, 1.5]])

    log_weights, locs, scale_trils = head.components(local)
    spread = (a @ scale_trils).square().sum(-1)
    exact = (log_weights.exp()[:, None] * (locs @ a.mT).cos() * (-spread / 2).exp()).sum(0)
    expected = torch.stack([torch.autograd.grad(one, local, retain_graph=True)[0] for one in exact])

    num_repeats = 60
    estimates = torch.empty(num_repeats, *expected.shape)
    for i in range(num_repeats):
        means = (head(local).rsample((4000,)) @ a.mT).cos().mean(0)
        estimates[i] = torch.stack([torch.autograd.grad(one, local, retain_graph=True)[0] for one in means])
    error = estimates.std(0) / num_repeats**0.5
    # 96 numbers with 59 degrees of freedom, 5 standard errors: once in 1,800 tests
    assert bool(((estimates.mean(0) - expected).abs() <= 5 * error).all())
    assert float(error.norm() / expected.norm()) < 0.05  # sharp enough to see a missing term


def test_a_mixture_of_equals_has_the_path_of_one_gaussian() -> None:
    """All components alike: z = loc + L v, whatever the weights, whose own path is at rest."""
    one, logits = torch.randn(5, requires_grad=True), torch.randn(NUM_COMPONENTS, requires_grad=True)
    loc, scale_tril = Full(2).split(one)
    mixture = GaussianMixture(logits, loc.expand(4, 2), scale_tril.expand(4, 2, 2))
    z = mixture.rsample()
    noise = torch.linalg.solve_triangular(scale_tril, (z - loc)[:, None], upper=False)[:, 0].detach()
    direct = loc + scale_tril @ noise
    for i in range(2):
        found, at_rest = torch.autograd.grad(z[i], [one, logits], retain_graph=True)
        (expected,) = torch.autograd.grad(direct[i], one, retain_graph=True)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(at_rest, torch.zeros(NUM_COMPONENTS), rtol=0, atol=1e-9)


def test_the_path_in_the_upper_tail_keeps_its_digits() -> None:
    """A single Gaussian 12 standard deviations out, where the cdf is 1 to the last digit."""
    far = GaussianMixture(torch.zeros(1), torch.zeros(1, 1, requires_grad=True), torch.ones(1, 1, 1))
    for value in (12.0, -12.0):
        far.sample = lambda shape, value=value: torch.tensor([value])
        (slope,) = torch.autograd.grad(far.rsample()[0], far.locs)
        assert float(slope) == pytest.approx(1.0, rel=1e-12)


def test_the_mixtures_mean_is_that_of_its_draws() -> None:
    law = GaussianMixture(
        torch.tensor([0.3, -0.9, 0.5]).double(),
        torch.tensor([[1.0, -2.0], [0.4, 0.7], [-3.0, 0.2]]).double(),
        torch.tensor([0.5, 1.0, 0.3]).double()[:, None, None] * torch.eye(2).double(),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = law.sample((100_000,))
    # 5 standard errors of standard deviations below 2.2
    torch.testing.assert_close(law.mean, draws.mean(0), rtol=0, atol=5 * 2.2 / 100_000**0.5)


def test_a_mixture_checks_what_it_is_given() -> None:
    with pytest.raises(ValueError, match="scale_trils"):
        GaussianMixture(torch.zeros(2), torch.zeros(2, 2), -torch.eye(2).expand(2, 2, 2), validate_args=True)


# ---- the flow's map


def test_the_flows_map_and_its_jacobian() -> None:
    head, batch = head_of("flow", 3), 4
    (bent,) = head(member(head, batch)).transforms
    x = torch.randn(5, batch, 3)
    y = bent(x)
    torch.testing.assert_close(bent.with_cache(0).inv(y), x)
    log_det = bent.log_abs_det_jacobian(x, y)
    assert log_det.shape == (5, batch)
    jacobian = torch.autograd.functional.jacobian(lambda one: bent(one).sum((0, 1)), x)  # each point moves itself alone
    expected = torch.linalg.slogdet(jacobian.permute(1, 2, 0, 3)).logabsdet
    torch.testing.assert_close(log_det, expected)


def test_the_density_of_the_flows_own_draw_takes_no_inversion(monkeypatch: pytest.MonkeyPatch) -> None:
    head = head_of("flow")
    law = head(member(head, 3))
    z = law.rsample((5,))
    monkeypatch.setattr(Bent, "_inverse", None)
    assert law.log_prob(z).shape == (5, 3)
    assert head.draw(member(head, 3), 5)[1].shape == (3, 5)
    with pytest.raises(TypeError):
        law.log_prob(z.clone())


# ---- in a variational autoencoder


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_svi_has_a_finite_loss(name: str, likelihood: str) -> None:
    for dtype in (torch.float32, torch.float64):
        with isolated(dtype, seed=0):
            vae = VAE(6, AMORTIZED[name](2), hidden=(5,), likelihood=likelihood, sigma=None)
            for num_particles in (1, 3):
                elbo = Trace_ELBO(num_particles, max_plate_nesting=1, vectorize_particles=num_particles > 1)
                loss = SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), elbo).step(torch.rand(8, 6), 50)
                assert math.isfinite(loss)
