"""When a fit may stop: when no nearby point can be better by more than the tolerance, noise accounted for.

"The loss looked flat" can't tell a converged fit from a slow one. Here the gradient at the averaged iterate is
estimated afresh on scrambled Sobol noise, with its standard error over the scrambles, and the Hessian by differences of
such gradients on common noise. A fit has converged when the gain that they promise within a box of one unit around it,

    sum_i max_{|d| <= 1} (|g_i| + t se_i) d - l_i d^2 / 2        along the principal axes i,

is at most the tolerance, at the end of the second round or later (0.15 of it before the last round, since the
question is put more than once). `t` is Student's 0.975 quantile over the scrambles, so a fit that is short by more than
the tolerance along an axis is taken for converged in at most 1 check of 40. The promise is local: it speaks of the
basin the fit is in, and of the objective it maximises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from scipy.stats import t as student_t
from torch import Tensor
from torch.func import grad

from ppl_vi.numerics.newton import predicted_gain
from ppl_vi.svi.objectives import Objective
from ppl_vi.svi.program import Program
from ppl_vi.svi.randomness import pseudo_random, quasi_random

NUM_SCRAMBLES = 8
UNIT_POINTS = 128  # Sobol points a scramble for the units, of which only the size matters
HESSIAN_POINTS = 512  # of them for the Hessian, which takes 2 D gradients
NUM_GROUPS = 16
DIFFERENCE = 0.05  # of a unit, for the Hessian: wide, since draws by rejection jump
ONE_BY_ONE = 1 / 64  # of all these points, where they have to be run one by one
MAX_PARAMETERS = 200
FAR = 5.0  # units: a longer Newton's step sets the unit itself; it promises more than FAR^2 / 2 nats


class GradientSource(Protocol):
    """Another way to mean gradients, see `ppl_vi.svi.engines.probe`."""

    def fits(self, noise: tuple[Tensor, ...]) -> bool:
        """Whether it can take this noise."""
        ...

    def gradients(self, theta: Tensor, noise: tuple[Tensor, ...]) -> Tensor:
        """See `mean_gradients`."""
        ...


@dataclass(frozen=True)
class GainBound:
    """What a stopping check found for each fit.

    Attributes:
        gain: upper bound of what is still to be gained nearby, nats, `(B, R)`.
    """

    gain: Tensor


def check_noise(
    program: Program, objective: Objective, num_particles: int, num_points: int, seed: int
) -> tuple[Tensor, ...]:
    """Noise for a check: `(scrambles, groups, particles, *shape)`; quasi-random where the objective is a plain mean."""
    device = program.initial.device
    num_points = _affordable(program, num_points)
    if objective.additive:
        noise = quasi_random(program.draws, num_points, NUM_SCRAMBLES, seed)
        return tuple(n[:, None].to(device) for n in noise)
    generator = torch.Generator(device=device).manual_seed(seed)
    return pseudo_random(program.draws, (NUM_SCRAMBLES, NUM_GROUPS, num_particles), generator)


def _affordable(program: Program, num_points: int) -> int:
    return max(4, round(num_points * ONE_BY_ONE)) if program.one_by_one else num_points


def mean_gradients(
    program: Program,
    objective: Objective,
    theta: Tensor,
    args: tuple[Tensor, ...],
    noise: tuple[Tensor, ...],
    probe: GradientSource | None = None,
) -> Tensor:
    """The objective's gradient at `theta` of shape `(B, N, D)`, once for each scramble: `(B, N, S, D)`.

    By `probe`, if one is given that can take the noise.
    """
    if probe is not None and probe.fits(noise):
        return probe.gradients(theta, noise)

    def group_loss(point: Tensor, row: tuple[Tensor, ...], group: tuple[Tensor, ...]) -> Tensor:
        return surrogate(program, objective, point, row, group)[0]

    def scramble(point: Tensor, row: tuple[Tensor, ...], groups: tuple[Tensor, ...]) -> Tensor:
        if not groups:
            return grad(group_loss)(point, row, groups)
        return program.over(lambda group: grad(group_loss)(point, row, group))(groups).mean(0)

    def point(point: Tensor, row: tuple[Tensor, ...]) -> Tensor:
        if not noise:
            return scramble(point, row, noise)[None]
        return program.over(lambda groups: scramble(point, row, groups))(noise)

    return program.over(program.over(point, in_dims=(0, None)))(theta, args)


def surrogate(
    program: Program, objective: Objective, theta: Tensor, row: tuple[Tensor, ...], noise: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """The loss whose gradient is the estimator, and the bound, from particles along the leading axis of `noise`."""
    if not noise:  # nothing is random: one particle says it all
        one = objective.particle(program, theta, row, ())
        return objective.reduce(type(one)(*(part[None] for part in one)))
    return objective.reduce(program.over(lambda draws: objective.particle(program, theta, row, draws))(noise))


def hessian_by_differences(
    program: Program,
    objective: Objective,
    theta: Tensor,
    args: tuple[Tensor, ...],
    noise: tuple[Tensor, ...],
    step: Tensor,
    probe: GradientSource | None = None,
) -> Tensor:
    """Central differences of mean gradients on the first scramble's first points: `(B, R, D)` to `(B, R, D, D)`."""
    batch, replicas, dim = theta.shape
    noise = tuple(n[:1, :, : _affordable(program, HESSIAN_POINTS)] for n in noise)
    shift = torch.diag_embed(step)
    moved = torch.cat([theta[:, :, None] + shift, theta[:, :, None] - shift], 2).reshape(batch, -1, dim)
    gradients = mean_gradients(program, objective, moved, args, noise, probe).squeeze(2)
    up, down = gradients.reshape(batch, replicas, 2, dim, dim).unbind(2)
    hessian = (up - down) / (2 * step[..., None])
    return (hessian + hessian.mT) / 2


