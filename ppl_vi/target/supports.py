"""The supports of latent sites: what they are, where an interval ends, and whether two are the same."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.transforms import biject_to
from torch import Tensor
from torch.distributions import constraints


class MovingSupport(constraints.Constraint):
    """The support of a site whose interval has ends that depend on latents drawn before it.

    `Target.sites_at` gives the interval at given latents.

    Attributes:
        example: the interval in one run of the model.
    """

    def __init__(self, example: constraints.Constraint) -> None:
        self.example = example
        self.event_dim = example.event_dim


@dataclass(frozen=True)
class LatentSite:
    """A latent sample site of the model.

    Attributes:
        name: Pyro's name of the site.
        support: the constraint its values satisfy.
        shape: of one value, plates included.
    """

    name: str
    support: constraints.Constraint
    shape: torch.Size

    @property
    def unconstrained_shape(self) -> torch.Size:
        """The shape of one value in unconstrained space, after `biject_to(support).inv`."""
        return (
            self.shape if isinstance(self.support, MovingSupport) else biject_to(self.support).inverse_shape(self.shape)
        )


def ends(support: constraints.Constraint) -> tuple[Tensor, Tensor] | None:
    """The ends of a support that is an interval of the line, or an interval for each element; None for any other.

    The ends of the whole line are infinite, and so is the open end of a half-line.
    """
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if support is constraints.real:
        return torch.tensor(-math.inf), torch.tensor(math.inf)
    low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    if low is None and high is None:
        return None
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    return torch.as_tensor(low).detach(), torch.as_tensor(high).detach()


def same_support(one: Any, other: Any) -> bool:
    """Whether two constraints are of the same kind and hold the same numbers."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same_support, one, other))
    if isinstance(one, constraints.Constraint):
        return type(one) is type(other) and same_support(list(vars(one).values()), list(vars(other).values()))
    return bool(one == other)
