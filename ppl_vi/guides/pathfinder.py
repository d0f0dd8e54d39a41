"""The family of normals that Pathfinder chooses from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.infer.autoguide import AutoMultivariateNormal, init_to_feasible


def pathfinder(model: Callable[..., Any], init_loc_fn: Callable[..., Any] = init_to_feasible) -> Any:
    """The best of the normals along a path of L-BFGS to the mode (Pathfinder), in unconstrained space.

    How it is fitted stands in `ppl_vi.svi.optimisers.pathfinder`.
    """
    return AutoMultivariateNormal(model, init_loc_fn=init_loc_fn)
