"""z = loc + L f(v; context), v ~ Normal(0, I), f an autoregressive neural spline flow (zuko's).

Local parameters: those of `Full`, then the context. The flow's own networks are shared by all data points.

Source: Durkan et al. (2019), Neural spline flows.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform, constraints

from ppl_vi.guides.amortized.full import Full
from ppl_vi.guides.amortized.head import Head

_validate = Distribution._validate_args
from zuko.flows import NSF  # noqa: E402  (importing zuko turns validation off for everybody)

Distribution.set_default_validate_args(_validate)

NUM_CONTEXT = 8  # numbers by which the encoder tells the flow about a data point, beside loc and L
NUM_TRANSFORMS = 2  # one after another, in opposite orders of the latents, so that each latent may depend on each
NUM_BINS = 8  # pieces of each spline
WIDTHS = (32, 32)  # hidden units in each layer of the flow's networks
# The weights of the last layers start as this share of zuko's: at 0 the flow would be the identity and its networks
# would have no gradient, at 1 it would start far from the Gaussian.
START_SHARE = 0.1


class Bent(Transform):
    """z = loc + L f(v) for batches of loc `(..., D)`, L `(..., D, D)` and a bijection f of vectors.

    The last value is remembered, so that the density of one's own draw needs no inversion; zuko's transforms, once
    composed, forget it.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, bend: Transform, loc: Tensor, scale_tril: Tensor, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)
        self.bend, self.loc, self.scale_tril = bend, loc, scale_tril

    def with_cache(self, cache_size: int = 1) -> Bent:
        """The same map, remembering its last value or not."""
        return self if cache_size == self._cache_size else Bent(self.bend, self.loc, self.scale_tril, cache_size)

    def _call(self, x: Tensor) -> Tensor:
        return self.loc + (self.scale_tril @ self.bend(x)[..., None])[..., 0]

    def _inverse(self, y: Tensor) -> Tensor:
        centred = (y - self.loc)[..., None]
        return self.bend.inv(torch.linalg.solve_triangular(self.scale_tril, centred, upper=False)[..., 0])

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log |det L| + log |det df/dv|: `(...)`."""
        log_det = torch.diagonal(self.scale_tril, dim1=-2, dim2=-1).log().sum(-1)
        return log_det + self.bend.log_abs_det_jacobian(x, y)  # zuko's looks at x alone


class Flow(Head):
    """A Gaussian with any covariance, bent by a flow that the context steers.

    Drawing takes one pass; the density of a point that was not drawn here takes one a latent.
    """

    summary = f"neural spline flow ({NUM_TRANSFORMS} autoregressive transforms), then an affine map"

    def __init__(self, num_latents: int) -> None:
        gaussian = Full(num_latents)
        super().__init__(num_latents, gaussian.num_outputs + NUM_CONTEXT)
        self.gaussian = gaussian
        # tanh, so that the density has no kinks and quadrature over z converges
        self.flow = NSF(
            num_latents,
            NUM_CONTEXT,
            bins=NUM_BINS,
            transforms=NUM_TRANSFORMS,
            hidden_features=WIDTHS,
            activation=nn.Tanh,
        )
        with torch.no_grad():
            for transform in self.flow.transform.transforms:
                for parameter in transform.hyper[-1].parameters():
                    parameter.mul_(START_SHARE)

    def forward(self, local: Tensor) -> dist.TransformedDistribution:
        """Local parameters `(..., D + D (D + 1) / 2 + context)`."""
        gaussian, context = local.split([self.gaussian.num_outputs, NUM_CONTEXT], -1)
        loc, scale_tril = self.gaussian.split(gaussian)
        base = dist.Normal(torch.zeros_like(loc), torch.ones_like(loc)).to_event(1)
        return dist.TransformedDistribution(base, [Bent(self.flow.transform(context), loc, scale_tril)])

    def initial(self, loc: Tensor, precision: Tensor) -> Tensor:
        """The Gaussian's own, with a context of zeros; the flow bends it a little."""
        gaussian = self.gaussian.initial(loc, precision)
        return torch.cat([gaussian, gaussian.new_zeros((*gaussian.shape[:-1], NUM_CONTEXT))], -1)
