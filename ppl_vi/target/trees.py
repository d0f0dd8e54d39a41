"""Draws of a target's latents in the form that ArviZ reads, with the model's plates as dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyro.poutine as poutine

from ppl_vi.target.isolation import whole_plates
from ppl_vi.target.sites import Latents
from ppl_vi.target.target import Target

if TYPE_CHECKING:
    from xarray import DataTree

TAKEN = ("chain", "draw")  # dimensions that every variable has


def dimensions_of(target: Target) -> tuple[dict[str, list[str]], dict[str, np.ndarray]]:
    """For each latent site the names of its dimensions, and the coordinates of the plates, 0 to their size.

    A dimension that is a plate has the plate's name, with `_` appended where that is `chain` or `draw`. Any other is
    called `site_dim_0` and so on, as ArviZ does.
    """
    with target.isolated(seed=0), whole_plates():
        nodes = poutine.trace(target.model).get_trace(*target.row(0)).nodes
    dims: dict[str, list[str]] = {}
    coordinates: dict[str, np.ndarray] = {}
    for site in target.latents:
        node = nodes[site.name]
        own = [f"{site.name}_dim_{i}" for i in range(len(site.shape))]
        num_batch = len(site.shape) - node["fn"].event_dim
        for frame in node["cond_indep_stack"]:
            axis = None if frame.dim is None else num_batch + frame.dim
            if axis is None or not 0 <= axis < num_batch:
                continue
            name = f"{frame.name}_" if frame.name in TAKEN else frame.name
            size = site.shape[axis]
            if len(coordinates.setdefault(name, np.arange(size))) == size:
                own[axis] = name
        dims[site.name] = own
    return dims, coordinates


def posterior_tree(target: Target, latents: Latents, groups: dict[str, dict[str, Any]] | None = None) -> DataTree:
    """A `DataTree` with the group `posterior`, and other groups of numbers by chain and draw.

    Args:
        target: whose latents they are.
        latents: for each site `(chain, draw, *site.shape)`.
        groups: variables `(chain, draw)` by the names of groups.
    """
    from arviz_base import from_dict  # importing it takes a second

    dims, coordinates = dimensions_of(target)
    posterior = {name: value.detach().cpu().numpy() for name, value in latents.items()}
    return from_dict({"posterior": posterior, **(groups or {})}, dims=dims, coords=coordinates)
