"""TODO."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ppl_vi.comparison.comparison import Comparison
from ppl_vi.metrics.estimate import Estimate
from ppl_vi.metrics.sampled.weighted_samples import number_names
from ppl_vi.metrics.scorecard import Scorecard
from ppl_vi.runtime.provenance import versions
from ppl_vi.truth import Truth

# keys of a record that are medians of a metric over replicas
SCORES = (
    "elbo", "elbo_gap", "reverse_kl", "forward_kl", "total_variation", "hellinger", "wasserstein", "mean_error",
    "sd_ratio", "coverage_90", "leaked_mass", "chi_square", "family_gap", "optimization_gap", "surrogate_elbo", "khat",
    "ess", "elbo_estimate", "importance_log_evidence", "importance_log_evidence_naive",
)  # fmt: skip
MORE_SCORES = ("relative_covariance_error", "khat_1000", "iwae_bound")  # of detailed comparisons
PER_REPLICA = ("elbo", "reverse_kl", "optimization_gap")


def blank_record(comparison: Comparison, guide: str, problem: int) -> dict[str, Any]:
    """A record with all its keys and nothing measured."""
    truth, settings = comparison.truth, comparison.settings
    return {
        **_called(comparison, problem),
        "guide": guide,
        "status": "",
        "stop_reason": "",
        "log_evidence": _plain(truth.log_evidence[problem]),
        "log_evidence_error": _plain(truth.log_evidence_error[problem]),
        **dict.fromkeys((*SCORES, *MORE_SCORES) if comparison.detailed else SCORES),
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
        "statuses": {},
        "replicas": [],
        **({"units": {}, "marginals": []} if comparison.detailed else {}),
    }


def grade_of(truth: Truth, problem: int) -> dict[str, Any]:
    """How far the truth can be trusted."""
    return {
        "method": truth.method,
        "grade": truth.grade,
        "grade_reason": truth.reasons[problem] if truth.reasons else "",
        "assumptions": list(truth.assumptions),
        "log_evidence_std_error": _plain(truth.log_evidence_std_error[problem]),
    }


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
        family_gap_is_upper_bound=bool(card.best and card.best.upper_bound),
        statuses={str(s): int(n) for s, n in zip(*np.unique(fitted.status[problem], return_counts=True), strict=True)},
        replicas=[_replica(card, problem, r) for r in range(fitted.num_replicas)],
    )
    for name in (*SCORES, *MORE_SCORES):
        if name in card.scores and name in out:
            out.update(_score(name, card.scores[name], problem, out["reasons"]))
    if comparison.detailed:
        out["units"] = {name: estimate.unit for name, estimate in card.scores.items() if name in out}
        out["marginals"] = _marginals(card, problem)
    return out


def _marginals(card: Scorecard, problem: int) -> list[dict[str, Any]]:
    """What each latent number's marginal scores are, medians over replicas."""
    if card.marginals is not None:
        names, scores = card.marginals.names, card.marginals.scores
    elif card.truth.line is not None:
        names = number_names(card.fit.target)
        scores = {name: (card.scores[name],) for name in ("mean_error", "sd_ratio", "wasserstein", "coverage_90")}
    else:
        return []
    out = []
    for k, number in enumerate(names):
        each: dict[str, Any] = {"name": number}
        for name, estimates in scores.items():
            each.update(_score(name, estimates[k], problem, {}))
        out.append(each)
    return out


def _score(name: str, estimate: Estimate, problem: int, reasons: dict[str, str]) -> dict[str, Any]:
    """A metric's keys of a record; adds to `reasons` why a value is infinite or missing."""
    value = estimate.value[problem]
    if estimate.reason and not np.isfinite(value).all():
        reasons[name] = estimate.reason
    out = {name: _plain(_median(value)), f"{name}_error": _plain(np.max(estimate.error[problem]))}
    spread = estimate.std_error[problem]
    if np.any(spread > 0):
        out[f"{name}_std_error"] = _plain(_median(spread))
    return out


def _replica(card: Scorecard, problem: int, replica: int) -> dict[str, Any]:
    values = {
        name: _plain(card.scores[name].value[problem, replica]) if name in card.scores else None for name in PER_REPLICA
    }
    fitted = card.fit
    return values | {
        "status": str(fitted.status[problem, replica]),
        "stop_reason": str(fitted.stop_reason[problem, replica]),
    }


def _median(values: np.ndarray) -> float:
    """The median, of replicas some of which may be infinite: an element of the sorted values, or a mean of two."""
    ordered = np.sort(values)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return float(low if low == high else (low + high) / 2)


def middle_replica(card: Scorecard, problem: int) -> int:
    """The replica of median reverse KL."""
    order = np.argsort(card.scores["reverse_kl"].value[problem], kind="stable")
    return int(order[(len(order) - 1) // 2])


def _status(statuses: np.ndarray) -> str:
    """The status of most replicas, the worse one where they tie."""
    ranked = ("diverged", "not_converged", "converged")
    counts = [int((statuses == name).sum()) for name in ranked]
    return ranked[int(np.argmax(counts))]


def _plain(value: Any) -> float | str | None:
    number = float(value)
    if math.isnan(number):
        return None
    if math.isinf(number):
        return "inf" if number > 0 else "-inf"
    return number


def _called(comparison: Comparison, problem: int) -> dict[str, Any]:
    """What a record says of its problem: its label, or the target's name, which of several, and the grade."""
    if comparison.labels and not comparison.detailed:
        return {"x": comparison.labels[problem]}
    num_problems = comparison.target.num_problems
    which = {"problem": problem, "num_problems": num_problems} if num_problems > 1 else {}
    return {"model": comparison.target.name, **which, **grade_of(comparison.truth, problem)}
