"""Quantiles and effective sample sizes of weighted draws, against repeated draws."""

import numpy as np
import pytest
import torch

from ppl_vi.truth.importance.weighted import effective_sizes, weighted_quantiles


def test_quantiles_of_equal_and_unequal_weights():
    x = torch.tensor([3.0, 1.0, 2.0, 4.0], dtype=torch.float64)
    equal = torch.full((4,), 0.25, dtype=torch.float64)
    assert weighted_quantiles(x, equal, (0.05, 0.3, 0.95)) == [1.0, 2.0, 4.0]
    weight = torch.tensor([0.1, 0.7, 0.1, 0.1], dtype=torch.float64)
    assert weighted_quantiles(x, weight, (0.05, 0.69, 0.75, 0.95)) == [1.0, 1.0, 2.0, 4.0]


def test_equal_weights_are_worth_their_number():
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bulk, tail = effective_sizes(x, torch.full((500,), 1 / 500, dtype=torch.float64))
    assert bulk == pytest.approx(500)
    assert tail == pytest.approx(500)


def test_effective_sizes_are_those_of_repeated_weighted_means():
    """Draws of Normal(0, 1.5^2) for Normal(0, 1): the variances of a weighted mean and of a tail's probability."""
    rng = np.random.default_rng(5)
    num, repeats = 2000, 1000
    means, tails, sizes = [], [], []
    for _ in range(repeats):
        z = 1.5 * rng.normal(size=num)
        weight = np.exp(-(z**2) / 2 + z**2 / 4.5)
        weight /= weight.sum()
        means.append(weight @ z)
        tails.append(weight @ (z <= -1.6448536269514722))
        sizes.append(effective_sizes(torch.from_numpy(z)[:, None], torch.from_numpy(weight)))
    bulk, tail = np.mean(sizes, 0)
    # a variance of 1,000 numbers has a standard error of 4.5%
    assert 1 / np.var(means) == pytest.approx(bulk, rel=0.18)
    # the smaller one of both tails: by symmetry they are alike
    assert 0.05 * 0.95 / np.var(tails) == pytest.approx(tail, rel=0.2)
