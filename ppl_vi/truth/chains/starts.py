"""Where chains start: points that are spread more widely than the posterior."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_vi.truth.chains.reparametrisation import Reparametrisation

START_HALF_WIDTH = 2.0  # half of the chains start uniformly within this of 0 in unconstrained space, as in Stan
MAX_TRIALS_PER_START = 20  # so many of these are tried for each chain, for the density may be 0 at many of them


def dispersed(coordinates: Reparametrisation, prior: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Starts `(C, D)`: half of them draws of the prior, half uniform within 2 of 0, where Stan starts.

    Args:
        coordinates: of the chains.
        prior: draws of the prior in unconstrained space, `(S, D)`.
        num: `C`.
        generator: of the uniform starts.

    Raises:
        ValueError: the density is 0 at nearly all of the points.
    """
    density, prior = coordinates.density, coordinates.from_unconstrained(prior)
    num_trials = MAX_TRIALS_PER_START * num
    uniform = START_HALF_WIDTH * (2 * torch.rand(num_trials, density.dim, generator=generator, dtype=prior.dtype) - 1)
    start = prior[density(prior).isfinite()][: num // 2]
    for some in uniform.split(num):
        if len(start) < num:
            start = torch.cat([start, some[density(some).isfinite()]])
    if len(start) < num:
        raise ValueError(
            f"the log joint of '{density.name}' is finite at only {len(start)} of {num + num_trials} starts, and {num} "
            "chains need one each: check the model's densities near 0 in unconstrained space"
        )
    return start[:num]
