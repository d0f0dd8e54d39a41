"""One step of SVI for all problems and replicas at once, as one flat graph of tensor operations.

What the batched engine runs and the compiled engine compiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.fx import GraphModule

from ppl_vi.compiler.kernel import KernelSource, kernel_source
from ppl_vi.compiler.simplify import trace_simplified
from ppl_vi.svi.engines.adam import adam
from ppl_vi.svi.objectives import Objective
from ppl_vi.svi.program import Program
from ppl_vi.svi.randomness import pseudo_random
from ppl_vi.svi.stopping import surrogate

NO_OP_STEP = (0.0, 1.0, 0.0)  # Adam's rate and correction, and the weight of the iterate, of a step that goes nowhere
TOGETHER = 8  # steps that an engine may take as one
SHORT, LONG = 32, 64  # steps of a portion: fewer where one replica's noise is much, more where all of it is little
MOST_NUMBERS = {"cpu": 2**18}  # of noise at once, unless one replica's step has more: they stay in the cache
MANY_NUMBERS = 2**24  # on other devices, which want much to do at once

Parts = tuple[Tensor, ...]
StepFunction = Callable[..., tuple[Tensor, ...]]
Gradients = Callable[[Program, Objective, Tensor, Parts, Parts], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class State:
    """Where a batch of fits stands within a round, its parameters in one part or several, each `(B, R, n_i)`.

    Attributes:
        alive: fits that have met no value that is not finite, `(B, R)`.
        theta: the parameters.
        first, second: Adam's moments.
        total: the weighted sum of the iterates so far.
        unit: of each parameter.
    """

    alive: Tensor
    theta: Parts
    first: Parts
    second: Parts
    total: Parts
    unit: Parts

    @staticmethod
    def start(theta: Tensor, unit: Tensor, alive: Tensor, sizes: Sequence[int]) -> State:
        """The beginning of a round at `theta` `(B, R, D)`, in parts of these sizes."""
        parts = split(theta, sizes)
        first, second, total = (tuple(torch.zeros_like(part) for part in parts) for _ in range(3))
        return State(alive, parts, first, second, total, split(unit, sizes))

    def resized(self, sizes: Sequence[int]) -> State:
        """The same in parts of other sizes."""
        whole = (self.theta, self.first, self.second, self.total, self.unit)
        return State(self.alive, *(split(torch.cat(parts, -1), sizes) for parts in whole))

    def over(self, change: Callable[[Tensor], Tensor]) -> State:
        """The same with every tensor changed."""
        whole = (self.theta, self.first, self.second, self.total, self.unit)
        return State(change(self.alive), *(tuple(change(part) for part in parts) for parts in whole))

    def portions(self, size: int) -> list[State]:
        """The state of each `size` replicas, the last of fewer."""
        parts = zip(*(tensor.split(size, 1) for tensor in self.tensors), strict=True)
        return [self._of(tensors) for tensors in parts]

    @staticmethod
    def joined(states: Sequence[State]) -> State:
        """The replicas of several as one."""
        return states[0]._of([torch.cat(some, 1) for some in zip(*(state.tensors for state in states), strict=True)])

    def _of(self, tensors: Sequence[Tensor]) -> State:
        """A state of as many parts from its tensors."""
        n = len(self.theta)
        return State(tensors[0], *(tuple(tensors[1 + i * n : 1 + (i + 1) * n]) for i in range(5)))

    @property
    def tensors(self) -> list[Tensor]:
        """All of it, in the order of a step's arguments."""
        return [self.alive, *self.theta, *self.first, *self.second, *self.total, *self.unit]

    def advanced(self, out: Sequence[Tensor]) -> State:
        """The state that a step's results describe: all but the units, which stay."""
        n = len(self.theta)
        theta, first, second, total = (tuple(out[1 + i * n : 1 + (i + 1) * n]) for i in range(4))
        return State(out[0], theta, first, second, total, self.unit)


def split(theta: Tensor, sizes: Sequence[int]) -> Parts:
    """`(B, R, D)` in parts that lie in memory one by one."""
    return tuple(part.contiguous() for part in theta.split(list(sizes), -1))


class Engine(Protocol):
    """What takes the steps."""

    @property
    def sizes(self) -> Sequence[int]:
        """Of the parts that it wants the parameters in."""

    def advance(self, state: State, scalars: Tensor, noise: tuple[Tensor, ...]) -> tuple[State, Tensor]:
        """Takes some steps.

        Args:
            state: where the fits stand.
            scalars: for each step `adam.pace`'s two numbers and the weight of its iterate, `(3, num)`.
            noise: of the same steps, each draw's `(num, B, R, P, *shape)`.

        Returns:
            The state after them and every step's bounds, `(num, B, R)`.
        """


