"""One step of SVI for all problems and replicas at once, as one function of plain tensors.

A step takes the gradient of the objective on given noise, moves the parameters by Adam, and adds the new parameters to
a weighted sum, the average of a round's iterates. The batched engine runs the traced step operation by operation; the
compiled engines turn the same step into machine code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.fx import GraphModule

from ppl_vi.compiler.kernel import KernelSource, kernel_source
from ppl_vi.compiler.simplify import trace_simplified
from ppl_vi.svi.engines.adam import adam
from ppl_vi.svi.objectives import Objective, surrogate_loss
from ppl_vi.svi.program import Program
from ppl_vi.svi.randomness import pseudo_random

# The scalars of a step that leaves the parameters where they are: Adam's rate and correction, and the iterate's weight.
NO_OP_STEP = (0.0, 1.0, 0.0)

Parts = tuple[Tensor, ...]
StepFunction = Callable[..., tuple[Tensor, ...]]
Gradients = Callable[[Program, Objective, Tensor, Parts, Parts], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class State:
    """Where a batch of fits stands within a round.

    The flat parameters `(B, R, D)` are held in one part or in several, each `(B, R, D_i)`, as the engine wants them.

    Attributes:
        alive: which fits are stepped: those that have met no value that is not finite, `(B, R)`.
        theta: the parameters.
        first, second: Adam's two moments.
        total: the weighted sum of the iterates so far.
        preconditioner: how far each parameter moves in a step of size 1.
    """

    alive: Tensor
    theta: Parts
    first: Parts
    second: Parts
    total: Parts
    preconditioner: Parts

    @staticmethod
    def start(theta: Tensor, preconditioner: Tensor, alive: Tensor, sizes: Sequence[int]) -> State:
        """The beginning of a round at `theta` `(B, R, D)`, in parts of these sizes."""
        parts = split(theta, sizes)
        first, second, total = (tuple(torch.zeros_like(part) for part in parts) for _ in range(3))
        return State(alive, parts, first, second, total, split(preconditioner, sizes))

    @staticmethod
    def of(tensors: Sequence[Tensor], num_parts: int) -> State:
        """The state whose `tensors` are these.

        Raises:
            ValueError: there are not as many tensors as a state of `num_parts` parts has.
        """
        if len(tensors) != 1 + 5 * num_parts:
            raise ValueError(f"a state of {num_parts} parts has {1 + 5 * num_parts} tensors, got {len(tensors)}")
        rest = iter(tensors[1:])
        return State(tensors[0], *(tuple(islice(rest, num_parts)) for _ in range(5)))

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors of the state, in the order of a step's arguments."""
        return [self.alive, *self.theta, *self.first, *self.second, *self.total, *self.preconditioner]

    @property
    def whole_theta(self) -> Tensor:
        """The parameters in one piece, `(B, R, D)`."""
        return torch.cat(self.theta, -1)

    @property
    def average(self) -> Tensor:
        """The weighted sum of the iterates in one piece, `(B, R, D)`: their average once a round is over."""
        return torch.cat(self.total, -1)

    def advanced(self, changed: Sequence[Tensor]) -> State:
        """The state that a step gives back: all its tensors but the preconditioner, which stays."""
        return State.of([*changed, *self.preconditioner], len(self.theta))

    def resized(self, sizes: Sequence[int]) -> State:
        """The same state in parts of other sizes."""
        groups = (self.theta, self.first, self.second, self.total, self.preconditioner)
        return State(self.alive, *(split(torch.cat(parts, -1), sizes) for parts in groups))

    def over(self, change: Callable[[Tensor], Tensor]) -> State:
        """The state with every tensor changed by the same function."""
        return State.of([change(tensor) for tensor in self.tensors], len(self.theta))

    def portions(self, num_replicas: int) -> list[State]:
        """The states of so many replicas each; the last one may have fewer."""
        pieces = zip(*(tensor.split(num_replicas, 1) for tensor in self.tensors), strict=True)
        return [State.of(tensors, len(self.theta)) for tensors in pieces]

    @staticmethod
    def joined(states: Sequence[State]) -> State:
        """One state of the replicas of several."""
        columns = zip(*(state.tensors for state in states), strict=True)
        return State.of([torch.cat(column, 1) for column in columns], len(states[0].theta))


def split(theta: Tensor, sizes: Sequence[int]) -> Parts:
    """`(B, R, D)` in parts of these sizes, each of them contiguous in memory."""
    return tuple(part.contiguous() for part in theta.split(list(sizes), -1))


