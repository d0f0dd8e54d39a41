"""What a fit is scored by once its steps are taken: for most families the guide itself.

For a Laplace approximation the steps only find the mode; the guide that is scored is then the Gaussian with the
curvature at the mode. `AutoLowRankMultivariateNormal` is scored as the same distribution, drawn from fewer
numbers of noise.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.nn.module import PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vi.guides.autoguides import drawn_by_latents
from ppl_vi.svi.program import Program, flat_parameters, load_parameters
from ppl_vi.target.target import Target

NO_MODE_MESSAGE = (
    "{name}: there is no Laplace approximation: where the search for a mode ended, the second derivatives of the log "
    "density in unconstrained space are not negative definite; take more steps, or another guide where the posterior "
    "has no mode, as centred hierarchies have none"
)


class NoModeError(ValueError):
    """A Laplace approximation was asked for at a point that is no mode; the message says what to do."""


def finish(program: Program, theta: Tensor) -> tuple[Program, dict[str, Tensor]]:
    """The model and guide by which fits are scored, and the parameters of that guide, `(B, R, *shape)` by name.

    Args:
        program: the model and guide that were fitted; the guide's own parameters may be overwritten.
        theta: the fitted parameters, `(B, R, D)`.

    Raises:
        NoModeError: a Laplace approximation was asked for, and a fit did not end at a mode.
    """
    target = program.target
    if not is_laplace(program.guide):
        scored = drawn_by_latents(program.guide)
        after = program if scored is program.guide else Program(target, scored)
        return after, program.layout.unflatten(theta)
    final: list[list[nn.Module]] = []
    for problem, row in enumerate(theta):
        final.append([])
        for parameters in row:
            load_parameters(program.guide, program.layout.unflatten(parameters))
            final[-1].append(finished(program.guide, target, problem))
    after = Program(target, final[0][0])
    stacked = torch.stack([torch.stack([flat_parameters(after.layout, guide) for guide in row]) for row in final])
    return after, after.layout.unflatten(stacked)


def finished(guide: nn.Module, target: Target, problem: int, *, at_mode: bool = True) -> nn.Module:
    """The guide whose density a fit stands for: a Laplace approximation where the family is that, else the guide.

    Pyro's `laplace_approximation` returns an `AutoMultivariateNormal` with frozen values; here they are its parameters
    again, so that the best member of that family can be found. Pyro's `scale_tril` is the Cholesky factor of a
    correlation, while the family's has ones on its diagonal: its rows are rescaled here, since the variances would be
    too large otherwise.

    Args:
        guide: any guide.
        target: the target that it was built for.
        problem: the problem that it was built for.
        at_mode: whether the guide's parameters are those of a mode. Otherwise the Gaussian's parameters are
            placeholders, to be filled in by the caller.

    Raises:
        NoModeError: the guide's point is no mode.
    """
    if not is_laplace(guide):
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
            setattr(normal, name, PyroParam(value.detach().clone(), constraint.get(name, constraints.real)))
        return normal


def is_laplace(guide: nn.Module) -> bool:
    """Whether the family is Pyro's `AutoLaplaceApproximation`, or one that offers the same method."""
    return hasattr(guide, "laplace_approximation")


def _approximation(guide: Any, target: Target, problem: int) -> nn.Module:
    try:
        return guide.laplace_approximation(*target.row(problem))
    except torch.linalg.LinAlgError as error:
        raise NoModeError(NO_MODE_MESSAGE.format(name=target.name)) from error
