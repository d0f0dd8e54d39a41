"""The toy: z ~ Exponential(1), x | z ~ Normal(z, 1), one observation x.

The posterior is Normal(x - 1, 1) truncated to z >= 0, and

    log p(x) = 1/2 - x + log Phi(x - 1).

Completing the square in `-z - (x - z)^2 / 2` gives both.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.target.target import Target


def model(x: Tensor) -> Tensor:
    """One positive latent, one observation."""
    z = pyro.sample("z", dist.Exponential(1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    return z


def log_evidence(x: Tensor) -> Tensor:
    """log p(x) in nats, `(B,)`, for x of shape `(B,)`."""
    return 0.5 - x + torch.special.log_ndtr(x - 1.0)


def target(x: Sequence[float] | Tensor, dtype: torch.dtype = torch.float64) -> Target:
    """A batch of problems, one for each observation.

    Args:
        x: finite observations, `(B,)`.
        dtype: of every computation.

    Raises:
        ValueError: an observation is not finite.
    """
    observations = torch.as_tensor(x, dtype=torch.float64).reshape(-1)
    if not bool(observations.isfinite().all()):
        raise ValueError(f"x must be finite, got {observations[~observations.isfinite()][0].item()}")
    return Target.batch(model, (observations,), closed_form=log_evidence, name="exponential_normal", dtype=dtype)
