"""Leapfrog steps: the integrator of Hamiltonian Monte Carlo, for many chains at once.

A chain stands at `u` with a momentum `p`. On a log density f, with step size h and an inverse mass matrix M^-1 = L L',
one step leads to

    q = p + h/2 L' grad f(u),    u' = u + h L q,    p' = q + h/2 L' grad f(u').

The momentum is that of the whitened coordinates L^-1 u, where the mass matrix is the identity.

`leapfrog` is this step written once, for any kind of state. `run_trajectories` takes the steps on a `Density`. Where
there is a C++ compiler and the density can be translated, they run as machine code, many chains side by side; anywhere
else they run operation by operation.

Source: Neal (2011), MCMC using Hamiltonian dynamics.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.func import grad_and_value

from ppl_vi.compiler.kernel import Kernel, kernel_source
from ppl_vi.compiler.many_points import NUM_CHECKED, agree
from ppl_vi.compiler.vectors import lanes_per_vector
from ppl_vi.target.log_density import Density

# Machine code is used if its values and gradients differ from the density's own by at most this, relative to the
# largest of a chain's numbers. Gradients of funnels lose more digits to rounding than a single value does; a larger
# difference means that the translation is wrong.
MACHINE_CODE_TOLERANCE = 1e-9

_log = logging.getLogger(__name__)
State = TypeVar("State")


@dataclass(frozen=True, eq=False)
class ChainState:
    """Where `C` chains stand.

    Attributes:
        u: their points, `(C, D)`.
        value: the log density there, `(C,)`, nats.
        slope: the gradient of the log density there, `(C, D)`.
    """

    u: Tensor
    value: Tensor
    slope: Tensor


def leapfrog(
    state: State,
    momentum: Tensor,
    step_size: Tensor,
    num_steps: int,
    *,
    force: Callable[[State], Tensor],
    drift: Callable[[State, Tensor], State],
) -> tuple[State, Tensor]:
    """State and momentum after `num_steps` leapfrog steps.

    Args:
        state: where the chains begin.
        momentum: with which they begin.
        step_size: h, of a shape that broadcasts with the momentum.
        num_steps: how many steps.
        force: the gradient of the log density at a state, of the momentum's shape.
        drift: the state that lies h times the momentum away from a state.
    """
    for _ in range(num_steps):
        momentum = momentum + step_size / 2 * force(state)
        state = drift(state, step_size * momentum)
        momentum = momentum + step_size / 2 * force(state)
    return state, momentum


def run_trajectories(
    density: Density, state: ChainState, momentum: Tensor, step_size: Tensor, factor: Tensor, num_steps: int
) -> tuple[ChainState, Tensor]:
    """Chains on a density and their momentum after `num_steps` leapfrog steps.

    The first call makes machine code and compares it with the density where the first trajectories end. Calls with as
    many lanes then use it if the two agree.

    Args:
        density: f.
        state: where the chains begin; its `value` is not used.
        momentum: `(C, D)`.
        step_size: h of each chain, `(C, 1)`.
        factor: L, `(D, D)`.
        num_steps: at least 1.
    """
    lanes = min(len(state.u), lanes_per_vector(len(state.u), density.dtype))
    if lanes not in density.kernels:
        kernel = _compiled(density, len(state.u))
        right = kernel is not None and _agrees(
            density, _by_kernel(kernel, density, state, momentum, step_size, factor, num_steps)[0]
        )
        density.kernels[lanes] = kernel if right else None
    kernel = density.kernels[lanes]
    if kernel is not None:
        return _by_kernel(kernel, density, state, momentum, step_size, factor, num_steps)
    return run_by_operations(density, state, momentum, step_size, factor, num_steps)


def run_by_operations(
    density: Density, state: ChainState, momentum: Tensor, step_size: Tensor, factor: Tensor, num_steps: int
) -> tuple[ChainState, Tensor]:
    """The same as `run_trajectories`, without machine code."""

    def drift(state: ChainState, distance: Tensor) -> ChainState:
        u = state.u + distance @ factor.mT
        return ChainState(u, *density.slope(u))

    return leapfrog(state, momentum, step_size, num_steps, force=lambda state: state.slope @ factor, drift=drift)


def _compiled(density: Density, num_chains: int) -> Kernel | None:
    """Machine code that moves so many chains; None where there is no compiler or no translation."""

    def step(u: Tensor, p: Tensor, slope: Tensor, h: Tensor, factor: Tensor, *numbers: Tensor) -> tuple[Tensor, ...]:
        p = p + h / 2 * (factor.mT @ slope)
        u = u + factor @ (h * p)
        slope, value = grad_and_value(density.of_one)(u, *numbers)
        return u, p + h / 2 * (factor.mT @ slope), slope, value

    point = torch.zeros(density.dim, dtype=density.dtype)
    factor = torch.eye(density.dim, dtype=density.dtype)
    try:
        with density.isolated():
            source = kernel_source(
                step, num_chains, carried=[point] * 3, fixed=[point[:1]], data=[factor, *density.numbers]
            )
            return source.compile()
    except Exception as error:  # whatever a model does that tracing, translation or the compiler do not know
        _log.info("leapfrog steps run operation by operation: %s", error)
        return None


def _by_kernel(
    kernel: Kernel,
    density: Density,
    state: ChainState,
    momentum: Tensor,
    step_size: Tensor,
    factor: Tensor,
    num_steps: int,
) -> tuple[ChainState, Tensor]:
    carried = [part[None] for part in (state.u, momentum, state.slope)]
    data = [part[None] for part in (factor, *density.numbers)]
    scalars = factor.new_zeros((0, num_steps))  # no number changes from step to step
    end, (values,) = kernel((1, len(state.u)), scalars=scalars, carried=carried, fixed=[step_size[None]], data=data)
    u, momentum, slope = (part[0] for part in end)
    return ChainState(u, values[-1, 0], slope), momentum


def _agrees(density: Density, end: ChainState) -> bool:
    """Whether value and gradient of machine code are the density's, for the first chains, where these are finite."""
    few = slice(NUM_CHECKED)
    value, slope = density.slope(end.u[few])
    found, expected = (torch.cat([v[:, None], g], 1) for v, g in ((end.value[few], end.slope[few]), (value, slope)))
    finite = expected.isfinite().all(1)
    return agree([found[finite]], [expected[finite]], MACHINE_CODE_TOLERANCE)
