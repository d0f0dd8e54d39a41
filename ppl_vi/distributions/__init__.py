"""Distributions that neither torch nor Pyro has."""

from ppl_vi.distributions.truncated_normal import TruncatedNormal

__all__ = ["TruncatedNormal"]
