"""Members of a family at many points: where noise takes them, and their densities, by the one evaluator there is.

A member is a vector of parameters `theta`. What depends on a member alone, such as the factor of its covariance, is
computed once for all of its points.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ppl_vi.compiler.many_points import AtPoints
from ppl_vi.numerics.vmapping import loop_over, vmap_or_loop
from ppl_vi.svi.program import Program
from ppl_vi.target.evaluation import drawn_at_once
from ppl_vi.target.sites import Latents, latents_of, numbers_of

# What a point costs torch's operations beside the numbers of its member, in units of one of these: less than in a log
# joint, since a guide has few operations on single numbers. A larger number compiles the small guides of one latent,
# for which the operations take a tenth of the compiler's time.
MEMBER_POINT_OVERHEAD = 2


def _evaluator(program: Program, what: str, function: Callable[..., tuple[Tensor, ...]]) -> AtPoints:
    """What evaluates a function of `(*point, theta, *row)`, made once for each program and way of running it."""
    key = what, program.one_by_one
    if key not in program.evaluators:
        program.evaluators[key] = AtPoints(
            function,
            program.layout.size,
            drawn_at_once(program.target),
            vectorise=loop_over if program.one_by_one else vmap_or_loop,
            gate=program.isolated,
            compiles=not program.one_by_one,
            overhead=MEMBER_POINT_OVERHEAD,
        )
    return program.evaluators[key]


def drawn(program: Program, theta: Tensor, noise: tuple[Tensor, ...], num_draws: int) -> tuple[Tensor, Tensor]:
    """The latents' own numbers `(B, R, S, K)`, see `numbers_of`, and log q `(B, R, S)` of what members draw, nats.

    Args:
        program: of the members.
        theta: of `R` members for each problem, `(B, R, D)`.
        noise: of each draw of the latents `(B, R, S, *shape)`.
        num_draws: `S`, also for a guide that draws nothing, whose draws are all the same.
    """
    num, shape = len(program.latent_draws), theta.shape[:2]

    def of_one(*given: Tensor) -> tuple[Tensor, Tensor]:
        point, member, row = given[:num], given[max(1, num)], given[max(1, num) + 1 :]
        values, log_guide = program.drawn(member, row, point)
        return numbers_of(program.target.latents, values), log_guide

    points = [part.flatten(0, 1) for part in noise] or [theta.new_zeros((shape.numel(), num_draws))]
    rows = [arg.repeat_interleave(shape[1], 0) for arg in program.target.args]
    with torch.no_grad():
        found = _evaluator(program, "drawn", of_one)(points, (theta.flatten(0, 1), *rows))
    z, log_guide = (part.unflatten(0, shape) for part in found)
    return z, log_guide


def log_density(program: Program, theta: Tensor, problem: Tensor, latents: Latents) -> Tensor:
    """log q of members at latents `(N, S, *site.shape)`, nats, `(N, S)`; -inf outside of the guide's support."""

    def of_one(point: Tensor, member: Tensor, *row: Tensor) -> tuple[Tensor]:
        return (program.log_density(member, row, latents_of(program.target.latents, point)),)

    rows = [arg[problem] for arg in program.target.args]
    with torch.no_grad():
        (found,) = _evaluator(program, "log density", of_one)(
            (numbers_of(program.target.latents, latents),), (theta, *rows)
        )
    return found
