"""TODO."""

from __future__ import annotations

from typing import Any

import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.nn.module import PyroParam
from torch import nn
from torch.distributions import constraints

from ppl_vi.target.target import Target

NO_MODE = (
    "{name}: there is no Laplace approximation: where the search for a mode ended, the second derivatives of the log "
    "density in unconstrained space are not negative definite; take more steps, or another guide where the posterior "
    "has no mode, as centred hierarchies have none"
)


class NoModeError(ValueError):
    """A Laplace approximation was asked for at a point that is no mode; the message says what to do."""


def finished(guide: nn.Module, target: Target, problem: int, *, at_mode: bool = True) -> nn.Module:
    """The guide whose density a fit stands for: a Laplace approximation is made once the mode has been found.

    Pyro's `laplace_approximation` returns an `AutoMultivariateNormal` with its values frozen; here they are its
    parameters again, so that the best member of that family can be found. Its `scale_tril` is a correlation's Cholesky
    factor, the family's has ones on its diagonal, so rows are rescaled: as they stand, the variances would grow.

    Args:
        guide: any guide.
        target: that it was built for.
        problem: likewise.
        at_mode: whether the guide is where a mode is; otherwise the parameters are to be filled in.

    Raises:
        NoModeError: the guide's point is no mode.
    """
    if not hasattr(guide, "laplace_approximation"):
        return guide
    with target.isolated(seed=0):
        normal: Any = _approximation(guide, target, problem) if at_mode else AutoMultivariateNormal(target.model)
        if not at_mode:
            normal(*target.row(problem))
        constraint = {"scale": normal.scale_constraint, "scale_tril": normal.scale_tril_constraint}
        diagonal = torch.diagonal(normal.scale_tril)
        values = {
            "loc": normal.loc,
            "scale": normal.scale * diagonal,
            "scale_tril": normal.scale_tril / diagonal[:, None],
        }
        for name, value in values.items():
            delattr(normal, name)
            setattr(normal, name, PyroParam(value.detach(), constraint.get(name, constraints.real)))
        return normal


def _approximation(guide: Any, target: Target, problem: int) -> nn.Module:
    try:
        return guide.laplace_approximation(*target.row(problem))
    except torch.linalg.LinAlgError as error:
        raise NoModeError(NO_MODE.format(name=target.name)) from error
