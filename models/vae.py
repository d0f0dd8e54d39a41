"""A variational autoencoder: z ~ Normal(0, I), x | z ~ Bernoulli(p(z)) or Normal(mu(z), sigma^2 I).

Sources: Kingma and Welling (2014), Auto-encoding variational Bayes; Rezende, Mohamed and Wierstra (2014), Stochastic
backpropagation; for the weight `alpha` on the KL to the prior Higgins et al. (2017), beta-VAE.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vi.guides.amortized import Head
from ppl_vi.target.decoder import Decoded
from ppl_vi.target.isolation import own_randomness
from ppl_vi.target.target import Target

LIKELIHOODS = ("bernoulli", "gaussian")
# A learned sigma is at least this. Without it, the density of data that the decoder reproduces exactly is unbounded.
MIN_SIGMA = 1e-3


def perceptron(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers with tanh between them: smooth, so that quadrature in z converges fast."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class VAE(PyroModule):
    """An ordinary Pyro model and guide that share a module, for `pyro.infer.SVI`.

    Args:
        num_pixels: how many numbers a data point has.
        head: the guide's family, one of `ppl_vi.guides.amortized.AMORTIZED`, made for a number of latents.
        hidden: widths of the decoder's hidden layers from z to x; the encoder has the same in the opposite order.
        likelihood: "bernoulli" or "gaussian".
        sigma: the standard deviation of the Gaussian likelihood; it is learned if this is None.

    Raises:
        ValueError: an unknown likelihood, sigma is not positive, or a layer without units.
    """

    def __init__(
        self,
        num_pixels: int,
        head: Head,
        *,
        hidden: Sequence[int] = (64, 64),
        likelihood: str = "bernoulli",
        sigma: float | None = 0.1,
    ) -> None:
        super().__init__()
        if likelihood not in LIKELIHOODS:
            raise ValueError(f"unknown likelihood '{likelihood}'; there are {', '.join(LIKELIHOODS)}")
        if sigma is not None and not 0 < sigma < math.inf:
            raise ValueError(f"sigma must be positive and finite, got {sigma}")
        if min([num_pixels, *hidden]) < 1:
            raise ValueError(
                f"num_pixels and every width in hidden must be at least 1, got {num_pixels}, {list(hidden)}"
            )
        self.num_pixels, self.num_latents, self.likelihood = num_pixels, head.num_latents, likelihood
        self.decoder = perceptron([head.num_latents, *hidden, num_pixels])
        self.encoder = perceptron([num_pixels, *reversed(hidden), head.num_outputs])
        self.head = head
        self.learns_sigma = likelihood == "gaussian" and sigma is None
        self._raw_sigma = nn.Parameter(torch.tensor(0.0)) if self.learns_sigma else None
        self._sigma = sigma

    @property
    def sigma(self) -> Tensor:
        """The Gaussian likelihood's standard deviation."""
        if self._raw_sigma is not None:
            return MIN_SIGMA + softplus(self._raw_sigma)
        return torch.as_tensor(self._sigma, dtype=next(self.parameters()).dtype)

    def observation(self, z: Tensor) -> dist.Independent:
        """p(x | z): latents `(..., D)` to a distribution of event shape `(num_pixels,)`."""
        output = self.decoder(z)
        if self.likelihood == "bernoulli":
            return dist.Bernoulli(logits=output, validate_args=False).to_event(1)
        return dist.Normal(output, self.sigma).to_event(1)

    def prior(self, like: Tensor) -> dist.Independent:
        """p(z) = Normal(0, I)."""
        zero = like.new_zeros(self.num_latents)
        return dist.Normal(zero, zero + 1).to_event(1)

    def model(self, x: Tensor, num_data: int | None = None, alpha: float = 1.0) -> None:
        """A mini-batch `(M, num_pixels)` out of `num_data` points; the KL to the prior counts `alpha` times.

        Raises:
            ValueError: the mini-batch is larger than `num_data`, or alpha is not positive.
        """
        with self._plate(x, num_data):
            with poutine.scale(scale=alpha):
                z = pyro.sample("z", self.prior(x))
            pyro.sample("x", self.observation(z), obs=x)

    def guide(self, x: Tensor, num_data: int | None = None, alpha: float = 1.0) -> None:
        """q(z | x) of a mini-batch."""
        with self._plate(x, num_data), poutine.scale(scale=alpha):
            pyro.sample("z", self.head(self.encoder(x)))

    def _plate(self, x: Tensor, num_data: int | None) -> pyro.plate:
        """The mini-batch's plate, which weighs each point num_data / M; every parameter is made known to Pyro."""
        num_data = len(x) if num_data is None else num_data
        if num_data < len(x):
            raise ValueError(f"num_data must be at least the mini-batch's {len(x)}, got {num_data}")
        # the whole module is registered, since a learned sigma and the head's own parameters belong to neither network
        pyro.module("vae", self)
        # the caller has chosen which points these are, so Pyro draws no subsample
        return pyro.plate("data", num_data, subsample=torch.arange(len(x), device=x.device))

    def one(self, x: Tensor) -> None:
        """The model of one data point `(num_pixels,)`."""
        z = pyro.sample("z", self.prior(x))
        pyro.sample("x", self.observation(z), obs=x)

    def log_likelihood(self, z: Tensor, x: Tensor) -> Tensor:
        """log p(x | z) of all pairs of points `(S, D)` and data `(B, num_pixels)`: `(B, S)`, by one matrix product."""
        output = self.decoder(z)
        if self.likelihood == "bernoulli":
            return x @ output.mT - softplus(output).sum(-1)
        squares = x.square().sum(-1)[:, None] - 2 * x @ output.mT + output.square().sum(-1)
        return -squares / (2 * self.sigma**2) - self.num_pixels * (self.sigma.log() + math.log(2 * math.pi) / 2)

    def ceiling(self, x: Tensor) -> Tensor:
        """An upper bound on log p(x | z) for all z, `(B,)`, nats: its value for a decoder that reproduces x exactly."""
        if self.likelihood == "bernoulli":
            return torch.where((x > 0) & (x < 1), torch.special.entr(x) * -1 - torch.special.entr(1 - x), 0.0).sum(-1)
        best = -self.num_pixels * (self.sigma.log() + math.log(2 * math.pi) / 2)
        return best.expand(len(x))


