"""Metrics: plain functions of a fit and the truth that give an `Estimate`; the table `METRICS` lists them."""

from ppl_vi.metrics.estimate import Estimate
from ppl_vi.metrics.scorecard import Scorecard, score
from ppl_vi.metrics.table import METRICS, Metric

__all__ = ["METRICS", "Estimate", "Metric", "Scorecard", "score"]
