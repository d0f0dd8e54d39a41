"""Distributions that neither torch nor Pyro has: `TruncatedNormal`.

Open `truncated_normal.py` first. `special.py` has its mass, moments and quantiles, and `bounded.py` the constraint
that is its support.
"""

from ppl_vi.distributions.truncated_normal import TruncatedNormal

__all__ = ["TruncatedNormal"]
