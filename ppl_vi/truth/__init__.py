"""Truths: the exact posterior, with an error and the checks that certify it."""

from __future__ import annotations

from ppl_vi.target import Target
from ppl_vi.truth.quadrature import quadrature_truth
from ppl_vi.truth.result import Check, Truth, UncertifiedTruthError


def ground_truth(target: Target) -> Truth:
    """The exact posterior of every problem of a target.

    Raises:
        UncertifiedTruthError: it can't be certified; the message says which check failed and for which problem.
        ValueError: no method here reaches the target.
    """
    return quadrature_truth(target)


__all__ = ["Check", "Truth", "UncertifiedTruthError", "ground_truth"]
