"""The marginal scores of draws: moments, quantiles, intervals and Wasserstein-1 of each number, with their errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ppl_vi.metrics.draws.against_truth import DrawsOnTruth, TrueMarginals, part
from ppl_vi.metrics.draws.batches import expected_worst, spread
from ppl_vi.metrics.estimate import Estimate
from ppl_vi.metrics.sampled.marginals import (
    MARGINAL_SCORES,
    QUANTILE_ERRORS,
    UNITS,
    Marginals,
    marginal_scores,
    wasserstein,
)
from ppl_vi.metrics.sampled.weighted_samples import Batches, NumberSample, Sample

COARSE = 2048  # points of a true marginal in the jackknife, where the difference of two figures counts alone


# The scores of a worst number, and the marginal scores among which it is sought.
WORST = {
    "mean_error": ("mean_error",),
    "sd_ratio": ("sd_ratio",),
    "coverage_90": ("coverage_90",),
    "quantile_error": QUANTILE_ERRORS,
}


def left_out_scores(draws: DrawsOnTruth) -> list[np.ndarray]:
    """The marginal scores without each batch of the draws, and without each group of a truth of draws, `(G, K, 10)`."""
    coarse = draws.true.thinned(COARSE)
    batches = Batches(draws.sample, draws.labels)
    each = (batches.without(label) for label in batches.names)
    own = np.array([_scores(sample, coarse, numbers) for sample, numbers in each])
    return [own, _by_other_truths(draws)] if _is_of_draws(draws) else [own]


def noise_of(draws: DrawsOnTruth, left_out: list[np.ndarray]) -> dict[str, float]:
    """How far each worst score is expected to be from its ideal where only noise makes the draws differ from the truth.

    For `sd_ratio` it is how far the ratio is from 1, in proportion. {} where a single batch leaves no error.
    """
    if any(len(values) < 2 for values in left_out):
        return {}
    place, found = {name: i for i, name in enumerate(MARGINAL_SCORES)}, {}
    for score, names in WORST.items():
        of = [values[:, :, [place[name] for name in names]] for values in left_out]
        of = [values / values.mean(0) if score == "sd_ratio" else values for values in of]
        found[score] = expected_worst([values.reshape(len(values), -1) for values in of], draws.seed)
    return found


def marginals_of(draws: DrawsOnTruth, left_out: list[np.ndarray]) -> Marginals:
    """`MARGINAL_SCORES` of each number that varies.

    The standard error is that of the draws, by the jackknife over batches, and of a truth of draws, by that over its
    groups. The error is that of the truth's quadrature. That of Wasserstein-1 also has the distance that a sample has
    from its own distribution: half of that of two halves of it.

    Args:
        draws: with a truth that tells its marginals.
        left_out: what `left_out_scores` returns.
    """
    value = _scores(draws.sample, draws.true)
    errors = [spread(values) if len(values) > 1 else np.full(values.shape[1:], np.inf) for values in left_out]
    std_error = np.sqrt(np.square(errors).sum(0))
    error = np.zeros_like(value)
    if draws.other_truths and not _is_of_draws(draws):
        others = _by_other_truths(draws)
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


def _is_of_draws(draws: DrawsOnTruth) -> bool:
    return bool(draws.other_truths) and draws.truth.points[0].kind == "draws"


def _by_other_truths(draws: DrawsOnTruth) -> np.ndarray:
    """The marginal scores by each other answer of the truth, `(G, K, 10)`."""
    numbers = [NumberSample.of(draws.sample, k) for k in range(draws.sample.z.shape[1])]
    return np.array([_scores(draws.sample, other, numbers) for other in draws.other_truths])


def _scores(sample: Sample, true: TrueMarginals, numbers: Sequence[NumberSample] | None = None) -> np.ndarray:
    return marginal_scores(sample, true.means, true.sds, true.numbers, numbers)


def _own_distance(draws: DrawsOnTruth) -> np.ndarray:
    """How far the draws are expected to be from the distribution that they are of, in posterior sds, `(K,)`.

    The cdfs of two halves differ by twice as much as the cdf of the whole from that of its distribution.
    """
    odd = draws.labels % 2 == 1
    halves = [part(draws.sample, kept) for kept in (odd, ~odd)]
    each = [wasserstein(*(NumberSample.of(half, k) for half in halves)) for k in range(draws.sample.z.shape[1])]
    found: np.ndarray = np.array(each) / 2 / draws.true.sds
    return found
