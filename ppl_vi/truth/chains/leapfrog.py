"""Leapfrog steps of many chains as one call of machine code: chains stand where `ppl_vi.svi` has replicas of a fit.

The step from (u, p) to (u', p') on a log density f, with the metric's inverse L L' and a chain's own step h, is

    q = p + h/2 L' grad f(u),    u' = u + h L q,    p' = q + h/2 L' grad f(u').

In the frame of a fit's step (`ppl_vi.compiler.translate`) u is what it calls the parameters, p and the gradient are its two
moments, h the unit and f(u') the bound.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import grad_and_value

from ppl_vi.compiler.kernel import LanesEngine
from ppl_vi.compiler.vectors import num_lanes
from ppl_vi.svi.engines.step import State

AGREEMENT = 1e-9  # of machine code's values and gradients, relative to the largest of a point

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Phase:
    """Where `C` chains stand, and how they move.

    Attributes:
        u: `(C, D)`.
        momentum: in whitened coordinates, `(C, D)`.
        value: the log density at `u`, `(C,)`, nats.
        slope: its gradient, `(C, D)`.
    """

    u: Tensor
    momentum: Tensor
    value: Tensor
    slope: Tensor


@dataclass(frozen=True, eq=False)
class Leapfrog:
    """The steps on one density as machine code, made by `compiled`."""

    engine: LanesEngine

    def advance(self, begin: Phase, step: Tensor, factor: Tensor, numbers: tuple[Tensor, ...], num_steps: int) -> Phase:
        """`num_steps` of them.

        Args:
            begin: where the chains are; its `value` is not looked at.
            step: h, `(C, 1)`.
            factor: L, `(D, D)`.
            numbers: the density's.
            num_steps: at least 1.
        """
        num = len(begin.u)
        parts = (begin.u, begin.momentum, begin.slope, begin.u, step.expand_as(begin.u))
        state = State(torch.ones(1, num, dtype=torch.bool), *((part[None],) for part in parts))
        engine = replace(self.engine, args=tuple(number.contiguous() for number in (factor, *numbers)))
        end, values = engine.advance(state, begin.u.new_zeros(3, num_steps), ())
        (u,), (momentum,), (slope,) = end.theta, end.first, end.second
        return Phase(u[0], momentum[0], values[-1, 0], slope[0])


def compiled(
    of_one: Callable[..., Tensor], dim: int, dtype: torch.dtype, numbers: tuple[Tensor, ...], num_chains: int
) -> Leapfrog | None:
    """The steps of so many chains; None where there is no compiler or the density has no translation.

    Args:
        of_one: the log density of one point, `(u, *numbers)` to a scalar.
        dim: `D`.
        dtype: of every computation.
        numbers: that the density depends on.
        num_chains: a full vector of them goes for all larger numbers.
    """

    def step(
        alive: Tensor, u: Tensor, p: Tensor, slope: Tensor, total: Tensor, h: Tensor, factor: Tensor, *others: Tensor
    ) -> tuple[Tensor, ...]:
        p = p + h / 2 * (factor.mT @ slope)
        u = u + factor @ (h * p)
        slope, value = grad_and_value(of_one)(u, *others)
        return alive, u, p + h / 2 * (factor.mT @ slope), slope, total, value

    try:
        point = torch.zeros(dim, dtype=dtype)
        return Leapfrog(LanesEngine.of_step(step, point, (torch.eye(dim, dtype=dtype), *numbers), num_chains))
    except Exception as error:  # whatever a model does that tracing, translation or the compiler do not know
        _log.info("leapfrog steps run operation by operation: %s", error)
        return None


def lanes(num_chains: int, dtype: torch.dtype) -> int:
    """What two numbers of chains have in common that can share one `Leapfrog`."""
    return min(num_chains, num_lanes(num_chains, dtype))
