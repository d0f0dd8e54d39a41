"""A fit in the form that ArviZ reads: draws of the guide, their log densities, and the loss at every step."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from ppl_vi._version import __version__
from ppl_vi.target.evaluation import log_joint
from ppl_vi.target.sites import Latents
from ppl_vi.target.trees import posterior_tree

if TYPE_CHECKING:
    from xarray import DataTree

    from ppl_vi.svi.result import Fit


def tree_of(fit: Fit, num_draws: int, seed: int, problem: int) -> DataTree:
    """Draws, log densities and loss history of a fit's replicas, one chain for each; see `Fit.to_datatree`."""
    from xarray import DataArray, Dataset, DataTree

    latents, log_q = fit.draw_with_log_prob(num_draws, seed)
    own = {name: value[problem] for name, value in latents.items()}
    stats = {"lp": log_joint_inside(fit, latents)[problem], "log_q": log_q[problem].cpu().numpy()}
    tree = posterior_tree(fit.target, own, {"sample_stats": stats})
    loss = DataArray(-fit.elbo_history[:, problem].T, dims=("chain", "step"), name="loss")
    tree["loss_history"] = DataTree(Dataset({"loss": loss}))
    attributes = attributes_of(fit)
    tree["posterior"].attrs.update(attributes)
    tree.attrs.update(attributes)
    return tree


def log_joint_inside(fit: Fit, latents: Latents) -> np.ndarray:
    """log p(x, z) at latents `(B, R, N, *site.shape)`, nats, `(B, R, N)`; -inf outside the model's support."""
    inside = fit.target.inside(latents).cpu().numpy()
    flat = {name: value.flatten(1, 2) for name, value in latents.items()}
    return np.where(inside, log_joint(fit.target, flat).cpu().numpy().reshape(inside.shape), -np.inf)


def attributes_of(fit: Fit) -> dict[str, Any]:
    """How it was fitted, in values that files of ArviZ can hold."""
    return {
        "inference_library": "ppl_vi",
        "inference_library_version": __version__,
        "model": fit.target.name,
        "family": fit.family_name,
        "objective": fit.objective,
        "engine": fit.engine,
        "seed": fit.seed,
        "num_particles": fit.num_particles,
        "lr": fit.lr,
        "num_steps": int(fit.num_steps.max()),
        "sampling_time": fit.seconds,
        "versions": json.dumps(fit.versions),
    }
