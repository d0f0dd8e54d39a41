"""TODO."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ppl_vi.metrics.estimate import Estimate


@dataclass(frozen=True)
class BestMember:
    """The member of a family nearest to each posterior in reverse KL.

    Attributes:
        theta: its parameters, `(B, D)`.
        divergence: its reverse KL, nats, `(B, 1)`: the family gap. Where it converged its error counts what its
            search still promised, unless it is an upper bound.
        upper_bound: whether a better member may exist, since the search is only local in a family of many modes.
        converged: whether Newton's method arrived, `(B,)`: from the best's own start, or from another of the same
            problem at a value no more than `SAME_OPTIMUM` above the best's.
    """

    theta: Tensor
    divergence: Estimate
    upper_bound: bool
    converged: np.ndarray


def optimization_gap(fitted: Estimate, best: BestMember) -> Estimate:
    """Reverse KL fitted minus the family's best, nats, `(B, R)`: what the optimiser left."""
    with np.errstate(invalid="ignore"):
        value = fitted.value - best.divergence.value
    return Estimate(value, np.zeros_like(value), fitted.error + best.divergence.error, "nats")


def never(num_problems: int, reason: str) -> Estimate:
    """The gap of a family whose every member has infinite divergence, `(B, 1)`."""
    nothing = np.zeros((num_problems, 1))
    return Estimate(nothing + np.inf, nothing, nothing, "nats", reason)
