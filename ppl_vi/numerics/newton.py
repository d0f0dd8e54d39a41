"""Newton's method for many small problems at once: the one deterministic optimiser of the project."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad_and_value, jacrev

from ppl_vi.numerics.vmapping import vmap_or_loop

# An eigenvalue below this share of the largest counts as this share: it is the rounding of the others, and a step for
# its sake would go anywhere.
FLAT = 1e-14
# Where the diagonal of a Hessian spans more than this, steps are found in units of its own. With a larger number, small
# eigenvalues are lost to FLAT, and Newton's method crawls along their axes.
MAX_RATIO = 1e10


@dataclass(frozen=True)
class Minimum:
    """What `minimize` found for each of `N` problems.

    Attributes:
        x: the points, `(N, D)`.
        value: the objective there, `(N,)`.
        gain: what a step of length one along each principal axis could still gain, to second order, `(N,)`.
        hessian: second derivatives there, `(N, D, D)`.
        converged: whether `gain` fell below the tolerance, `(N,)`.
        num_steps: iterations made.
    """

    x: Tensor
    value: Tensor
    gain: Tensor
    hessian: Tensor
    converged: Tensor
    num_steps: int


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues `(..., D)` and eigenvectors, as columns, of any symmetric matrices `(..., D, D)`.

    Each is first divided by a power of 2 near its largest number, since LAPACK fails where squares overflow. A matrix
    that is not finite, or that fails all the same, has its diagonal for eigenvalues, with 1 for what is not finite, and
    the axes for eigenvectors.
    """
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    size = matrix.abs().amax((-2, -1), keepdim=True)
    usable = size.isfinite() & (size > 0)
    size = torch.where(usable, size, 1.0).log2().floor().exp2()
    scaled = torch.where(usable, matrix / size, eye)
    try:
        values, vectors = torch.linalg.eigh(scaled)
    except torch.linalg.LinAlgError:
        found = [_eigen_of_one(one) for one in scaled.reshape(-1, *eye.shape)]
        values, vectors = (torch.stack(parts) for parts in zip(*found, strict=True))
        values, vectors = values.reshape(matrix.shape[:-1]), vectors.reshape(matrix.shape)
    diagonal = torch.diagonal(matrix, dim1=-2, dim2=-1)
    plain = torch.where(diagonal.isfinite(), diagonal, 1.0)
    return torch.where(usable[..., 0], values * size[..., 0], plain), vectors


def _eigen_of_one(matrix: Tensor) -> tuple[Tensor, Tensor]:
    try:
        return torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:
        return torch.diagonal(matrix), torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


