"""Leapfrog steps of many chains on one log density.

The step from (u, p) to (u', p') on a log density f, with the metric's inverse L L' and a chain's own step h, is

    q = p + h/2 L' grad f(u),    u' = u + h L q,    p' = q + h/2 L' grad f(u').

It runs as machine code, many chains side by side, where there is a compiler and the density has a translation, else
operation by operation.

Source: Neal (2011), MCMC using Hamiltonian dynamics.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad_and_value

from ppl_vi.compiler.kernel import Kernel, kernel_source
from ppl_vi.compiler.many_points import agree
from ppl_vi.compiler.vectors import lanes_per_vector
from ppl_vi.target.isolation import isolated
from ppl_vi.target.log_density import Density

# Largest difference of machine code's values and gradients from the density's own, relative to the largest number of a
# chain: gradients of funnels lose more digits than single values do.
AGREEMENT = 1e-9

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


def advanced(density: Density, begin: Phase, step: Tensor, factor: Tensor, num_steps: int) -> Phase:
    """Chains after `num_steps` leapfrog steps.

    Machine code is made at the first call, and used where it gives what the density does where the first steps end.

    Args:
        density: f.
        begin: where the chains are; its `value` is not looked at.
        step: h, `(C, 1)`.
        factor: L, `(D, D)`.
        num_steps: at least 1.
    """
    lanes = min(len(begin.u), lanes_per_vector(len(begin.u), density.dtype))
    if lanes not in density.kernels:
        kernel = _compiled(density, len(begin.u))
        right = kernel is not None and _agrees(density, _by_kernel(kernel, density, begin, step, factor, num_steps))
        density.kernels[lanes] = kernel if right else None
    kernel = density.kernels[lanes]
    if kernel is not None:
        return _by_kernel(kernel, density, begin, step, factor, num_steps)
    return _by_operations(density, begin, step, factor, num_steps)


def _compiled(density: Density, num_chains: int) -> Kernel | None:
    """Machine code for the steps of so many chains; None where there is no compiler or no translation."""

    def leap(u: Tensor, p: Tensor, slope: Tensor, h: Tensor, factor: Tensor, *numbers: Tensor) -> tuple[Tensor, ...]:
        p = p + h / 2 * (factor.mT @ slope)
        u = u + factor @ (h * p)
        slope, value = grad_and_value(density.of_one)(u, *numbers)
        return u, p + h / 2 * (factor.mT @ slope), slope, value

    point = torch.zeros(density.dim, dtype=density.dtype)
    factor = torch.eye(density.dim, dtype=density.dtype)
    try:
        with isolated(density.dtype, seed=0):
            source = kernel_source(
                leap, num_chains, carried=[point] * 3, fixed=[point[:1]], data=[factor, *density.numbers]
            )
            return source.compile()
    except Exception as error:  # whatever a model does that tracing, translation or the compiler do not know
        _log.info("leapfrog steps run operation by operation: %s", error)
        return None


def _by_kernel(kernel: Kernel, density: Density, begin: Phase, step: Tensor, factor: Tensor, num_steps: int) -> Phase:
    carried = [part[None] for part in (begin.u, begin.momentum, begin.slope)]
    data = [part[None] for part in (factor, *density.numbers)]
    scalars = factor.new_zeros((0, num_steps))
    end, (values,) = kernel((1, len(begin.u)), scalars=scalars, carried=carried, fixed=[step[None]], data=data)
    u, momentum, slope = (part[0] for part in end)
    return Phase(u, momentum, values[-1, 0], slope)


def _by_operations(density: Density, begin: Phase, step: Tensor, factor: Tensor, num_steps: int) -> Phase:
    at = begin
    for _ in range(num_steps):
        half = at.momentum + step / 2 * (at.slope @ factor)
        u = at.u + (step * half) @ factor.mT
        value, slope = density.slope(u)
        at = Phase(u, half + step / 2 * (slope @ factor), value, slope)
    return at


def _agrees(density: Density, end: Phase) -> bool:
    """Whether value and gradient are the density's, of the chains where all is finite."""
    value, slope = density.slope(end.u)
    found, expected = (torch.cat([v[:, None], g], 1) for v, g in ((end.value, end.slope), (value, slope)))
    finite = expected.isfinite().all(1)
    return agree([found[finite]], [expected[finite]], AGREEMENT)
