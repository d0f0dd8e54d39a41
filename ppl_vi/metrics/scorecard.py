"""All metrics of a fit against the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ppl_vi.metrics import divergence, importance, moments
from ppl_vi.metrics.estimate import Estimate
from ppl_vi.metrics.gaps import BestMember, best_member, optimization_gap
from ppl_vi.metrics.overlay import Overlay, overlay
from ppl_vi.svi.result import Fit
from ppl_vi.truth import Truth

# exact metrics of a guide's density over the posterior's; a new one is a function and a line here
METRICS: dict[str, Callable[[Overlay], Estimate]] = {
    "elbo": divergence.elbo,
    "reverse_kl": divergence.reverse_kl,
    "forward_kl": divergence.forward_kl,
    "total_variation": divergence.total_variation,
    "hellinger": divergence.hellinger,
    "wasserstein": divergence.wasserstein,
    "mean_error": moments.mean_error,
    "sd_ratio": moments.sd_ratio,
    "coverage_90": moments.coverage_90,
    "leaked_mass": moments.leaked_mass,
    "chi_square": divergence.chi_square,
}


@dataclass(frozen=True, eq=False)
class Scorecard:
    """What is known of one family's fits to every problem.

    Attributes:
        fit: the fits.
        truth: what they are measured by.
        scores: every metric by name, `(B, R)` each; a missing one is null with its reason.
        best: the family's best member, None where its divergence is infinite for every member.
    """

    fit: Fit
    truth: Truth
    scores: dict[str, Estimate]
    best: BestMember | None


def score(fit: Fit, truth: Truth, *, num_draws: int = 10_000, upper_bound: bool = False) -> Scorecard:
    """Measures every replica of a fit against the truth.

    Exact by quadrature: the metrics of `METRICS`, the ELBO gap, the family and the optimization gap. By Monte Carlo,
    as a user without the truth would see them: the ELBO, importance-sampled log p(x), k-hat and ESS.

    Args:
        fit: the fits.
        truth: of the same target.
        num_draws: for the Monte Carlo figures.
        upper_bound: whether the family has many local optima, so that its best member is only an upper bound.

    Raises:
        ValueError: fit and truth are of different targets.
    """
    if truth.target is not fit.target:
        raise ValueError("the fit and the truth must be of the same target")
    pair = overlay(fit, truth)
    scores = {name: metric(pair) for name, metric in METRICS.items()}
    scores["elbo_gap"] = _elbo_gap(truth, scores["elbo"])
    if fit.support_mismatch:
        scores["surrogate_elbo"] = divergence.surrogate_elbo(pair)
    best = None if fit.support_mismatch else best_member(fit, truth, scores["reverse_kl"], upper_bound)
    if best is not None:
        scores["family_gap"] = best.divergence
        scores["optimization_gap"] = optimization_gap(scores["reverse_kl"], best)
    else:
        infinite = np.full((pair.shape[0], 1), np.inf)
        nothing = np.zeros_like(infinite)
        scores["family_gap"] = Estimate(infinite, nothing, nothing, "nats", fit.support_mismatch)
    weights = importance.weights(fit, num_draws, fit.seed + 1)
    scores["elbo_estimate"] = importance.elbo_estimate(weights)
    scores["importance_log_evidence"] = importance.importance_log_evidence(weights, scores["chi_square"].value)
    naive = importance.importance_log_evidence(weights)
    scores["importance_log_evidence_naive"] = naive
    scores["khat"] = importance.khat(weights)
    scores["ess"] = importance.effective_sample_size(weights)
    return Scorecard(fit, truth, scores, best)


def _elbo_gap(truth: Truth, elbo: Estimate) -> Estimate:
    """log p(x) - ELBO, nats."""
    value = truth.log_evidence[:, None] - elbo.value
    error = elbo.error + truth.log_evidence_error[:, None]
    return Estimate(value, np.zeros_like(value), error, "nats", elbo.reason)
