"""A guide's marginal distributions against the posterior's, number by number: moments, quantiles, intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppl_vi.metrics.estimate import Estimate
from ppl_vi.metrics.sampled.noise_rules import GuideNodes
from ppl_vi.metrics.sampled.weighted_samples import (
    NumberSample,
    PosteriorSample,
    Sample,
    guide_samples,
    halves,
    number_names,
    pooled,
    posterior_of,
    varying,
)
from ppl_vi.runtime.showing import short_repr
from ppl_vi.truth import Truth

# Probabilities at which quantiles are compared; the outermost two bound the central 90%, the next two the central 50%.
PROBABILITIES = (0.05, 0.25, 0.5, 0.75, 0.95)
QUANTILE_ERRORS = tuple(f"quantile_error_{100 * p:.0f}" for p in PROBABILITIES)
MOMENT_SCORES = ("mean_error", "sd_ratio")
MARGINAL_SCORES = (*MOMENT_SCORES, "wasserstein", "coverage_90", "coverage_50", *QUANTILE_ERRORS)
UNITS = dict.fromkeys(MARGINAL_SCORES, "sd") | {"sd_ratio": "1", "coverage_90": "1", "coverage_50": "1"}
# What each score is where the guide's marginal is the posterior's.
IDEAL = dict.fromkeys(MARGINAL_SCORES, 0.0) | {"sd_ratio": 1.0, "coverage_90": 0.9, "coverage_50": 0.5}


def wasserstein(one: NumberSample, other: NumberSample) -> float:
    """The Wasserstein-1 distance int |F - G| dz, by the trapezoidal rule over all points of both marginals."""
    z = np.sort(np.concatenate([one.z, other.z]))
    gap = np.abs(one.cdf(z) - other.cdf(z))
    return float(((gap[1:] + gap[:-1]) / 2) @ np.diff(z))


@dataclass(frozen=True, eq=False)
class Marginals:
    """The marginal scores of every latent number that varies.

    Attributes:
        names: of the numbers, `site` or `site[i,j]`.
        scores: for each of `MARGINAL_SCORES` the estimates of each number, `(B, R)` each.
    """

    names: tuple[str, ...]
    scores: dict[str, tuple[Estimate, ...]]

    __repr__ = short_repr

    def worst(self, name: str) -> Estimate:
        """A score of the number at which it is farthest from what a perfect guide has."""
        each = self.scores[name]
        value = np.stack([estimate.value for estimate in each])
        away = np.abs(np.log(value)) if name == "sd_ratio" else np.abs(value - IDEAL[name])
        number = np.where(np.isnan(away), np.inf, away).argmax(0)[None]

        def chosen(parts: list[np.ndarray]) -> np.ndarray:
            return np.take_along_axis(np.stack(parts), number, 0)[0]

        std_error = chosen([estimate.std_error for estimate in each])
        error = chosen([estimate.error for estimate in each])
        return Estimate(np.take_along_axis(value, number, 0)[0], std_error, error, UNITS[name])


def marginals(truth: Truth, nodes: GuideNodes) -> Marginals:
    """Marginal scores of every member.

    The standard error comes from the spread of the guide's rules. The error comes from the truth and has two parts: how
    far two independent answers of the truth differ, and how far interpolation between its points may be off.

    Args:
        truth: with points.
        nodes: where noise rules take the members.
    """
    batch, replicas = nodes.z.shape[:2]
    some = varying(truth)
    names = tuple(number_names(truth.target)[k] for k in some)
    shape = (batch, replicas, len(names), len(MARGINAL_SCORES))
    value, std_error, error = np.empty(shape), np.empty(shape), np.empty(shape)
    share = _error_shares(truth)
    for b in range(batch):
        whole = posterior_of(truth, b).numbers(some)
        answers = [answer.numbers(some) for answer in halves(truth, b)]
        for r in range(replicas):
            by_rule = [sample.numbers(some) for sample in guide_samples(nodes, b, r)]
            guide = pooled(by_rule)
            value[b, r] = _scores(guide, whole)
            one, two = (_scores(guide, answer) for answer in answers)
            error[b, r] = share * np.abs(one - two) + np.abs(value[b, r] - _scores(guide, whole, thinned=True))
            odd, even = (_scores(pooled(half), whole) for half in (by_rule[::2], by_rule[1::2]))
            std_error[b, r] = np.abs(odd - even) / 2
    scores = {
        name: tuple(
            Estimate(value[:, :, k, i], std_error[:, :, k, i], error[:, :, k, i], UNITS[name])
            for k in range(len(names))
        )
        for i, name in enumerate(MARGINAL_SCORES)
    }
    return Marginals(names, scores)


def _scores(guide: Sample, posterior: PosteriorSample, thinned: bool = False) -> np.ndarray:
    """`marginal_scores` of a guide against the truth's points.

    If `thinned`, probabilities and quantiles of the posterior come from every other of its points.
    """
    numbers = [NumberSample.of(posterior.even, k) for k in range(guide.z.shape[1])]
    numbers = [number.thinned() for number in numbers] if thinned else numbers
    return marginal_scores(guide, posterior.moments.mean(), posterior.moments.sd(), numbers)


def marginal_scores(
    guide: Sample,
    true_means: np.ndarray,
    true_sds: np.ndarray,
    true_numbers: Sequence[NumberSample],
    own_numbers: Sequence[NumberSample] | None = None,
) -> np.ndarray:
    """`MARGINAL_SCORES` of each of `K` numbers, `(K, 10)`; errors and distances in the posterior's standard deviations.

    Args:
        guide: points of the guide.
        true_means: of the posterior, `(K,)`.
        true_sds: likewise.
        true_numbers: the posterior's marginals.
        own_numbers: the guide's, where they are known already.
    """
    means, sds = guide.mean(), guide.sd()
    rows = []
    for k, true in enumerate(true_numbers):
        own = NumberSample.of(guide, k) if own_numbers is None else own_numbers[k]
        quantiles = own.quantile(np.array(PROBABILITIES))
        covered = dict(zip(PROBABILITIES, true.cdf(quantiles), strict=True))
        errors = (quantiles - true.quantile(np.array(PROBABILITIES))) / true_sds[k]
        scores = {
            "mean_error": (means[k] - true_means[k]) / true_sds[k],
            "sd_ratio": sds[k] / true_sds[k],
            "wasserstein": wasserstein(own, true) / true_sds[k],
            "coverage_90": covered[0.95] - covered[0.05],
            "coverage_50": covered[0.75] - covered[0.25],
            **dict(zip(QUANTILE_ERRORS, errors, strict=True)),
        }
        rows.append([scores[name] for name in MARGINAL_SCORES])
    return np.array(rows)


def _error_shares(truth: Truth) -> np.ndarray:
    """The share of the difference of two answers that stands for each score's error, `(10,)`.

    Two rules differ by the error of the worse one, whose share is 1. Two halves of the points differ by twice the
    standard error of the whole, whose share is 1/2.
    """
    return np.where([name in MOMENT_SCORES and len(truth.points) > 1 for name in MARGINAL_SCORES], 1.0, 0.5)
