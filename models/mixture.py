"""How long the Old Faithful geyser erupts: a mixture of two Gaussians whose means are latent.

    mu_1, mu_2 ~ Normal(3, 2),  k_n ~ Bernoulli(1/2),  y_n | k_n ~ Normal(mu_(1 + k_n), 0.5)

Which component an eruption belongs to, k_n, is summed out. The density stays the same when the two means change places,
so the posterior has two modes, each the mirror image of the other.

Source: Azzalini and Bowman (1990), A look at some data on the Old Faithful geyser: the first 30 eruptions in R's
`faithful`.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.target.enumeration import SummedOut
from ppl_vi.target.target import Target

MINUTES = (  # the duration of each eruption
    3.600, 1.800, 3.333, 2.283, 4.533, 2.883, 4.700, 3.600, 1.950, 4.350, 1.833, 3.917, 4.200, 1.750, 4.700, 2.167,
    1.750, 4.800, 1.600, 4.250, 1.800, 1.750, 3.450, 3.067, 4.533, 3.600, 1.967, 4.083, 3.850, 4.433,
)  # fmt: skip

PRIOR_MEAN, PRIOR_SD, SD = 3.0, 2.0, 0.5


def model(y: Tensor) -> None:
    """Durations `(N,)`."""
    means = torch.stack([pyro.sample(name, dist.Normal(y.new_tensor(PRIOR_MEAN), PRIOR_SD)) for name in ("mu1", "mu2")])
    with pyro.plate("eruptions", len(y)):
        component = pyro.sample("component", dist.Bernoulli(y.new_tensor(0.5)))
        pyro.sample("y", dist.Normal(torch.where(component == 1, means[1], means[0]), SD), obs=y)


def target(num_points: int = len(MINUTES), dtype: torch.dtype = torch.float64) -> Target:
    """The first durations as one problem of two latents.

    Args:
        num_points: how many durations are taken, at most 30.
        dtype: of every computation.

    Raises:
        ValueError: num_points is below 1 or above 30.
    """
    if not 1 <= num_points <= len(MINUTES):
        raise ValueError(f"num_points must be between 1 and {len(MINUTES)}, got {num_points}")
    y = torch.tensor([MINUTES[:num_points]], dtype=dtype)
    return Target(SummedOut(model, max_plate_nesting=1), (y,), name="mixture", dtype=dtype)
