"""A comparison as figures see one, made of plain numbers: any number of latents and guides, each of any kind."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy import stats

from ppl_vi.comparison.comparison import Curves, Entry

STEPS = np.array([0, 8, 32, 128, 1000])


def made_record(
    guide: str, gaps: dict[str, float], *, replicas: tuple[float, ...] = (0.0,), **more: Any
) -> dict[str, Any]:
    """A record whose replicas have `gaps`, each with so much more optimization gap than it says."""
    start, objective = gaps.get("start", 0.0), gaps.get("objective")
    family, optimization = gaps["family"], gaps["optimization"]
    total = family + start + optimization + (objective or 0.0)
    middle = sorted(replicas)[(len(replicas) - 1) // 2]
    each = [
        {
            "reverse_kl": total + by,
            "start_gap": start,
            "optimization_gap": optimization + by,
            "objective_gap": objective,
        }
        for by in replicas
    ]
    return {
        "guide": guide, "status": "converged", "reason": "", "reasons": {}, "uncertified": [], "support_mismatch": None,
        "reverse_kl": total + middle, "reverse_kl_error": 1e-12, "elbo": -3.0 - total - middle, "family_gap": family,
        "family_gap_error": 1e-12, "start_gap": start, "optimization_gap": optimization + middle,
        "objective_gap": objective, "family_gap_is_upper_bound": False, "optimization_gap_is_lower_bound": False,
        "replicas": each, "marginals": [], **more,
    }  # fmt: skip


def infinite_record(guide: str) -> dict[str, Any]:
    """The record of a guide with mass where the posterior has none."""
    record = made_record(guide, {"family": math.inf, "optimization": math.nan})
    nothing = {"start_gap": None, "optimization_gap": None}
    replicas = [{"reverse_kl": "inf", "objective_gap": None, **nothing}] * 2
    return record | nothing | {
        "reverse_kl": "inf", "elbo": "-inf", "family_gap": "inf", "support_mismatch": "site 'z': wider",
        "replicas": replicas,
    }  # fmt: skip


def failed_record(guide: str, status: str, reason: str) -> dict[str, Any]:
    """The record of a guide without scores."""
    record = made_record(guide, {"family": 0.0, "optimization": 0.0})
    nothing = dict.fromkeys(("reverse_kl", "elbo", "family_gap", "start_gap", "optimization_gap"))
    return record | nothing | {"status": status, "reason": reason, "replicas": []}


def way(end: float, start: float = 3.0) -> np.ndarray:
    """The reverse KL of three replicas at `STEPS`, `(1, 3, 5)`, which ends at `end`."""
    return end + start * np.exp(-STEPS / 40)[None, None] * np.array([0.5, 1.0, 2.0])[None, :, None]


def entry(
    record: dict[str, Any], z: np.ndarray, *, narrow: float = 1.0, steps: np.ndarray = STEPS, start: float = 3.0
) -> Entry:
    """A guide whose marginals are normal, `narrow` times as wide as the posterior's."""
    density = stats.norm.pdf(z, 0, narrow)[None]
    reverse_kl = way(float(record["reverse_kl"]), start)[..., : len(steps)] if len(steps) else np.empty((1, 0, 0))
    return Entry(record["guide"], (record,), Curves(z[None], density, steps, reverse_kl))


def points(num_numbers: int) -> np.ndarray:
    """Where the densities of latent numbers are taken, `(K, 50)`, or `(50,)` for one."""
    z = np.linspace(-3, 3, 50)
    return z if num_numbers == 1 else np.tile(z, (num_numbers, 1))


def comparison(entries: list[Entry], num_numbers: int = 1, fixed: tuple[int, ...] = ()) -> Any:
    """A comparison whose posterior is standard normal in every number; those that are `fixed` have one value."""
    z = points(num_numbers).copy()
    density = stats.norm.pdf(z)
    for k in fixed:
        z[k] = 1.0
        density[k] = np.nan
    shape = () if num_numbers == 1 else (num_numbers,)
    return SimpleNamespace(
        entries=tuple(entries),
        target=SimpleNamespace(name="my_model", latents=[SimpleNamespace(name="w", shape=shape)]),
        truth=SimpleNamespace(log_evidence=np.array([-3.0])),
        z=z[None],
        posterior=lambda problem: density.reshape(num_numbers, -1),
        label=lambda problem: "my_model",
    )
