"""Sums up the fits of a sweep for its page: medians over problems, and their spread over seeds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame

# What tells the combinations of a model apart, with the name of each.
SETTINGS = {"objective": "objective", "lr": "step size", "num_steps": "steps", "num_particles": "draws a step"}
KEYS = ["guide", *SETTINGS]
LOW, HIGH = 0.1, 0.9  # the quantiles over seeds that a range is between
SECONDS, SPREADS = ("fit_seconds", "score_seconds"), ("reverse_kl_error", "reverse_kl_std_error")
MEDIANS = ("family_gap", "optimization_gap", "coverage_90", "khat")


def over_seeds(frame: DataFrame, by: tuple[str, ...] = ()) -> DataFrame:
    """A row for each combination of guide and settings, and of the columns `by`.

    Its reverse KL is the `middle` over seeds of each seed's median over problems, `low` and `high` their quantiles, and
    its `error` the median of what each value may be off by: its numerical error and two standard errors.
    Quantiles are values of the sample, since between a finite and an infinite one there is none.
    """
    keys = [*KEYS, *by]
    read = {*keys, "seed", "status", "reverse_kl", *SPREADS, *MEDIANS, *SECONDS}
    frame = frame[[name for name in frame.columns if name in read]].assign(
        num_particles=frame["num_particles"].astype(str),
        has_converged=(frame["status"] == "converged").astype(float),
        seconds=sum(frame[name].fillna(0.0) for name in SECONDS),
        error=frame[SPREADS[0]].fillna(0.0) + 2 * frame[SPREADS[1]].fillna(0.0),
    )
    seeds = frame.groupby([*keys, "seed"], sort=False)["reverse_kl"].quantile(0.5, interpolation="lower")
    each = seeds.reset_index().groupby(keys, sort=False)["reverse_kl"]
    found = each.agg(seeds="count").assign(
        middle=each.quantile(0.5, interpolation="lower"),
        low=each.quantile(LOW, interpolation="lower"),
        high=each.quantile(HIGH, interpolation="higher"),
    )
    grouped = frame.groupby(keys, sort=False)
    found["fits"] = grouped.size()
    found["converged"], found["seconds"] = grouped["has_converged"].mean(), grouped["seconds"].mean()
    for name in (*MEDIANS, "error"):
        found[name] = grouped[name].median()
    found = found.reset_index()
    return found.assign(num_particles=[number_or_text(value) for value in found["num_particles"]])


def number_or_text(value: str) -> Any:
    """A number of draws as a number; "auto" as it is."""
    return int(float(value)) if value.replace(".", "", 1).isdigit() else value


def best_of(summed: DataFrame) -> DataFrame:
    """The row of each guide's best combination, the nearest guide first; guides without a finite value are left out."""
    known = summed[summed["middle"] < float("inf")].sort_values("middle", kind="stable")
    return known.drop_duplicates("guide")


def varied(summed: DataFrame) -> list[str]:
    """The settings that have several values."""
    return [name for name in SETTINGS if summed[name].astype(str).nunique() > 1]


def in_words(row: Any, names: Iterable[str]) -> str:
    """Settings of a combination, by name, such as `step size 0.2, 1,000 steps`."""
    parts = {
        "objective": str(row["objective"]),
        "lr": f"step size {row['lr']:g}",
        "num_steps": f"{row['num_steps']:,} steps",
        "num_particles": f"{row['num_particles']} draws a step",
    }
    return ", ".join(text for name, text in parts.items() if name in names)
