"""Linear regression with known noise and a standard normal prior on the coefficients: conjugate in any dimension.

    w ~ Normal(0, I_F),  y_n ~ Normal(w x_n, sigma)

The posterior is a Gaussian of precision P = I + X'X / sigma^2 and mean P^-1 X'y / sigma^2, and
log p(y) = log Normal(y; 0, sigma^2 I + X X').

The data are the classic example of collinearity: employment in the United States, explained by six economic series that
are nearly linear functions of each other. All columns are standardised.

Source: Longley (1967), An appraisal of least squares programs for the electronic computer from the point of view of the
user.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from models.ppca import diagonal_gap
from ppl_vi.target.target import Target

EMPLOYED = (  # thousands of people, from 1947 to 1962
    60323, 61122, 60171, 61187, 63221, 63639, 64989, 63761, 66019, 67857, 68169, 66513, 68655, 69564, 69331, 70551,
)  # fmt: skip

SERIES = {  # the six explaining series, from 1947 to 1962
    "deflator": (
        83.0, 88.5, 88.2, 89.5, 96.2, 98.1, 99.0, 100.0, 101.2, 104.6, 108.4, 110.8, 112.6, 114.2, 115.7, 116.9,
    ),
    "product": (
        234289, 259426, 258054, 284599, 328975, 346999, 365385, 363112, 397469, 419180, 442769, 444546, 482704, 502601,
        518173, 554894,
    ),
    "unemployed": (2356, 2325, 3682, 3351, 2099, 1932, 1870, 3578, 2904, 2822, 2936, 4681, 3813, 3931, 4806, 4007),
    "forces": (1590, 1456, 1616, 1650, 3099, 3594, 3547, 3350, 3048, 2857, 2798, 2637, 2552, 2514, 2572, 2827),
    "population": (
        107608, 108632, 109773, 110929, 112075, 113270, 115094, 116219, 117388, 118734, 120445, 121950, 123366, 125368,
        127852, 130081,
    ),
    "year": tuple(range(1947, 1963)),
}  # fmt: skip

NOISE = 0.1  # sigma, in standard deviations of employment


def model(features: Tensor, y: Tensor) -> None:
    """Features `(N, F)` and observations `(N,)`."""
    zero = features.new_zeros(features.shape[-1])
    w = pyro.sample("w", dist.Normal(zero, zero + 1).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(features @ w, NOISE), obs=y)


def posterior(features: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(B, F)` and precision `(B, F, F)` for features `(B, N, F)` and observations `(B, N)`."""
    scaled = features / NOISE
    precision = torch.eye(features.shape[-1], dtype=y.dtype, device=y.device) + scaled.mT @ scaled
    return torch.linalg.solve(precision, (scaled.mT @ (y / NOISE)[..., None])[..., 0]), precision


def log_evidence(features: Tensor, y: Tensor) -> Tensor:
    """log p(y), `(B,)`, nats. Its quadratic form is |y - X m|^2 / sigma^2 + |m|^2 at the posterior's mean m."""
    loc, precision = posterior(features, y)
    residual = (y - (features @ loc[..., None])[..., 0]) / NOISE
    quadratic = residual.square().sum(-1) + loc.square().sum(-1)
    return -(y.shape[-1] * math.log(2 * math.pi * NOISE**2) + precision.logdet() + quadratic) / 2


def mean_field_kl(features: Tensor, y: Tensor) -> Tensor:
    """Reverse KL of the best Gaussian with independent coefficients, `(B,)`, nats."""
    return diagonal_gap(posterior(features, y)[1])


def longley() -> tuple[Tensor, Tensor]:
    """Features `(16, 6)` and employment `(16,)`, each of mean 0 and standard deviation 1."""
    features = torch.tensor(list(SERIES.values()), dtype=torch.float64).mT
    return _standardised(features), _standardised(torch.tensor(EMPLOYED, dtype=torch.float64))


def _standardised(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0, correction=0)


def simulated(num_points: int = 50, num_features: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Standard normal features `(N, F)` and observations `(N,)` at coefficients drawn from the prior, float64.

    Raises:
        ValueError: there would be no point or no feature.
    """
    if num_points < 1 or num_features < 1:
        raise ValueError(f"at least one point and one feature are needed, got {num_points} and {num_features}")
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(num_features, generator=generator, dtype=torch.float64)
    features = torch.randn(num_points, num_features, generator=generator, dtype=torch.float64)
    return features, features @ w + NOISE * torch.randn(num_points, generator=generator, dtype=torch.float64)


def target(data: tuple[Tensor, Tensor] | None = None, dtype: torch.dtype = torch.float64) -> Target:
    """One problem of as many latents as there are features.

    Args:
        data: features `(N, F)` and observations `(N,)`; Longley's by default.
        dtype: of every computation.

    Raises:
        ValueError: their shapes don't fit.
    """
    features, y = longley() if data is None else data
    if features.dim() != 2 or features.shape[:1] != y.shape:
        raise ValueError(f"features and y must be (N, F) and (N,), got {tuple(features.shape)} and {tuple(y.shape)}")
    return Target(model, (features[None], y[None]), closed_form=log_evidence, name="linear_regression", dtype=dtype)
