"""The scores of draws from any system: each a small function of a `MeasuredDraws`.

What needs log q is nan without it, with the reason. `ppl_vi.metrics.table` lists all scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ppl_vi.metrics.draws.against_truth import NO_POINTS, DrawsOnTruth, part
from ppl_vi.metrics.draws.batches import jackknife, spread
from ppl_vi.metrics.draws.marginals import left_out_scores, marginals_of, noise_of
from ppl_vi.metrics.draws.two_samples import Found
from ppl_vi.metrics.estimate import LEAK, ROUNDING, Estimate
from ppl_vi.metrics.sampled import importance
from ppl_vi.metrics.sampled.importance import Weights
from ppl_vi.metrics.sampled.joint_scores import largest_eigenvalue
from ppl_vi.metrics.sampled.marginals import QUANTILE_ERRORS, Marginals
from ppl_vi.metrics.sampled.weighted_samples import split_sample, unconstrained_samples

NOT_A_FAMILY = "these are draws from elsewhere: which family they are of, and its best member, is not known"
NEEDS_DENSITY = "it takes the density of the draws' distribution where the posterior has mass, not at the draws"
NO_SPREAD = "the draws do not vary, so that the other system has returned a point"


@dataclass(frozen=True, eq=False)
class MeasuredDraws(DrawsOnTruth):
    """Draws beside the truth, with what several scores need computed once, when it is first asked for."""

    @cached_property
    def left_out(self) -> list[np.ndarray]:
        """The marginal scores without each batch, by which their noise is told."""
        return left_out_scores(self)

    @cached_property
    def marginals(self) -> Marginals | None:
        """The marginal scores of each number that varies; None where the truth does not tell its distribution."""
        return marginals_of(self, self.left_out) if self.has_marginals else None

    @cached_property
    def noise(self) -> dict[str, float]:
        """What noise alone makes of the scores of a worst number; {} where it is not known."""
        return noise_of(self, self.left_out) if self.has_marginals else {}


def of(value: float, std_error: float, unit: str, error: float = 0.0, reason: str = "") -> Estimate:
    """An estimate for one problem and one replica."""
    one = np.ones((1, 1))
    return Estimate(value * one, std_error * one, error * one, unit, reason)


def unknown(unit: str, reason: str) -> Estimate:
    """What can't be computed, with the reason."""
    return of(np.nan, np.nan, unit, 0.0, reason)


def not_of_a_family(draws: MeasuredDraws) -> Estimate:
    """A gap of the family, which draws alone do not have."""
    return unknown("nats", NOT_A_FAMILY)


def needs_density(unit: str) -> Callable[[MeasuredDraws], Estimate]:
    """A score that takes the density of the draws' distribution elsewhere than at the draws."""
    return lambda draws: unknown(unit, NEEDS_DENSITY)


def elbo(draws: MeasuredDraws) -> Estimate:
    """The mean of log p(x, z) - log q(z) over the draws, nats; -inf where one lies outside the model's support."""
    if draws.outside.any():
        return of(-np.inf, np.nan, "nats", 0.0, LEAK)
    weight = draws.log_weight
    if weight is None:
        return unknown("nats", draws.matched.reason)
    std_error = jackknife(lambda kept: np.asarray(weight[kept].mean()), draws.labels)
    return of(float(weight.mean()), float(std_error), "nats", ROUNDING * float(np.abs(weight).max()))


def reverse_kl(draws: MeasuredDraws) -> Estimate:
    """log p(x) minus the mean of log p(x, z) - log q(z) over the draws, nats; infinite where one lies outside."""
    bound, truth = elbo(draws), draws.truth
    return replace(
        bound,
        value=truth.log_evidence[:, None] - bound.value,
        std_error=np.hypot(bound.std_error, truth.log_evidence_std_error[:, None]),
        error=bound.error + truth.log_evidence_error[:, None],
    )


def leaked_mass(draws: MeasuredDraws) -> Estimate:
    """The share of the draws outside the model's support."""
    outside = draws.outside.astype(float)
    std_error = jackknife(lambda kept: np.asarray(outside[kept].mean()), draws.labels)
    return of(float(outside.mean()), float(std_error), "1")


def of_weights(function: Callable[[Weights], Estimate], unit: str) -> Callable[[MeasuredDraws], Estimate]:
    """A score of the importance weights, with its standard error by the jackknife over batches."""

    def score(draws: MeasuredDraws) -> Estimate:
        weights = draws.weights
        if weights is None:
            return unknown(unit, draws.matched.reason)
        found, label = function(weights), draws.labels[draws.order]
        if not np.isfinite(found.value).all():
            return found
        each = jackknife(lambda kept: function(Weights(weights.log[..., kept])).value, label)
        return replace(found, std_error=each)

    score.__doc__ = function.__doc__
    return score


