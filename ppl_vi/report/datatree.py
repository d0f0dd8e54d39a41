"""A comparison in the form that ArviZ reads: xarray's `DataTree`, with one child for each fitted guide.

See `ModelComparison.to_datatree` for the groups of each child. Chains are the replicas of a fit; the truth, which has
none, gets as many chains of independent draws.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ppl_vi.comparison.comparison import Comparison, Entry
from ppl_vi.metrics.sampled.importance import log_densities
from ppl_vi.runtime.provenance import versions
from ppl_vi.svi.result import Fit

if TYPE_CHECKING:
    from xarray import DataTree

TRUTH = "truth"  # the child that holds draws of the truth, with "_" appended where a guide has that name


def of_comparison(comparison: Comparison, num_draws: int, seed: int) -> DataTree:
    """The fitted guides of a comparison, and its truth where the truth has points to draw from."""
    from xarray import DataTree  # importing it takes a second

    children = {
        entry.guide: of_fit(entry.card.fit, entry, num_draws, seed)
        for entry in comparison.entries
        if entry.card is not None
    }
    if comparison.truth.points:
        children[_free(TRUTH, children)] = of_truth(comparison, num_draws, seed)
    root = DataTree(children=children)
    root.attrs.update(_attrs(comparison))
    return root


def of_fit(fit: Fit, entry: Entry, num_draws: int, seed: int) -> DataTree:
    """Draws, log densities and loss history of one guide's replicas, for the first problem."""
    from arviz_base import from_dict

    latents = fit.draw(num_draws, seed)
    log_joint, log_guide = log_densities(fit, latents)
    record = entry.records[0]
    groups = {
        "posterior": {name: value[0].cpu().numpy() for name, value in latents.items()},
        "sample_stats": {"lp": log_joint[0], "log_q": log_guide[0]},
    }
    tree = from_dict(groups, attrs={"posterior": _fit_attrs(fit, record)})
    tree["loss_history"] = _loss_history(fit)
    tree.attrs.update(_fit_attrs(fit, record))
    return tree


def _loss_history(fit: Fit) -> Any:
    from xarray import DataArray, Dataset, DataTree

    loss = DataArray(-fit.elbo_history[:, 0].T, dims=("chain", "step"), name="loss")
    return DataTree(Dataset({"loss": loss}))


def of_truth(comparison: Comparison, num_draws: int, seed: int) -> DataTree:
    """Draws from the truth's weighted points, with replacement.

    There are as many chains as replicas of a fit, so that ArviZ can draw them beside each other.
    """
    from arviz_base import from_dict

    points, target = comparison.truth.points[0], comparison.target
    weight = points.log_weight[0].exp().cpu().numpy()
    chosen = np.random.default_rng(seed).choice(
        len(weight), (comparison.settings.num_replicas, num_draws), p=weight / weight.sum()
    )
    u = points.u[0].cpu()[torch.from_numpy(chosen)]
    latents, _ = target.constrain(u.to(target.device))
    tree = from_dict({"posterior": {name: value.cpu().numpy() for name, value in latents.items()}})
    tree.attrs.update(_truth_attrs(comparison))
    return tree


def _free(name: str, taken: dict[str, Any]) -> str:
    while name in taken:
        name += "_"
    return name


def _attrs(comparison: Comparison) -> dict[str, Any]:
    """The settings, the truth, the versions and the records: what is needed to cite or repeat the run."""
    settings = {name: value for name, value in vars(comparison.settings).items() if value is not None}
    return {
        "model": comparison.target.name,
        **settings,
        **_truth_attrs(comparison),
        "versions": json.dumps(versions()),
        "records": json.dumps(comparison.records(), allow_nan=False),
    }


def _truth_attrs(comparison: Comparison) -> dict[str, Any]:
    truth = comparison.truth
    return {
        "log_evidence": float(truth.log_evidence[0]),
        "log_evidence_error": float(truth.log_evidence_error[0]),
        "log_evidence_std_error": float(truth.log_evidence_std_error[0]),
        "truth_method": truth.method,
        "truth_grade": truth.grade,
        "truth_assumptions": "; ".join(truth.assumptions),
    }


def _fit_attrs(fit: Fit, record: dict[str, Any]) -> dict[str, Any]:
    from ppl_vi._version import __version__

    return {
        "inference_library": "ppl_vi",
        "inference_library_version": __version__,
        "model": fit.target.name,
        "guide": record["guide"],
        "family": fit.family_name,
        "objective": fit.objective,
        "engine": fit.engine,
        "seed": fit.seed,
        "num_particles": fit.num_particles,
        "lr": fit.lr,
        "num_steps": int(fit.num_steps.max()),
        "sampling_time": fit.seconds,
        "status": record["status"],
        "reverse_kl": str(record["reverse_kl"]),
        "versions": json.dumps(fit.versions),
    }
