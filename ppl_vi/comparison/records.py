"""The records of a comparison: one plain dict for each problem and family, as JSON and CSV hold it.

There is one schema, whatever the model: `blank_record` has every key with nothing measured, and `record` fills it. A
figure is the median over replicas. Beside `name` a record then has `name_error`, the largest bound on the numerical
error over replicas, and, where there is Monte Carlo noise, `name_std_error`, the median standard error. `uncertified`
names the figures that rest on a truth of which a check failed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ppl_vi.comparison.comparison import Comparison
from ppl_vi.comparison.structure import is_independent
from ppl_vi.metrics.draws.scorecard import DrawsScorecard
from ppl_vi.metrics.estimate import Estimate
from ppl_vi.metrics.sampled.marginals import MARGINAL_SCORES, Marginals
from ppl_vi.metrics.sampled.weighted_samples import number_names
from ppl_vi.metrics.scorecard import Scorecard
from ppl_vi.metrics.table import METRICS
from ppl_vi.runtime.provenance import versions

AS_GIVEN = "as_given"
STATUSES = ("diverged", "not_converged", AS_GIVEN, "converged")  # of one fit, the worst first


def blank_record(comparison: Comparison, guide: str, problem: int) -> dict[str, Any]:
    """A record with all its keys and nothing measured."""
    truth, settings = comparison.truth, comparison.settings
    return {
        **_problem_and_truth(comparison, problem),
        "guide": guide,
        "status": "",
        "stop_reason": "",
        "log_evidence": _plain(truth.log_evidence[problem]),
        "log_evidence_error": _plain(truth.log_evidence_error[problem]),
        **dict.fromkeys(METRICS),
        "num_steps": None,
        "seconds": None,
        "seed": settings.seed,
        "num_replicas": settings.num_replicas,
        "objective": settings.objective,
        "engine": settings.engine,
        "engine_reason": "",
        "versions": versions(),
        "reason": "",
        "reasons": {},
        "support_mismatch": None,
        "family_gap_is_upper_bound": None,
        "optimization_gap_is_lower_bound": None,
        "is_laplace": None,
        "is_independent": None,
        "statuses": {},
        "replicas": [],
        "units": {},
        "marginals": [],
        "noise": {},
    }


def _problem_and_truth(comparison: Comparison, problem: int) -> dict[str, Any]:
    """Which problem a record is of, and how far its truth can be trusted."""
    target, truth = comparison.target, comparison.truth
    return {
        "label": comparison.label(problem),
        "x": comparison.labels[problem] if comparison.labels else None,
        "model": target.name,
        "problem": problem,
        "num_problems": target.num_problems,
        "method": truth.method,
        "grade": truth.grade,
        "grade_reason": truth.reasons[problem] if truth.reasons else "",
        "uncertified": [] if truth.trusted[problem] else ["log_evidence", *filter(_needs_truth, METRICS)],
        "assumptions": list(truth.assumptions),
        "remarks": list(target.remarks),
        "log_evidence_std_error": _plain(truth.log_evidence_std_error[problem]),
    }


def _needs_truth(metric: str) -> bool:
    return METRICS[metric].needs_truth


def record(comparison: Comparison, guide: str, card: Scorecard, problem: int) -> dict[str, Any]:
    """One (problem, family): medians over replicas, and each replica's main figures."""
    fitted, out = card.fit, blank_record(comparison, guide, problem)
    out.update(
        status=_status(fitted.status[problem]),
        stop_reason=str(fitted.stop_reason[problem, middle_replica(card, problem)]),
        num_steps=int(fitted.num_steps[problem].max()),
        engine=fitted.engine,
        engine_reason=fitted.engine_reason,
        seconds=round(fitted.seconds, 3),
        reason=fitted.support_mismatch,
        support_mismatch=fitted.support_mismatch or None,
        family_gap_is_upper_bound=bool(card.best and card.best.bounds[problem]),
        optimization_gap_is_lower_bound=bool(card.best and card.best.leaves_at_least(problem)),
        is_laplace=fitted.is_laplace,
        is_independent=is_independent(fitted),
        statuses={str(s): int(n) for s, n in zip(*np.unique(fitted.status[problem], return_counts=True), strict=True)},
        replicas=[_replica(card, problem, r) for r in range(fitted.num_replicas)],
        units={name: estimate.unit for name, estimate in card.scores.items()},
        marginals=_marginals(card, problem),
    )
    for name in METRICS:
        if name in card.scores:
            out.update(_score(name, card.scores[name], problem))
            out["reasons"].update(_reason(name, card.scores[name], problem))
    return out


