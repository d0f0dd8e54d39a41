"""Distances between two samples by all pairs of their points, and by a classifier that has to tell them apart.

Points of one batch may be alike because they follow one another in a chain. So pairs within a sample are taken of
different batches alone, which makes the estimates unbiased. Standard errors come from leaving out batches of the draws
and, apart from these, of the truth's points. Where both distributions are the same the errors are too large, by a
factor of 1.6 in a trial: a distance of pairs then varies by pairs alone, which the jackknife counts twice (Efron and
Stein 1981).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

from ppl_vi.metrics.draws.against_truth import Batched
from ppl_vi.metrics.draws.batches import spread

NUM_FOLDS = 5
# The classifier sees all products of two numbers where there are no more numbers than this, else squares alone.
MAX_PRODUCTS = 20
NUM_LANDMARKS = 100  # points whose Gaussian kernels the classifier sees beside the products


class Found(NamedTuple):
    """A figure and its standard error."""

    value: float
    std_error: float


def energy_distance(draws: Batched, true: Batched) -> Found:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, in posterior standard deviations: 0 for equal distributions alone.

    It is unbiased, so that it may come out below 0.

    Source: Székely and Rizzo (2013), Energy statistics: a class of statistics based on distances.
    """
    across, own, others = _over_pairs(draws, true, cdist)
    return _jackknifed(lambda x, y: 2 * across.mean(x, y) - own.mean(x, x) - others.mean(y, y), draws, true)


def mmd_squared(draws: Batched, true: Batched) -> Found:
    """E k(X, X') + E k(Y, Y') - 2 E k(X, Y), with the kernel k(x, y) = exp(-|x - y|^2 / (2 h^2)).

    h is the median of the distances between points of the truth, in posterior standard deviations. The estimate is
    unbiased, so that it may come out below 0.

    Source: Gretton, Borgwardt, Rasch, Schölkopf and Smola (2012), A kernel two-sample test.
    """
    width = median_distance(true.z)

    def kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.asarray(np.exp(-np.square(cdist(one, other)) / (2 * width**2)))

    across, own, others = _over_pairs(draws, true, kernel)
    return _jackknifed(lambda x, y: own.mean(x, x) + others.mean(y, y) - 2 * across.mean(x, y), draws, true)


def median_distance(points: np.ndarray) -> float:
    """The median of the distances between each two of the points `(N, K)`."""
    distance = cdist(points, points)
    return float(np.median(distance[np.triu_indices(len(points), 1)]))


def c2st(draws: Batched, true: Batched, seed: int) -> Found:
    """The share of held-out points that a classifier tells right: 0.5 where draws are as the posterior's, else more.

    The classifier is a logistic regression on the numbers, their products and Gaussian kernels, trained on four fifths
    of the batches and tried on the others. Between normals it is the best one as the number of draws grows, whose
    share is 1/2 + TV/2. Another classifier could tell more, so the figure is a lower bound on that.

    Classifiers of different folds share training points, so that what they get right is correlated. The variance of the
    held-out points is therefore multiplied by 1 + F / (F - 1), for F folds. In trials with 128 and 256 points of each
    the error without this factor was 0.8 to 0.9 of the spread of the figure where both distributions are the same, and
    0.9 to 1.2 where they differ; with it, it is 1.2 to 1.75 times the spread, which is on the safe side.

    Source: Lopez-Paz and Oquab (2017), Revisiting classifier two-sample tests; Nadeau and Bengio (2003), Inference for
    the generalization error.
    """
    x, y = _same_size(draws, true)
    z, is_true = np.concatenate([x.z, y.z]), np.repeat([False, True], [len(x.z), len(y.z)])
    label = np.concatenate([x.label, x.label.max() + 1 + y.label])
    fold = np.concatenate([_folds(x.label), _folds(y.label)])
    right = np.empty(len(z), bool)
    for held in range(NUM_FOLDS):
        out = fold == held
        if out.any() and not out.all() and len(np.unique(is_true[~out])) == 2:
            classifier = _classifier(int((~out).sum()), z.shape[1], seed).fit(z[~out], is_true[~out])
            right[out] = classifier.predict(z[out]) == is_true[out]
    shares = [_share(right[is_true == side], label[is_true == side]) for side in (False, True)]
    held_out = float(np.hypot(shares[0].std_error, shares[1].std_error)) / 2
    return Found(sum(share.value for share in shares) / 2, held_out * math.sqrt(1 + NUM_FOLDS / (NUM_FOLDS - 1)))


