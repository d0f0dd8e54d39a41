"""The VAE's loss and gradient against closed forms of a linear one, and what its target says against Pyro's model."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor, nn

from models import ppca
from models.vae import MIN_SIGMA, VAE, perceptron, simulate, target
from ppl_vi.guides.amortized import AMORTIZED
from ppl_vi.target.isolation import isolated

NUM_PIXELS, NUM_DATA, SIGMA = 5, 6, 0.7
GAUSSIAN = ["diagonal", "full"]  # heads that are one Gaussian
NUM_REPEATS = 40


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Double precision, a parameter store and a random state of the test's own."""
    with isolated(seed=3):
        yield


def data(num: int = NUM_DATA) -> Tensor:
    return torch.randn(num, NUM_PIXELS, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5


def linear(head: str, sigma: float | None = SIGMA) -> VAE:
    """No hidden layer: x = W z + b, and an encoder that is linear too."""
    return VAE(NUM_PIXELS, AMORTIZED[head](2), hidden=(), likelihood="gaussian", sigma=sigma)


def closed_form_loss(vae: VAE, x: Tensor, alpha: float) -> Tensor:
    """The expected loss of a linear VAE with Gaussian q, nats, each point once.

    E|x - W z - b|^2 = |x - W mu - b|^2 + tr(W Sigma W'), and KL(q || p) = (tr Sigma + mu'mu - D - log det Sigma) / 2.
    """
    (layer,) = vae.decoder
    _, locs, scale_trils = vae.head.components(vae.encoder(x))
    mu, covariance = locs[..., 0, :], scale_trils[..., 0, :, :] @ scale_trils[..., 0, :, :].mT
    trace = torch.diagonal(layer.weight @ covariance @ layer.weight.mT, dim1=-2, dim2=-1).sum(-1)
    squares = (x - mu @ layer.weight.mT - layer.bias).square().sum(-1) + trace
    constant = NUM_PIXELS * (2 * math.pi * vae.sigma**2).log() / 2
    variances = torch.diagonal(covariance, dim1=-2, dim2=-1).sum(-1)
    kl = (variances + mu.square().sum(-1) - mu.shape[-1] - covariance.logdet()) / 2
    return (squares / (2 * vae.sigma**2) + constant + alpha * kl).sum()


def pyro_losses(vae: VAE, x: Tensor, num_data: int | None, alpha: float, num_particles: int) -> Iterator[Tensor]:
    """Independent Trace_ELBO estimates of the loss."""
    elbo = Trace_ELBO(num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1)
    for _ in range(NUM_REPEATS):
        yield elbo.differentiable_loss(vae.model, vae.guide, x, num_data, alpha)


def mean_and_error(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the leading axis and its standard error."""
    return draws.mean(0), draws.std(0) / len(draws) ** 0.5


# ---- the loss


@pytest.mark.parametrize("alpha", [1.0, 0.3, 4.0])
@pytest.mark.parametrize("head", GAUSSIAN)
def test_the_averaged_loss_is_the_closed_form(head: str, alpha: float) -> None:
    vae, x = linear(head), data()
    with torch.no_grad():
        mean, error = mean_and_error(torch.stack(list(pyro_losses(vae, x, None, alpha, 2000))))
        expected = closed_form_loss(vae, x, alpha)
        other = closed_form_loss(vae, x, alpha + 0.5)
    # 4.5 standard errors from 39 degrees of freedom: once in 16,000 tests
    assert abs(float(mean - expected)) < 4.5 * float(error)
    assert abs(float(other - expected)) > 20 * float(error)  # sharp enough to tell alpha + 0.5 from alpha


@pytest.mark.parametrize("alpha", [1.0, 2.5])
def test_mini_batches_estimate_the_full_loss(alpha: float) -> None:
    """The mean over a partition into mini-batches of two, each scaled by 6 / 2."""
    vae, x = linear("full"), data()
    with torch.no_grad():
        batches = [torch.stack(list(pyro_losses(vae, part, NUM_DATA, alpha, 1000))) for part in x.split(2)]
        mean, error = mean_and_error(torch.stack(batches).mean(0))
        assert abs(float(mean - closed_form_loss(vae, x, alpha))) < 4.5 * float(error)
        for part, losses in zip(x.split(2), batches, strict=True):
            mean, error = mean_and_error(losses)
            assert abs(float(mean - 3 * closed_form_loss(vae, part, alpha))) < 4.5 * float(error)


@pytest.mark.parametrize(
    ("head", "alpha", "sigma"), [("diagonal", 1.0, SIGMA), ("full", 2.5, SIGMA), ("full", 1.0, None)]
)
def test_the_averaged_gradient_is_that_of_the_closed_form(head: str, alpha: float, sigma: float | None) -> None:
    vae, x = linear(head, sigma), data()
    parameters = list(vae.parameters())

    def flat(loss: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    mean, error = mean_and_error(torch.stack([flat(loss) for loss in pyro_losses(vae, x, None, alpha, 1000)]))
    expected = flat(closed_form_loss(vae, x, alpha))
    # about 50 coordinates with 39 degrees of freedom, 5 standard errors: once in 2,000 tests
    assert float(((mean - expected).abs() / error).max()) < 5
    assert float(error.norm() / expected.norm()) < 0.02


def test_the_best_encoder_of_a_linear_vae_reaches_the_evidence() -> None:
    """With the exact posterior for q the closed-form loss is -log p(x), every point: no gap is left."""
    vae, x = linear("full"), data()
    (decoder,), (encoder,) = vae.decoder, vae.encoder
    weight, bias = decoder.weight.detach(), decoder.bias.detach()
    loc, precision = ppca.posterior(weight, bias, SIGMA, x)
    gain = torch.linalg.solve(precision, weight.mT) / SIGMA**2
    local = vae.head.initial(loc[0], precision)
    with torch.no_grad():
        encoder.weight.zero_()
        encoder.weight[:2] = gain
        encoder.bias.copy_(torch.cat([-gain @ bias, local[2:]]))
        loss = closed_form_loss(vae, x, 1.0)
    assert float(loss) == pytest.approx(-float(ppca.log_evidence(weight, bias, SIGMA, x).sum()), rel=1e-12)


# ---- what Pyro trains


@pytest.mark.parametrize("head", sorted(AMORTIZED))
@pytest.mark.parametrize("sigma", [None, SIGMA])
def test_a_step_moves_every_parameter(head: str, sigma: float | None) -> None:
    vae = VAE(NUM_PIXELS, AMORTIZED[head](2), hidden=(4,), likelihood="gaussian", sigma=sigma)
    before = {name: value.detach().clone() for name, value in vae.named_parameters()}
    loss = SVI(vae.model, vae.guide, Adam({"lr": 0.01}), Trace_ELBO()).step(data(), 100)
    assert math.isfinite(loss)
    still = [name for name, value in vae.named_parameters() if torch.equal(value, before[name])]
    assert still == []
    assert vae.learns_sigma == (sigma is None)


def test_a_learned_sigma_has_a_floor() -> None:
    vae = linear("diagonal", sigma=None)
    assert float(vae.sigma.detach()) == pytest.approx(MIN_SIGMA + math.log(2), rel=1e-14)
    with torch.no_grad():
        vae._raw_sigma.fill_(-1e4)
    assert float(vae.sigma.detach()) == MIN_SIGMA


def test_a_learned_sigma_finds_the_noise() -> None:
    """Data of one constant plus noise, an encoder and weights of zero: the best sigma is the noise's own."""
    vae, x = linear("diagonal", sigma=None), 0.3 * torch.randn(4000, NUM_PIXELS)
    with torch.no_grad():
        for parameter in (*vae.decoder.parameters(), *vae.encoder.parameters()):
            parameter.zero_().requires_grad_(False)
    vae.train(False)  # frozen parameters are meant
    svi = SVI(vae.model, vae.guide, Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(150):
        svi.step(x)
    assert float(vae.sigma.detach()) == pytest.approx(float(x.square().mean().sqrt()), rel=1e-3)


def test_the_choice_of_points_is_the_callers() -> None:
    """No random index is drawn in a mini-batch: only z's noise advances the generator, as many numbers as z has."""
    vae, x = linear("diagonal"), data(4)
    torch.manual_seed(8)
    vae.guide(x, 1000)
    after = torch.rand(3)
    torch.manual_seed(8)
    torch.randn(4, 2)
    torch.testing.assert_close(after, torch.rand(3), rtol=0, atol=0)


# ---- the target


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_log_likelihood_by_a_matrix_product_is_the_models(likelihood: str) -> None:
    vae = VAE(NUM_PIXELS, AMORTIZED["full"](2), hidden=(8, 4), likelihood=likelihood, sigma=0.05)
    x = data().sigmoid()
    ours = target(vae, x)
    z = 2 * torch.randn(9, 2)
    log_prior = -z.square().sum(-1) / 2 - math.log(2 * math.pi)
    expected = ours.log_joint({"z": z.expand(len(x), -1, -1)}) - log_prior
    # squares of about 1e3 nats cancel to 1e-13 of their size
    torch.testing.assert_close(ours.decoded.log_likelihood(z, x), expected, rtol=1e-11, atol=1e-11)
    ceiling = ours.decoded.ceiling(x)
    assert ceiling.shape == (len(x),)
    assert bool((ours.decoded.log_likelihood(50 * torch.randn(5000, 2), x) <= ceiling[:, None]).all())


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_a_decoder_that_meets_its_data_touches_the_ceiling(likelihood: str) -> None:
    vae, x = VAE(NUM_PIXELS, AMORTIZED["full"](2), hidden=(), likelihood=likelihood, sigma=0.2), data()[:1].sigmoid()
    with torch.no_grad():
        vae.decoder[0].weight.zero_()
        vae.decoder[0].bias.copy_(x[0].logit() if likelihood == "bernoulli" else x[0])
    ours = target(vae, x)
    reached = ours.decoded.log_likelihood(torch.zeros(1, 2), x)
    torch.testing.assert_close(reached[:, 0], ours.decoded.ceiling(x), rtol=1e-12, atol=1e-12)


def test_the_ceiling_of_black_and_white_is_certainty() -> None:
    vae = VAE(NUM_PIXELS, AMORTIZED["full"](2))
    x = (data() > 0.5).double()
    assert vae.ceiling(x).tolist() == [0.0] * len(x)


def test_the_target_of_a_linear_vae_is_probabilistic_pca() -> None:
    vae, x = linear("full"), data()
    (layer,) = vae.decoder
    theirs = ppca.target(layer.weight, layer.bias, SIGMA, x)
    z = torch.randn(len(x), 4, 2)
    torch.testing.assert_close(target(vae, x).log_joint({"z": z}), theirs.log_joint({"z": z}), rtol=1e-12, atol=0)


def test_the_target_is_frozen_and_in_double() -> None:
    with isolated(torch.float32, seed=0):
        vae, x = linear("full", sigma=None), data().float()
        ours = target(vae, x)
        z = torch.ones(len(x), 1, 2, dtype=torch.float64)
        before = ours.log_joint({"z": z})
        assert (before.dtype, ours.args[0].dtype, before.requires_grad) == (torch.float64, torch.float64, False)
        with torch.no_grad():
            for parameter in vae.parameters():
                parameter.add_(1.0)
        assert {parameter.dtype for parameter in vae.parameters()} == {torch.float32}
        assert all(parameter.requires_grad for parameter in vae.parameters())
        assert torch.equal(ours.log_joint({"z": z}), before)
        assert not torch.allclose(target(vae, x).log_joint({"z": z}), before)
    assert [(site.name, site.shape) for site in ours.latents] == [("z", (2,))]
    assert (ours.num_problems, ours.dim) == (NUM_DATA, 2)


# ---- bad arguments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"likelihood": "poisson"}, "unknown likelihood 'poisson'; there are bernoulli, gaussian"),
        ({"sigma": 0.0}, "sigma must be positive and finite, got 0.0"),
        ({"sigma": math.nan}, "sigma must be positive and finite, got nan"),
        ({"sigma": math.inf}, "sigma must be positive and finite, got inf"),
        ({"num_pixels": 0}, r"num_pixels and every width in hidden must be at least 1, got 0, \[64, 64\]"),
        ({"hidden": (3, 0)}, r"must be at least 1, got 5, \[3, 0\]"),
    ],
)
def test_bad_settings_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VAE(**({"num_pixels": NUM_PIXELS, "head": AMORTIZED["full"](2)} | changes))


@pytest.mark.parametrize(
    ("likelihood", "x", "message"),
    [
        (
            "bernoulli",
            torch.tensor([[0.0, 1.0, 0.5, 1.5, 0.0]]),
            r"x must be in \[0, 1\] for the bernoulli .*, got 1.5",
        ),
        ("bernoulli", torch.full((2, 5), math.nan), r"x must be in \[0, 1\].*got nan"),
        ("gaussian", torch.full((2, 5), math.inf), "x must be finite for the gaussian likelihood, got inf"),
        ("gaussian", torch.zeros(2, 4), r"x must be \(B, 5\), got \(2, 4\)"),
        ("gaussian", torch.zeros(5), r"x must be \(B, 5\), got \(5,\)"),
    ],
)
def test_bad_data_are_refused(likelihood: str, x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        target(VAE(NUM_PIXELS, AMORTIZED["full"](2), likelihood=likelihood), x)


def test_a_bad_mini_batch_is_refused() -> None:
    vae, x = linear("full"), data()
    with pytest.raises(ValueError, match="num_data must be at least the mini-batch's 6, got 5"):
        vae.model(x, 5)
    with pytest.raises(ValueError, match="num_data must be at least the mini-batch's 6, got 0"):
        vae.guide(x, 0)
    for alpha in (0.0, -1.0):
        with pytest.raises(ValueError, match="scale > 0"):
            vae.model(x, None, alpha)


def test_the_networks_are_smooth_and_mirror_each_other() -> None:
    vae = VAE(NUM_PIXELS, AMORTIZED["diagonal"](3), hidden=(8, 4))
    assert [layer.out_features for layer in vae.decoder if isinstance(layer, nn.Linear)] == [8, 4, NUM_PIXELS]
    assert [layer.out_features for layer in vae.encoder if isinstance(layer, nn.Linear)] == [4, 8, 6]
    assert [type(layer) for layer in perceptron([2, 3, 4])] == [nn.Linear, nn.Tanh, nn.Linear]
    assert pyro.get_param_store().keys() == {}.keys()  # building one registers nothing


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_simulated_data_are_drawn_from_the_model_with_their_latents(likelihood: str) -> None:
    vae = VAE(NUM_PIXELS, AMORTIZED["full"](2), hidden=(4,), likelihood=likelihood, sigma=SIGMA).requires_grad_(False)
    num = 40_000
    state = torch.get_rng_state()
    x, z = simulate(vae, num, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert (x.shape, z.shape) == ((num, NUM_PIXELS), (num, 2))
    assert all(torch.equal(*pair) for pair in zip(simulate(vae, num, seed=4), (x, z), strict=True))
    assert not torch.equal(simulate(vae, num, seed=5)[0], x)
    target(vae, x)  # inside the support
    mean, variance = vae.observation(z).mean, vae.observation(z).variance
    # z is standard normal and x about its own z as the likelihood says, whatever z is: 5 standard errors
    facts = [z, z.square() - 1, x - mean, (x - mean).square() - variance, (x - mean) * z[:, :1], (x - mean) * z[:, 1:]]
    draws = torch.cat(facts, -1)
    assert bool((draws.mean(0).abs() < 5 * draws.std(0) / num**0.5).all())
    assert float(mean.std(0).min()) > 0.02  # which another z would not meet
