"""What became better or worse between two files of results, beyond the noise of seeds and computations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from ppl_vi.sweeps.checks import StoreError
from ppl_vi.sweeps.results import GROUP, table_of

# A difference counts where chance alone would give it with at most this probability in any of the combinations that are
# compared (Holm 1979, A simple sequentially rejective multiple test procedure).
ERROR_RATE = 0.01
# Differences of at most this size do not count, in the metric's unit: a converged fit may still gain as much.
LEAST = 1e-3
# Metrics of which more is better, and those that have a best value; less is better of all others.
MORE_IS_BETTER = ("elbo", "ess", "elbo_estimate", "iwae_bound", "surrogate_elbo")
BEST_VALUES = {"sd_ratio": 1.0, "coverage_90": 0.9, "mean_error": 0.0}


@dataclass(frozen=True)
class Difference:
    """One combination in two files.

    Attributes:
        group: the combination, by the names in `GROUP`.
        before, after: the mean over the finite values, nan where there are none.
        num_before, num_after: the number of finite values.
        lost_before, lost_after: the number of fits without a finite value.
        std_error: of the difference of the means, from the spread over seeds and the errors of the values.
        probability: that chance alone gives such a difference; nan where it can't be said.
        verdict: "better", "worse", "same" where the difference is within the noise, "unknown" where the noise is not
            known, because there is one seed only, "only before" or "only after".
    """

    group: dict[str, Any]
    before: float
    after: float
    num_before: int
    num_after: int
    lost_before: int
    lost_after: int
    std_error: float
    probability: float
    verdict: str


def differences(
    before: str | Path, after: str | Path, metric: str = "reverse_kl", least: float = LEAST
) -> list[Difference]:
    """Compares each combination of two files by Welch's test on the values of its seeds.

    Args:
        before, after: the files.
        metric: what is compared.
        least: differences of at most this size do not count.

    Raises:
        StoreError: a file can't be used, or has no such metric.
    """
    first, second = _values(before, metric), _values(after, metric)
    found = [_compared(group, first.get(group), second.get(group), metric, least) for group in {**first, **second}]
    return _judged(found, metric, least)


def _values(file: str | Path, metric: str) -> dict[tuple[Any, ...], np.ndarray]:
    """For each combination the value, error and standard error of every seed, `(N, 3)`."""
    names, rows = table_of(file)
    if f"{metric}_std_error" not in names:
        known = [name.removesuffix("_std_error") for name in names if name.endswith("_std_error")]
        raise StoreError(f"'{file}' has no metric '{metric}'; there are {', '.join(known)}")
    at = {name: i for i, name in enumerate(names)}
    columns = [at[metric], at[f"{metric}_error"], at[f"{metric}_std_error"]]
    found: dict[tuple[Any, ...], list[list[float]]] = {}
    for row in rows:
        values = [math.nan if row[i] is None else float(row[i]) for i in columns]
        found.setdefault(tuple(row[at[name]] for name in GROUP), []).append(values)
    return {group: np.array(values) for group, values in found.items()}


def _compared(
    group: tuple[Any, ...], first: np.ndarray | None, second: np.ndarray | None, metric: str, least: float
) -> Difference:
    empty = np.empty((0, 3))
    one, other = empty if first is None else first, empty if second is None else second
    kept = [some[np.isfinite(some[:, 0])] for some in (one, other)]
    before, after = (float(some[:, 0].mean()) if len(some) else math.nan for some in kept)
    std_error, probability = _noise(kept, abs(after - before))
    verdict = "only after" if first is None else "only before" if second is None else ""
    lost = len(one) - len(kept[0]), len(other) - len(kept[1])
    counts = len(kept[0]), len(kept[1])
    return Difference(
        dict(zip(GROUP, group, strict=True)), before, after, *counts, *lost, std_error, probability, verdict
    )


def _noise(kept: Sequence[np.ndarray], difference: float) -> tuple[float, float]:
    """The standard error of the difference of two means, and the probability of one so large."""
    if min(map(len, kept)) < 2:
        return math.nan, math.nan
    # the variance over seeds holds the Monte Carlo error of each value, too; bounds on numerical errors come on top
    parts = [some[:, 0].var(ddof=1) / len(some) for some in kept]
    bound = sum(float(np.nan_to_num(some[:, 1]).max()) for some in kept)
    std_error = math.sqrt(sum(parts))
    beyond = max(0.0, difference - bound)
    if std_error == 0.0:
        return bound, 0.0 if beyond else 1.0
    freedom = sum(parts) ** 2 / sum(part**2 / (len(some) - 1) for part, some in zip(parts, kept, strict=True))
    return std_error, float(2 * stats.t.sf(beyond / std_error, freedom))


def _judged(found: Sequence[Difference], metric: str, least: float) -> list[Difference]:
    """The differences with their verdicts, those that matter first."""
    tests = sorted((one for one in found if not math.isnan(one.probability)), key=lambda one: one.probability)
    beyond: set[int] = set()
    for rank, one in enumerate(tests):
        if one.probability * (len(tests) - rank) > ERROR_RATE:
            break
        beyond.add(id(one))
    judged = [_with_verdict(one, id(one) in beyond, metric, least) for one in found]
    order = ("worse", "better", "unknown", "only before", "only after", "same")
    return sorted(judged, key=lambda one: (order.index(one.verdict), -abs(one.after - one.before)))


def _with_verdict(one: Difference, is_beyond: bool, metric: str, least: float) -> Difference:
    if one.verdict:
        return one
    if (one.lost_before == 0) != (one.lost_after == 0) and not (one.num_before and one.num_after):
        verdict = "better" if one.lost_before else "worse"  # all values are lost in one of the files, none in the other
    elif math.isnan(one.probability):
        verdict = "same" if one.before == one.after or (not one.num_before and not one.num_after) else "unknown"
    elif not is_beyond or abs(one.after - one.before) <= least:
        verdict = "same"
    else:
        verdict = "better" if _badness(metric, one.after) < _badness(metric, one.before) else "worse"
    return Difference(**{**vars(one), "verdict": verdict})


def _badness(metric: str, value: float) -> float:
    if metric in BEST_VALUES:
        return abs(value - BEST_VALUES[metric])
    return -value if metric in MORE_IS_BETTER else value
