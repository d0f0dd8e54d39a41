"""The records of `benchmarks.ppls`: one for each model, system and setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.ppls_exact import Score, score
from benchmarks.ppls_fits import FAMILIES, Snapshot
from benchmarks.ppls_process import Outcome
from benchmarks.ppls_systems import SETTINGS, SYSTEMS
from ppl_vi.target.sites import Latents
from ppl_vi.truth import Truth

Record = dict[str, Any]
TOLERANCE = 1e-3  # nats above the best member of the family: what counts as there
SAME = 1e-8  # nats by which two copies of a model may differ
NUM_POINTS = 200


def best_of(truth: Truth) -> dict[str, float]:
    """Reverse KL of the best member of each family, nats, found by ppl_vi's search for it and not by a fit."""
    import ppl_vi

    scored = {family: ppl_vi.score(ppl_vi.fit(truth.target, family), truth) for family in FAMILIES}
    return {family: float(card.scores["family_gap"].value[0, 0]) for family, card in scored.items()}


def records_of(
    model: str, system: str, truth: Truth, best: Mapping[str, float], points: Latents, outcome: Outcome
) -> list[Record]:
    """The records of one system on one model, of which those that could not be had say why."""
    found = SYSTEMS[system]
    base = {
        "model": model,
        "system": system,
        "family": FAMILIES.get(found.family, ""),
        "note": found.note,
        "family_best": best.get(found.family),
    }
    if outcome.missing:
        return [base | {"setting": "default", "status": "missing", "reason": outcome.missing}]
    difference = density_difference(truth, points, outcome.density)
    base["density_difference"] = difference
    records = []
    for setting in SETTINGS if found.has_common else SETTINGS[:1]:
        snapshots, reason = outcome.snapshots.get(setting, []), outcome.failures.get(setting, "")
        if difference is not None and not difference <= SAME:
            reason = f"its copy of the model is another: log p(x, z) differs by up to {difference:.1g} nats"
        record = base | {"setting": setting, "status": "failed" if reason else "ok", "reason": reason}
        records.append(record if reason else record | _measured(truth, snapshots, best.get(found.family)))
    return records


def density_difference(truth: Truth, points: Latents, theirs: np.ndarray | None) -> float | None:
    """The largest difference of log p(x, z) at points `{site: (N, *shape)}` of the posterior, nats."""
    if theirs is None:
        return None
    ours = truth.target.log_joint({name: value[None] for name, value in points.items()})[0].numpy()
    return float(np.abs(theirs - ours).max())


def _measured(truth: Truth, snapshots: Sequence[Snapshot], best: float | None) -> Record:
    """The scores after the last step, those of each number of steps, and when the tolerance was met for good."""
    scores = [score(truth, one.approximation) for one in snapshots]
    ladder = [_rung(one, found, best) for one, found in zip(snapshots, scores, strict=True)]
    last = snapshots[-1]
    return (
        {name: _known(value) for name, value in asdict(scores[-1]).items()}
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


def _rung(snapshot: Snapshot, found: Score, best: float | None) -> Record:
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
