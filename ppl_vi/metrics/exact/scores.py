"""The scores of a guide of one latent number that need more than its density beside the posterior's: gaps.

As in `sampled/scores.py`, each is a small function, and one that returns None says that its score does not apply to the
fit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ppl_vi.metrics import family_gap as gap
from ppl_vi.metrics.estimate import Estimate
from ppl_vi.metrics.exact import divergence
from ppl_vi.metrics.exact.best_member import best_member
from ppl_vi.metrics.exact.grid import QuadratureGrid
from ppl_vi.metrics.family_gap import BestMember
from ppl_vi.metrics.objective_gap import maximises_elbo, objective_optima
from ppl_vi.metrics.search_starts import search_starts


@dataclass(frozen=True, eq=False)
class FitOnGrid(QuadratureGrid):
    """The replicas of a fit over the posterior, and the family's best member.

    Attributes:
        upper_bound: whether the family has many local optima, so that its family gap is only an upper bound; None where
            the searches tell.
    """

    upper_bound: bool | None = None

    @cached_property
    def reverse_kl(self) -> Estimate:
        """The reverse KL of the replicas, nats."""
        return divergence.reverse_kl(self)

    @cached_property
    def best(self) -> BestMember | None:
        """The family's best member; None where every member leaks mass, so that none is better than another."""
        if self.fit.support_mismatch:
            return None
        starts = search_starts(self.fit, self.truth)
        return best_member(self.fit, self.truth, self.reverse_kl, self.upper_bound, starts)

    @cached_property
    def at_objective(self) -> Estimate | None:
        """The reverse KL of the objective's own optimum near each replica, `(B, R)`; None where SVI maximises the ELBO.

        It is nan where that optimum can't be found.
        """
        if maximises_elbo(self.fit):
            return None
        found, unknown = objective_optima(self.fit), np.full(self.shape, np.nan)
        if found.reason:
            return Estimate(unknown, unknown, unknown, "nats", found.reason)
        all_of_them = divergence.reverse_kl(replace(self, theta=found.theta.flatten(1, 2)))
        shape = (*self.shape, -1)
        return _of_middle(
            replace(all_of_them, value=all_of_them.value.reshape(shape), error=all_of_them.error.reshape(shape))
        )


def _of_middle(found: Estimate) -> Estimate:
    """The divergence of the middle of two optima; how far theirs are from it is its standard error."""
    value, spread = found.value[..., 0], np.abs(found.value[..., 1:] - found.value[..., :1]).max(-1)
    return Estimate(value, spread, found.error[..., 0], "nats")


def elbo_gap(grid: QuadratureGrid) -> Estimate:
    """log p(x) - ELBO, nats: the reverse KL by another way."""
    elbo, truth = divergence.elbo(grid), grid.truth
    value = truth.log_evidence[:, None] - elbo.value
    error = elbo.error + truth.log_evidence_error[:, None]
    return Estimate(value, np.zeros_like(value), error, "nats", elbo.reason)


def surrogate_elbo(grid: QuadratureGrid) -> Estimate | None:
    """The ELBO that validation off reports, nats, of a guide that leaks mass; None for any other."""
    return divergence.surrogate_elbo(grid) if grid.fit.support_mismatch else None


def family_gap(fitted: FitOnGrid) -> Estimate:
    """The reverse KL of the family's best member, nats, `(B, 1)`; infinite where every member leaks mass."""
    if fitted.best is None:
        return gap.never(fitted.shape[0], fitted.fit.support_mismatch)
    return fitted.best.divergence


def start_gap(fitted: FitOnGrid) -> Estimate | None:
    """How far the best optimum near each replica lies above the best member, nats; None where every member leaks."""
    return None if fitted.best is None else gap.start_gap(fitted.reverse_kl, fitted.best)


def optimization_gap(fitted: FitOnGrid) -> Estimate | None:
    """How far each replica lies above the best optimum near it, in reverse KL, nats; None where every member leaks."""
    return None if fitted.best is None else gap.optimization_gap(fitted.reverse_kl, fitted.best, fitted.at_objective)


def objective_gap(fitted: FitOnGrid) -> Estimate | None:
    """How far the objective's own optimum lies above the ELBO's, nats; None where SVI maximises the ELBO."""
    if fitted.best is None or fitted.at_objective is None:
        return None
    return gap.objective_gap(fitted.at_objective, fitted.best)
