"""A mean's bootstrap interval covers, and what it is of is what was given."""

from __future__ import annotations

import numpy as np
import pytest

from ppl_vi.report.summary import summarize


def test_known_values() -> None:
    found = summarize(np.array([4.0, 1.0, 1.0, 10.0]))
    assert (found.mean, found.median, found.maximum, found.num) == (4.0, 2.5, 10.0, 4)
    assert 1.0 <= found.low < found.mean < found.high <= 10.0


def test_the_interval_is_that_of_the_normal_theory_for_many_points() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 4000)
    found = summarize(values)
    half = 1.96 * values.std(ddof=1) / 4000**0.5
    # quantiles of 4,000 resamples have a standard error of about 4% of the half-width
    assert abs(found.low - (values.mean() - half)) <= 0.15 * half
    assert abs(found.high - (values.mean() + half)) <= 0.15 * half


def test_nothing_can_not_be_summarized() -> None:
    with pytest.raises(ValueError, match="no data point was certified"):
        summarize(np.array([]))
