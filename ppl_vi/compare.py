"""Many families on one target: fitted, scored, and laid out as records."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ppl_vi.guides import MULTIMODAL, RefusedFamilyError, find_family
from ppl_vi.metrics.scorecard import Scorecard, score
from ppl_vi.svi.fit import UnsuitableObjectiveError, fit
from ppl_vi.svi.result import Progress, versions
from ppl_vi.target import Target
from ppl_vi.truth import Truth

# keys of a record that are medians of a metric over replicas
SCORES = (
    "elbo", "elbo_gap", "reverse_kl", "forward_kl", "total_variation", "hellinger", "wasserstein", "mean_error",
    "sd_ratio", "coverage_90", "leaked_mass", "chi_square", "family_gap", "optimization_gap", "surrogate_elbo", "khat",
    "ess", "elbo_estimate", "importance_log_evidence",
)  # fmt: skip
PER_REPLICA = ("elbo", "reverse_kl", "optimization_gap")


@dataclass(frozen=True)
class Settings:
    """How every family of a comparison is fitted; see `ppl_vi.svi.fit.fit`."""

    objective: str = "trace_elbo"
    engine: str = "batched"
    num_steps: int = 2000
    num_particles: int = 256
    num_replicas: int = 16
    lr: float = 0.1
    seed: int = 0
    num_draws: int = 10_000


@dataclass(frozen=True, eq=False)
class Entry:
    """One family of a comparison.

    Attributes:
        guide: its name.
        scorecard: None where the family was skipped or failed.
        status: "scored", "skipped" or "failed".
        reason: why there is no scorecard, or a remark on it.
    """

    guide: str
    scorecard: Scorecard | None
    status: str
    reason: str


@dataclass(frozen=True, eq=False)
class Comparison:
    """Families on one target, as far as they are done.

    Attributes:
        target: the problems.
        truth: what they are measured by.
        settings: of the fits.
        labels: what a table calls each problem, for the toy its x.
        entries: one a family.
    """

    target: Target
    truth: Truth
    settings: Settings
    labels: tuple[float, ...]
    entries: list[Entry] = field(default_factory=list)

    def records(self) -> list[dict[str, Any]]:
        """One record a (problem, family), in plain JSON values; infinite ones are the strings "inf" and "-inf"."""
        return [record(self, entry, b) for b in range(self.target.num_problems) for entry in self.entries]


def compare_one(
    target: Target, truth: Truth, guide: str, settings: Settings, progress: Progress | None = None
) -> Entry:
    """Fits and scores one family; what can't be done becomes an entry with its reason."""
    try:
        family = find_family(guide)
        fitted = fit(
            target,
            family if ":" in guide else guide,
            objective=settings.objective,
            engine=settings.engine,
            num_steps=settings.num_steps,
            num_particles=settings.num_particles,
            num_replicas=settings.num_replicas,
            lr=settings.lr,
            seed=settings.seed,
            allow_support_mismatch=True,
            progress=progress,
        )
    except (RefusedFamilyError, UnsuitableObjectiveError) as error:
        return Entry(guide, None, "skipped", str(error))
    lacking = fitted.program.unsupported_density()
    if lacking:
        return Entry(guide, None, "skipped", lacking)
    card = score(fitted, truth, num_draws=settings.num_draws, upper_bound=guide in MULTIMODAL)
    return Entry(guide, card, "scored", fitted.support_mismatch)


def compare(
    target: Target,
    truth: Truth,
    guides: Sequence[str],
    settings: Settings,
    labels: Sequence[float],
    progress: Callable[[str, int, int], None] | None = None,
) -> Iterator[Comparison]:
    """Yields the comparison after each family, so that what is finished survives an interruption."""
    comparison = Comparison(target, truth, settings, tuple(labels))
    for guide in guides:
        report = None if progress is None else (lambda done, most, name=guide: progress(name, done, most))
        comparison.entries.append(compare_one(target, truth, guide, settings, report))
        yield comparison


def record(comparison: Comparison, entry: Entry, problem: int) -> dict[str, Any]:
    """One (problem, family): medians over replicas, and each replica's main figures."""
    truth, settings = comparison.truth, comparison.settings
    out: dict[str, Any] = {
        "x": comparison.labels[problem],
        "guide": entry.guide,
        "status": entry.status,
        "stop_reason": "",
        "log_evidence": _plain(truth.log_evidence[problem]),
        "log_evidence_error": _plain(truth.log_evidence_error[problem]),
        **dict.fromkeys(SCORES),
        "num_steps": None,
        "seconds": None,
        "seed": settings.seed,
        "num_replicas": settings.num_replicas,
        "objective": settings.objective,
        "engine": settings.engine,
        "versions": versions(),
        "reason": entry.reason,
        "replicas": [],
    }
    card = entry.scorecard
    if card is None:
        return out
    fitted = card.fit
    middle = _middle(card, problem)
    out.update(
        status=_status(fitted.status[problem]),
        stop_reason=str(fitted.stop_reason[problem, middle]),
        num_steps=int(fitted.num_steps[problem].max()),
        seconds=round(fitted.seconds, 3),
        statuses={str(s): int(n) for s, n in zip(*np.unique(fitted.status[problem], return_counts=True), strict=True)},
    )
    reasons = [entry.reason] if entry.reason else []
    for name in SCORES:
        if name in card.scores:
            estimate = card.scores[name]
            out[name] = _plain(_median(estimate.value[problem]))
            out[f"{name}_error"] = _plain(np.max(estimate.error[problem]))
            if np.isfinite(estimate.std_error).any() and np.any(estimate.std_error):
                out[f"{name}_std_error"] = _plain(_median(estimate.std_error[problem]))
            if estimate.reason and estimate.reason not in reasons and not np.isfinite(estimate.value[problem]).all():
                reasons.append(f"{name}: {estimate.reason}")
    out["replicas"] = [
        {name: _plain(card.scores[name].value[problem, r]) if name in card.scores else None for name in PER_REPLICA}
        | {"status": str(fitted.status[problem, r]), "stop_reason": str(fitted.stop_reason[problem, r])}
        for r in range(fitted.num_replicas)
    ]
    if card.best is not None and card.best.upper_bound:
        reasons.append(f"family_gap: {card.best.divergence.reason}")
    out["reason"] = "; ".join(reasons)
    return out


def _median(values: np.ndarray) -> float:
    """The median, of replicas some of which may be infinite: an element of the sorted values, or a mean of two."""
    ordered = np.sort(values)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return float(low if low == high else (low + high) / 2)


def _middle(card: Scorecard, problem: int) -> int:
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
