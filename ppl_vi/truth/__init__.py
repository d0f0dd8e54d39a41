"""Truths: the exact posterior, with an error and the checks that certify it; past their reach, annealed bounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ppl_vi.target.target import Target
from ppl_vi.truth.chains.reference import reference_truth
from ppl_vi.truth.decoder.annealing import AnnealedBound, Annealing, Sandwich, annealed_bound, annealed_sandwich
from ppl_vi.truth.decoder.evidence import CELL_RULES, decoded_truth
from ppl_vi.truth.quadrature.adaptive import AGREEMENT, black_box_truth
from ppl_vi.truth.quadrature.adaptive import RULES as BLACK_BOX
from ppl_vi.truth.quadrature.conditional import partial_truth, reaches
from ppl_vi.truth.quadrature.one_number import quadrature_truth
from ppl_vi.truth.result import Check, Expectation, Grade, Points, Truth, UncertifiedTruthError

MOST_SEARCHED = 2  # problems of one number that are searched for what both quadrature rules step over


def ground_truth(target: Target, *, seed: int = 0) -> Truth:
    """The posterior of every problem of a target, by the method that reaches farthest into certainty.

    - A decoded target of up to three latent numbers: `decoded_truth`.
    - One unconstrained number: `quadrature_truth`, certified by a closed form, else checked for up to two problems by
      `black_box_truth`, which also takes over where it fails.
    - Two or three: `black_box_truth`.
    - More, with a conditional on up to three of them: `partial_truth`.
    - Any other: `reference_truth`, draws with a standard error.

    `Truth.grade` says how far it can be trusted, `Truth.assumptions` what for, `Truth.reasons` why not.

    Args:
        target: whose posterior.
        seed: of searches and draws.

    Raises:
        UncertifiedTruthError: the target's closed form contradicts quadrature.
        ValueError: no method here reaches the target.
    """
    if target.decoded is not None and target.dim in CELL_RULES:
        return decoded_truth(target)
    if target.dim == 1:
        return _of_one_number(target, seed)
    if target.dim in BLACK_BOX:
        return black_box_truth(target, seed=seed)
    if reaches(target):
        return partial_truth(target, seed=seed)
    return reference_truth(target, seed=seed)


def _of_one_number(target: Target, seed: int) -> Truth:
    try:
        line = quadrature_truth(target)
    except UncertifiedTruthError:
        if target.closed_form is not None:
            raise
        return black_box_truth(target, seed=seed)
    if line.grade == "certified" or target.num_problems > MOST_SEARCHED:
        return line
    searched = black_box_truth(target, seed=seed)
    away = np.abs(searched.log_evidence - line.log_evidence)
    agree = bool((away <= AGREEMENT + line.log_evidence_error + searched.log_evidence_error).all())
    if not agree or searched.grade == "uncertified":
        return searched
    checks = (*line.checks, *searched.checks, Check("tanh-sinh against tree of bricks", float(away.max()), AGREEMENT))
    return replace(line, checks=checks, assumptions=searched.assumptions)


__all__ = [
    "AnnealedBound",
    "Annealing",
    "Check",
    "Expectation",
    "Grade",
    "Points",
    "Sandwich",
    "Truth",
    "UncertifiedTruthError",
    "annealed_bound",
    "annealed_sandwich",
    "black_box_truth",
    "decoded_truth",
    "ground_truth",
    "partial_truth",
    "reference_truth",
]
