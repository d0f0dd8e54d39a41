"""The compiled engine: steps as machine code, by a kernel (`ppl_vi.compiler.kernel`) or by torch's inductor.

For inductor several steps are unrolled into one graph, and every parameter is a tensor of its own, so that a guide of
single numbers becomes arithmetic between numbers: all steps of a block, of all fits, in one loop over the fits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ppl_vi.compiler import inductor
from ppl_vi.compiler.kernel import Kernel, operation_sizes
from ppl_vi.svi.engines.step import NO_OP_STEP, TOGETHER, Engine, State, trace_step, written_step
from ppl_vi.svi.objectives import Objective
from ppl_vi.svi.program import Program

aten = torch.ops.aten
_log = logging.getLogger(__name__)
CALL = 25e-6  # seconds that calling the machine code takes, whatever it does
OPERATION, NUMBER = 3e-6, 2e-9  # seconds that an operation of the batched engine takes, and each number in it
UNROLLED_NODES = 1500  # of a graph; more take minutes to compile
BUILD, CHARACTER = 0.3, 3e-6  # seconds to compile any translation, and for each of its characters
COMPILE, NODE = 2.5, 30e-3  # seconds to compile any graph, and for each of its operations


@dataclass(frozen=True)
class CompiledEngine:
    """Runs blocks of steps as machine code; made by `compiled_engine`.

    Attributes:
        args: the target's data.
        sizes: of the parts of the parameters, one for each named parameter.
        num_steps: that one call takes.
        run: `(scalars, *state, *args, *noise)` to the state's tensors but the units and each step's bound.
    """

    args: tuple[Tensor, ...]
    sizes: list[int]
    num_steps: int
    run: Callable[..., Sequence[Tensor]]

    def advance(self, state: State, scalars: Tensor, noise: tuple[Tensor, ...]) -> tuple[State, Tensor]:
        """See `ppl_vi.svi.engines.step.Engine`. Steps beyond those asked for, in the last call, are taken at rate 0."""
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
            state = state.advanced(out)
            bounds.extend(out[-self.num_steps :])
        return state, torch.stack(bounds[:num])


def _filled_up(some: Tensor, filling: Tensor, num: int) -> Tensor:
    """`num` rows, those that lack all like `filling`."""
    short = num - len(some)
    return torch.cat([some, filling.expand(short, *some.shape[1:])]) if short else some


@dataclass(frozen=True)
class KernelEngine:
    """Takes blocks of steps as one call of a kernel, whose lanes are the fits.

    Attributes:
        args: the target's data.
        size: how many parameters a fit has.
        kernel: the machine code.
    """

    args: tuple[Tensor, ...]
    size: int
    kernel: Kernel

    @property
    def sizes(self) -> list[int]:
        """All parameters in one part."""
        return [self.size]

    def advance(self, state: State, scalars: Tensor, noise: tuple[Tensor, ...]) -> tuple[State, Tensor]:
        """See `ppl_vi.svi.engines.step.Engine`."""
        *carried, unit = state.tensors
        batch, replicas = state.alive.shape
        drawn = [n[: scalars.shape[-1]] for n in noise]
        after, (bounds,) = self.kernel(
            (batch, replicas), scalars=scalars, carried=carried, fixed=[unit], data=self.args, noise=drawn
        )
        return state.advanced(after), bounds


@dataclass(frozen=True)
class Plan:
    """How a step is to be compiled.

    Attributes:
        make: compiles it, or loads what is kept.
        kept: whether its machine code is there already.
        seconds: about what compiling takes where it is not.
        batched_seconds: about what a step of the batched engine takes.
    """

    make: Callable[[], Engine]
    kept: bool
    seconds: float
    batched_seconds: float


def plan(program: Program, objective: Objective, theta: Tensor, noise: tuple[Tensor, ...], num_steps: int) -> Plan:
    """Traces the step for `num_steps` of fits like `theta` `(B, R, D)`, blocks of noise like `noise`.

    By a translation of our own where there is one, else by torch's inductor.

    Raises:
        Exception: whatever a guide or model does that can't be traced.
    """
    try:
        step = written_step(program, objective, noise[0].shape[3] if noise else 1, theta.shape[1])
    except Exception as error:
        _log.info("compiling by inductor: %s", error)
        return _inductor_plan(program, objective, theta, noise, num_steps)

    def make() -> Engine:
        return KernelEngine(program.target.args, program.layout.size, step.compile())

    batched = _batched_seconds(step.operations, theta[..., 0].numel())
    return Plan(make, step.is_cached, BUILD + CHARACTER * len(step.code), batched)


def _batched_seconds(operations: Sequence[int], num_fits: int = 1) -> float:
    """What a step takes operation by operation: of each, the numbers that it computes for one fit, or for all."""
    return sum(OPERATION + NUMBER * num * num_fits for num in operations)


def compiled_engine(
    program: Program, objective: Objective, theta: Tensor, noise: tuple[Tensor, ...], num_steps: int
) -> Engine:
    """Traces and compiles the step, see `plan`.

    Raises:
        Exception: whatever a guide or model does that can't be traced, whatever the compiler meets.
    """
    return plan(program, objective, theta, noise, num_steps).make()


def inductor_engine(
    program: Program, objective: Objective, theta: Tensor, noise: tuple[Tensor, ...], num_steps: int
) -> Engine:
    """The same by inductor alone."""
    return _inductor_plan(program, objective, theta, noise, num_steps).make()


def _inductor_plan(
    program: Program, objective: Objective, theta: Tensor, noise: tuple[Tensor, ...], num_steps: int
) -> Plan:
    sizes = program.layout.sizes
    state = State.start(theta, torch.ones_like(theta), torch.ones_like(theta[..., 0], dtype=torch.bool), sizes)
    graph = trace_step(program, objective, state, tuple(n[0] for n in noise))
    num = num_unrolled(len(graph.graph.nodes), min(TOGETHER, len(noise[0])) if noise else TOGETHER, num_steps)
    unrolled = unroll(graph, num, len(state.tensors), len(noise))
    scalars = torch.ones((3, num), dtype=theta.dtype, device=theta.device)
    example = [scalars, *state.tensors, *program.target.args, *(n[:num] for n in noise)]

    def make() -> Engine:
        return CompiledEngine(program.target.args, sizes, num, inductor.compiled(unrolled, example))

    seconds = compile_seconds(num * len(graph.graph.nodes))
    return Plan(make, inductor.is_cached(unrolled, example), seconds, _batched_seconds(operation_sizes(graph)))


def num_unrolled(num_nodes: int, block: int, num_steps: int) -> int:
    """How many steps one call takes, at most `block`: two for one while the calls saved outweigh the compiling.

    So it is 1 for runs of thousands of steps, and 8 for a small graph's million.

    Args:
        num_nodes: operations of a step.
        block: steps whose noise is drawn at once.
        num_steps: to be taken.
    """
    found = 1
    while (
        2 * found <= block
        and 2 * found * num_nodes <= UNROLLED_NODES
        and CALL * num_steps / (2 * found) > NODE * num_nodes * found
    ):
        found *= 2
    return found


def compile_seconds(num_nodes: int) -> float:
    """About what inductor takes where nothing is kept."""
    return COMPILE + NODE * num_nodes


def unroll(step: GraphModule, num_steps: int, num_state: int, num_noise: int) -> GraphModule:
    """The graph of `num_steps` steps in a row, each with its own scalars and noise.

    Args:
        step: of `(rate, correction, weight, *state, *args, *noise)`, see `ppl_vi.svi.engines.step.step_function`.
        num_steps: how many.
        num_state: tensors of the state, the units included.
        num_noise: tensors of noise.
    """
    graph, names = Graph(), [node for node in step.graph.nodes if node.op == "placeholder"]
    num_parts = (num_state - 1) // 5
    scalars = graph.placeholder("scalars")
    state, args, noise = (
        [graph.placeholder(node.name) for node in some]
        for some in (names[3 : 3 + num_state], names[3 + num_state : len(names) - num_noise],
                     names[len(names) - num_noise :])
    )  # fmt: skip

    def at(node: Node, index: int) -> Node:
        return graph.call_function(aten.select.int, (node, 0, index))

    columns, bounds = [at(scalars, i) for i in range(3)], []
    for t in range(num_steps):
        inputs = [*(at(column, t) for column in columns), *state, *args, *(at(n, t) for n in noise)]
        found: Any = graph.graph_copy(step.graph, dict(zip(names, inputs, strict=True)))
        *out, bound = found
        state = [*out, *state[-num_parts:]]
        bounds.append(bound)
    graph.output((*state[:-num_parts], *bounds))
    return GraphModule(step, graph)
