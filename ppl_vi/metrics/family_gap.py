"""The causes of a reverse KL: the family's best member is not the posterior, and the fit is not the best member.

    KL(fitted q || p)  =  family gap         KL(best member || p)
                       +  start gap          KL(best optimum near the fit || p), less the family gap
                       +  optimization gap   the rest, what the optimiser left

in nats. The first two are at least 0, and so is the third where SVI maximises the ELBO. Another start would do away
with the start gap, and more steps with the optimization gap. Where SVI maximises another objective, the part that is
due to the objective's own optimum is taken out of the third, see `objective_gap.py`.

How the best member is found depends on the number of latents: `exact/best_member.py` for one, `sampled/best_member.py`
for several. Searches start from the fits and from the posterior itself, see `search_starts.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from ppl_vi.metrics.estimate import Estimate
from ppl_vi.runtime.showing import short_repr

# Why a family gap is an upper bound.
MANY_OPTIMA = "an upper bound: the best of several local searches"
DIFFERENT_OPTIMA = "an upper bound: the best of several optima in which searches ended"
NOT_ARRIVED = "an upper bound: the search for the best member has not arrived at an optimum"
# Why the start gap is not told from the optimization gap.
MANY_LOCAL_OPTIMA = (
    "the family has many local optima, of which the one near each fit is not searched for: the optimization gap holds "
    "the start gap as well"
)


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
        bounds: for each problem why its family gap is an upper bound, or "", `(B,)`.
        nearby: the reverse KL of the best optimum near each replica, nats, `(B, R)`; None where it is not searched for.
        arrived: whether the search for that optimum arrived, `(B, R)`; None likewise.
    """

    theta: Tensor
    divergence: Estimate
    upper_bound: bool
    converged: np.ndarray
    bounds: tuple[str, ...] = ()
    nearby: Estimate | None = None
    arrived: np.ndarray | None = None

    __repr__ = short_repr

    def leaves_at_least(self, problem: int) -> bool:
        """Whether an optimization gap of a problem is only a lower bound: a search may have stopped on its way."""
        if self.arrived is None or self.bounds[problem] == NOT_ARRIVED:
            return bool(self.bounds[problem])
        return not bool(self.arrived[problem].all())


def bounds_of(upper_bound: bool | None, different: np.ndarray, converged: np.ndarray) -> tuple[str, ...]:
    """For each problem why its family gap is an upper bound, or "".

    Args:
        upper_bound: whether the family is known to have many local optima; False where a caller vouches that the best
            member is found, and None where nothing is known.
        different: whether searches ended in different optima, `(B,)`.
        converged: whether the best of them arrived, `(B,)`.
    """
    if upper_bound is not None:
        return (MANY_OPTIMA if upper_bound else "",) * len(converged)
    return tuple(
        NOT_ARRIVED if not arrived else DIFFERENT_OPTIMA if several else ""
        for several, arrived in zip(different, converged, strict=True)
    )


def start_gap(fitted: Estimate, best: BestMember) -> Estimate:
    """The reverse KL of the best optimum near each replica, minus that of the family's best member, nats, `(B, R)`.

    It is nan where the optima near the replicas are not searched for.
    """
    if best.nearby is None:
        unknown = np.full_like(fitted.value, np.nan)
        return Estimate(unknown, unknown, unknown, "nats", MANY_LOCAL_OPTIMA)
    value = best.nearby.value - best.divergence.value
    error = np.where(value == 0, 0.0, best.nearby.error + best.divergence.error)
    return Estimate(value, np.zeros_like(value), error, "nats")


def objective_gap(optimum: Estimate, best: BestMember) -> Estimate:
    """The reverse KL of the objective's own optimum near each replica, minus that of the ELBO's, nats, `(B, R)`."""
    nearby = best.nearby or best.divergence
    value = optimum.value - nearby.value
    return Estimate(value, optimum.std_error, optimum.error + nearby.error, "nats", optimum.reason)


def optimization_gap(fitted: Estimate, best: BestMember, optimum: Estimate | None = None) -> Estimate:
    """The reverse KL of the fit minus that of the best optimum near it, nats, `(B, R)`: what the optimiser left.

    Where that optimum is not searched for, the family's best member takes its place. Where SVI maximises another
    objective than the ELBO, and its optimum is known, that is the one that counts.

    Args:
        fitted: the reverse KL of the replicas, `(B, R)`.
        best: the best member, and the optima near the replicas.
        optimum: the reverse KL of the objective's own optimum near each replica, nan where it is not known, `(B, R)`;
            None where that is the ELBO's.
    """
    nearby = best.nearby or best.divergence
    if optimum is not None:
        known = np.isfinite(optimum.value)
        parts = {
            name: np.where(known, getattr(optimum, name), getattr(nearby, name))
            for name in ("value", "error", "std_error")
        }
        nearby = replace(nearby, **parts)
    with np.errstate(invalid="ignore"):
        value = fitted.value - nearby.value
    return Estimate(value, np.zeros_like(value) + nearby.std_error, fitted.error + nearby.error, "nats")


def never(num_problems: int, reason: str) -> Estimate:
    """The family gap where every member of the family has an infinite reverse KL, and why it has, `(B, 1)`."""
    nothing = np.zeros((num_problems, 1))
    return Estimate(nothing + np.inf, nothing, nothing, "nats", reason)