def curvature_units(
    program: Program,
    objective: Objective,
    theta: Tensor,
    args: tuple[Tensor, ...],
    num_particles: int,
    seed: int,
    probe: GradientSource | None = None,
) -> Tensor:
    """The size of a step along each parameter, `(B, R, D)`: the curvature at the start to the power -1/2.

    At most 1, or the parameter's own size where that is larger, so that a flat direction isn't run along.

    A round goes no further than about six units. Where Newton's step along a parameter is many of them, the unit is two
    of its steps: along the logarithm of a scale that is far too wide it is 1/2, however far it is.
    """
    num_points = max(UNIT_POINTS, num_particles) if probe is not None else UNIT_POINTS
    noise = check_noise(program, objective, num_particles, num_points, seed)
    small = 1e-5 * theta.abs().clamp(min=1.0)
    if program.layout.size > MAX_PARAMETERS:
        return torch.ones_like(theta)
    hessian = hessian_by_differences(program, objective, theta, args, noise, small, probe)
    bend = torch.diagonal(hessian, dim1=-2, dim2=-1)
    widest = theta.abs().clamp(min=1.0)
    known = bend.isfinite() & (bend.abs() > widest**-2)
    curvature = torch.where(known, bend.abs(), 1.0)
    unit = torch.where(known, curvature.rsqrt(), widest.clamp(max=1.0))
    newton = mean_gradients(program, objective, theta, args, noise, probe).mean(2).abs() / curvature
    far = known & (bend > 0) & newton.isfinite() & (newton > FAR * unit)
    return torch.where(far, 2 * newton, unit)


def check(
    program: Program,
    objective: Objective,
    theta: Tensor,
    args: tuple[Tensor, ...],
    unit: Tensor,
    num_particles: int,
    num_points: int,
    seed: int,
    probe: GradientSource | None = None,
) -> GainBound:
    """How much each fit at `theta` `(B, R, D)` could still gain nearby; see the module's text."""
    if program.layout.size > MAX_PARAMETERS:
        return GainBound(torch.full(theta.shape[:2], torch.inf, dtype=theta.dtype, device=theta.device))
    noise = check_noise(program, objective, num_particles, num_points, seed)
    gradients = mean_gradients(program, objective, theta, args, noise, probe)
    hessian = hessian_by_differences(program, objective, theta, args, noise, DIFFERENCE * unit, probe)
    hessian = hessian * unit[..., None] * unit[..., None, :]
    scaled = gradients * unit[:, :, None]
    t = float(student_t.ppf(0.975, NUM_SCRAMBLES - 1)) if noise else 0.0
    return GainBound(predicted_gain(scaled if noise else scaled[:, :, 0], hessian, radius=1.0, slack=t, unit=unit))
