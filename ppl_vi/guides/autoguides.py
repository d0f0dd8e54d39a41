"""Pyro's autoguides by name: those built from a model alone that have a density, and why the others are refused."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from types import MethodType
from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer import autoguide
from torch import nn

from ppl_vi.runtime.names import ACCEPTED, REFUSED


def laplace(model: Callable[..., Any], init_loc_fn: Callable[..., Any] = autoguide.init_to_feasible) -> Any:
    """A normal at the mode in unconstrained space with the curvature there: `AutoLaplaceApproximation`."""
    return autoguide.AutoLaplaceApproximation(model, init_loc_fn=init_loc_fn)


def drawn_by_latents(guide: nn.Module) -> nn.Module:
    """A guide of the same density that draws no more numbers than there are latents.

    Only `AutoLowRankMultivariateNormal` draws more, `rank` numbers beside those of the latents: of it this is a shallow
    copy, of any other guide the guide itself. Each additional number is one more dimension of the quadrature over the
    noise, which is exact to rounding in up to three dimensions, and lets two members of the same density differ by the
    quadrature's errors.
    """
    if getattr(type(guide), "get_posterior", None) is not autoguide.AutoLowRankMultivariateNormal.get_posterior:
        return guide
    copied: Any = copy(guide)
    copied.get_posterior = MethodType(_by_one_factor, copied)
    return copied


def _by_one_factor(guide: Any, *args: Any, **kwargs: Any) -> dist.MultivariateNormal:
    """N(loc, D + W W') by the Cholesky factor R' of its covariance.

    R is the upper triangle of the QR decomposition of D^(1/2) stacked above W', so that R'R = D + W W'.
    """
    roots = torch.cat([torch.diag_embed(guide.scale), (guide.cov_factor * guide.scale[:, None]).mT])
    upper = torch.linalg.qr(roots).R
    upper = upper * torch.diagonal(upper).sign()[:, None]
    return dist.MultivariateNormal(guide.loc, scale_tril=upper.mT)


AUTOGUIDES: dict[str, Callable[..., Any]] = {name: getattr(autoguide, name) for name in ACCEPTED}

__all__ = ["ACCEPTED", "AUTOGUIDES", "REFUSED", "drawn_by_latents", "laplace"]
