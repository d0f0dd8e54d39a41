"""Metrics: plain functions of a fit and the truth, each of which gives an `Estimate`.

Open `table.py` first: its dict `METRICS` lists every metric and how it is computed. `scorecard.py` has `score`, which
computes them all. The folder `exact` has metrics of one latent number by quadrature, `sampled` those of several
numbers, and `decoder` those of a VAE's encoder.
"""

from ppl_vi.metrics.estimate import Estimate
from ppl_vi.metrics.scorecard import Scorecard, score
from ppl_vi.metrics.table import METRICS, Metric

__all__ = ["METRICS", "Estimate", "Metric", "Scorecard", "score"]
