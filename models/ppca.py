"""Probabilistic principal component analysis: z ~ Normal(0, I_D), x | z ~ Normal(W z + b, sigma^2 I_P).

The posterior is a Gaussian with the same precision for all data points,

    z | x ~ Normal(m, P^-1),   P = I + W'W / sigma^2,   m = P^-1 W' (x - b) / sigma^2,

so all that is measured on a variational autoencoder has a closed form here.

Source: Tipping and Bishop (1999), Probabilistic principal component analysis. `iris` takes its parameters from the mean
and the covariance of the 150 flowers of Fisher (1936), The use of multiple measurements in taxonomic problems.
"""

from __future__ import annotations

import math
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.target.decoder import Decoded
from ppl_vi.target.target import Target

IRIS_MEAN = (5.843333, 3.057333, 3.758, 1.199333)  # cm: length and width of sepals, then of petals
IRIS_COVARIANCE = (  # cm^2
    (0.685694, -0.042434, 1.274315, 0.516271),
    (-0.042434, 0.189979, -0.329656, -0.121639),
    (1.274315, -0.329656, 3.116278, 1.295609),
    (0.516271, -0.121639, 1.295609, 0.581006),
)
FLOWER = (5.1, 3.5, 1.4, 0.2)  # the first of the 150 flowers, cm


def model(weight: Tensor, bias: Tensor, sigma: Tensor, x: Tensor) -> None:
    """One data point `(P,)` with weight `(P, D)`, bias `(P,)` and the noise's standard deviation sigma."""
    zero = weight.new_zeros(weight.shape[-1])
    z = pyro.sample("z", dist.Normal(zero, zero + 1).to_event(1))
    pyro.sample("x", dist.Normal(weight @ z + bias, sigma).to_event(1), obs=x)


def posterior(weight: Tensor, bias: Tensor, sigma: Tensor | float, x: Tensor) -> tuple[Tensor, Tensor]:
    """The exact posterior of each data point.

    Args:
        weight: `(P, D)`.
        bias: `(P,)`.
        sigma: standard deviation of the noise, in the units of x.
        x: `(B, P)`.

    Returns:
        loc `(B, D)` and precision `(D, D)`, the same for all.
    """
    scaled = weight / sigma
    precision = torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device) + scaled.mT @ scaled
    loc = torch.linalg.solve(precision, (x - bias) / sigma @ scaled, left=False)
    return loc, precision


def log_evidence(weight: Tensor, bias: Tensor, sigma: Tensor | float, x: Tensor) -> Tensor:
    """log p(x) = log Normal(x; b, W W' + sigma^2 I) of each data point, `(B,)`, nats.

    The quadratic form is taken at the posterior's mean, |x - b - W m|^2 / sigma^2 + |m|^2, where nothing cancels:

        log p(x) = -(P log(2 pi sigma^2) + log det(precision) + quadratic form) / 2.
    """
    loc, precision = posterior(weight, bias, sigma, x)
    residual = (x - bias - loc @ weight.mT) / sigma
    quadratic = residual.square().sum(-1) + loc.square().sum(-1)
    return -(_log_normalizer(weight, sigma) + precision.logdet() + quadratic) / 2


def diagonal_gap(precision: Tensor) -> Tensor:
    """Reverse KL of the best Gaussian q with independent latents, in nats: (1/2) log(prod_i P_ii / det P).

    It is the smallest KL(q || Normal(m, P^-1)), which q has with the loc m and the variances 1 / P_ii.

    Args:
        precision: `(..., D, D)`.

    Returns:
        `(...)`.
    """
    return (torch.diagonal(precision, dim1=-2, dim2=-1).log().sum(-1) - precision.logdet()) / 2


def log_likelihood(weight: Tensor, bias: Tensor, sigma: Tensor, z: Tensor, x: Tensor) -> Tensor:
    """log p(x | z) of all pairs of points `(S, D)` and data `(B, P)`: `(B, S)`, nats."""
    decoded = z @ weight.mT + bias
    squares = x.square().sum(-1)[:, None] - 2 * x @ decoded.mT + decoded.square().sum(-1)
    return -(_log_normalizer(weight, sigma) + squares / sigma**2) / 2


