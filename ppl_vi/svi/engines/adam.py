"""Adam as a pure update, in units of each parameter's own curvature."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

BETA1, BETA2, EPS = 0.9, 0.99, 1e-12


def step_schedule(lr: Any, step: Any) -> tuple[Any, Any]:
    """What a step takes from its place in the run, numbers or arrays: `lr / (1 - beta1^t)` and `1 / (1 - beta2^t)`."""
    return lr / (1 - BETA1**step), 1 / (1 - BETA2**step)


def adam(
    theta: Tensor,
    first: Tensor,
    second: Tensor,
    gradient: Tensor,
    unit: Tensor,
    rate: Tensor | float,
    correction: Tensor | float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of Adam (Kingma and Ba 2015) in the coordinates `theta / unit`.

    Adam moves every coordinate by about the step size, whatever the gradient's size, so the step is only as good as the
    coordinates: a location known to 1e-4 and one known to 1e4 need different ones. Nothing else depends on `unit`.

    Args:
        theta, first, second: parameters and moments, any common shape.
        gradient: of the loss in `theta`.
        unit: size of a step of 1.
        rate, correction: the step's `step_schedule`.

    Returns:
        The new `(theta, first, second)`.
    """
    scaled = gradient * unit
    first = BETA1 * first + (1 - BETA1) * scaled
    second = BETA2 * second + (1 - BETA2) * scaled.square()
    return theta - rate * unit * first / ((correction * second).sqrt() + EPS), first, second


class UnitAdam(torch.optim.Optimizer):
    """The same update as a torch optimiser, for Pyro's own `SVI`.

    Args:
        params: parameters.
        lr: step size, in units.
        units: the unit of each parameter.
    """

    def __init__(self, params: Iterable[Any], lr: float, units: dict[Tensor, Tensor]) -> None:
        super().__init__(params, {"lr": lr})
        self._units = units

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(step=0, first=torch.zeros_like(p), second=torch.zeros_like(p))
                state["step"] += 1
                new = adam(
                    p,
                    state["first"],
                    state["second"],
                    p.grad,
                    self._units[p],
                    *step_schedule(group["lr"], state["step"]),
                )
                p.copy_(new[0])
                state["first"], state["second"] = new[1], new[2]