class Engine(Protocol):
    """What takes steps of a batch of fits."""

    @property
    def sizes(self) -> Sequence[int]:
        """The sizes of the parts in which the engine wants the parameters."""

    def advance(self, state: State, scalars: Tensor, noise: tuple[Tensor, ...]) -> tuple[State, Tensor]:
        """Takes several steps one after another.

        Args:
            state: where the fits stand.
            scalars: for each step the two numbers of `adam.step_schedule` and the weight of its iterate, `(3, num)`.
            noise: of the same steps, for each draw `(num, B, R, P, *shape)`.

        Returns:
            The state after these steps, and every step's bound, `(num, B, R)`, nats.
        """


def gradients(
    program: Program, objective: Objective, theta: Tensor, args: tuple[Tensor, ...], noise: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """The gradient of the loss and the estimate of the bound for each fit: `(B, R, D)` and `(B, R)`, nats.

    Args:
        program: the model and guide.
        objective: what is estimated.
        theta: the parameters, `(B, R, D)`.
        args: the rows of data, `(B, ...)`.
        noise: for each draw `(B, R, P, *shape)`.
    """

    def loss(point: Tensor, row: tuple[Tensor, ...], draws: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return surrogate_loss(program, objective, point, row, draws)

    return vmap(vmap(grad(loss, has_aux=True), in_dims=(0, None, 0)), in_dims=(0, 0, 0))(theta, args, noise)


def gradient_of_one(
    program: Program, objective: Objective, theta: Tensor, args: tuple[Tensor, ...], noise: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """The same for a single fit: `(D,)` and `()` from `theta` `(D,)`, one row of data, and noise `(P, *shape)`."""
    return grad(lambda point: surrogate_loss(program, objective, point, args, noise), has_aux=True)(theta)


def step_function(
    program: Program, objective: Objective, sizes: Sequence[int], differentiate: Gradients = gradients
) -> StepFunction:
    """The step as a function of tensors alone, so that it can be traced.

    Its arguments are `(rate, correction, weight, *state.tensors, *args, *noise)`; it gives back the state's tensors
    without the preconditioner, and the bound: what `State.advanced` takes, and one tensor more. A fit whose bound or
    whose next point is not finite keeps its last parameters and moments and is no longer `alive`.

    Args:
        program, objective: what is fitted, and by which objective.
        sizes: of the parts in which the parameters come.
        differentiate: gives the gradient and the bound, as `gradients` does.
    """
    num_parts, num_args = len(sizes), len(program.target.args)

    def step(rate: Tensor, correction: Tensor, weight: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        rest = iter(tensors)
        state = State.of(list(islice(rest, 1 + 5 * num_parts)), num_parts)
        args, noise = tuple(islice(rest, num_args)), tuple(rest)
        point = state.theta[0] if num_parts == 1 else state.whole_theta
        gradient, bound = differentiate(program, objective, point, args, noise)
        slopes = (gradient,) if num_parts == 1 else gradient.split(list(sizes), -1)
        moved = [
            adam(*of_part, rate, correction)
            for of_part in zip(state.theta, state.first, state.second, slopes, state.preconditioner, strict=True)
        ]
        alive = state.alive & _is_finite(bound, [new for new, _, _ in moved])
        theta, first, second = (
            [torch.where(alive[..., None], new, old) for new, old in zip(news, olds, strict=True)]
            for news, olds in zip(zip(*moved, strict=True), (state.theta, state.first, state.second), strict=True)
        )
        total = [before + weight * part for before, part in zip(state.total, theta, strict=True)]
        return (alive, *theta, *first, *second, *total, bound)

    return step


def _is_finite(bound: Tensor, theta: Sequence[Tensor]) -> Tensor:
    """Whether the bound and all parameters of a fit are finite, by arithmetic alone: x - x is 0 for finite x only.

    A gradient that is not finite needs no look of its own, since Adam's moments and so the parameters keep it.
    """
    differences = [part - part for part in theta]
    off = (bound - bound) + sum(d[..., 0] if d.shape[-1] == 1 else d.sum(-1) for d in differences)
    return off == 0


def trace_step(program: Program, objective: Objective, state: State, noise: tuple[Tensor, ...]) -> GraphModule:
    """The step as a flat graph of tensor operations.

    Args:
        program, objective: what is fitted, and by which objective.
        state: a state of the shapes that the graph is for.
        noise: of one step.

    Raises:
        Exception: whatever a guide or model does that can't be traced.
    """
    scalars = torch.ones(len(NO_OP_STEP), dtype=state.theta[0].dtype, device=state.theta[0].device)
    example = (*scalars, *state.tensors, *program.target.args, *noise)
    sizes = [part.shape[-1] for part in state.theta]
    return trace_simplified(step_function(program, objective, sizes), example)


def written_step(program: Program, objective: Objective, num_particles: int, num_fits: int) -> KernelSource:
    """The step of a single fit as C++ that is run for many fits side by side.

    The parameters come in one part, without axes for problems and replicas.

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
