"""Truths: the exact posterior, with an error and the checks that certify it; past their reach, annealed bounds."""

from __future__ import annotations

from ppl_vi.target import Target
from ppl_vi.truth.annealing import Annealing, Bound, Sandwich, annealed_bound, annealed_sandwich
from ppl_vi.truth.plane import RULES, decoded_truth
from ppl_vi.truth.quadrature import quadrature_truth
from ppl_vi.truth.result import Check, Expectation, Grade, Points, Truth, UncertifiedTruthError


def ground_truth(target: Target, *, seed: int = 0) -> Truth:
    """The exact posterior of every problem of a target.

    A decoded target of up to three latent numbers gets its log evidence by `decoded_truth`, which reports a problem
    that can't be certified in `Truth.reasons`; any other by `quadrature_truth`.

    Raises:
        UncertifiedTruthError: it can't be certified; the message says which check failed and for which problem.
        ValueError: no method here reaches the target.
    """
    if target.decoded is not None and target.dim in RULES:
        return decoded_truth(target)
    return quadrature_truth(target)


__all__ = [
    "Annealing",
    "Bound",
    "Check",
    "Expectation",
    "Grade",
    "Points",
    "Sandwich",
    "Truth",
    "UncertifiedTruthError",
    "annealed_bound",
    "annealed_sandwich",
    "decoded_truth",
    "ground_truth",
]