@dataclass(frozen=True)
class Portion:
    """What noise is drawn for at once.

    Attributes:
        num_replicas: of all problems.
        num_steps: one after another, a power of 2.
    """

    num_replicas: int
    num_steps: int

    @staticmethod
    def of(program: Program, num_problems: int, num_replicas: int, num_particles: int) -> Portion:
        """All replicas for many steps where they are few, so that calls cost little; some for some steps where they
        are many, so that their noise stays in the cache."""
        each = max(1, sum(draw.shape.numel() for draw in program.draws) * num_problems * num_particles)
        most = max(1, MOST_NUMBERS.get(program.initial.device.type, MANY_NUMBERS) // each)  # a replica and step each
        num_steps = _power_of_2(min(most, max(SHORT, min(LONG, most // num_replicas))))
        num_portions = math.ceil(num_replicas / max(1, most // num_steps))
        return Portion(math.ceil(num_replicas / num_portions), num_steps)


def _power_of_2(most: int) -> int:
    return 1 << (most.bit_length() - 1)


def gradients(
    program: Program, objective: Objective, theta: Tensor, args: tuple[Tensor, ...], noise: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Gradient of the loss and the bound's estimate: `(B, R, D)` and `(B, R)`.

    Args:
        program: the pair.
        objective: what is estimated.
        theta: `(B, R, D)`.
        args: rows of data, `(B, ...)`.
        noise: for each draw `(B, R, P, *shape)`.
    """

    def loss(point: Tensor, row: tuple[Tensor, ...], draws: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return surrogate(program, objective, point, row, draws)

    return vmap(vmap(grad(loss, has_aux=True), in_dims=(0, None, 0)), in_dims=(0, 0, 0))(theta, args, noise)


def gradient_of_one(
    program: Program, objective: Objective, theta: Tensor, args: tuple[Tensor, ...], noise: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """The same of a single fit: `(D,)` and `()` from `(D,)`, one row of data, and noise `(P, *shape)`."""
    return grad(lambda point: surrogate(program, objective, point, args, noise), has_aux=True)(theta)


def step_function(
    program: Program, objective: Objective, sizes: Sequence[int], differentiate: Gradients = gradients
) -> StepFunction:
    """The step `(rate, correction, weight, *state, *args, *noise) -> (alive, *theta, *first, *second, *total, bound)`.

    A fit whose estimate, gradient or next point is not finite keeps its last point and is no longer `alive`. `total`
    sums the iterates with `weight`.
    """
    n, num_args = len(sizes), len(program.target.args)

    def step(rate: Tensor, correction: Tensor, weight: Tensor, alive: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        theta, first, second, total, unit = (rest[i * n : (i + 1) * n] for i in range(5))
        args, noise = rest[5 * n : 5 * n + num_args], rest[5 * n + num_args :]
        point = theta[0] if n == 1 else torch.cat(theta, -1)
        gradient, bound = differentiate(program, objective, point, args, noise)
        slopes = (gradient,) if n == 1 else gradient.split(list(sizes), -1)
        new = [
            adam(t, f, s, slope, u, rate, correction)
            for t, f, s, slope, u in zip(theta, first, second, slopes, unit, strict=True)
        ]
        # Adam keeps what is not finite in a gradient; x - x is 0 for finite x alone
        offs = [moved - moved for moved, _, _ in new]
        off = (bound - bound) + sum(off[..., 0] if off.shape[-1] == 1 else off.sum(-1) for off in offs)
        alive = alive & (off == 0)
        keep = alive[..., None]
        moved, firsts, seconds = (
            [torch.where(keep, after[i], before) for after, before in zip(new, old, strict=True)]
            for i, old in enumerate((theta, first, second))
        )
        totals = [t + weight * m for t, m in zip(total, moved, strict=True)]
        return (alive, *moved, *firsts, *seconds, *totals, bound)

    return step


def trace_step(program: Program, objective: Objective, state: State, noise: tuple[Tensor, ...]) -> GraphModule:
    """The step as a flat graph; `noise` is one step's.

    Raises:
        Exception: whatever a guide or model does that can't be traced.
    """
    scalars = torch.ones(3, dtype=state.theta[0].dtype, device=state.theta[0].device)
    example = (*scalars, *state.tensors, *program.target.args, *noise)
    sizes = [part.shape[-1] for part in state.theta]
    return trace_simplified(step_function(program, objective, sizes), example)


def written_step(program: Program, objective: Objective, num_particles: int, num_fits: int) -> KernelSource:
    """The step of a single fit as C++ for many fits: its parameters in one part, no axes for problems and replicas.

    Raises:
        UnsupportedError: the step does something that has no translation.
        Exception: whatever a guide or model does that can't be traced.
    """
    theta = program.initial
    noise = pseudo_random(program.draws, (num_particles,), torch.Generator(device=theta.device).manual_seed(0))
    alive, ones = torch.ones((), dtype=torch.bool, device=theta.device), torch.ones_like(theta)
    step = step_function(program, objective, [len(theta)], gradient_of_one)
    return kernel_source(
        step, num_fits, num_scalars=len(NO_OP_STEP), carried=[alive, ones, ones, ones, ones], fixed=[ones],
        data=program.target.row(0), noise=noise,
    )  # fmt: skip
