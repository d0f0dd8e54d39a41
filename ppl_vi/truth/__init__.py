"""Truths: the exact posterior and log p(x), with a stated error and the checks that certify them.

`ground_truth`, in this file, chooses the method and is what to read first. The methods are in the folders `quadrature`
(up to three latent numbers), `nested` (hierarchies, whose inner latents are integrated out), `importance` and `chains`
(more latent numbers, by independent draws where these can be had, else by chains) and `decoder` (VAEs). For decoders
with more than three latents, `annealed_bound` and
`annealed_sandwich` bound log p(x). `result.py` has `Truth`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ppl_vi.runtime.display import following
from ppl_vi.runtime.memory import require
from ppl_vi.runtime.stages import Callback, stage
from ppl_vi.target.isolation import one_at_a_time
from ppl_vi.target.statements import parameters_of
from ppl_vi.target.target import Target
from ppl_vi.target.witness import refuse_changed, witness
from ppl_vi.truth.chains.reference import reference_truth
from ppl_vi.truth.decoder.annealing import AnnealedBound, Annealing, Sandwich, annealed_bound, annealed_sandwich
from ppl_vi.truth.decoder.evidence import CELL_RULES, decoded_truth
from ppl_vi.truth.discrete import discrete_truth
from ppl_vi.truth.nested.truth import nested_truth
from ppl_vi.truth.quadrature.adaptive import MAX_LATENT_NUMBERS, black_box_truth
from ppl_vi.truth.quadrature.conditional import has_few_outer_numbers, partial_truth
from ppl_vi.truth.quadrature.cross_checks import RULES_TOLERANCE
from ppl_vi.truth.quadrature.one_number import quadrature_truth
from ppl_vi.truth.result import Check, Expectation, Grade, Points, Truth, UncertifiedTruthError
from ppl_vi.truth.rounded_ends import with_missing_mass

# Targets of one latent number with no more problems than this are also integrated by the tree of bricks, which searches
# for peaks that both quadrature rules may have missed. It takes about a second for each problem, too long for thousands
# of them.
MAX_SEARCHED_PROBLEMS = 2
# Bytes that a gradient at one point takes at least, for each number of the largest tensor that is computed there: with
# less memory the work is refused before it begins.
GRADIENT_BYTES_PER_NUMBER = 200
# Probabilities below the ends of a central 90% interval.
ENDS_OF_INTERVAL = (0.05, 0.95)


@one_at_a_time()
def ground_truth(target: Target, *, seed: int = 0, progress: Callback | bool = False) -> Truth:
    """The posterior of every problem of a target, by the most exact method that can compute it.

    - A target whose latents are all discrete: `discrete_truth`, their sum.
    - A target with a decoder and up to three latent numbers: `decoded_truth`, a tree of cells.
    - One unconstrained latent number: `quadrature_truth`. A closed form certifies it. Without one, `black_box_truth`
      checks it for up to two problems, and replaces it where it fails.
    - Two or three numbers: `black_box_truth`, a tree of bricks; `reference_truth` where that gives up.
    - More numbers, with a conditional on up to three of them: `partial_truth`, quadrature over these.
    - More numbers, most of which fall apart or are normal given a few outer ones, as in a hierarchy: `nested_truth`,
      quadrature over the outer ones.
    - Any other: `reference_truth`, importance sampling if it meets its criteria, else draws of Hamiltonian Monte Carlo;
      both with a standard error.

    `Truth.grade` says how far the truth can be trusted, `Truth.assumptions` under which assumptions, and
    `Truth.reasons` which check failed.

    Args:
        target: the target whose posterior is computed.
        seed: the seed of searches and draws.
        progress: as `ppl_vi.fit` takes it.

    Raises:
        MemoryBoundError: the gradient at a single point takes more memory than may be taken.
        UncertifiedTruthError: the target's closed form contradicts quadrature.
        ValueError: no method can compute the target's posterior, the model's own parameters are not learned yet, or the
            model has become another function meanwhile; the message says which.
    """
    if target.learnable is not None:
        names = ", ".join(f"'{name}'" for name in parameters_of(target.learnable.parameters))
        raise ValueError(
            f"{target.name}: the posterior depends on the model's own parameters {names}, which are to be learned "
            "first: found = ppl_vi.fit(target, guide), then ppl_vi.ground_truth(found.target)"
        )
    require(
        GRADIENT_BYTES_PER_NUMBER * target.width,
        f"a gradient of the log joint of '{target.name}' at one point",
        "allow more memory, or give less data",
    )
    _ = witness(target)
    with following(progress, "truth"):
        truth = with_missing_mass(_by_the_most_exact_method(target, seed), seed)
    refuse_changed(target)
    if target.learned is None:
        return truth
    return replace(truth, assumptions=(*truth.assumptions, target.learned.summary))


def _by_the_most_exact_method(target: Target, seed: int) -> Truth:
    if not target.dim:
        return discrete_truth(target)
    if target.decoded is not None and target.dim in CELL_RULES:
        with stage("tree of cells"):
            return decoded_truth(target)
    if target.dim == 1 and target.latents[0].shape.numel() == 1:
        return _of_one_number(target, seed)
    if target.dim <= MAX_LATENT_NUMBERS:
        return _by_bricks_or_draws(target, seed)
    if has_few_outer_numbers(target):
        return partial_truth(target, seed=seed)
    return nested_truth(target, seed=seed) or reference_truth(target, seed=seed)


def _by_bricks_or_draws(target: Target, seed: int) -> Truth:
    """The truth by the tree of bricks or, where that gives up, by draws, if these meet their criteria."""
    searched = black_box_truth(target, seed=seed)
    if np.isfinite(searched.log_evidence_error).all():
        return searched
    drawn = reference_truth(target, seed=seed)
    return searched if drawn.grade == "uncertified" else drawn


def _of_one_number(target: Target, seed: int) -> Truth:
    """The truth by quadrature along the line, confirmed or replaced by the tree of bricks where no closed form is."""
    try:
        with stage("quadrature"):
            truth = quadrature_truth(target)
    except UncertifiedTruthError:
        if target.closed_form is not None:
            raise
        return _by_bricks_or_draws(target, seed)
    if truth.grade == "certified" or target.num_problems > MAX_SEARCHED_PROBLEMS:
        return truth
    searched = black_box_truth(target, seed=seed)
    away = np.abs(searched.log_evidence - truth.log_evidence)
    agree = bool((away <= RULES_TOLERANCE + truth.log_evidence_error + searched.log_evidence_error).all())
    if not agree or searched.grade == "uncertified" or not _has_moments_and_quantiles(truth):
        return searched
    check = Check("tanh-sinh against the tree of bricks, nats", float(away.max()), RULES_TOLERANCE)
    return replace(
        truth,
        checks=(*truth.checks, *searched.checks, check),
        assumptions=searched.assumptions,
        make_points=lambda: searched.points,
    )


def _has_moments_and_quantiles(truth: Truth) -> bool:
    """Whether quadrature along the line finds them: from one mode it may not see another that lies far away."""
    try:
        _ = truth.mean, truth.quantile(np.tile(ENDS_OF_INTERVAL, (len(truth.log_evidence), 1)))
    except UncertifiedTruthError:
        return False
    return True


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
    "nested_truth",
    "partial_truth",
    "reference_truth",
]