def target(vae: VAE, x: Tensor, name: str = "vae") -> Target:
    """One problem for each data point, with a frozen copy of the decoder in double precision.

    Args:
        vae: the VAE; training it further does not change the target.
        x: `(B, num_pixels)`, in [0, 1] for the Bernoulli likelihood.
        name: shown in tables.

    Raises:
        ValueError: x has another shape, is not finite, or lies outside of the likelihood's support.
    """
    if x.dim() != 2 or x.shape[-1] != vae.num_pixels:
        raise ValueError(f"x must be (B, {vae.num_pixels}), got {tuple(x.shape)}")
    wrong = ~x.isfinite() if vae.likelihood == "gaussian" else ~((x >= 0) & (x <= 1))
    if bool(wrong.any()):
        expected = "finite" if vae.likelihood == "gaussian" else "in [0, 1]"
        raise ValueError(f"x must be {expected} for the {vae.likelihood} likelihood, got {x[wrong][0].item()}")
    frozen = copy.deepcopy(vae).double().requires_grad_(False)
    return Target.batch(frozen.one, (x.double(),), name=name, decoded=Decoded(frozen.log_likelihood, frozen.ceiling))


def simulate(vae: VAE, num: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Data x drawn from the model together with their latents z, in double precision: z is an exact posterior draw.

    Args:
        vae: the VAE whose model is drawn from.
        num: how many data points, `B`.
        seed: of the draws.

    Returns:
        x `(B, num_pixels)` and z `(B, D)`.
    """
    frozen = copy.deepcopy(vae).double().requires_grad_(False)
    with own_randomness(seed):
        z = frozen.prior(next(frozen.parameters())).sample((num,))
        return frozen.observation(z).sample(), z


__all__ = ["LIKELIHOODS", "VAE", "perceptron", "simulate", "target"]
