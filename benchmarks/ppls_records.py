"""The records of `benchmarks.ppls`: one for each model, system and setting."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import ppl_vi
from benchmarks.ppls_exact import Divergence, divergence_of, moments_of
from benchmarks.ppls_fits import FAMILIES, Snapshot
from benchmarks.ppls_process import Outcome, density_in_own_process, fit_in_own_process
from benchmarks.ppls_systems import SETTINGS, SYSTEMS
from models import ZOO
from ppl_vi.approximations.same_density import SameDensity
from ppl_vi.truth import Truth

Record = dict[str, Any]
TOLERANCE = 1e-3  # nats above the best member of the family: what counts as there


@dataclass(frozen=True)
class Problem:
    """What the systems are compared on.

    Attributes:
        model: its name in the zoo.
        truth: of the zoo's model.
        best: reverse KL of the best member of each family, nats.
        same: whether a copy of the model, a key of `DENSITIES`, has the zoo's density.
    """

    model: str
    truth: Truth
    best: Mapping[str, float]
    same: Callable[[str], SameDensity]


def problem_of(model: str) -> Problem:
    """A model of the zoo with its truth and what is best in each family, found by a search and not by a fit."""
    truth = ppl_vi.ground_truth(ZOO[model]())
    scored = {family: ppl_vi.score(ppl_vi.fit(truth.target, family), truth) for family in FAMILIES}
    best = {family: float(card.scores["family_gap"].value[0, 0]) for family, card in scored.items()}

    @cache
    def same(copy: str) -> SameDensity:
        return ppl_vi.same_density(truth, partial(density_in_own_process, copy, model), vectorised=True)

    return Problem(model, truth, best, same)


def settings_of(system: str) -> tuple[str, ...]:
    """The settings that a system is run at; one that is not installed has a row of its default alone."""
    found = SYSTEMS[system]
    return SETTINGS if found.has_common and not found.absent() else SETTINGS[:1]


def record_of(
    problem: Problem, system: str, setting: str, fit: Callable[[str, str, str], Outcome] = fit_in_own_process
) -> Record:
    """The record of one system at one setting; one that could not be had says why."""
    found = SYSTEMS[system]
    best = problem.best.get(found.family)
    record = {
        "model": problem.model,
        "system": system,
        "setting": setting,
        "family": FAMILIES.get(found.family, ""),
        "note": found.note,
        "family_best": best,
        "density_difference": None,
    }
    if reason := found.absent():
        return record | {"status": "missing", "reason": reason}
    if found.density:
        try:
            same = problem.same(found.density)
        except ValueError as error:
            return record | {"status": "failed", "reason": f"its copy of the model has no density: {error}"}
        record["density_difference"] = same.largest
        if not same:
            return record | {"status": "failed", "reason": f"its copy of the model is not ours: {same}"}
    outcome = fit(system, problem.model, setting)
    if outcome.failure:
        return record | {"status": "failed", "reason": outcome.failure}
    return record | {"status": "ok", "reason": ""} | _measured(problem.truth, outcome.snapshots, best)


def _measured(truth: Truth, snapshots: Sequence[Snapshot], best: float | None) -> Record:
    """The scores after the last step, those of each number of steps, and when the tolerance was met for good."""
    found = [divergence_of(truth, one.approximation) for one in snapshots]
    ladder = [_rung(one, divergence, best) for one, divergence in zip(snapshots, found, strict=True)]
    last = snapshots[-1]
    scores = asdict(found[-1]) | asdict(moments_of(truth, last.approximation))
    return (
        {name: _known(value) for name, value in scores.items()}
        | {
            "version": last.approximation.system,
            "steps": last.steps,
            "seconds": last.seconds,
            "compile_seconds": last.compile_seconds,
            "above_best": ladder[-1]["above_best"],
            "ladder": ladder,
        }
        | _arrival(ladder)
    )


def _rung(snapshot: Snapshot, found: Divergence, best: float | None) -> Record:
    above = found.reverse_kl - best if best is not None and found.is_gaussian else None
    return {
        "steps": snapshot.steps,
        "seconds": snapshot.seconds,
        "compile_seconds": snapshot.compile_seconds,
        "reverse_kl": _known(found.reverse_kl),
        "reverse_kl_std_error": _known(found.reverse_kl_std_error),
        "above_best": above,
    }


def _known(value: float) -> float | None:
    """None in place of nan, which JSON does not have."""
    return None if math.isnan(value) else value


def _arrival(ladder: Sequence[Record]) -> Record:
    """The first number of steps from which on the fit is within the tolerance whenever it is looked at."""
    arrived: Record | None = None
    for rung in reversed(ladder):
        if rung["above_best"] is None or rung["above_best"] > TOLERANCE + 2 * rung["reverse_kl_std_error"]:
            break
        arrived = rung
    if arrived is None:
        return {"arrived": False, "steps_to_best": None, "seconds_to_best": None}
    seconds = arrived["seconds"] + arrived["compile_seconds"]
    return {"arrived": True, "steps_to_best": arrived["steps"], "seconds_to_best": seconds}
