"""Values, gradients and Hessians of one function at many points, for Newton's method."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy import optimize
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor
from torch.func import grad, grad_and_value, jacrev, vjp

from ppl_vi.numerics.vmapping import vmap_or_loop

# The largest temporary of all rows of the Hessians that are computed together has at most so many numbers, 64 MiB in
# double precision.
MAX_NUMBERS = 2**23
# A search by products ends where the slope, a vector of numbers of about unit scale, is no longer than this: to second
# order, half its square is left to gain.
SLOPE_TOLERANCE = 1e-7
# The share of the slope that conjugate gradients may leave when they solve for what is left to gain.
SOLVE_TOLERANCE = 1e-3
REJECTED_VALUE = 1e100  # given to a search where the function is not finite, so that it turns back

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
        points = max(1, MAX_NUMBERS // max(1, width))
        rows = max(1, points // len(x))
        hessian_of = jacrev(slope, has_aux=True, chunk_size=None if rows >= x.shape[-1] else rows)
        of_each = vmap_or_loop(hessian_of, chunk_size=None if points >= len(x) else points)
        with torch.no_grad():
            hessian, (value, gradient) = of_each(x, *args)
        return value, gradient, (hessian + hessian.mT) / 2

    return derivatives


def minimized_by_products(
    function: Callable[..., Tensor],
    start: Tensor,
    args: tuple[Tensor, ...],
    tolerance: float,
    max_steps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Minimises `function(x, *args)` for `N` problems by Newton's method with products of the Hessian alone.

    SciPy's `trust-ncg`: in a trust region, the Newton step is sought by conjugate gradients (Steihaug 1983).

    Args:
        function, args: as of `derivatives_of`.
        start: `(N, P)`.
        tolerance: what may be left to gain where a problem counts as solved, beside what rounding hides.
        max_steps: iterations at most.

    Returns:
        The points `(N, P)`, the lowest value so far after each iteration `(T, N)`, what is left to gain and whether
        that is within the tolerance, `(N,)` each.
    """
    found = [_one_by_products(function, x, row, max_steps) for x, *row in zip(start, *args, strict=True)]
    gain = torch.stack([start.new_tensor(one[2]) for one in found])
    longest = max(len(one[1]) for one in found)
    values = torch.stack([start.new_tensor(one[1] + [one[1][-1]] * (longest - len(one[1]))) for one in found], 1)
    rounding = 8 * torch.finfo(start.dtype).eps * values[-1].abs()
    return torch.stack([one[0] for one in found]), values, gain, gain <= tolerance + rounding


def _one_by_products(
    function: Callable[..., Tensor], start: Tensor, row: list[Tensor], max_steps: int
) -> tuple[Tensor, list[float], float]:
    """The minimum of one problem, the values on the way, and what is left to gain."""

    def tensor(x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(x)).to(start)

    def slope(x: np.ndarray) -> tuple[float, np.ndarray]:
        gradient, value = grad_and_value(function)(tensor(x), *row)
        if not (bool(value.isfinite()) and bool(gradient.isfinite().all())):
            return REJECTED_VALUE, np.zeros_like(x)
        return float(value), gradient.cpu().double().numpy()

    def product(x: np.ndarray, vector: np.ndarray) -> np.ndarray:
        pull = vjp(lambda at: grad(function)(at, *row), tensor(x))[1]
        return np.asarray(pull(tensor(vector))[0].cpu().double().numpy())

    begin = start.cpu().double().numpy()
    values = [slope(begin)[0]]
    found = optimize.minimize(
        slope,
        begin,
        jac=True,
        hessp=product,
        method="trust-ncg",
        options={"gtol": SLOPE_TOLERANCE, "maxiter": max_steps},
        callback=lambda x: values.append(slope(x)[0]),
    )
    values.append(float(found.fun))
    gradient, size = slope(found.x)[1], len(begin)
    hessian = LinearOperator((size, size), matvec=lambda vector: product(found.x, vector), dtype=np.float64)
    step, failed = cg(hessian, gradient, rtol=SOLVE_TOLERANCE, maxiter=10 * size)
    gain = float(gradient @ step) / 2
    return tensor(found.x), values, gain if not failed and gain >= 0 else np.inf
