"""When a fit may stop, and the preconditioner of its steps: both from gradients and curvature at one point.

That the loss looks flat does not tell a converged fit from a slow one. Here the gradient at the average of a round's
iterates is estimated afresh on scrambled Sobol noise, with its standard error over the scrambles, and the Hessian by
differences of such gradients on common noise. In the coordinates `theta / preconditioner`, with the Hessian's principal
axes i, its eigenvalues l_i, and the gradient g_i and its standard error se_i along them, the fit could gain at most

    sum_i max_{|d| <= 1} (|g_i| + t se_i) d - l_i d^2 / 2

within a box of half-width 1 around it, to second order. (Where 1 in the parameters' own terms is farther, the box
reaches that far, so that a long valley is seen to its end.) A fit has converged once this bound is at most the
tolerance. `t` is Student's 0.975 quantile over the scrambles, so that of 40 checks of a fit that is short by more than
the tolerance along an axis, at most 1 takes it for converged. Checks on few points come first, with a larger `t`: a fit
that has plainly not converged is told by these. The bound is local: it says nothing of other basins, and
it is about the objective that the fit maximises.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.stats import t as student_t
from torch import Tensor

from ppl_vi.numerics.newton import predicted_gain
from ppl_vi.svi.gradients import NUM_SCRAMBLES, MeanGradients

# Sobol points of each scramble for the preconditioner, of which only the rough size matters.
PRECONDITIONER_POINTS = 128
# The Hessian takes 2 D gradients and has D^2 numbers. Fits of more parameters than this have a preconditioner of 1, and
# their checks find no bound, so that they take all steps and never count as converged.
MAX_CHECKED_PARAMETERS = 200
# How often a check may take a fit for converged that is short by more than the tolerance along an axis.
CHECK_ERROR_RATE = 0.025
# The step of the differences that give a check's Hessian, in preconditioned coordinates. It is wide, since draws by
# rejection jump when parameters move.
CHECK_DIFFERENCE = 0.05
# The step of the differences that give the preconditioner's Hessian, relative to a parameter's size where that is above
# 1.
PRECONDITIONER_DIFFERENCE = 1e-5
# A Newton step longer than this many steps of size 1 sets the preconditioner itself. It promises a gain of more than
# FAR_NEWTON_STEP^2 / 2 nats along that parameter.
FAR_NEWTON_STEP = 5.0


def curvature_preconditioner(estimator: MeanGradients, theta: Tensor, num_points: int, seed: int) -> Tensor:
    """How far each parameter should move in a step of size 1, from the curvature at `theta`: both `(B, R, D)`.

    It is the diagonal of the Hessian to the power -1/2. Where that is more than 1 and more than the parameter's own
    size, it is 1, so that steps do not run along a flat direction. A round goes no further than about six steps of size
    1. Where Newton's step along a parameter is many of these, a step of size 1 is two of Newton's steps: along the
    logarithm of a scale that is far too wide, Newton's step is 1/2, however far the optimum is.

    Args:
        estimator: gives gradients and Hessians.
        theta: the parameters.
        num_points: Sobol points a scramble.
        seed: of the noise.
    """
    if estimator.program.layout.size > MAX_CHECKED_PARAMETERS:
        return torch.ones_like(theta)
    noise = estimator.noise(num_points, seed)
    widest = theta.abs().clamp(min=1.0)
    hessian = estimator.hessian(theta, noise, PRECONDITIONER_DIFFERENCE * widest)
    diagonal = torch.diagonal(hessian, dim1=-2, dim2=-1)
    is_curved = diagonal.isfinite() & (diagonal.abs() > widest**-2)
    curvature = torch.where(is_curved, diagonal.abs(), 1.0)
    preconditioner = torch.where(is_curved, curvature.rsqrt(), 1.0)
    newton_step = estimator.gradients(theta, noise).mean(2).abs() / curvature
    is_far = is_curved & (diagonal > 0) & newton_step.isfinite() & (newton_step > FAR_NEWTON_STEP * preconditioner)
    return torch.where(is_far, 2 * newton_step, preconditioner)


@dataclass(frozen=True)
class GainBounds:
    """Between which bounds the gain lies that each fit could still make nearby, nats, `(B, R)` each."""

    least: Tensor
    most: Tensor


def gain_bounds(
    estimator: MeanGradients, theta: Tensor, preconditioner: Tensor, num_points: int, seed: int, error_rate: float
) -> GainBounds:
    """What each fit could still gain near `theta`, see the module's docstring; inf where a gradient is not finite.

    For more than `MAX_CHECKED_PARAMETERS` parameters the bounds are 0 and inf.

    Args:
        estimator: gives gradients and Hessians.
        theta, preconditioner: the parameters, and how far each moves in a step of size 1, `(B, R, D)`.
        num_points: Sobol points a scramble.
        seed: of the noise.
        error_rate: how often either bound may be wrong along an axis.
    """
    if estimator.program.layout.size > MAX_CHECKED_PARAMETERS:
        zero = torch.zeros(theta.shape[:2], dtype=theta.dtype, device=theta.device)
        return GainBounds(zero, torch.full_like(zero, torch.inf))
    noise = estimator.noise(num_points, seed)
    gradients = estimator.gradients(theta, noise)
    hessian = estimator.hessian(theta, noise, CHECK_DIFFERENCE * preconditioner)
    hessian = hessian * preconditioner[..., None] * preconditioner[..., None, :]
    gradients = gradients * preconditioner[:, :, None]
    if not noise:  # nothing is random, so the gradient has no error
        gain = predicted_gain(gradients[:, :, 0], hessian, radius=1.0, unit=preconditioner)
        return GainBounds(gain, gain)
    quantile = float(student_t.ppf(1 - error_rate, NUM_SCRAMBLES - 1))
    least, most = (
        predicted_gain(gradients, hessian, radius=1.0, slack=slack, unit=preconditioner)
        for slack in (-quantile, quantile)
    )
    return GainBounds(least, most)