def predicted_gain(
    gradient: Tensor,
    hessian: Tensor,
    radius: float = 1.0,
    slack: float = 0.0,
    unit: Tensor | None = None,
    principal: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """How much a quadratic model promises to fall within a box around the current point.

    With `H = Q diag(l) Q'` and `a = |Q'g|`, the sum over principal axes of `max_{0<=d<=radius} a d - l d^2/2`:
    `a^2 / 2l` where the minimum lies within the box, `a radius - l radius^2 / 2` where it doesn't. Well defined for
    flat and negatively curved directions, where Newton's decrement is not.

    Args:
        gradient: `(..., D)`, or `(..., S, D)` independent estimates of it if `slack` is given.
        hessian: `(..., D, D)`, symmetric.
        radius: half-width of the box.
        slack: how many standard errors of the mean of the estimates are added to `a`, axis by axis. If negative, they
            are taken off, to no less than 0, and negative curvature counts as positive: what noise in the Hessian may
            feign is not promised.
        unit: `(..., D)`, the length of a step of 1 in the parameters' own scales, if these are rescaled. The box is
            then at least `radius` wide in those scales as well, so that it reaches the end of a long valley whose
            units are small.
        principal: the eigenvalues and axes of the Hessian as `eigen` gives them, where they are known already.

    Returns:
        The gain, `(...)`; inf where the input is not finite.
    """
    estimates = gradient if slack else gradient[..., None, :]
    finite = estimates.isfinite().all(-1).all(-1) & hessian.isfinite().all(-1).all(-1)
    eigenvalues, axes = eigen(hessian) if principal is None else principal
    along = estimates @ axes
    slope = along.mean(-2).abs()
    if slack:
        slope = (slope + slack * along.std(-2) / along.shape[-2] ** 0.5).clamp(min=0)
    if slack < 0:
        eigenvalues = eigenvalues.abs()
    reach = torch.full_like(slope, radius)
    if unit is not None:
        own = torch.linalg.vector_norm(unit[..., :, None] * axes, dim=-2)
        reach = reach * torch.maximum(1 / own, torch.ones_like(own))
    inside = slope <= eigenvalues * reach
    newton = slope.square() / (2 * torch.where(inside & (slope > 0), eigenvalues, 1.0))
    edge = slope * reach - eigenvalues * reach.square() / 2
    gain = torch.where(inside, newton, edge).sum(-1)
    return torch.where(finite, gain, torch.full_like(gain, torch.inf))


def descent_step(gradient: Tensor, hessian: Tensor, radius: Tensor) -> Tensor:
    """A descent step of at most `radius`: Newton's with |eigenvalues| (Dauphin et al. 2014, saddle-free Newton)."""
    units = _units(hessian)
    eigenvalues, axes = eigen(units[..., :, None] * hessian * units[..., None, :])
    size = eigenvalues.abs()
    floor = FLAT * size.amax(-1, keepdim=True) + torch.finfo(hessian.dtype).tiny
    along = -(axes.mT @ (units * gradient)[..., None]).squeeze(-1) / torch.maximum(size, floor)
    step = units * (axes @ along[..., None]).squeeze(-1)
    length = torch.linalg.vector_norm(step, dim=-1, keepdim=True)
    return step * (radius[..., None] / length.clamp(min=torch.finfo(step.dtype).tiny)).clamp(max=1.0)


def _units(hessian: Tensor) -> Tensor:
    """In which units the coordinates are for the eigenvalues of a Hessian `(..., D, D)`, `(..., D)`.

    It is 1 for all, but |h|^(-1/2), with h on the diagonal, where these are so far apart that eigenvalues would lose
    the small ones to rounding. Flat coordinates keep 1.
    """
    size = torch.diagonal(hessian, dim1=-2, dim2=-1).abs()
    is_curved = size.isfinite() & (size > 0)
    least = torch.where(is_curved, size, torch.inf).amin(-1, keepdim=True)
    is_wide = least * MAX_RATIO < torch.where(is_curved, size, 0.0).amax(-1, keepdim=True)
    return torch.where(is_curved & is_wide, torch.where(is_curved, size, 1.0).rsqrt(), 1.0)


def minimize(
    objective: Callable[..., Tensor],
    start: Tensor,
    *,
    args: tuple[Tensor, ...] = (),
    tolerance: float = 1e-12,
    max_steps: int = 200,
    chunk_size: int | None = None,
) -> Minimum:
    """Minimises `objective(x, *args)` for `N` independent problems at once by Newton's method in a trust region.

    A step is kept where the objective falls by a tenth of what its quadratic model promised; the region then grows,
    else it shrinks by four. A problem is converged when `predicted_gain` is at most
    `tolerance + 8 eps |value|` (the second term is what rounding hides).

    Args:
        objective: a scalar function of one point `(D,)` and one row of each of `args`; twice differentiable.
        start: `(N, D)`.
        args: tensors with leading axis `N`.
        tolerance: the gain below which a problem counts as solved, in the unit of the objective.
        max_steps: iterations at most.
        chunk_size: how many rows of a Hessian are computed at once; fewer take less memory. None is all.

    Source: Nocedal and Wright (2006), Numerical Optimization, chapter 4.
    """

    def slope(point: Tensor, *row: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        gradient, value = grad_and_value(objective)(point, *row)
        return gradient, (value, gradient)

    def derivatives(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hessian, (value, gradient) = vmap_or_loop(jacrev(slope, has_aux=True, chunk_size=chunk_size))(x, *args)
        return value, gradient, (hessian + hessian.mT) / 2

    return minimize_by(derivatives, start, tolerance=tolerance, max_steps=max_steps)


def by_differences(
    slopes: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor, step: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Values `(N,)`, gradients `(N, D)` and Hessians `(N, D, D)` at points `x` `(N, D)`, these by central differences.

    Args:
        slopes: from points `(N, S, D)` to values `(N, S)` and gradients `(N, S, D)`.
        x: the points.
        step: how far each coordinate is moved to either side, `(N, D)`.
    """
    dim, shift = x.shape[-1], torch.diag_embed(step)
    value, gradient = slopes(torch.cat([x[:, None], x[:, None] + shift, x[:, None] - shift], 1))
    up, down = gradient[:, 1 : dim + 1], gradient[:, dim + 1 :]
    hessian = (up - down) / (2 * step[..., None])
    return value[:, 0], gradient[:, 0], (hessian + hessian.mT) / 2


def minimize_by(
    derivatives: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    start: Tensor,
    *,
    tolerance: float = 1e-12,
    max_steps: int = 200,
) -> Minimum:
    """The same as `minimize`, for objectives whose derivatives somebody else computes.

    Args:
        derivatives: from points `(N, D)` to values `(N,)`, gradients `(N, D)` and symmetric Hessians `(N, D, D)`.
        start, tolerance, max_steps: see `minimize`.
    """
    x = start.detach().clone()
    value, gradient, hessian = derivatives(x)
    if not bool(value.isfinite().all()):
        worst = int((~value.isfinite()).nonzero()[0])
        raise ValueError(f"the objective must be finite at the start; problem {worst} gives {float(value[worst])}")
    radius = torch.ones_like(value)
    eps = torch.finfo(x.dtype).eps
    num_steps = 0
    for step_number in range(max_steps):
        num_steps = step_number
        gain = predicted_gain(gradient, hessian)
        done = gain <= tolerance + 8 * eps * value.abs()
        if bool(done.all()):
            break
        step = descent_step(gradient, hessian, radius)
        if not bool((~done & (step.abs() > eps * (1 + x.abs())).any(-1)).any()):
            break  # the slope is zero, as by symmetry, and no step leads down
        promised = -(step * gradient).sum(-1) - (step * (hessian @ step[..., None]).squeeze(-1)).sum(-1) / 2
        trial_value, trial_gradient, trial_hessian = derivatives(x + step)
        usable = trial_value.isfinite() & trial_gradient.isfinite().all(-1) & trial_hessian.isfinite().all(-1).all(-1)
        noise = 4 * eps * value.abs()
        better = usable & (value - trial_value + noise >= 0.1 * promised.clamp(min=0)) & ~done
        length = torch.linalg.vector_norm(step, dim=-1)
        radius = torch.where(better, torch.maximum(radius, 2 * length), torch.where(done, radius, length / 4))
        x = torch.where(better[:, None], x + step, x)
        value = torch.where(better, trial_value, value)
        gradient = torch.where(better[:, None], trial_gradient, gradient)
        hessian = torch.where(better[:, None, None], trial_hessian, hessian)
    gain = predicted_gain(gradient, hessian)
    return Minimum(x, value, gain, hessian, gain <= tolerance + 8 * eps * value.abs(), num_steps)
