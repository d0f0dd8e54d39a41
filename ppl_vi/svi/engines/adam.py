"""Adam as a pure function of tensors, with a preconditioner, diagonal or full."""

from __future__ import annotations

from typing import Any

from torch import Tensor

# The decay rates of the two moments, and what is added to the root of the second one so that nothing is divided by 0.
# beta2 is smaller than the usual 0.999, so that the second moment forgets within the hundred steps of a short round.
BETA1, BETA2, EPS = 0.9, 0.99, 1e-12
# The same along the axes of the curvature, where the gradient is the distance from the optimum: gradients smaller than
# this make smaller steps, so that fits do not wander along directions in which the loss is flat.
AXES_EPS = 1e-2


def step_schedule(lr: Any, step: Any) -> tuple[Any, Any]:
    """The two numbers by which a step of Adam depends on its place in a round, with the corrections for zero moments.

    Args:
        lr: the step size, a number or an array.
        step: `t`, the number of the step in its round, counted from 1; a number or an array.

    Returns:
        The rate `lr / (1 - beta1^t)` and the correction `1 / (1 - beta2^t)` of the second moment.
    """
    return lr / (1 - BETA1**step), 1 / (1 - BETA2**step)


def adam(
    theta: Tensor,
    first: Tensor,
    second: Tensor,
    gradient: Tensor,
    preconditioner: Tensor,
    rate: Tensor | float,
    correction: Tensor | float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of Adam in the coordinates `theta / preconditioner`, or `preconditioner^-1 theta` for a matrix.

    Adam moves every coordinate by about the step size, whatever the size of the gradient, so one step size serves all
    coordinates only where they are on one scale: a location known to 1e-4 and one known to 1e4 need different steps.

    Args:
        theta, first, second: the parameters and Adam's two moments, of any common shape.
        gradient: of the loss with respect to `theta`.
        preconditioner: how far each parameter moves in a step of size 1, or a matrix with one axis more, whose columns
            are how far a step of size 1 along each of these moves the parameters.
        rate, correction: the two numbers of `step_schedule`.

    Returns:
        The new `(theta, first, second)`.

    Source: Kingma and Ba (2015), Adam: a method for stochastic optimization.
    """
    is_matrix = preconditioner.dim() > theta.dim()
    scaled = (preconditioner.mT @ gradient[..., None])[..., 0] if is_matrix else gradient * preconditioner
    first = BETA1 * first + (1 - BETA1) * scaled
    second = BETA2 * second + (1 - BETA2) * scaled.square()
    step = first / ((correction * second).sqrt() + (AXES_EPS if is_matrix else EPS))
    moved = (preconditioner @ step[..., None])[..., 0] if is_matrix else preconditioner * step
    return theta - rate * moved, first, second
