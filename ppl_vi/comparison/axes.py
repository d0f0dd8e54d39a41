"""Where the curves of a comparison begin and end, and the binned density of one latent number.

Each latent number's axis is taken from five quantiles of its posterior, so that the figures of every guide have the
same axes, however far away a guide lies.
"""

from __future__ import annotations

import numpy as np
import torch

from ppl_vi.metrics.sampled.weighted_samples import NumberSample, Sample
from ppl_vi.target.supports import LatentSite, ends

NUM_POINTS = 481  # points through which a curve is drawn, where there is one latent number
NUM_BINS = 50  # bins into which the axis of each latent number is divided, where there are several numbers
# The posterior's mass beyond either end of an axis, before the margin is added. With more the tails would be cut off.
TAIL_MASS = 5e-4
# The probabilities of the quantiles that an axis is made of.
PROBABILITIES = (TAIL_MASS, 0.05, 0.5, 0.95, 1 - TAIL_MASS)
# An axis reaches at most this many times as far from the median as the 5% and the 95% quantile do. The normal
# distribution's axis is not affected (2.0); heavy tails would squeeze the rest of the curve without this limit.
MAX_REACH = 4.0
# The margin on either side, as a fraction of the axis, for guides that lie beyond the posterior.
MARGIN = 0.2


def limits_of(site: LatentSite) -> np.ndarray:
    """The ends of the support of each number of a site, infinite where it has none, `(K, 2)`."""
    low, high = ends(site.support) or (torch.tensor(-torch.inf), torch.tensor(torch.inf))
    return torch.stack([end.expand(site.shape).flatten().double() for end in (low, high)], 1).cpu().numpy()


def axes_of(quantiles: np.ndarray) -> np.ndarray:
    """Where the axes of `K` numbers begin and end, `(K, 2)`, from their quantiles at `PROBABILITIES`, `(K, 5)`."""
    lowest, low, median, high, highest = quantiles.T
    begin = np.maximum(lowest, median - MAX_REACH * (median - low))
    end = np.minimum(highest, median + MAX_REACH * (high - median))
    return np.stack([begin, end], 1)


def binned(sample: Sample, edges: np.ndarray) -> np.ndarray:
    """The mean density of each number over each bin, `(K, N)`, for edges `(K, N + 1)`.

    It is nan for a number that is the same in every point, whose bins have no width.
    """
    numbers = [NumberSample.of(sample, k) for k in range(len(edges))]
    with np.errstate(invalid="ignore"):
        return np.array(
            [np.diff(number.cdf(edge)) / np.diff(edge) for number, edge in zip(numbers, edges, strict=True)]
        )
