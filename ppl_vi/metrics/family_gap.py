"""The two causes of a reverse KL: the family's best member is not the posterior, and the fit is not the best member.

    KL(fitted q || p)  =  family gap, KL(best member || p)  +  optimization gap, the rest        (nats, each >= 0)

How the best member is found depends on the number of latents: `exact/best_member.py` for one, `sampled/best_member.py`
for several.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ppl_vi.metrics.estimate import Estimate


@dataclass(frozen=True)
class BestMember:
    """The member of a family nearest to each posterior in reverse KL.

    Attributes:
        theta: its unconstrained parameters, `(B, D)`.
        divergence: its reverse KL, nats, `(B, 1)`: the family gap. The error includes by how much Newton's method
            expects that one more step would lower it, where the search converged and it is no upper bound.
        upper_bound: whether a better member may exist, because the family has many local optima and every search is
            local.
        converged: whether Newton's method converged, `(B,)`: from the start that led to the best member, or from
            another start to a divergence that is as low up to `SAME_OPTIMUM` (`exact/best_member.py`).
    """

    theta: Tensor
    divergence: Estimate
    upper_bound: bool
    converged: np.ndarray


def optimization_gap(fitted: Estimate, best: BestMember) -> Estimate:
    """The reverse KL of the fit minus that of the family's best member, nats, `(B, R)`: what the optimiser left."""
    with np.errstate(invalid="ignore"):
        value = fitted.value - best.divergence.value
    return Estimate(value, np.zeros_like(value), fitted.error + best.divergence.error, "nats")


def never(num_problems: int, reason: str) -> Estimate:
    """The family gap where every member of the family has an infinite reverse KL, and why it has, `(B, 1)`."""
    nothing = np.zeros((num_problems, 1))
    return Estimate(nothing + np.inf, nothing, nothing, "nats", reason)
