"""The compiled engines: steps as machine code, made by `ppl_vi.compiler.kernel` or by torch's inductor.

The kernel is tried first. What it has no translation for goes to inductor: there several steps are unrolled into one
graph, and every parameter is a tensor of its own, so that a guide of single numbers becomes arithmetic between numbers,
and all steps of a call, of all fits, are one loop over the fits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import torch
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ppl_vi.compiler import inductor
from ppl_vi.compiler.kernel import Kernel, KernelSource, operation_sizes
from ppl_vi.svi.engines.step import NO_OP_STEP, Engine, State, trace_step, written_step
from ppl_vi.svi.objectives import Objective
from ppl_vi.svi.program import Program
from ppl_vi.target.target import Target

aten = torch.ops.aten
_log = logging.getLogger(__name__)
# Rough measurements, in seconds, that decide what is compiled. A wrong one costs time and changes no result.
CALL_SECONDS = 25e-6  # of a call of inductor's machine code, whatever it does
OPERATION_SECONDS, NUMBER_SECONDS = 3e-6, 2e-9  # of an operation of the batched engine, and of each number it computes
KERNEL_SECONDS, CHARACTER_SECONDS = 0.3, 3e-6  # of compiling any kernel, and of each character of its C++
INDUCTOR_SECONDS, NODE_SECONDS = 2.5, 30e-3  # of compiling any graph by inductor, and of each of its operations
# The most steps that are unrolled into one graph, and the most operations of such a graph: larger graphs take inductor
# minutes.
MAX_UNROLLED_STEPS, MAX_UNROLLED_NODES = 8, 1500
# Guides whose step follows from their class and the shapes of their parameters.
PLAIN_GUIDES = (
    AutoDelta, AutoDiagonalNormal, AutoLaplaceApproximation, AutoLowRankMultivariateNormal, AutoMultivariateNormal,
    AutoNormal,
)  # fmt: skip
_sources: WeakKeyDictionary[Target, dict[Any, KernelSource]] = WeakKeyDictionary()


@dataclass(frozen=True)
class InductorEngine:
    """Takes several steps in one call of machine code that inductor has made of their unrolled graph.

    Attributes:
        args: the target's data.
        sizes: the sizes of the parts of the parameters, one part for each named parameter.
        num_steps: how many steps one call takes.
        run: the machine code of `unroll`'s graph.
    """

    args: tuple[Tensor, ...]
    sizes: list[int]
    num_steps: int
    run: Callable[..., Sequence[Tensor]]

    def advance(self, state: State, scalars: Tensor, noise: tuple[Tensor, ...]) -> tuple[State, Tensor]:
        """See `ppl_vi.svi.engines.step.Engine`. The last call is filled up with steps that go nowhere."""
        num = scalars.shape[-1]
        bounds: list[Tensor] = []
        for begin in range(0, num, self.num_steps):
            end = begin + self.num_steps
            out = self.run(
                _filled_up(scalars.mT[begin:end], scalars.new_tensor([NO_OP_STEP]), self.num_steps).mT.contiguous(),
                *state.tensors,
                *self.args,
                *(_filled_up(n[begin:end], n[-1:], self.num_steps) for n in noise),
            )
            state = state.advanced(out[: -self.num_steps])
            bounds.extend(out[-self.num_steps :])
        return state, torch.stack(bounds[:num])


def _filled_up(some: Tensor, filling: Tensor, num: int) -> Tensor:
    """`some` and, where these are fewer than `num` rows, as many rows like `filling` as are missing."""
    short = num - len(some)
    return torch.cat([some, filling.expand(short, *some.shape[1:])]) if short else some


@dataclass(frozen=True)
class KernelEngine:
    """Takes any number of steps in one call of a kernel, whose lanes are the replicas of each problem.

    Attributes:
        args: the target's data.
        size: how many parameters a fit has.
        kernel: the machine code of `written_step`.
    """

    args: tuple[Tensor, ...]
    size: int
    kernel: Kernel

    @property
    def sizes(self) -> list[int]:
        """All parameters in one part, as the kernel was written for."""
        return [self.size]

    @property
    def min_replicas(self) -> int:
        """The fewest replicas that it can take at once."""
        return self.kernel.source.min_lanes

    def advance(self, state: State, scalars: Tensor, noise: tuple[Tensor, ...]) -> tuple[State, Tensor]:
        """See `ppl_vi.svi.engines.step.Engine`."""
        *carried, preconditioner = state.tensors
        batch, replicas = state.alive.shape
        drawn = [n[: scalars.shape[-1]] for n in noise]
        after, (bounds,) = self.kernel(
            (batch, replicas), scalars=scalars, carried=carried, fixed=[preconditioner], data=self.args, noise=drawn
        )
        return state.advanced(after), bounds


@dataclass(frozen=True)
class Plan:
    """How a step would be compiled, and what that would take.

    Attributes:
        make: compiles the step, or loads its machine code from the cache.
        is_cached: whether the machine code is in the cache.
        seconds: about how long compiling takes where it is not.
        batched_seconds: about how long a step of the batched engine takes.
    """

    make: Callable[[], Engine]
    is_cached: bool
    seconds: float
    batched_seconds: float


def plan(program: Program, objective: Objective, theta: Tensor, noise: tuple[Tensor, ...], num_steps: int) -> Plan:
    """Traces the step, and plans a kernel where the step has a translation, else machine code by inductor.

    Args:
        program, objective: what is fitted, and by which objective.
        theta: the parameters of all fits that are stepped together, `(B, R, D)`.
        noise: the noise of as many steps as are taken at once, for each draw `(num, B, R, P, *shape)`.
        num_steps: how many steps will be taken in all.

    Raises:
        Exception: whatever a guide or model does that can't be traced.
    """
    try:
        step = _kernel_source(program, objective, noise[0].shape[3] if noise else 1, theta.shape[1])
    except Exception as error:
        _log.info("compiling by inductor: %s", error)
        return _inductor_plan(program, objective, theta, noise, num_steps)

    def make() -> Engine:
        return KernelEngine(program.target.args, program.layout.size, step.compile())

    batched = _batched_seconds(step.operations, theta[..., 0].numel())
    return Plan(make, step.is_cached, KERNEL_SECONDS + CHARACTER_SECONDS * len(step.code), batched)


def _kernel_source(program: Program, objective: Objective, num_particles: int, num_lanes: int) -> KernelSource:
    """What `written_step` gives: what it gave before, where an earlier fit to the same target took the same step.

    Only the steps of Pyro's own guides without settings are kept, since any other guide may change from fit to fit.

    Raises:
        Exception: as `written_step`.
    """
    if type(program.guide) not in PLAIN_GUIDES or program.local:
        return written_step(program, objective, num_particles, num_lanes)
    kept = _sources.setdefault(program.target, {})
    key = (type(program.guide), program.layout, objective, num_particles, num_lanes)
    if key not in kept:
        kept[key] = written_step(program, objective, num_particles, num_lanes)
    return kept[key]


def _batched_seconds(operations: Sequence[int], num_fits: int = 1) -> float:
    """About how long a step takes operation by operation.

    Args:
        operations: how many numbers each operation computes, for one fit or for all.
        num_fits: by how many that is to be multiplied.
    """
    return sum(OPERATION_SECONDS + NUMBER_SECONDS * num * num_fits for num in operations)


def compiled_engine(
    program: Program, objective: Objective, theta: Tensor, noise: tuple[Tensor, ...], num_steps: int
) -> Engine:
    """Traces the step and compiles it; see `plan`.

    Raises:
        Exception: whatever a guide or model does that can't be traced, whatever the compiler meets.
    """
    return plan(program, objective, theta, noise, num_steps).make()


def inductor_engine(
    program: Program, objective: Objective, theta: Tensor, noise: tuple[Tensor, ...], num_steps: int
) -> Engine:
    """The same by inductor, also where the step has a translation to a kernel."""
    return _inductor_plan(program, objective, theta, noise, num_steps).make()


def _inductor_plan(
    program: Program, objective: Objective, theta: Tensor, noise: tuple[Tensor, ...], num_steps: int
) -> Plan:
    sizes = program.layout.sizes
    state = State.start(theta, torch.ones_like(theta), torch.ones_like(theta[..., 0], dtype=torch.bool), sizes)
    graph = trace_step(program, objective, state, tuple(n[0] for n in noise))
    most = min(MAX_UNROLLED_STEPS, len(noise[0])) if noise else MAX_UNROLLED_STEPS
    num = num_unrolled(len(graph.graph.nodes), most, num_steps)
    unrolled = unroll(graph, num, len(sizes), len(program.target.args))
    scalars = torch.ones((len(NO_OP_STEP), num), dtype=theta.dtype, device=theta.device)
    example = [scalars, *state.tensors, *program.target.args, *(n[:num] for n in noise)]

    def make() -> Engine:
        return InductorEngine(program.target.args, sizes, num, inductor.compiled(unrolled, example))

    seconds = compile_seconds(num * len(graph.graph.nodes))
    return Plan(make, inductor.is_cached(unrolled, example), seconds, _batched_seconds(operation_sizes(graph)))


def num_unrolled(num_nodes: int, max_unrolled: int, num_steps: int) -> int:
    """How many steps one call takes.

    The number is doubled as long as the calls that this saves take more time than compiling the larger graph does: so
    it is 1 for runs of thousands of steps, and 8 for a million steps of a small graph.

    Args:
        num_nodes: the operations of a step.
        max_unrolled: the largest number that is allowed.
        num_steps: how many steps will be taken in all.
    """
    found = 1
    while (
        2 * found <= max_unrolled
        and 2 * found * num_nodes <= MAX_UNROLLED_NODES
        and CALL_SECONDS * num_steps / (2 * found) > NODE_SECONDS * num_nodes * found
    ):
        found *= 2
    return found


def compile_seconds(num_nodes: int) -> float:
    """About how long inductor takes for a graph of so many operations that is not in its cache."""
    return INDUCTOR_SECONDS + NODE_SECONDS * num_nodes


def unroll(step: GraphModule, num_steps: int, num_parts: int, num_args: int) -> GraphModule:
    """The graph of several steps in a row, each with its own scalars and noise.

    Its arguments are `(scalars, *state.tensors, *args, *noise)`, with `scalars` `(3, num_steps)` and noise
    `(num_steps, ...)`; it gives back the tensors that `State.advanced` takes, and the bound of each step.

    Args:
        step: the graph of `ppl_vi.svi.engines.step.step_function`.
        num_steps: how many steps.
        num_parts: the number of parts of the parameters.
        num_args: the number of the target's arguments.
    """
    graph = Graph()
    placeholders = [node for node in step.graph.nodes if node.op == "placeholder"]
    rest = iter(placeholders[len(NO_OP_STEP) :])
    scalars = graph.placeholder("scalars")
    groups = (1 + 4 * num_parts, num_parts, num_args, None)  # the noise is all that is left
    changing, preconditioner, args, noise = (
        [graph.placeholder(node.name) for node in islice(rest, num)] for num in groups
    )

    def at(node: Node, index: int) -> Node:
        return graph.call_function(aten.select.int, (node, 0, index))

    columns, bounds = [at(scalars, i) for i in range(len(NO_OP_STEP))], []
    for t in range(num_steps):
        own_scalars, own_noise = [at(column, t) for column in columns], [at(n, t) for n in noise]
        inputs = [*own_scalars, *changing, *preconditioner, *args, *own_noise]
        outputs: Any = graph.graph_copy(step.graph, dict(zip(placeholders, inputs, strict=True)))
        *changing, bound = outputs
        bounds.append(bound)
    graph.output((*changing, *bounds))
    return GraphModule(step, graph)
