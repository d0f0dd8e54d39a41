"""Values, gradients and Hessians of one function at many points, for Newton's method."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad_and_value, jacrev

from ppl_vi.numerics.vmapping import vmap_or_loop

# The largest temporary of all rows of the Hessians that are computed together has at most so many numbers, 64 MiB in
# double precision.
MAX_NUMBERS = 2**23

Derivatives = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def derivatives_of(function: Callable[..., Tensor], args: tuple[Tensor, ...], width: int) -> Derivatives:
    """Values `(N,)`, gradients `(N, P)` and Hessians `(N, P, P)` of `function(x, *args)` at points `(N, P)`.

    Args:
        function: of one point `(P,)` and one row of each of `args`, twice differentiable.
        args: tensors with leading axis `N`.
        width: how many numbers the largest temporary of the function has.
    """

    def slope(point: Tensor, *row: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        gradient, value = grad_and_value(function)(point, *row)
        return gradient, (value, gradient)

    def derivatives(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = max(1, MAX_NUMBERS // max(1, width * len(x)))
        of_each = vmap_or_loop(jacrev(slope, has_aux=True, chunk_size=None if rows >= x.shape[-1] else rows))
        with torch.no_grad():
            hessian, (value, gradient) = of_each(x, *args)
        return value, gradient, (hessian + hessian.mT) / 2

    return derivatives