def record_of_draws(comparison: Comparison, label: str, card: DrawsScorecard) -> dict[str, Any]:
    """The record of draws from another system, which has one replica and knows of no family, steps or objective."""
    draws, out, at = card.approximation, blank_record(comparison, label, 0), (0, 0)
    main = {
        name: _plain(card.scores[name].value[at]) if name in card.scores else None
        for name, metric in METRICS.items()
        if metric.per_replica
    }
    outside = card.scores["leaked_mass"].value[at] > 0
    out.update(
        status=AS_GIVEN,
        seconds=None if draws.seconds is None else round(draws.seconds, 3),
        num_replicas=1,
        objective="",
        engine=draws.system,
        engine_reason=f"{draws.num_chains} x {draws.num_draws} draws, worth {card.num_independent:.0f} independent",
        seed=card.seed,
        support_mismatch="draws lie outside the support of the model" if outside else None,
        remarks=[*out["remarks"], *(f"{label}: {remark}" for remark in card.remarks)],
        statuses={AS_GIVEN: 1},
        replicas=[main | {"status": AS_GIVEN, "stop_reason": ""}],
        units={name: estimate.unit for name, estimate in card.scores.items()},
        marginals=_marginals_of(card.marginals, 0) if card.marginals else [],
        noise={name: _plain(value) for name, value in card.noise.items()},
    )
    for name in METRICS:
        if name in card.scores:
            out.update(_score(name, card.scores[name], 0))
            out["reasons"].update(_reason(name, card.scores[name], 0))
    return out


def _marginals(card: Scorecard, problem: int) -> list[dict[str, Any]]:
    """The marginal scores of each latent number, medians over replicas; of one latent number they are its scores."""
    if card.marginals is not None:
        return _marginals_of(card.marginals, problem)
    if card.truth.line is None:
        return []
    scores: dict[str, tuple[Estimate, ...]] = {
        name: (card.scores[name],) for name in MARGINAL_SCORES if name in card.scores
    }
    return _marginals_of(Marginals(number_names(card.fit.target), scores), problem)


def _marginals_of(marginals: Marginals, problem: int) -> list[dict[str, Any]]:
    out = []
    for k, number in enumerate(marginals.names):
        each: dict[str, Any] = {"name": number}
        for name, estimates in marginals.scores.items():
            each.update(_score(name, estimates[k], problem))
        out.append(each)
    return out


def _score(name: str, estimate: Estimate, problem: int) -> dict[str, Any]:
    """A metric's keys of a record: the value, its numerical error and, where there is one, its standard error."""
    out = {
        name: _plain(_median(estimate.value[problem])),
        f"{name}_error": _plain(np.max(estimate.error[problem])),
    }
    std_error = estimate.std_error[problem]
    if np.any(std_error > 0):
        out[f"{name}_std_error"] = _plain(_median(std_error))
    return out


def _reason(name: str, estimate: Estimate, problem: int) -> dict[str, str]:
    """Why a metric is infinite or missing in some replica; {} where it is neither."""
    finite = np.isfinite(estimate.value[problem]).all()
    return {name: estimate.reason} if estimate.reason and not finite else {}


def _replica(card: Scorecard, problem: int, replica: int) -> dict[str, Any]:
    values = {
        name: _plain(card.scores[name].value[problem, replica]) if name in card.scores else None
        for name, metric in METRICS.items()
        if metric.per_replica
    }
    fitted = card.fit
    return values | {
        "status": str(fitted.status[problem, replica]),
        "stop_reason": str(fitted.stop_reason[problem, replica]),
    }


def _median(values: np.ndarray) -> float:
    """The median, where numpy's would be nan: the mean of the two middle values is not taken where they are equal.

    Both of them may be infinite, and the difference that an interpolation takes is then nan.
    """
    ordered = np.sort(values)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return float(low if low == high else (low + high) / 2)


def middle_replica(card: Scorecard, problem: int) -> int:
    """The replica of median reverse KL."""
    order = np.argsort(card.scores["reverse_kl"].value[problem], kind="stable")
    return int(order[(len(order) - 1) // 2])


def _status(statuses: np.ndarray) -> str:
    """The status of most replicas, the worse one where two are equally frequent."""
    counts = [int((statuses == name).sum()) for name in STATUSES]
    return STATUSES[int(np.argmax(counts))]


def _plain(value: Any) -> float | str | None:
    """A number as strict JSON has it: nan is null, and infinite numbers are the strings "inf" and "-inf"."""
    number = float(value)
    if math.isnan(number):
        return None
    if math.isinf(number):
        return "inf" if number > 0 else "-inf"
    return number