def _share(right: np.ndarray, label: np.ndarray) -> Found:
    """The share of what is right, with its standard error by batches."""
    left_out = np.array([right[label != one].mean() for one in np.unique(label)])
    return Found(float(right.mean()), float(spread(left_out)))


def _folds(label: np.ndarray) -> np.ndarray:
    """The fold of each point: whole batches, or where there are too few of them stretches of them."""
    order = np.unique(label, return_inverse=True)[1]
    if order.max() + 1 >= NUM_FOLDS:
        return np.asarray(order % NUM_FOLDS)
    return np.arange(len(label)) * NUM_FOLDS // len(label)


def _same_size(one: Batched, other: Batched) -> tuple[Batched, Batched]:
    """As many points of both, evenly spaced in the larger sample."""
    num = min(len(one.z), len(other.z))

    def some(sample: Batched) -> Batched:
        index = np.linspace(0, len(sample.z) - 1, num).round().astype(int)
        return Batched(sample.z[index], sample.label[index])

    return some(one), some(other)


def _squares(z: np.ndarray) -> np.ndarray:
    return np.hstack([z, z**2])


def _classifier(num_points: int, num_numbers: int, seed: int) -> Any:
    """Logistic regression on products of numbers and on kernels, for so many training points."""
    # imported here since it takes a second
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.preprocessing import FunctionTransformer, PolynomialFeatures, StandardScaler

    products = (
        PolynomialFeatures(2, include_bias=False) if num_numbers <= MAX_PRODUCTS else FunctionTransformer(_squares)
    )
    landmarks = min(NUM_LANDMARKS, num_points)
    kernels = Nystroem(gamma=1 / (2 * max(1, num_numbers)), n_components=landmarks, random_state=seed)
    features = make_union(make_pipeline(products, StandardScaler()), kernels)
    return make_pipeline(features, LogisticRegression(C=10.0, max_iter=1000))


@dataclass(frozen=True, eq=False)
class PairSums:
    """Sums over pairs by the batches of both points, `(G, H)`, and the numbers of pairs."""

    total: np.ndarray
    number: np.ndarray

    def mean(self, rows: np.ndarray, columns: np.ndarray) -> float:
        """The mean over pairs of the chosen batches."""
        block = np.ix_(rows, columns)
        return float(self.total[block].sum() / self.number[block].sum())


def _over_pairs(
    draws: Batched, true: Batched, function: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> tuple[PairSums, PairSums, PairSums]:
    """Sums of a function over pairs: across both samples, and of different batches within each."""
    return tuple(  # type: ignore[return-value]
        _sums(one, other, function, one is other) for one, other in ((draws, true), (draws, draws), (true, true))
    )


def _sums(
    one: Batched, other: Batched, function: Callable[[np.ndarray, np.ndarray], np.ndarray], within: bool
) -> PairSums:
    rows, columns = _members(one.label), _members(other.label)
    total, count = rows @ function(one.z, other.z) @ columns.T, np.outer(rows.sum(1), columns.sum(1))
    if within:
        np.fill_diagonal(total, 0.0)
        np.fill_diagonal(count, 0.0)
    return PairSums(total, count)


def _members(label: np.ndarray) -> np.ndarray:
    """Which points are of which batch, `(G, N)`, as 0 and 1."""
    return np.asarray(label == np.unique(label)[:, None], dtype=np.float64)


def _jackknifed(function: Callable[[np.ndarray, np.ndarray], float], draws: Batched, true: Batched) -> Found:
    """A figure of the batches of two samples, with the standard error by leaving out each batch of either."""
    x, y = (np.arange(len(np.unique(sample.label))) for sample in (draws, true))
    own = spread(np.array([function(np.delete(x, g), y) for g in x]))
    others = spread(np.array([function(x, np.delete(y, g)) for g in y]))
    return Found(function(x, y), float(np.hypot(own, others)))
