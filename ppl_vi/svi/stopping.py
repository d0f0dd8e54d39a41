"""When a fit may stop: from gradients and curvature at one point.

That the loss looks flat does not tell a converged fit from a slow one. Here the gradient at the average of a round's
iterates is estimated afresh on scrambled Sobol noise, with its standard error over the scrambles, and the Hessian by
differences of such gradients on common noise. In the coordinates `theta / units`, with the Hessian's principal
axes i, its eigenvalues l_i, and the gradient g_i and its standard error se_i along them, the fit could gain at most

    sum_i max_{|d| <= 1} (|g_i| + t se_i) d - l_i d^2 / 2

within a box of half-width 1 around it, to second order. (Where 1 in the parameters' own terms is farther, the box
reaches that far, so that a long valley is seen to its end.) A fit has converged once this bound is at most the
tolerance. `t` is Student's 0.975 quantile over the scrambles, so that of 40 checks of a fit that is short by more than
the tolerance along an axis, at most 1 takes it for converged. Checks on few points come first, with a larger `t`: a fit
that has plainly not converged is told by these. Where steps take long, as on much data, the gradient is estimated with
control variates (`ppl_vi.numerics.control_variates`). Its error is then so small that the Hessian's counts, too: the
Hessian is taken on two sets of points, and the larger of two bounds is given. The bound is local: it says nothing of
other basins, and it is about the objective that the fit maximises.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from scipy.special import stdtrit
from torch import Tensor

from ppl_vi.numerics.newton import eigen, predicted_gain
from ppl_vi.svi.gradients import NUM_SCRAMBLES, MeanGradients

# How often a check may take a fit for converged that is short by more than the tolerance along an axis.
CHECK_ERROR_RATE = 0.025


@dataclass(frozen=True)
class GainBounds:
    """Between which bounds the gain lies that each fit could still make nearby, nats, `(B, R)` each."""

    least: Tensor
    most: Tensor


def gain_bounds(
    estimator: MeanGradients,
    theta: Tensor,
    units: Tensor,
    hessians: Tensor,
    num_points: int,
    seed: int,
    error_rate: float,
) -> GainBounds:
    """What each fit could still gain near `theta`, see the module's docstring; inf where a gradient is not finite.

    Args:
        estimator: gives gradients.
        theta, units: the parameters, and how far each moves in a step of size 1, `(B, R, D)`.
        hessians: of the loss there, on `H` independent sets of points, `(B, R, H, D, D)`.
        num_points: Sobol points a scramble.
        seed: of the noise.
        error_rate: how often either bound may be wrong along an axis.
    """
    noise = estimator.noise(num_points, seed)
    gradients = estimator.controlled_gradients(theta, noise) * units[:, :, None]
    scaled = hessians * units[:, :, None, :, None] * units[:, :, None, None, :]
    if not noise:  # nothing is random, so the gradient has no error
        gain = predicted_gain(gradients[:, :, 0], scaled.mean(2), radius=1.0, unit=units)
        return GainBounds(gain, gain)
    quantile = float(stdtrit(NUM_SCRAMBLES - 1, 1 - error_rate))
    found = []
    for one in scaled.unbind(2):
        at = partial(predicted_gain, gradients, one, radius=1.0, unit=units, principal=eigen(one))
        found.append(torch.stack([at(slack=-quantile), at(slack=quantile)]))
    bounds = torch.stack(found)
    return GainBounds(bounds[:, 0].amin(0), bounds[:, 1].amax(0))
