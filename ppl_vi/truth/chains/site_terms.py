"""Gaussian site terms: what a model says of a latent beside the latent's prior, and how it is fitted to draws.

A term stands for a factor exp(-sum_k w_k (z - c_k)^2 / 2) of the density, for each element of a latent z. Its
precisions follow the scales sigma_f that were drawn before,

    w_k = exp(r_k) prod_f sigma_f^p_kf >= 0,

since data y ~ Normal(z, sigma) have the precision 1 / sigma^2. If the prior is Normal(a, b^2), the product of both is
normal with

    1 / s^2 = 1 / b^2 + sum_k w_k,    m = a + s^2 sum_k w_k (c_k - a).

Source: Hyvärinen (2005), Estimation of non-normalized statistical models by score matching; Marquardt (1963), An
algorithm for least-squares estimation of nonlinear parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# The largest power, of either sign, of a scale in a precision. Data have the power -2; with larger powers precisions
# overflow far out.
MAX_POWER = 3.0
# Marquardt's method takes NUM_MARQUARDT_STEPS steps, which is enough for its sum of squares to settle. The damping
# starts at FIRST_DAMPING. After a step that reduced the sum of squares it is divided by DAMPING_FACTOR, else multiplied
# by it.
NUM_MARQUARDT_STEPS = 20
FIRST_DAMPING = 1e-2
DAMPING_FACTOR = 4.0


@dataclass(frozen=True, eq=False)
class GaussianSiteTerm:
    """What the model says of a latent beside its prior, as a sum of `K` terms -w_k (z - c_k)^2 / 2, nats.

    Attributes:
        center: c_k of each element, `(*shape, K)`.
        precision: w_k where all scales that were drawn before are 1, `(*shape, K)`.
        powers: p_kf of these `F` scales in w_k, `(*shape, K, F)`.
    """

    center: Tensor
    precision: Tensor
    powers: Tensor

    @staticmethod
    def zero(like: Tensor, num_scales: int) -> GaussianSiteTerm:
        """The term of precision 0 for a latent like that; K = 2 where there are scales, else K = 1."""
        nothing = like.new_zeros(*like.shape, 2 if num_scales else 1)
        return GaussianSiteTerm(nothing, nothing, like.new_zeros(*nothing.shape, num_scales))

    @property
    def numbers(self) -> tuple[Tensor, ...]:
        """The tensors that define the term, without empty ones."""
        return (self.center, self.precision, self.powers) if self.powers.numel() else (self.center, self.precision)

    def with_numbers(self, numbers: Iterable[Tensor]) -> GaussianSiteTerm:
        """The term of the same shapes that is defined by other tensors."""
        return replace(self, **dict(zip(("center", "precision", "powers"), numbers, strict=False)))

    def conditional(self, loc: Tensor, scale: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
        """Mean m and standard deviation s of the normal density that is prior times term.

        Args:
            loc: a, of the latent's shape.
            scale: b, of the latent's shape.
            log_scales: log sigma_f of the scales drawn before, `(F,)`.
        """
        w = self.precision * (self.powers * log_scales).sum(-1).exp() if len(log_scales) else self.precision
        s = scale * (1 + w.sum(-1) * scale.square()).rsqrt()
        return loc + s.square() * (w * (self.center - loc[..., None])).sum(-1), s

    def element(self, place: int) -> GaussianSiteTerm:
        """The term of one element of a vector."""
        return GaussianSiteTerm(
            self.center[..., place, :], self.precision[..., place, :], self.powers[..., place, :, :]
        )


def fit_site_term(z: Tensor, s: Tensor, force: Tensor, log_scales: Tensor) -> GaussianSiteTerm:
    """The term whose gradient, times s, comes nearest to `force` in the mean of squares over draws.

    It minimizes the mean square of force - s sum_k w_k (c_k - z). First each element gets one constant w, by linear
    regression; if that is not positive, the element's term is 0. Where there are scales, their powers in w follow, and
    then a second term that starts without powers and is kept if it reduces the sum of squares.

    Draws weigh more the farther out their scales lie. They are few there, in the neck of a funnel for example, and an
    error of w or c is most of what chains then feel.

    Args:
        z: draws of a latent, `(S, *shape)`.
        s: its conditional standard deviations at these, `(S, *shape)`.
        force: s times the gradient in z of the log joint without the latent's own prior, `(S, *shape)`.
        log_scales: logarithms of the scales drawn before, `(S, F)`.
    """
    if log_scales.shape[1]:
        far = ((log_scales - log_scales.mean(0)) / log_scales.std(0)).square().sum(1)
        emphasis = (1 + far).sqrt().reshape(-1, *(1 for _ in s.shape[1:]))
        s, force = emphasis * s, emphasis * force
    unknowns, positive = _constant_precision(z, s, force)
    if log_scales.shape[1]:
        unknowns = _precision_by_scales(z, s, force, log_scales, unknowns)
    there = positive[..., None]
    precision = torch.where(there, unknowns.log_precision.exp(), 0.0)
    return GaussianSiteTerm(unknowns.center * there, precision, unknowns.powers * there[..., None])


@dataclass(frozen=True, eq=False)
class _Unknowns:
    """What least squares finds for each element: centers and log precisions `(*shape, K)`, powers `(*shape, K, F)`."""

    center: Tensor
    log_precision: Tensor
    powers: Tensor

    @staticmethod
    def unpacked(theta: Tensor) -> _Unknowns:
        """From one tensor `(*shape, K, 2 + F)`."""
        return _Unknowns(theta[..., 0], theta[..., 1], theta[..., 2:])

    def packed(self) -> Tensor:
        """As one tensor, `(*shape, K, 2 + F)`."""
        return torch.cat([self.center[..., None], self.log_precision[..., None], self.powers], -1)

    def followed_by(self, other: _Unknowns) -> _Unknowns:
        """The terms of both."""
        return _Unknowns.unpacked(torch.cat([self.packed(), other.packed()], -2))


def _constant_precision(z: Tensor, s: Tensor, force: Tensor) -> tuple[_Unknowns, Tensor]:
    """One term without powers by linear regression, and for which elements its precision is positive, `shape`."""
    weight = s.square()
    mean = (weight * z).sum(0) / weight.sum(0)
    height = (s * force).sum(0) / weight.sum(0)
    w = -(s * (z - mean) * force).sum(0) / (weight * (z - mean).square()).sum(0)
    positive = w.isfinite() & (w > 0)
    w = torch.where(positive, w, 1.0)
    center = torch.where(positive, mean + height / w, 0.0)
    return _Unknowns(center[..., None], w.log()[..., None], w.new_zeros(*w.shape, 1, 0)), positive


def _precision_by_scales(z: Tensor, s: Tensor, force: Tensor, log_scales: Tensor, constant: _Unknowns) -> _Unknowns:
    """Two terms with powers of the scales, the second with precision 0 where it does not reduce the sum of squares."""
    middle = log_scales.mean(0)
    x = log_scales - middle  # precisions are those at the mean of the log scales until the end
    no_powers = z.new_zeros(*constant.center.shape, len(middle))
    one, loss_of_one = _least_squares(z, s, force, x, replace(constant, powers=no_powers))
    halved = replace(one, log_precision=one.log_precision - math.log(2))
    both, loss_of_both = _least_squares(z, s, force, x, halved.followed_by(replace(halved, powers=no_powers)))
    alone = one.followed_by(_Unknowns(one.center, torch.full_like(one.center, -math.inf), no_powers))
    better = (loss_of_both < loss_of_one)[..., None, None]
    found = _Unknowns.unpacked(torch.where(better, both.packed(), alone.packed()))
    return replace(found, log_precision=found.log_precision - found.powers @ middle)


def _least_squares(z: Tensor, s: Tensor, force: Tensor, x: Tensor, start: _Unknowns) -> tuple[_Unknowns, Tensor]:
    """Unknowns with a smaller sum of squares than `start`, by Marquardt's method, and that sum of squares, `shape`."""
    x = x.reshape(len(x), *(1 for _ in z.shape[1:]), 1, -1)

    def model(theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Residuals `(S, *shape)` and their derivatives, times -1, by centers and by log precisions."""
        at = _Unknowns.unpacked(theta)
        by_center = s[..., None] * (at.log_precision + (at.powers * x).sum(-1)).exp()
        by_log_precision = by_center * (at.center - z[..., None])
        return force - by_log_precision.sum(-1), by_center, by_log_precision

    theta = start.packed()
    damping, (residual, by_center, by_log_precision) = torch.full_like(theta[..., 0, 0], FIRST_DAMPING), model(theta)
    loss = residual.square().sum(0)
    for _ in range(NUM_MARQUARDT_STEPS):
        by_powers = by_log_precision[..., None] * x
        jacobian = torch.cat([by_center[..., None], by_log_precision[..., None], by_powers], -1).flatten(-2)
        gram = torch.einsum("s...i,s...j->...ij", jacobian, jacobian)
        descent = torch.einsum("s...i,s...->...i", jacobian, residual)
        ridge = damping[..., None] * torch.diagonal(gram, dim1=-2, dim2=-1) + torch.finfo(gram.dtype).tiny
        step = torch.linalg.solve_ex(gram + torch.diag_embed(ridge), descent[..., None])[0].reshape(theta.shape)
        tried, tried_by_center, tried_by_log_precision = model(theta + step)
        powers_in_range = (_Unknowns.unpacked(theta + step).powers.abs() <= MAX_POWER).flatten(-2).all(-1)
        better = (tried.square().sum(0) < loss) & powers_in_range
        theta = torch.where(better[..., None, None], theta + step, theta)
        residual = torch.where(better, tried, residual)
        by_center = torch.where(better[..., None], tried_by_center, by_center)
        by_log_precision = torch.where(better[..., None], tried_by_log_precision, by_log_precision)
        loss, damping = residual.square().sum(0), damping * torch.where(better, 1 / DAMPING_FACTOR, DAMPING_FACTOR)
    return _Unknowns.unpacked(theta), loss
