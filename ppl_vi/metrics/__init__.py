"""Metrics: plain functions of a fit and the truth that give an `Estimate`."""

from ppl_vi.metrics.estimate import Estimate
from ppl_vi.metrics.scorecard import METRICS, Scorecard, score

__all__ = ["METRICS", "Estimate", "Scorecard", "score"]