def ceiling(weight: Tensor, bias: Tensor, sigma: Tensor, x: Tensor) -> Tensor:
    """The largest log p(x | z) over all z, `(B,)`, nats: the residual is what the columns of W can't represent of x."""
    centred = x - bias
    residual = centred - centred @ torch.linalg.pinv(weight).mT @ weight.mT
    return -(_log_normalizer(weight, sigma) + residual.square().sum(-1) / sigma**2) / 2


def target(weight: Tensor, bias: Tensor, sigma: float, x: Tensor, name: str = "ppca") -> Target:
    """One problem for each data point, in double precision.

    Args:
        weight: `(P, D)`.
        bias: `(P,)`.
        sigma: standard deviation of the noise, in the units of x.
        x: `(B, P)`.
        name: shown in tables.

    Raises:
        ValueError: shapes that do not fit, a number that is not finite, or sigma is not positive.
    """
    weight, bias, x = (torch.as_tensor(given, dtype=torch.float64).detach() for given in (weight, bias, x))
    shapes = tuple(weight.shape), tuple(bias.shape), tuple(x.shape)
    if weight.dim() != 2 or x.dim() != 2 or shapes[0][:1] != shapes[1] or shapes[0][0] != shapes[2][1]:
        raise ValueError(
            f"weight, bias and x must be (P, D), (P,) and (B, P), got {shapes[0]}, {shapes[1]}, {shapes[2]}"
        )
    for argument, given in (("weight", weight), ("bias", bias), ("x", x)):
        if not bool(given.isfinite().all()):
            raise ValueError(f"{argument} must be finite, got {given[~given.isfinite()][0].item()}")
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be positive and finite, got {sigma}")
    fixed = weight, bias, torch.as_tensor(sigma, dtype=torch.float64, device=weight.device)
    return Target.batch(
        partial(model, *fixed),
        (x,),
        closed_form=partial(log_evidence, *fixed),
        name=name,
        decoded=Decoded(partial(log_likelihood, *fixed), partial(ceiling, *fixed)),
    )


def maximum_likelihood(covariance: Tensor, num_latents: int) -> tuple[Tensor, float]:
    """Weight `(P, D)` and sigma of the best fit to data of a covariance `(P, P)`.

    W = U (L - sigma^2)^(1/2), with the D largest eigenvalues L and their eigenvectors U; sigma^2 is the mean of the
    other eigenvalues. The signs are chosen so that each column's largest element is positive.
    """
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    variance = eigenvalues[:-num_latents].mean()
    weight = (vectors * (eigenvalues - variance).clamp(min=0).sqrt())[:, -num_latents:].flip(-1)
    largest = weight.gather(0, weight.abs().argmax(0, keepdim=True))
    return weight * largest.sign(), float(variance.sqrt())


def iris() -> Target:
    """The first of Fisher's flowers as one problem of two latents."""
    weight, sigma = maximum_likelihood(torch.tensor(IRIS_COVARIANCE, dtype=torch.float64), 2)
    return target(
        weight, torch.tensor(IRIS_MEAN, dtype=torch.float64), sigma, torch.tensor([FLOWER], dtype=torch.float64)
    )


def simulate(weight: Tensor, bias: Tensor, sigma: float, num: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Data x drawn from the model together with their latents z, in double precision: z is an exact posterior draw.

    Args:
        weight: `(P, D)`.
        bias: `(P,)`.
        sigma: standard deviation of the noise, in the units of x.
        num: how many data points, `B`.
        seed: of the draws.

    Returns:
        x `(B, P)` and z `(B, D)`.
    """
    weight, bias = weight.detach().double(), bias.detach().double()
    generator = torch.Generator(weight.device).manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64, device=weight.device)
    z = draw(num, weight.shape[-1])
    return z @ weight.mT + bias + sigma * draw(num, len(weight)), z


def _log_normalizer(weight: Tensor, sigma: Tensor | float) -> Tensor:
    """P log(2 pi sigma^2), of the noise alone."""
    return len(weight) * (2 * torch.as_tensor(sigma, dtype=weight.dtype).log() + math.log(2 * math.pi))