def ess(draws: MeasuredDraws) -> Estimate:
    """(sum w)^2 / sum w^2 of the importance weights, in draws."""
    share = of_weights(lambda w: _per_draw(importance.effective_sample_size(w), w), "draws")(draws)
    num = len(draws.every)
    return replace(share, value=share.value * num, std_error=share.std_error * num)


def _per_draw(size: Estimate, weights: Weights) -> Estimate:
    return replace(size, value=size.value / weights.num_draws)


def khat_of_few(draws: MeasuredDraws) -> Estimate | None:
    """k-hat of 1,000 of the draws, since k-hat depends on their number; None where there are no more than these."""
    few = importance.NUM_KHAT_DRAWS
    if draws.weights is None or draws.weights.num_draws <= few:
        return None
    return importance.khat(Weights(draws.weights.log[..., :few]))


def iwae_bound(draws: MeasuredDraws) -> Estimate | None:
    """The bound on log p(x) from groups of 64 draws in random order, nats; None where there are too few groups."""
    weights = draws.weights
    if weights is None or weights.num_draws <= importance.NUM_KHAT_DRAWS:
        return None
    return importance.iwae_bound(weights, importance.NUM_IWAE_PARTICLES)


def importance_log_evidence(draws: MeasuredDraws) -> Estimate:
    """log of the mean importance weight, nats, an estimate of log p(x)."""
    return of_weights(importance.importance_log_evidence, "nats")(draws)


def worst(name: str, unit: str) -> Callable[[MeasuredDraws], Estimate]:
    """A marginal score of the number where it is worst; `DrawsScorecard.noise` says what noise alone gives."""

    def score(draws: MeasuredDraws) -> Estimate:
        return unknown(unit, NO_POINTS) if draws.marginals is None else draws.marginals.worst(name)

    return score


def wasserstein(draws: MeasuredDraws) -> Estimate:
    """The Wasserstein-1 distance of marginals where it is largest: in sds, of a single number in its own unit."""
    unit = "sd" if draws.truth.line is None else "z"
    return replace(worst("wasserstein", unit)(draws), unit=unit)


def quantile_error(draws: MeasuredDraws) -> Estimate:
    """The difference of the 5, 25, 50, 75 or 95% quantile, in posterior sds, of the number where it is largest.

    As the largest of five for each number it is never expected to be 0, however perfect the draws are:
    `DrawsScorecard.noise` says what noise alone gives.
    """
    if draws.marginals is None:
        return unknown("sd", NO_POINTS)
    each = [draws.marginals.worst(name) for name in QUANTILE_ERRORS]
    return max(each, key=lambda one: abs(float(one.value[0, 0])))


def relative_covariance_error(draws: MeasuredDraws) -> Estimate:
    """By how much the draws' variance is wrong along some direction, relative to the posterior's.

    It is the largest |eigenvalue| of `L^-1 C_q L^-T - I`, where `C_p = L L'`, for covariances in unconstrained space.
    Its error has the distance by which a sample's covariance is off: half of that of two halves of it.
    """
    if not draws.truth.points:
        return unknown("1", NO_POINTS)
    if draws.outside.any():
        return unknown("1", "draws outside the support have no place in unconstrained space")
    u, truth = draws.unconstrained(), draws.truth
    sets = unconstrained_samples(truth, 0)
    exact = sets[0].covariance()

    def against(kept: np.ndarray, posterior: np.ndarray = exact) -> np.ndarray:
        return np.asarray(largest_eigenvalue(np.cov(u[kept].T, ddof=0).reshape(posterior.shape), posterior))

    every, odd = np.ones(len(u), bool), draws.labels % 2 == 1
    two = [np.cov(u[half].T, ddof=0).reshape(exact.shape) for half in (odd, ~odd)]
    error = largest_eigenvalue((two[0] - two[1]) / 2 + exact, exact)
    std_error = jackknife(against, draws.labels)
    if truth.points[0].kind == "draws":
        others = [part(sets[0], draws.groups != g).covariance() for g in np.unique(draws.groups)]
        std_error = np.hypot(std_error, spread(np.array([against(every, other) for other in others])))
    else:
        several = len(sets) > 1
        answers = sets[:2] if several else split_sample(sets[0], truth.points[0].group)
        one, other = (float(against(every, answer.covariance())) for answer in answers)
        error += (1.0 if several else 0.5) * abs(one - other)
    return of(float(against(every)), float(std_error), "1", error)


def of_pairs(function: Callable[..., Found], unit: str, *, seeded: bool = False) -> Callable[[MeasuredDraws], Estimate]:
    """A distance between the draws and as many points of the truth."""

    def score(draws: MeasuredDraws) -> Estimate:
        if not draws.has_marginals:
            return unknown(unit, NO_POINTS)
        found = function(draws.paired, draws.true_paired, *((draws.seed,) if seeded else ()))
        return of(found.value, found.std_error, unit)

    score.__doc__ = function.__doc__
    return score
