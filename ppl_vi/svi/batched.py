"""The batched engine: one step of SVI for all problems and replicas at once, as one flat graph of tensor operations."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vi.svi.adam import adam
from ppl_vi.svi.graph import tidy
from ppl_vi.svi.objectives import Objective
from ppl_vi.svi.pure import Program
from ppl_vi.svi.stopping import surrogate

Step = Callable[..., tuple[Tensor, ...]]
_log = logging.getLogger(__name__)


def gradients(
    program: Program, objective: Objective, theta: Tensor, args: tuple[Tensor, ...], noise: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Gradient of the loss and the bound's estimate: `(B, R, D)` and `(B, R)`.

    Args:
        program: the pair.
        objective: what is estimated.
        theta: `(B, R, D)`.
        args: rows of data, `(B, ...)`.
        noise: for each draw `(B, R, P, *shape)`.
    """

    def loss(point: Tensor, row: tuple[Tensor, ...], draws: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return surrogate(program, objective, point, row, draws)

    return vmap(vmap(grad(loss, has_aux=True), in_dims=(0, None, 0)), in_dims=(0, 0, 0))(theta, args, noise)


def make_step(program: Program, objective: Objective, example: tuple[Tensor, ...]) -> Step:
    """The step `(theta, first, second, alive, unit, lr, t, total, weight, *args, *noise) -> the first three, total,
    alive and the bound`, traced to a flat graph, which runs about three times as fast as Pyro's handlers under `vmap`.

    A fit whose estimate, gradient or next point is not finite keeps its last point and is no longer `alive`. `total`
    sums the iterates with `weight`. Where tracing fails the same function runs untraced.
    """
    num_args = len(program.target.args)

    def step(
        theta: Tensor, first: Tensor, second: Tensor, alive: Tensor, unit: Tensor, lr: Tensor, t: Tensor, total: Tensor,
        weight: Tensor, *rest: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        gradient, bound = gradients(program, objective, theta, rest[:num_args], rest[num_args:])
        moved, new_first, new_second = adam(theta, first, second, gradient, unit, lr, t)
        fine = alive & bound.isfinite() & gradient.isfinite().all(-1) & moved.isfinite().all(-1)
        keep = fine[..., None]
        theta = torch.where(keep, moved, theta)
        return (
            theta, torch.where(keep, new_first, first), torch.where(keep, new_second, second), fine,
            total + weight * theta, bound,
        )  # fmt: skip

    try:
        return tidy(make_fx(step)(*example), example)
    except Exception as error:  # tracing may meet anything a guide does; the untraced step gives the same numbers
        _log.info("the step runs untraced: %s", error)
        return step
