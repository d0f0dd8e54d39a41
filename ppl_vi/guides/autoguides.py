"""Pyro's autoguides by name: those built from a model alone that have a density, and why the others are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.infer import autoguide

ACCEPTED: dict[str, str] = {
    "AutoNormal": "independent normals in unconstrained space",
    "AutoDiagonalNormal": "independent normals in unconstrained space, one vector",
    "AutoMultivariateNormal": "a normal with full covariance in unconstrained space",
    "AutoLowRankMultivariateNormal": "a normal with low-rank-plus-diagonal covariance in unconstrained space",
    "AutoIAFNormal": "one inverse autoregressive flow in unconstrained space",
    "AutoGaussian": "a normal whose precision follows the model's structure, in unconstrained space",
    "AutoStructured": "normals with linear dependencies in unconstrained space",
    "AutoNormalMessenger": "independent normals in unconstrained space, as an effect handler",
    "AutoHierarchicalNormalMessenger": "normals that follow the prior's parameters, as an effect handler",
    "AutoRegressiveMessenger": "the prior, shifted and scaled in unconstrained space, as an effect handler",
}

REFUSED: dict[str, str] = {
    "AutoDelta": "a point mass has no density, so no KL to the posterior",
    "AutoDiscreteParallel": "for discrete latents, summed out in parallel",
    "AutoCallable": "wraps a guide function: name that function instead",
    "AutoContinuous": "abstract",
    "AutoGuide": "abstract",
    "AutoMessenger": "abstract",
    "AutoNormalizingFlow": "needs an init_transform_fn: wrap it in a function of the model",
    "AutoGuideList": "a composite: build it in a function of the model",
}


def laplace(model: Callable[..., Any], init_loc_fn: Callable[..., Any] = autoguide.init_to_feasible) -> Any:
    """A normal at the mode in unconstrained space with the curvature there: `AutoLaplaceApproximation`."""
    return autoguide.AutoLaplaceApproximation(model, init_loc_fn=init_loc_fn)


AUTOGUIDES: dict[str, Callable[..., Any]] = {name: getattr(autoguide, name) for name in ACCEPTED}
