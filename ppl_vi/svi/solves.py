"""What a fit of many parameters could still gain, from products with the Hessian instead of the Hessian itself.

To second order a fit could gain half of `g' H^-1 g`, where g is the mean of the gradient and H the Hessian. Estimates
of g are noisy, and the noise of thousands of parameters adds up to more than there is to gain. Therefore the scrambles
are divided into two halves with the mean gradients a and b, whose noise is independent:

    a' x / 2,  where  (H + c) x = b,

has no bias from noise, and its standard error follows from the spread of the gradients over the scrambles of each half.
The equations are solved by conjugate gradients, in coordinates along which the loss is about equally curved. What the
iterations have not yet found is estimated by their last increments and added. The small constant c bounds what is
promised along flat directions: within a distance of 1 in these coordinates, a fit can gain at most c / 2 more.

Sources: Hestenes and Stiefel (1952), Methods of conjugate gradients for solving linear systems; Strakos and Tichy
(2002), On error estimation in the conjugate gradient method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor

from ppl_vi.svi.gradients import NUM_SCRAMBLES, MeanGradients, Noise
from ppl_vi.svi.randomness import pseudo_random

# Single draws from whose gradients the coordinates are taken. With more they fit better.
NUM_SINGLE_DRAWS = 64
# Iterations at most. Each costs two products for each fit.
MAX_ITERATIONS = 32
# The iterations end once this many of them together have added no more than this share of what they have found. Fewer
# would end them before they have come to the directions of least curvature, along which there is often most to gain.
NUM_LAST, LAST_SHARE = 12, 0.05
# How far the differences that give a product move the parameters, as a distance in the coordinates.
DISTANCE = 0.2
# The constant c. A larger one would hide what there is to gain along directions of little curvature.
FLAT = 1e-5

Product = Callable[[Tensor], Tensor]


def num_gradients(num_points: int, num_hessian_points: int) -> int:
    """How many gradients of single draws the bounds of one fit take at most; see `most_gain`."""
    return NUM_SINGLE_DRAWS + NUM_SCRAMBLES * num_points + 4 * num_hessian_points * MAX_ITERATIONS


def most_gain(
    estimator: MeanGradients,
    theta: Tensor,
    num_points: int,
    num_hessian_points: int,
    seed: int,
    error_rate: float,
) -> Tensor:
    """The most that each fit could still gain near `theta`, nats, `(B, R)`; see the module's docstring.

    It is inf where a gradient is not finite, where the loss is curved downwards along a direction that was met, and
    where the equations are not solved within `MAX_ITERATIONS`. With few points the estimated Hessian's inverse is too
    large on average, and the bound with it.

    Args:
        estimator: gives gradients.
        theta: the parameters, `(B, R, D)`.
        num_points: Sobol points a scramble, for the gradients.
        num_hessian_points: points for products with the Hessian.
        seed: of the noise.
        error_rate: how often the bound may be wrong.
    """
    gradients = estimator.gradients(theta, estimator.noise(num_points, seed))
    noise = estimator.halves(num_hessian_points, seed + 1)
    units = _units(estimator, theta, seed + 2)
    along = gradients * units[:, :, None]
    parts = along.chunk(2, 2) if noise else (along, along)  # where nothing is random, the gradient has no error
    curvature = _product_in(units, estimator, theta, noise)
    right = torch.stack([part.mean(2) for part in parts], 2)  # (B, R, 2, D)
    solved = solve(lambda vectors: curvature(vectors) + FLAT * vectors, right)
    gains = [part @ x[..., None] for part, x in zip(parts, solved.x.flip(2).unbind(2), strict=True)]
    most = sum(gain.mean(2)[..., 0] for gain in gains) / 4 + solved.left.mean(2) / 2 + FLAT / 2
    if noise:
        variance = sum(gain.var(2)[..., 0] / gain.shape[2] for gain in gains) / 4
        most = most + float(stdtrit(NUM_SCRAMBLES - 2, 1 - error_rate)) * variance**0.5
    usable = solved.is_solved.all(2) & along.isfinite().flatten(2).all(2)
    return torch.where(usable & most.isfinite(), most, torch.inf)


def _units(estimator: MeanGradients, theta: Tensor, seed: int) -> Tensor:
    """Lengths along which the loss is about equally curved, `(B, R, D)`: at most a parameter's own size, or 1.

    A parameter's is the standard deviation of its gradient to the power -1, over single draws, since the variance of a
    gradient goes along with the curvature.
    """
    widest = theta.abs().clamp(min=1.0)
    if not estimator.program.draws:  # nothing is random
        return widest
    noise = estimator.noise(1, seed)
    if estimator.objective.additive:
        generator = torch.Generator(theta.device).manual_seed(seed)
        noise = pseudo_random(estimator.program.draws, (NUM_SINGLE_DRAWS, 1, 1), generator)
    variance = estimator.gradients(theta, noise).var(2)
    return torch.where(variance.isfinite(), variance, 0.0).maximum(widest**-2).rsqrt()


def _differences(estimator: MeanGradients, theta: Tensor, noise: Noise, steps: Tensor) -> Tensor:
    """Half the differences of the gradient between `theta + step` and `theta - step`, `(B, R, K, D)` as the steps."""
    batch, replicas, num, dim = steps.shape
    moved = torch.cat([theta[:, :, None] + steps, theta[:, :, None] - steps], 2).reshape(batch, -1, dim)
    up, down = estimator.gradients(moved, noise).mean(2).reshape(batch, replicas, 2, num, dim).unbind(2)
    return (up - down) / 2


def _product_in(units: Tensor, estimator: MeanGradients, theta: Tensor, noise: Noise) -> Product:
    """Products of vectors `(B, R, K, D)` with the Hessian at `theta`, both in the units `(B, R, D)`."""

    def product(vectors: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
        share = DISTANCE / torch.where(length > 0, length, 1.0)
        steps = vectors * share * units[:, :, None]
        return _differences(estimator, theta, noise, steps) * units[:, :, None] / share

    return product


@dataclass(frozen=True)
class Solved:
    """Solutions of `A x = b`, one for each right-hand side `(..., D)`.

    Attributes:
        x: the solutions.
        left: an estimate of what `b' x` still lacks, `(...)`.
        is_solved: whether that is little, and no direction with `p' A p <= 0` was met, `(...)`.
    """

    x: Tensor
    left: Tensor
    is_solved: Tensor


def solve(product: Product, right: Tensor) -> Solved:
    """Solves `A x = b` by conjugate gradients, for all right-hand sides `(..., D)` at once.

    Each ends once its last increments of `b' x` are small beside what they have added up to.

    Args:
        product: products of vectors `(..., D)` with the matrices, which are symmetric.
        right: the right-hand sides.
    """
    x, rest, direction = torch.zeros_like(right), right, right
    square = right.square().sum(-1)
    increments: list[Tensor] = []
    is_convex = torch.ones_like(square, dtype=torch.bool)
    for _ in range(MAX_ITERATIONS):
        mapped = product(direction)
        curvature = (direction * mapped).sum(-1)
        is_convex &= (curvature > 0) | (square == 0)
        usable = is_convex & (square > 0)
        size = torch.where(usable, square / torch.where(usable, curvature, 1.0), 0.0)
        x, rest = x + size[..., None] * direction, rest - size[..., None] * mapped
        increments.append(size * square)
        if bool((_is_little(increments) | ~is_convex).all()):
            break
        before, square = square, rest.square().sum(-1)
        share = torch.where(before > 0, square / torch.where(before > 0, before, 1.0), 0.0)
        direction = rest + share[..., None] * direction
    return Solved(x, torch.stack(increments[-NUM_LAST:]).sum(0), is_convex & _is_little(increments))


def _is_little(increments: list[Tensor]) -> Tensor:
    """Whether the last increments are little beside all of them, `(...)`."""
    last, total = torch.stack(increments[-NUM_LAST:]).sum(0), torch.stack(increments).sum(0)
    return (last <= LAST_SHARE * total) & (len(increments) >= NUM_LAST) | (total == 0)
