"""The table of metrics, `METRICS`: how each is computed, and what its column in the printed tables is called.

Everything that lists metrics goes through this table: `score` computes its metrics (`Scorecard.scores`), a record has a
key for each of them, and each that has a heading is a column. A new metric is one function and one line here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TypeVar

import numpy as np

from ppl_vi.metrics.draws import scores as of_samples
from ppl_vi.metrics.draws import two_samples
from ppl_vi.metrics.draws.scores import MeasuredDraws
from ppl_vi.metrics.estimate import Estimate
from ppl_vi.metrics.exact import divergence, moments
from ppl_vi.metrics.exact import scores as exact
from ppl_vi.metrics.exact.scores import FitOnGrid
from ppl_vi.metrics.sampled import importance
from ppl_vi.metrics.sampled import scores as sampled
from ppl_vi.metrics.sampled.importance import Weights
from ppl_vi.metrics.sampled.sampled_fit import SampledFit

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class WeightedDraws:
    """Independent draws of the fitted guides with their importance weights.

    Attributes:
        weights: the log importance weight of every draw.
        chi_square: the exact chi-square divergence of the posterior from the guide, `(B, R)`, nan where it is not
            known; None where nothing is known of it.
    """

    weights: Weights
    chi_square: np.ndarray | None


@dataclass(frozen=True)
class Metric:
    """How one metric is computed, and where it is shown.

    Which function is called depends on the target: `on_grid` where it has one latent number, `on_points` where it has
    several, and `on_draws` in either case. `on_samples` is called in their place where draws from another system are
    measured. A metric without the function in question is not computed, and neither is one whose function returns None
    for what is at hand; the records then hold null.

    Attributes:
        on_grid: computes it from the densities of guide and posterior on a quadrature grid, exact to the stated error.
            A function of a plain `QuadratureGrid` will do where the family's best member is not needed.
        on_points: computes it from weighted points of guide and posterior.
        on_draws: computes it from draws of the guide alone, as a user without the truth would.
        on_samples: computes it from draws of any system, which may be autocorrelated, with log q or without.
        heading: the two lines of its column's heading; () where the printed tables do not show it.
        per_replica: whether a record lists its value for each replica, beside the median over replicas.
        needs_truth: whether it rests on the posterior or on log p(x), so that it must not be trusted where these are
            uncertified. The others are of the guide and the log joint alone.
    """

    on_grid: Callable[[FitOnGrid], Estimate | None] | None = None
    on_points: Callable[[SampledFit], Estimate | None] | None = None
    on_draws: Callable[[WeightedDraws], Estimate | None] | None = None
    on_samples: Callable[[MeasuredDraws], Estimate | None] | None = None
    heading: tuple[str, ...] = ()
    per_replica: bool = False
    needs_truth: bool = True


def of_weights(function: Callable[[Weights], Estimate]) -> Callable[[WeightedDraws], Estimate]:
    """A metric of the weights alone, which is described as the function is."""

    @wraps(function)
    def metric(draws: WeightedDraws) -> Estimate:
        return function(draws.weights)

    return metric


@wraps(importance.importance_log_evidence)
def importance_log_evidence(draws: WeightedDraws) -> Estimate:  # its standard error by the exact chi-square divergence
    return importance.importance_log_evidence(draws.weights, draws.chi_square)


def khat_of_few(draws: WeightedDraws) -> Estimate | None:
    """k-hat of the first 1,000 draws, since k-hat depends on their number; None where there are no more than these."""
    few, num = importance.NUM_KHAT_DRAWS, draws.weights.num_draws
    return importance.khat(Weights(draws.weights.log[..., :few])) if num > few else None


def iwae_bound(draws: WeightedDraws) -> Estimate | None:
    """The bound on log p(x) from groups of 64 draws, nats; None where 1,000 draws or fewer make too few groups."""
    enough = draws.weights.num_draws > importance.NUM_KHAT_DRAWS
    return importance.iwae_bound(draws.weights, importance.NUM_IWAE_PARTICLES) if enough else None


METRICS: dict[str, Metric] = {
    "elbo": Metric(
        divergence.elbo, sampled.elbo, on_samples=of_samples.elbo,
        heading=("", "ELBO"), per_replica=True, needs_truth=False,
    ),
    "elbo_gap": Metric(exact.elbo_gap, sampled.reverse_kl, on_samples=of_samples.reverse_kl),
    "reverse_kl": Metric(
        divergence.reverse_kl, sampled.reverse_kl, on_samples=of_samples.reverse_kl,
        heading=("reverse KL", "median"), per_replica=True,
    ),
    "forward_kl": Metric(
        divergence.forward_kl, sampled.forward_kl, on_samples=of_samples.needs_density("nats"),
        heading=("forward", "KL"),
    ),
    "total_variation": Metric(
        divergence.total_variation, on_samples=of_samples.needs_density("1"), heading=("", "TV")
    ),
    "hellinger": Metric(divergence.hellinger, on_samples=of_samples.needs_density("1")),
    "wasserstein": Metric(
        divergence.wasserstein, sampled.wasserstein, on_samples=of_samples.wasserstein, heading=("", "W1")
    ),
    "mean_error": Metric(
        moments.mean_error, sampled.mean_error, on_samples=of_samples.worst("mean_error", "sd"),
        heading=("mean", "error"),
    ),
    "sd_ratio": Metric(
        moments.sd_ratio, sampled.sd_ratio, on_samples=of_samples.worst("sd_ratio", "1"), heading=("sd", "ratio")
    ),
    "coverage_90": Metric(
        moments.coverage_90, sampled.coverage_90, on_samples=of_samples.worst("coverage_90", "1"),
        heading=("coverage", "of 90%"),
    ),
    "leaked_mass": Metric(
        moments.leaked_mass, sampled.leaked_mass, on_samples=of_samples.leaked_mass,
        heading=("leaked", "mass"), needs_truth=False,
    ),
    "chi_square": Metric(divergence.chi_square, on_samples=of_samples.needs_density("1")),
    "family_gap": Metric(
        exact.family_gap, sampled.family_gap, on_samples=of_samples.not_of_a_family, heading=("family", "gap")
    ),
    "start_gap": Metric(
        exact.start_gap, sampled.start_gap, on_samples=of_samples.not_of_a_family,
        heading=("start", "gap"), per_replica=True,
    ),
    "optimization_gap": Metric(
        exact.optimization_gap, sampled.optimization_gap, on_samples=of_samples.not_of_a_family,
        heading=("optimiz.", "gap"), per_replica=True,
    ),
    "objective_gap": Metric(
        exact.objective_gap, sampled.objective_gap, heading=("objective", "gap"), per_replica=True
    ),
    "surrogate_elbo": Metric(exact.surrogate_elbo, sampled.surrogate_elbo, needs_truth=False),
    "khat": Metric(
        on_draws=of_weights(importance.khat), on_samples=of_samples.of_weights(importance.khat, "1"),
        heading=("", "k-hat"), needs_truth=False,
    ),
    "ess": Metric(
        on_draws=of_weights(importance.effective_sample_size), on_samples=of_samples.ess,
        heading=("", "ESS"), needs_truth=False,
    ),
    "elbo_estimate": Metric(
        on_draws=of_weights(importance.elbo_estimate), on_samples=of_samples.elbo, needs_truth=False
    ),
    "importance_log_evidence": Metric(
        on_draws=importance_log_evidence,
        on_samples=of_samples.importance_log_evidence,
        heading=("log p(x) by importance", "sampling ± std. error"),
        needs_truth=False,
    ),
    "importance_log_evidence_naive": Metric(
        on_draws=of_weights(importance.importance_log_evidence), on_samples=of_samples.importance_log_evidence,
        needs_truth=False,
    ),
    "relative_covariance_error": Metric(
        on_points=sampled.relative_covariance_error, on_samples=of_samples.relative_covariance_error,
        heading=("covariance", "error"),
    ),
    "khat_1000": Metric(on_draws=khat_of_few, on_samples=of_samples.khat_of_few, needs_truth=False),
    "iwae_bound": Metric(
        on_draws=iwae_bound, on_samples=of_samples.iwae_bound, heading=("", "IWAE-64"), needs_truth=False
    ),
    "quantile_error": Metric(on_samples=of_samples.quantile_error, heading=("quantile", "error")),
    "energy_distance": Metric(
        on_samples=of_samples.of_pairs(two_samples.energy_distance, "sd"), heading=("energy", "distance")
    ),
    "mmd_squared": Metric(on_samples=of_samples.of_pairs(two_samples.mmd_squared, "1"), heading=("", "MMD²")),
    "c2st": Metric(on_samples=of_samples.of_pairs(two_samples.c2st, "1", seeded=True), heading=("", "C2ST")),
}  # fmt: skip


def described(name: str) -> str:
    """A metric in one line: the first of the docstring of one of its functions."""
    metric = METRICS[name]
    found = metric.on_grid or metric.on_points or metric.on_draws or metric.on_samples
    return (found.__doc__ or "").strip().partition("\n")[0]


def on_grid(grid: FitOnGrid) -> dict[str, Estimate]:
    """Every metric of the table that is computed on a quadrature grid."""
    return _computed({name: metric.on_grid for name, metric in METRICS.items()}, grid)


def on_points(fit: SampledFit) -> dict[str, Estimate]:
    """Every metric of the table that is computed from weighted points."""
    return _computed({name: metric.on_points for name, metric in METRICS.items()}, fit)


def on_draws(draws: WeightedDraws) -> dict[str, Estimate]:
    """Every metric of the table that is computed from draws of the guide."""
    return _computed({name: metric.on_draws for name, metric in METRICS.items()}, draws)


def on_samples(draws: MeasuredDraws) -> dict[str, Estimate]:
    """Every metric of the table that is computed from draws of any system."""
    return _computed({name: metric.on_samples for name, metric in METRICS.items()}, draws)


def _computed(functions: dict[str, Callable[[T], Estimate | None] | None], prepared: T) -> dict[str, Estimate]:
    """The scores that apply; a value that is lost in its numerical error is nan, with the reason."""
    found = {name: function(prepared) for name, function in functions.items() if function}
    return {name: estimate.without_swamped() for name, estimate in found.items() if estimate is not None}
