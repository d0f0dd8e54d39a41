"""softplus^-1(z) = loc + scale s(v), v ~ Normal(0, 1), s a monotonic rational-quadratic spline (zuko's).

The last map is softplus and not exp: exp would make the upper tail so heavy that the ELBO has a large contribution from
very rare draws, which SVI's estimate of the ELBO almost never contains.

Source: Durkan et al. (2019), Neural spline flows."""

import torch
from pyro.distributions import Normal, TorchDistribution, TransformedDistribution
from pyro.distributions.transforms import AffineTransform, SoftplusTransform
from torch import Tensor
from torch.distributions import Distribution, constraints

from ppl_vi.guides.mean_field import Form
from ppl_vi.guides.softplus_normal import softplus_normal

_validate = Distribution._validate_args
from zuko.transforms import MonotonicRQSTransform  # noqa: E402  (importing zuko turns validation off for everybody)

Distribution.set_default_validate_args(_validate)

NUM_BINS = 5  # pieces of the spline; more of them bring the best member nearer, and add parameters


def _distribution(
    loc: Tensor, scale: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor
) -> TorchDistribution:
    spline = MonotonicRQSTransform(widths, heights, derivatives)
    base = Normal(torch.zeros_like(loc), torch.ones_like(loc))
    return TransformedDistribution(base, [spline, AffineTransform(loc, scale), SoftplusTransform()])


def _initial(loc: Tensor, scale: Tensor) -> dict[str, Tensor]:
    zeros = torch.zeros_like(loc)[..., None]
    return {
        **softplus_normal.initial(loc, scale),
        "widths": zeros.expand(*loc.shape, NUM_BINS).clone(),
        "heights": zeros.expand(*loc.shape, NUM_BINS).clone(),
        "derivatives": zeros.expand(*loc.shape, NUM_BINS - 1).clone(),
    }


spline_flow = Form(
    summary=f"softplus^-1(z) is an affine map of a {NUM_BINS}-bin rational-quadratic spline of a standard normal",
    constraints={
        "loc": constraints.real,
        "scale": constraints.positive,
        "widths": constraints.real,
        "heights": constraints.real,
        "derivatives": constraints.real,
    },
    distribution=_distribution,
    initial=_initial,
)
