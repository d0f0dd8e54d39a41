"""What the HTML page of a comparison shows, as one JSON file beside the results: records, verdicts and curves.

`ppl-vi report` makes the page from this file alone, without the model. Curves are kept to five digits.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from ppl_vi.comparison.comparison import Comparison, Entry
from ppl_vi.metrics.sampled.weighted_samples import number_names
from ppl_vi.report.model_plots import numbers_left_out, shown_numbers
from ppl_vi.report.plots import trajectory
from ppl_vi.report.table import sort_key
from ppl_vi.report.verdict import verdict_on

FILE = "report.json"
FORMAT, VERSION = "ppl_vi.report", 1
DIGITS = 5  # of a curve's values: more than a screen shows


def data_of(comparison: Comparison) -> dict[str, Any]:
    """The content of the file: plain JSON values; nan is null, and infinite numbers are the strings "inf", "-inf"."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{platform.system()} {platform.machine()}",
        "settings": _settings(comparison),
        "records": comparison.records(),
        "problems": [_problem(comparison, problem) for problem in range(comparison.target.num_problems)],
    }


def to_text(data: dict[str, Any]) -> str:
    """The same as the text of the file."""
    return json.dumps(data, allow_nan=False, ensure_ascii=False) + "\n"


def _settings(comparison: Comparison) -> dict[str, Any]:
    settings = comparison.settings
    names = ("objective", "engine", "num_steps", "num_particles", "num_replicas", "lr", "seed", "num_draws")
    return {name: getattr(settings, name) for name in names}


def _problem(comparison: Comparison, problem: int) -> dict[str, Any]:
    entries = sorted(comparison.entries, key=lambda entry: sort_key(entry.records[problem]))
    drawn = [entry for entry in entries if entry.curves is not None]
    numbers, shown, notes = _numbers(comparison, drawn, problem)
    return {
        "label": comparison.label(problem),
        "verdict": verdict_on(comparison, problem).text,
        "numbers": numbers,
        "notes": notes,
        "guides": {entry.guide: _curves(entry, problem, shown, comparison.z[problem]) for entry in drawn},
    }


def _numbers(
    comparison: Comparison, drawn: Sequence[Entry], problem: int
) -> tuple[list[dict[str, Any]], list[int], list[str]]:
    """The posterior's density of each latent number that is shown, which these are, and what is said of the others."""
    if not drawn:
        return [], [], []
    names = number_names(comparison.target)
    z, posterior = comparison.z[problem].reshape(len(names), -1), comparison.posterior(problem)
    varying = np.flatnonzero(np.ptp(z, 1) > 0) if posterior.size else np.array([], int)
    shown = shown_numbers(drawn, problem, names, varying)
    numbers = [{"name": names[k], "z": _values(z[k]), "posterior": _values(posterior[k])} for k in shown]
    return numbers, shown, numbers_left_out(names, shown, varying, bool(posterior.size))


def _curves(entry: Entry, problem: int, shown: Sequence[int], z: np.ndarray) -> dict[str, Any]:
    """A guide's densities of the latent numbers that are shown, and its reverse KL along the steps."""
    assert entry.curves is not None
    density = entry.curves.density[problem].reshape(-1, z.shape[-1])
    steps, reverse_kl = trajectory(entry, problem)
    return {
        "density": [_values(density[k]) for k in shown],
        "steps": [int(step) for step in steps],
        "reverse_kl": [_values(replica) for replica in reverse_kl] if len(steps) else [],
    }


def _values(values: np.ndarray) -> list[float | str | None]:
    """Numbers as strict JSON has them, in `DIGITS` significant digits."""
    return [_value(value) for value in np.asarray(values, float).ravel().tolist()]


def _value(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else ("inf" if value > 0 else "-inf")
