"""The marginal scores of draws: moments, quantiles, intervals and Wasserstein-1 of each number, with their errors."""

from __future__ import annotations

import numpy as np

from ppl_vi.metrics.draws.against_truth import DrawsOnTruth, TrueMarginals, part
from ppl_vi.metrics.draws.batches import jackknife, spread
from ppl_vi.metrics.estimate import Estimate
from ppl_vi.metrics.sampled.marginals import MARGINAL_SCORES, UNITS, Marginals, marginal_scores, wasserstein
from ppl_vi.metrics.sampled.weighted_samples import NumberSample, Sample

COARSE = 2048  # points of a true marginal in the jackknife, where the difference of two figures counts alone


def marginals_of(draws: DrawsOnTruth) -> Marginals | None:
    """`MARGINAL_SCORES` of each number that varies; None where the truth does not tell its distribution.

    The standard error is that of the draws, by the jackknife over batches, and of a truth of draws, by that over its
    groups. The error is that of the truth's quadrature. That of Wasserstein-1 also has the distance that a sample has
    from its own distribution: half of that of two halves of it.
    """
    if not draws.has_marginals:
        return None
    value = _scores(draws.sample, draws.true)
    coarse = draws.true.thinned(COARSE)
    std_error = jackknife(lambda kept: _scores(part(draws.sample, kept), coarse), draws.labels)
    error = np.zeros_like(value)
    others = np.array([_scores(draws.sample, other) for other in draws.other_truths])
    if len(others) and draws.truth.points[0].kind == "draws":
        std_error = np.hypot(std_error, spread(others))
    elif len(others):
        share = 1.0 if len(draws.truth.points) > 1 else 0.5
        error = share * np.abs(others[0] - others[1]) + np.abs(others[2] - value)
    place, units, one = MARGINAL_SCORES.index("wasserstein"), dict(UNITS), np.ones((1, 1))
    error[:, place] += _own_distance(draws)
    if draws.truth.line is not None:  # as where a guide is fitted to a single number
        units["wasserstein"] = "z"
        for values in (value, std_error, error):
            values[:, place] *= draws.true.sds
    scores = {
        name: tuple(
            Estimate(v * one, s * one, e * one, units[name])
            for v, s, e in zip(value[:, i], std_error[:, i], error[:, i], strict=True)
        )
        for i, name in enumerate(MARGINAL_SCORES)
    }
    return Marginals(draws.names, scores)


def _scores(sample: Sample, true: TrueMarginals) -> np.ndarray:
    return marginal_scores(sample, true.means, true.sds, true.numbers)


def _own_distance(draws: DrawsOnTruth) -> np.ndarray:
    """How far the draws are expected to be from the distribution that they are of, in posterior sds, `(K,)`.

    The cdfs of two halves differ by twice as much as the cdf of the whole from that of its distribution.
    """
    odd = draws.labels % 2 == 1
    halves = [part(draws.sample, kept) for kept in (odd, ~odd)]
    each = [wasserstein(*(NumberSample.of(half, k) for half in halves)) for k in range(draws.sample.z.shape[1])]
    found: np.ndarray = np.array(each) / 2 / draws.true.sds
    return found
