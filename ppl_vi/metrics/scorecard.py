"""All metrics of a fit against the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ppl_vi.guides import MULTIMODAL
from ppl_vi.guides.own import has_network
from ppl_vi.metrics.estimate import Estimate
from ppl_vi.metrics.exact import divergence, moments
from ppl_vi.metrics.exact.best_member import best_member
from ppl_vi.metrics.exact.grid import QuadratureGrid, quadrature_grid
from ppl_vi.metrics.family_gap import BestMember, never, optimization_gap
from ppl_vi.metrics.sampled import importance
from ppl_vi.metrics.sampled.marginals import Marginals
from ppl_vi.metrics.sampled.scores import sampled_scores
from ppl_vi.svi.result import Fit
from ppl_vi.truth import Truth

# exact metrics of a guide's density over the posterior's; a new one is a function and a line here
METRICS: dict[str, Callable[[QuadratureGrid], Estimate]] = {
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
        scores: every metric by name, `(B, R)` each; one that is missing, or lost in its own error, is nan with its
            reason.
        best: the family's best member, None where its divergence is infinite for every member or it can't be found.
        marginals: of each latent number, where the truth has points and there are several numbers.
    """

    fit: Fit
    truth: Truth
    scores: dict[str, Estimate]
    best: BestMember | None
    marginals: Marginals | None = None


def score(fit: Fit, truth: Truth, *, num_draws: int = 10_000, upper_bound: bool | None = None) -> Scorecard:
    """Measures every replica of a fit against the truth.

    With one latent number, exact by quadrature: the metrics of `METRICS`, the ELBO gap, the family and the optimization
    gap. With more, by weighted points of the guide and of the truth (`sampled_scores`). In any case by Monte Carlo, as
    a user without the truth would see them: the ELBO, importance-sampled log p(x), k-hat and ESS.

    Args:
        fit: the fits.
        truth: of the same target.
        num_draws: for the Monte Carlo figures.
        upper_bound: whether the family has many local optima, so that its family gap is only an upper bound; None to
            go by `many_optima`.

    Raises:
        ValueError: fit and truth are of different targets.
    """
    if truth.target is not fit.target:
        raise ValueError("the fit and the truth must be of the same target")
    upper_bound = many_optima(fit) if upper_bound is None else upper_bound
    if truth.line is None:
        scores, best, marginals = sampled_scores(fit, truth, upper_bound=upper_bound)
    else:
        scores, best = _exact_scores(fit, truth, upper_bound)
        marginals = None
    scores, best, marginals = _legible(scores, best, marginals)
    scores |= importance.scores(fit, num_draws, _chi_square(scores))
    return Scorecard(fit, truth, scores, best, marginals)


def many_optima(fit: Fit) -> bool:
    """Whether the family is known to have many local optima: its best member is then only the best of those found."""
    name = fit.family_name.rpartition(":")[2]
    return name in MULTIMODAL or (fit.target.dim > 1 and has_network(fit.program.guide))


Found = tuple[dict[str, Estimate], BestMember | None, Marginals | None]


def _legible(scores: dict[str, Estimate], best: BestMember | None, marginals: Marginals | None) -> Found:
    """All that has a numerical error, without the values that are lost in it."""
    kept = {name: estimate.without_swamped() for name, estimate in scores.items()}
    best = best and replace(best, divergence=best.divergence.without_swamped())
    if marginals is not None:
        of_each = {name: tuple(e.without_swamped() for e in each) for name, each in marginals.scores.items()}
        marginals = replace(marginals, scores=of_each)
    return kept, best, marginals


def _exact_scores(fit: Fit, truth: Truth, upper_bound: bool) -> tuple[dict[str, Estimate], BestMember | None]:
    pair = quadrature_grid(fit, truth)
    scores = {name: metric(pair) for name, metric in METRICS.items()}
    scores["elbo_gap"] = _elbo_gap(truth, scores["elbo"])
    if fit.support_mismatch:
        scores["surrogate_elbo"] = divergence.surrogate_elbo(pair)
        scores["family_gap"] = never(len(pair.truth.log_evidence), fit.support_mismatch)
        return scores, None
    best = best_member(fit, truth, scores["reverse_kl"], upper_bound)
    scores["family_gap"] = best.divergence
    scores["optimization_gap"] = optimization_gap(scores["reverse_kl"], best)
    return scores, best


def _chi_square(scores: dict[str, Estimate]) -> np.ndarray | None:
    """The chi-square divergence as far as it is known: infinite where the forward KL is, which it exceeds, else nan."""
    if "chi_square" in scores:
        return scores["chi_square"].value
    forward = scores.get("forward_kl")
    return None if forward is None else np.where(np.isposinf(forward.value), np.inf, np.nan)


def _elbo_gap(truth: Truth, elbo: Estimate) -> Estimate:
    """log p(x) - ELBO, nats."""
    value = truth.log_evidence[:, None] - elbo.value
    error = elbo.error + truth.log_evidence_error[:, None]
    return Estimate(value, np.zeros_like(value), error, "nats", elbo.reason)
