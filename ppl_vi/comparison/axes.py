"""TODO."""

from __future__ import annotations

import numpy as np
import torch

from ppl_vi.metrics.sampled.weighted_samples import NumberSample, Sample
from ppl_vi.target.supports import LatentSite, ends

NUM_POINTS = 481  # of a curve over the latent
TAIL = 5e-4  # of the posterior's mass, beyond either end of the curves
LONGEST = 4.0  # times as far from the median as the 5% and 95% quantiles: no further, however heavy the tails
BEYOND = 0.2  # of that length, shown further out
SHOWN = (TAIL, 0.05, 0.5, 0.95, 1 - TAIL)
NUM_BINS = 50  # of the density of each of several numbers


def limits_of(site: LatentSite) -> np.ndarray:
    """Between which a site's numbers lie, as far as one can say of each, `(K, 2)`."""
    low, high = ends(site.support) or (torch.tensor(-torch.inf), torch.tensor(torch.inf))
    return torch.stack([end.expand(site.shape).flatten().double() for end in (low, high)], 1).cpu().numpy()


def tails_of(quantiles: np.ndarray) -> np.ndarray:
    """Where curves begin and end, `(K, 2)`, from the quantiles of `SHOWN`, `(K, 5)`."""
    lowest, low, median, high, highest = quantiles.T
    begin = np.maximum(lowest, median - LONGEST * (median - low))
    end = np.minimum(highest, median + LONGEST * (high - median))
    return np.stack([begin, end], 1)


def binned(sample: Sample, edges: np.ndarray) -> np.ndarray:
    """The mean density of each number over bins `(K, N + 1)`, `(K, N)`; nan of a number that is always the same."""
    lines = [NumberSample.of(sample, k) for k in range(len(edges))]
    with np.errstate(invalid="ignore"):
        return np.array([np.diff(line.cdf(edge)) / np.diff(edge) for line, edge in zip(lines, edges, strict=True)])
