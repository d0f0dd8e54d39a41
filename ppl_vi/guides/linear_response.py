"""The family of mean-field normals whose covariance is corrected by linear response."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.infer.autoguide import AutoMultivariateNormal, init_to_feasible


def linear_response(model: Callable[..., Any], init_loc_fn: Callable[..., Any] = init_to_feasible) -> Any:
    """AutoNormal's means with linear-response covariances, a normal with full covariance in unconstrained space.

    How it is fitted stands in `ppl_vi.svi.optimisers.linear_response`.
    """
    return AutoMultivariateNormal(model, init_loc_fn=init_loc_fn)
