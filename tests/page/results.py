"""Small results to make pages of: a comparison whose guides have hostile names, and a sweep's file of known numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal

import ppl_vi
from ppl_vi.measuring.measurement import Measurement
from ppl_vi.model_comparison import ModelComparison
from ppl_vi.sweeps.store import Store
from ppl_vi.sweeps.tasks import score_columns

HOSTILE = "<script>alert(1)</script>"
GUIDES: dict[str, Any] = {
    "gamma": "gamma", HOSTILE: AutoNormal, '"><img src=x onerror=alert(2)>{{ 7 * 7 }}': "truncated_normal",
    "normal": "normal", "</script><b>point</b>": AutoDelta,
}  # fmt: skip


def toy(x: torch.Tensor) -> None:
    """The toy model under a name of its own."""
    z = pyro.sample("z", dist.Exponential(1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def small_comparison() -> ModelComparison:
    """A comparison of guides that were hardly fitted, one of which leaks mass and one of which is skipped."""
    settings: dict[str, Any] = {"num_steps": 40, "num_replicas": 2, "num_particles": 4, "num_draws": 200}
    return ppl_vi.compare(toy, GUIDES, torch.tensor(1.5), engine="batched", **settings)


def measured_draws() -> Measurement:
    """Draws narrower than the posterior, from a system with a hostile name."""
    truth = ppl_vi.ground_truth(ppl_vi.Target.of(toy, (torch.tensor(1.5),)))
    z = np.abs(np.random.default_rng(0).normal(1.3, 0.6, (4, 100)))
    return ppl_vi.measure(truth, {"z": z}, name=HOSTILE)


def reverse_kl(guide: int, lr: float, problem: int, seed: int) -> float:
    """The reverse KL in the sweep's file: larger for later guides, smaller step sizes and later problems."""
    return (1 + guide) * (1 + problem) / lr * (1 + seed % 5) * 1e-3


def small_store(
    path: Path,
    guides: Sequence[str] = ("gamma", HOSTILE),
    lrs: Sequence[float] = (0.02, 0.2),
    num_problems: int = 5,
    num_seeds: int = 10,
) -> Path:
    """A file of a sweep, with a task that failed, stale rows of an earlier model, and fits that are planned still."""
    names = score_columns()
    with Store(path, names) as store:
        versions = store.source("versions", "versions", "v", {"python": "3.11"})
        old, new = (store.source("model", "toy", key) for key in ("old", "new"))
        for model in (old, new):
            store.write_truth(model, [_truth(b) for b in range(num_problems)])
        keys = []
        for g, guide in enumerate(guides):
            source = store.source("guide", guide, guide)
            for lr in lrs:
                values = [(b, s, reverse_kl(g, lr, b, s)) for b in range(num_problems) for s in range(num_seeds)]
                keys.append(_write(store, (new, source, versions), lr, values))
        failing = store.source("guide", "failing", "failing")
        lost = [(b, s, None) for b in range(num_problems) for s in range(num_seeds)]
        keys.append(_write(store, (new, failing, versions), 0.2, lost, "failed", "ValueError: <i>no</i> luck"))
        _write(store, (old, failing, versions), 0.5, [(0, 0, 123.0)])
        store.note(planned=keys, num_planned=len(keys) * num_problems * num_seeds + 7)
    return path


def one_combination(
    path: Path, values: Sequence[float | None], status: str = "done", errors: dict[str, float] | None = None
) -> Path:
    """A file of a sweep with one combination, of a fit for each value."""
    with Store(path, score_columns()) as store:
        sources = [store.source("model", "toy", "m"), store.source("guide", "gamma", "g")]
        sources.append(store.source("versions", "versions", "v", {"python": "3.11"}))
        store.write_truth(sources[0], [_truth(0)])
        model, guide, versions = sources
        fits = [(0, seed, value) for seed, value in enumerate(values)]
        _write(store, (model, guide, versions), 0.2, fits, status, errors=errors)
    return path


def _truth(problem: int) -> dict[str, Any]:
    return {
        "problem": problem, "x": 0.5 * problem - 1, "log_evidence": -1.5, "log_evidence_error": 1e-12,
        "log_evidence_std_error": 0.0, "method": "quadrature", "grade": "certified", "grade_reason": "",
        "truth_seconds": 0.01,
    }  # fmt: skip


def _write(
    store: Store,
    sources: tuple[int, int, int],
    lr: float,
    values: Sequence[tuple[int, int, float | None]],
    status: str = "done",
    reason: str = "",
    errors: dict[str, float] | None = None,
) -> str:
    model, guide, versions = sources
    names = score_columns()
    rows = []
    for problem, seed, value in values:
        scores: list[float | None] = [None] * len(names)
        for name, one in {"reverse_kl": value, **(errors or {})}.items():
            scores[names.index(name)] = one
        rows.append((problem, seed, "converged" if status == "done" else status, "", 100, *scores))
    seeds = sorted({seed for _, seed, _ in values})
    key = f"{sources}-{lr}"
    task = {
        "key": key, "model": model, "guide": guide, "versions": versions, "objective": "trace_elbo", "engine": "auto",
        "lr": lr, "num_steps": 100, "num_particles": "auto", "num_draws": 100, "first_seed": seeds[0],
        "block": len(seeds), "seeds": json.dumps(seeds), "num_fits": len(rows), "status": status, "reason": reason,
        "engine_used": "compiled", "engine_reason": "", "fit_seconds": 0.1 * len(rows), "score_seconds": 0.0,
        "notes": "{}",
    }  # fmt: skip
    store.write_task(task, names, rows)
    return key
