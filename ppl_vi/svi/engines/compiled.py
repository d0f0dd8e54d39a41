"""The compiled engine: steps as machine code, by a translation of our own (`ppl_vi.compiler.translate`) or by torch's inductor.

For inductor several steps are unrolled into one graph, and every parameter is a tensor of its own, so that a guide of
single numbers becomes arithmetic between numbers: all steps of a block, of all fits, in one loop over the fits.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ppl_vi.compiler import inductor, toolchain
from ppl_vi.compiler.simplify import traced
from ppl_vi.compiler.translate import C_TYPES, Translation, UnsupportedError, decomposed, num_lanes
from ppl_vi.svi.engines.step import STANDING, TOGETHER, Engine, State, trace_one, trace_step
from ppl_vi.svi.objectives import Objective
from ppl_vi.svi.program import Program
from ppl_vi.target.isolation import isolated

aten = torch.ops.aten
_log = logging.getLogger(__name__)
CALL = 25e-6  # seconds that calling the machine code takes, whatever it does
OPERATION, NUMBER = 3e-6, 2e-9  # seconds that an operation of the batched engine takes, and each number in it
UNROLLED_NODES = 1500  # of a graph; more take minutes to compile
BUILD, CHARACTER = 0.3, 3e-6  # seconds to compile any translation, and for each of its characters
SMALL_FRAME = 2**19  # bytes of the stack that any thread has
ROOM = 2**20  # bytes
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
                _filled_up(scalars.mT[begin:end], scalars.new_tensor([STANDING]), self.num_steps).mT.contiguous(),
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
class Reads:
    """What a translation reads from memory. Machine code takes whatever lies at an address for that.

    Attributes:
        dtype: of all numbers.
        size: parameters of a fit.
        data: numbers in each array of data, of one problem.
        noise: numbers in each array of noise, of one fit and step.
    """

    dtype: torch.dtype
    size: int
    data: tuple[int, ...]
    noise: tuple[int, ...]

    @staticmethod
    def of(library: ctypes.CDLL) -> Reads:
        """What the library itself says."""
        num_data, num_noise = (ctypes.c_int64 * 4).in_dll(library, "reads")[2:]
        itemsize, size, _, _, *numbers = (ctypes.c_int64 * (4 + num_data + num_noise)).in_dll(library, "reads")
        dtype = next(dtype for dtype in C_TYPES if dtype.itemsize == itemsize)
        return Reads(dtype, size, tuple(numbers[:num_data]), tuple(numbers[num_data:]))

    def check(
        self, alive: Tensor, scalars: Tensor, parts: Sequence[Tensor], data: Sequence[Tensor], noise: Sequence[Tensor]
    ) -> None:
        """Compares tensors with what is going to be read.

        Args:
            alive: `(B, R)`.
            scalars: `(3, T)`.
            parts: of the state, `(B, D, R)` each.
            data: one tensor an array.
            noise: one tensor an array.

        Raises:
            ValueError: one has another dtype, another number of elements, or does not lie in one piece on the CPU.
        """
        num_problems, num_fits, num_steps = len(alive), alive.numel(), scalars.shape[-1]
        expected = {
            "alive": ([alive], torch.bool, [num_fits]),
            "scalars": ([scalars], self.dtype, [3 * num_steps]),
            "state": (parts, self.dtype, [num_fits * self.size] * len(parts)),
            "data": (data, self.dtype, [num_problems * num for num in self.data]),
            "noise": (noise, self.dtype, [num_steps * num_fits * num for num in self.noise]),
        }
        for name, (tensors, dtype, numbers) in expected.items():
            wanted = [(dtype, num, "cpu", True) for num in numbers]
            found = [(t.dtype, t.numel(), t.device.type, t.is_contiguous()) for t in tensors]
            if found != wanted:
                raise ValueError(
                    f"machine code reads {name} as (dtype, numbers, device, whether contiguous) {wanted}; got {found}"
                )


@dataclass(frozen=True)
class LanesEngine:
    """Runs blocks of steps as one call of a C++ function; made by `plan`.

    The fits lie side by side in memory, so a part of the state that this engine returns is the transpose of a
    contiguous `(B, D, R)`; noise in that order is not copied either.

    Attributes:
        args: the target's data.
        sizes: all parameters in one part.
        num_replicas: that it was made for; a full vector of them goes for all larger numbers.
        reads: what it takes from memory.
        advance_all: the function.
        frame_bytes: of the stack that it takes.
    """

    args: tuple[Tensor, ...]
    sizes: list[int]
    num_replicas: int
    reads: Reads
    advance_all: Callable[..., None]
    frame_bytes: int

    @staticmethod
    def of(args: tuple[Tensor, ...], size: int, num_replicas: int, source: str) -> LanesEngine:
        """The engine of a translation.

        Args:
            args: the target's data.
            size: parameters of a fit.
            num_replicas: that it is for.
            source: its C++.
        """
        library = toolchain.library(source)
        function, frame_bytes = library.advance, ctypes.c_int64.in_dll(library, "frame_bytes").value
        function.argtypes, function.restype = [ctypes.c_int64] * 3 + [ctypes.c_void_p] * 12, None
        given = tuple(arg.contiguous() for arg in args)
        return LanesEngine(given, [size], num_replicas, Reads.of(library), function, frame_bytes)

    @staticmethod
    def of_step(
        step: Callable[..., tuple[Tensor, ...]],
        like: Tensor,
        row: Sequence[Tensor],
        num_replicas: int,
        noise: Sequence[Tensor] = (),
    ) -> LanesEngine:
        """The engine of any function that goes the way of a step; it is called with the data as `args`.

        Args:
            step: `(alive, theta, first, second, total, unit, *row, *noise)` to what the first five are after it, and a
                number.
            like: a `theta`, `(D,)`.
            row: data like those it will be called with.
            num_replicas: that it is for.
            noise: of one fit.

        Raises:
            UnsupportedError: the step does something that has no translation.
            Exception: whatever a function does that can't be traced, or the compiler meets, an absent one among it.
        """
        inductor.check_version()
        if any(tensor.device.type != "cpu" for tensor in (like, *row, *noise)):
            raise UnsupportedError("numbers on another device")
        state = (torch.ones((), dtype=torch.bool), *(like.clone() for _ in range(5)))
        example = (*like.new_ones(3), *state, *row, *noise)
        with isolated(like.dtype, seed=0):
            graph = decomposed(traced(lambda *given: step(*given[3:]), example), example)
        source = Translation(graph, like.dtype, len(noise)).code(num_replicas)
        return LanesEngine.of((), len(like), num_replicas, source)

    def advance(self, state: State, scalars: Tensor, noise: tuple[Tensor, ...]) -> tuple[State, Tensor]:
        """See `ppl_vi.svi.engines.step.Engine`.

        Raises:
            ValueError: other replicas than it was made for, or tensors that machine code would misread, see `Reads`.
        """
        (batch, replicas), num, (size,) = state.alive.shape, scalars.shape[-1], self.sizes
        least = num_lanes(self.num_replicas, scalars.dtype)
        if replicas != self.num_replicas and min(replicas, self.num_replicas) < least:
            raise ValueError(f"expected {self.num_replicas} replicas, got {replicas}: make an engine for so many")
        parts = [_fits_last(part) for (part,) in (state.theta, state.first, state.second, state.total, state.unit)]
        draws = [_fits_last(n.flatten(3)) for n in noise]
        alive, scalars = state.alive.contiguous(), scalars.contiguous()
        self.reads.check(alive, scalars, parts, self.args, draws)
        after = torch.empty_like(alive)
        out, bounds = scalars.new_empty((4, batch, size, replicas)), scalars.new_empty((num, batch, replicas))
        tensors = (scalars, alive, *parts, after, out, bounds)
        pointers = [tensor.data_ptr() for tensor in tensors]
        given = (num, batch, replicas, *pointers, _pointers(self.args), _pointers(draws))
        if self.frame_bytes <= SMALL_FRAME:
            self.advance_all(*given)
        else:
            _on_a_stack(2 * self.frame_bytes, self.advance_all, given, (*tensors, *self.args, *draws))
        theta, first, second, total = out.mT.unbind()
        return State(after, (theta,), (first,), (second,), (total,), (parts[-1].mT,)), bounds


def _on_a_stack(size: int, function: Callable[..., None], given: Sequence[Any], held: Sequence[Tensor]) -> None:
    """Calls `function(*given)` in a thread whose stack has so many bytes and a few.

    Args:
        size: of the stack; a process has 8 MiB of it, and without this a larger step would end the process.
        function: machine code.
        given: its arguments, pointers into `held` among them.
        held: kept until it is done, also where the waiting is interrupted.
    """

    def call(_held: Sequence[Tensor] = held) -> None:
        function(*given)

    whole = 1 << (size + ROOM).bit_length()
    before = threading.stack_size(whole)
    try:
        done = _thread_with(whole, os.getpid()).submit(call)
    finally:
        threading.stack_size(before)
    done.result()


@lru_cache(maxsize=2)
def _thread_with(stack_size: int, process: int) -> ThreadPoolExecutor:
    """One thread, started by its first job with the stack size that holds then, and kept: a new one's stack is all page
    faults. Threads do not outlive a fork, so each process has its own."""
    return ThreadPoolExecutor(1, f"stack_of_{stack_size}_in_{process}")


def _fits_last(tensor: Tensor) -> Tensor:
    """`(..., R, n)` as a contiguous `(..., n, R)`."""
    return tensor.mT.contiguous()


def _pointers(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * max(len(tensors), 1))(*(tensor.data_ptr() for tensor in tensors))


def translated(program: Program, objective: Objective, theta: Tensor, num_particles: int) -> tuple[str, GraphModule]:
    """The step of one fit as C++ for many like `theta` `(B, R, D)`, on the CPU, and the graph it comes from.

    Raises:
        UnsupportedError: the step does something that has no translation, or is too large for the cache.
        Exception: whatever a guide or model does that can't be traced.
    """
    inductor.check_version()
    if theta.device.type != "cpu":
        raise UnsupportedError(f"fits on {theta.device.type}")
    graph, example = trace_one(program, objective, num_particles)
    translation = Translation(decomposed(graph, example), theta.dtype, len(program.draws))
    return translation.code(theta.shape[1]), graph


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
        source, graph = translated(program, objective, theta, noise[0].shape[3] if noise else 1)
    except Exception as error:
        _log.info("compiling by inductor: %s", error)
        return _inductor_plan(program, objective, theta, noise, num_steps)
    make = partial(LanesEngine.of, program.target.args, program.layout.size, theta.shape[1], source)
    batched = _batched_seconds(graph, theta[..., 0].numel())
    return Plan(make, toolchain.is_kept(source), BUILD + CHARACTER * len(source), batched)


def _batched_seconds(graph: GraphModule, num_fits: int = 1) -> float:
    """Of a step whose graph is that of one fit, or of all."""
    values = (node.meta.get("val") for node in graph.graph.nodes if node.op == "call_function")
    return sum(OPERATION + NUMBER * value.numel() * num_fits for value in values if isinstance(value, Tensor))


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
    return Plan(make, inductor.is_kept(unrolled, example), seconds, _batched_seconds(graph))


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
