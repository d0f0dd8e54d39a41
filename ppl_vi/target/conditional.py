"""`Conditional`: states that, given a few outer latents, all others can be integrated out and drawn exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ppl_vi.target.sites import Latents


@dataclass(frozen=True)
class Conditional:
    """The exact conditional distribution of all other latents of a target, given a few outer ones.

    Attributes:
        outer: names of the sites, in the order of `Target.latents`, given which the rest is known.
        log_marginal: `(outer latents, *row)` to log p(x, outer) of one problem at one point, a scalar, nats.
        sample: `(outer latents, noise, *row)` to the other latents, exact draws given the outer ones, from standard
            normal noise `(num_noise,)`.
        num_noise: how many numbers `sample` takes.
    """

    outer: tuple[str, ...]
    log_marginal: Callable[..., Tensor]
    sample: Callable[..., Latents]
    num_noise: int
