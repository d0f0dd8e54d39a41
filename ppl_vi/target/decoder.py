"""`Decoded`: states the likelihood of a model that decodes a standard normal latent, as a VAE does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.func import vmap

from ppl_vi.numerics.mixtures import LOG_2PI


@dataclass(frozen=True)
class Decoded:
    """The likelihood of a target whose only latent is z ~ Normal(0, I_D), decoded by the same function in all problems.

    Attributes:
        log_likelihood: `(z, *args)` with common points z `(S, D)` to log p(x | z) of every problem, `(B, S)`, nats; the
            decoder runs once for each point, however many problems there are.
        ceiling: `(*args)` to an upper bound of log p(x | z) over all z, `(B,)`, nats: the joint density
            beyond |z| = R has at most the mass `exp(ceiling) P(|z| > R)`.
    """

    log_likelihood: Callable[..., Tensor]
    ceiling: Callable[..., Tensor]

    def log_likelihood_at(self, z: Tensor, *args: Tensor) -> Tensor:
        """log p(x | z) at each problem's own points, `(B, S, D)` to `(B, S)`, nats."""

        def of_one(points: Tensor, *row: Tensor) -> Tensor:
            return self.log_likelihood(points, *(arg[None] for arg in row))[0]

        return vmap(of_one)(z, *args)


def log_prior(z: Tensor) -> Tensor:
    """log Normal(z; 0, I_D) of a decoded latent at `(..., D)`: `(...)`, nats."""
    return -(z.square().sum(-1) + z.shape[-1] * LOG_2PI) / 2
