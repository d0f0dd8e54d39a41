"""Machine code for a map that is applied again and again, in many lanes at once.

A *step* is a function of plain tensors that takes what it gave back the time before: x_t = f(scalars_t, x_(t-1), fixed,
data, noise_t), together with results r_t. It is written for one *lane*: one fit, one chain, one point. `kernel_source`
traces it and writes C++ in which every number is a vector of lanes (SIMD: single instruction, multiple data), and
`KernelSource.compile` gives the `Kernel`, a function that takes many steps of the lanes of many problems. What the
tensors mean is the caller's business: a step of SVI, a leapfrog step or a log density at a point are all alike here.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ppl_vi.compiler import inductor, toolchain
from ppl_vi.compiler.emit import source_text
from ppl_vi.compiler.hoist import Prepare, hoisted
from ppl_vi.compiler.rows import NotByRowsError, Rows, swept
from ppl_vi.compiler.simplify import trace_simplified
from ppl_vi.compiler.trace import LazyGraphModule
from ppl_vi.compiler.translate import Signature, Translation, decomposed, translate
from ppl_vi.compiler.values import UnsupportedError
from ppl_vi.compiler.vectors import VECTOR_BYTES, lanes_per_vector

# The smallest stack that a thread has by default is 512 KiB (macOS; Linux gives 8 MiB). A kernel whose arrays are
# larger runs in a thread of its own, since overrunning the stack would end the process.
MAX_FRAME_BYTES_ON_ANY_STACK = 2**19
# What such a thread's stack holds beside the kernel's arrays: the frames of Python, of ctypes and of the functions that
# the kernel calls. A larger margin only maps memory that is not used.
STACK_MARGIN_BYTES = 2**20

Tensors = Sequence[Tensor]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TensorSpec:
    """The shape and the dtype of one argument of a step, without axes for problems, lanes and steps."""

    shape: torch.Size
    dtype: torch.dtype

    @staticmethod
    def of(tensor: Tensor) -> TensorSpec:
        """That of a tensor."""
        return TensorSpec(tensor.shape, tensor.dtype)


@dataclass(frozen=True)
class KernelSource:
    """The C++ of a step.

    Attributes:
        code: the C++.
        num_lanes: how many lanes it is for. It serves all larger numbers, too; best, where these fill a vector.
        dtype: of all numbers.
        num_scalars: how many scalars a step takes.
        carried: the tensors that each step changes: they are arguments, and come back.
        fixed, data, noise: the other arguments, as of `kernel_source`.
        results: what else a step gives back; integers and conditions (as 0 and 1) come in `dtype`.
        operations: how many numbers each of torch's operations of the step computes in one lane.
        prepared: what is computed from data alone before the first step.
    """

    code: str = field(repr=False)
    num_lanes: int
    dtype: torch.dtype
    num_scalars: int
    carried: tuple[TensorSpec, ...]
    fixed: tuple[TensorSpec, ...]
    data: tuple[TensorSpec, ...]
    noise: tuple[TensorSpec, ...]
    results: tuple[TensorSpec, ...]
    operations: tuple[int, ...]
    prepared: Prepared

    @property
    def rows(self) -> Rows:
        """The axes of rows that it sweeps over."""
        return self.prepared.rows

    @property
    def is_cached(self) -> bool:
        """Whether its machine code is in the compile cache."""
        return toolchain.is_cached(self.code)

    def compile(self) -> Kernel:
        """Compiles the C++, or loads its machine code from the compile cache.

        Raises:
            NoCompilerError: there is no C++ compiler.
            RuntimeError: the compiler refuses the code.
        """
        library = toolchain.library(self.code)
        function = library.advance
        function.argtypes, function.restype = [ctypes.c_int64] * 3 + [ctypes.c_void_p] * 10, None
        return Kernel(self, function, ctypes.c_int64.in_dll(library, "frame_bytes").value)

    @property
    def min_lanes(self) -> int:
        """The fewest lanes that it serves: as many as it was written for, or a full vector of them."""
        return min(lanes_per_vector(self.num_lanes, self.dtype), self.num_lanes)

    def check_lanes(self, num_lanes: int) -> None:
        """Checks that the code serves so many lanes.

        Raises:
            ValueError: it does not.
        """
        if num_lanes < self.min_lanes:
            raise ValueError(
                f"this kernel serves {self.min_lanes} lanes or more, got {num_lanes}: compile one for them"
            )


def kernel_source(
    step: Callable[..., Sequence[Tensor]],
    num_lanes: int,
    *,
    num_scalars: int = 0,
    carried: Tensors = (),
    fixed: Tensors = (),
    data: Tensors = (),
    noise: Tensors = (),
) -> KernelSource:
    """Traces the step of one lane and writes its C++.

    Args:
        step: a function of the scalars, then of the carried, fixed, data and noise tensors, each an argument. It gives
            back the new carried tensors, and then its results.
        num_lanes: how many lanes the kernel will have; it serves all larger numbers, too.
        num_scalars: how many scalars the step takes: numbers that all lanes share and that differ from step to step.
        carried: examples of the tensors that each step changes. The values of these and of all other examples do not
            matter, their shapes and dtypes do; they are on the CPU and have no axes for problems, lanes or steps.
        fixed: of tensors of which each lane has its own, and which stay the same in all steps.
        data: of tensors that all lanes of a problem share.
        noise: of tensors of which each lane has its own for each step.

    Raises:
        UnknownTorchError: the installed torch is one whose internals have not been tried.
        UnsupportedError: the step does something that has no translation.
        ValueError: no argument is of a floating-point dtype, or a carried tensor comes back in another shape or dtype.
        Exception: whatever a step does that can't be traced.
    """
    inductor.check_version()
    tensors = (*carried, *fixed, *data, *noise)
    if any(tensor.device.type != "cpu" for tensor in tensors):
        raise UnsupportedError("numbers on another device")
    dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)
    if dtype is None:
        raise ValueError("a step needs at least one argument of a floating-point dtype, got none")
    example = (*torch.ones(num_scalars, dtype=dtype), *tensors)
    graph = trace_simplified(step, example)
    decomposed_graph = decomposed(graph, example)
    signature = Signature(num_scalars, len(carried), len(fixed), len(data), len(noise))
    translation, prepared = _translated(decomposed_graph, signature, dtype)
    results = _results(decomposed_graph, [TensorSpec.of(tensor) for tensor in carried], dtype)
    return KernelSource(
        code=source_text(translation, num_lanes),
        num_lanes=num_lanes,
        dtype=dtype,
        num_scalars=num_scalars,
        carried=tuple(map(TensorSpec.of, carried)),
        fixed=tuple(map(TensorSpec.of, fixed)),
        data=tuple(map(TensorSpec.of, data)),
        noise=tuple(map(TensorSpec.of, noise)),
        results=results,
        operations=operation_sizes(graph),
        prepared=prepared,
    )


def _translated(graph: GraphModule, signature: Signature, dtype: torch.dtype) -> tuple[Translation, Prepared]:
    """The translation, by sweeps over rows of data where there are rows and the step can be done row by row."""
    by_rows = LazyGraphModule(graph, _copied(graph))
    nodes = [node for node in by_rows.graph.nodes if node.op == "placeholder"]
    begin = signature.num_scalars + signature.num_carried + signature.num_fixed
    data, noise = nodes[begin : begin + signature.num_data], nodes[begin + signature.num_data :]
    before = noise[0] if noise else next(node for node in by_rows.graph.nodes if node.op != "placeholder")
    prepare, placeholders, read = hoisted(by_rows, data, before)
    try:
        rows = swept(by_rows, placeholders)
    except NotByRowsError as error:
        _log.info("without sweeps over rows: %s", error)
        rows = Rows()
    if rows.axes:
        with_prepared = replace(signature, num_prepared=len(placeholders))
        try:
            translation = translate(by_rows, with_prepared, dtype, rows)
        except UnsupportedError as error:
            _log.info("without sweeps over rows: %s", error)
        else:
            return translation, Prepared(prepare, tuple(placeholders), rows, dtype, tuple(read))
    return translate(graph, signature, dtype), Prepared.nothing()


def _copied(graph: GraphModule) -> Graph:
    copy = Graph()
    copy.output(copy.graph_copy(graph.graph, {}))
    return copy


def _results(graph: GraphModule, carried: list[TensorSpec], dtype: torch.dtype) -> tuple[TensorSpec, ...]:
    """What a step gives back beside the carried tensors, once these are found to come back as they were given."""
    (outputs,) = next(node for node in graph.graph.nodes if node.op == "output").args
    specs = [TensorSpec.of(node.meta["val"]) for node in outputs]
    if specs[: len(carried)] != carried:
        raise ValueError(f"expected a step that gives back carried tensors of {carried} first, got {specs}")
    return tuple(TensorSpec(spec.shape, dtype) for spec in specs[len(carried) :])


def operation_sizes(graph: GraphModule) -> tuple[int, ...]:
    """How many numbers each operation of a graph computes."""
    values = (node.meta.get("val") for node in graph.graph.nodes if node.op == "call_function")
    return tuple(value.numel() for value in values if isinstance(value, Tensor))


@dataclass(eq=False)
class Prepared:
    """What a step takes that is computed from data alone: once for the same data, whatever else a call brings.

    Args:
        prepare: the function of one problem's data.
        placeholders: of what it computes, in the step's graph.
        rows: which of these have an axis of rows.
        dtype: of numbers.
        read: the places of the data that `prepare` reads.
    """

    prepare: Prepare
    placeholders: tuple[Node, ...]
    rows: Rows
    dtype: torch.dtype
    read: tuple[int, ...]
    _last: tuple[tuple[Any, ...], Tensors, list[Tensor], list[Tensor]] | None = field(default=None, init=False)

    @staticmethod
    def nothing() -> Prepared:
        """For a step that takes nothing of that sort."""
        return Prepared(lambda *_: [], (), Rows(), torch.float64, ())

    def of(self, data: Tensors, batch: int) -> tuple[list[Tensor], list[Tensor]]:
        """The shared tensors `(B, *shape)` and the rows `(B, n, N)`, whose last axis is filled up to whole vectors."""
        if not self.placeholders:
            return [], []
        read = [data[place] for place in self.read]
        key = (batch, *((tensor.data_ptr(), tensor._version, tuple(tensor.shape)) for tensor in read))
        if self._last is None or self._last[0] != key:
            found = [self.prepare(*(tensor[b] for tensor in data)) for b in range(batch)]
            whole = [torch.stack(parts) for parts in zip(*found, strict=True)]
            order = {node: place for place, node in enumerate(self.placeholders)}
            packed = [
                _packed(whole[order[node]], axis.length, size, self.dtype)
                for axis in self.rows.axes
                for node, size in zip(axis.inputs, axis.sizes, strict=True)
            ]
            shared = [
                part.to(self.dtype) if node.users else part[:1, ...].new_zeros(0, dtype=self.dtype)
                for part, node in zip(whole, self.placeholders, strict=True)
            ]
            self._last = (key, read, [part.contiguous() for part in shared], packed)
        return self._last[2], self._last[3]


def _packed(tensor: Tensor, length: int, size: int | None, dtype: torch.dtype) -> Tensor:
    """`(B, ..., N, ...)` as `(B, n, N)`, filled up by the last row to whole vectors; integers stay integers.

    Raises:
        ValueError: integers that pick one of `size` elements are out of range.
    """
    dim = 1 + tensor.shape[1:].index(length)
    flat = tensor.movedim(dim, -1).reshape(len(tensor), -1, length)
    if flat.dtype == torch.int64:
        flat = torch.where(flat < 0, flat + size, flat) if size is not None else flat  # as Python counts from the end
        if size is not None and not bool(((flat >= 0) & (flat < size)).all()):
            raise ValueError(f"an index of the data is out of range for {size} elements: {int(flat.min())} to "
                             f"{int(flat.max())}")  # fmt: skip
    else:
        flat = flat.to(dtype)
    short = -length % (VECTOR_BYTES // dtype.itemsize)
    return torch.cat([flat, flat[..., -1:].expand(-1, -1, short)], -1).contiguous()


@dataclass(frozen=True)
class Kernel:
    """The machine code of a step.

    In memory the numbers of neighbouring lanes stand next to each other: the axis of the lanes is the last and
    innermost. Tensors that a kernel gives back are transposed views of such memory, which are not copied when they are
    handed in again.

    Attributes:
        source: what was compiled.
        advance: the C function.
        frame_bytes: about how many bytes of the stack the function takes.
    """

    source: KernelSource
    advance: Callable[..., None]
    frame_bytes: int

    def __call__(
        self,
        problems_and_lanes: tuple[int, int],
        *,
        scalars: Tensor | None = None,
        carried: Tensors = (),
        fixed: Tensors = (),
        data: Tensors = (),
        noise: Tensors = (),
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Takes `T` steps of all lanes. The roles of the arguments are those of `kernel_source`.

        Args:
            problems_and_lanes: the number of problems `B`, and that of the lanes of each problem `R`.
            scalars: `(num_scalars, T)`. Where it is left out, one step is taken.
            carried, fixed: `(B, R, *shape)` each.
            data: `(B, *shape)` each.
            noise: `(T, B, R, *shape)` each.

        Returns:
            The carried tensors after the last step, `(B, R, *shape)`, and each step's results, `(T, B, R, *shape)`.

        Raises:
            ValueError: a tensor's dtype, shape or device is not that for which the kernel was compiled.
        """
        source, (num_problems, num_lanes) = self.source, problems_and_lanes
        scalars = torch.zeros((0, 1), dtype=source.dtype) if scalars is None else scalars.contiguous()
        num_steps = scalars.shape[-1]
        source.check_lanes(num_lanes)
        of_a_lane, of_a_step = (num_problems, num_lanes), (num_steps, num_problems, num_lanes)
        _check("scalars", [scalars], [TensorSpec(torch.Size(), source.dtype)], (source.num_scalars, num_steps))
        _check("carried tensors", carried, source.carried, of_a_lane)
        _check("fixed tensors", fixed, source.fixed, of_a_lane)
        _check("data", data, source.data, (num_problems,))
        _check("noise", noise, source.noise, of_a_step)
        renewed, results = _empty(source.carried, of_a_lane), _empty(source.results, of_a_step)
        shared = [tensor.contiguous() for tensor in data]
        prepared, rows = source.prepared.of(shared, num_problems)
        self._run(
            of_a_step,
            scalars,
            carried=_lanes_last(carried, source.carried),
            fixed=_lanes_last(fixed, source.fixed),
            data=shared,
            noise=_lanes_last(noise, source.noise),
            prepared=prepared,
            rows=rows,
            renewed=renewed,
            results=results,
        )
        return _lanes_first(renewed, source.carried), _lanes_first(results, source.results)

    def _run(
        self,
        counts: tuple[int, int, int],
        scalars: Tensor,
        *,
        carried: Tensors,
        fixed: Tensors,
        data: Tensors,
        noise: Tensors,
        prepared: Tensors,
        rows: Tensors,
        renewed: Tensors,
        results: Tensors,
    ) -> None:
        """Calls the C function, whose arguments these are in its order, with the tensors as they lie in memory."""
        groups = (carried, fixed, data, noise, prepared, rows)
        outputs = (renewed, results)
        lengths = (ctypes.c_int64 * max(len(self.source.rows.axes), 1))(*self.source.rows.lengths)
        arguments = (*counts, scalars.data_ptr(), *map(_pointers, groups), lengths, *map(_pointers, outputs))
        if self.frame_bytes <= MAX_FRAME_BYTES_ON_ANY_STACK:
            self.advance(*arguments)
        else:
            _on_a_stack(2 * self.frame_bytes, self.advance, arguments, (scalars, groups, outputs))


def _check(role: str, tensors: Tensors, specs: Sequence[TensorSpec], axes: tuple[int, ...]) -> None:
    """Refuses tensors that the machine code would misread: reading other memory could end the process."""
    expected = [(spec.dtype, (*axes, *spec.shape), "cpu") for spec in specs]
    given = [(tensor.dtype, tuple(tensor.shape), tensor.device.type) for tensor in tensors]
    if given != expected:
        raise ValueError(f"machine code reads {role} of (dtype, shape, device) {expected}; got {given}")


def _empty(specs: Sequence[TensorSpec], axes: tuple[int, ...]) -> list[Tensor]:
    """Memory for tensors `(*axes, *shape)`, the last of whose `axes` is that of the lanes, as `(..., n, R)`."""
    *before, num_lanes = axes
    return [torch.empty((*before, spec.shape.numel(), num_lanes), dtype=spec.dtype) for spec in specs]


def _lanes_last(tensors: Tensors, specs: Sequence[TensorSpec]) -> list[Tensor]:
    """Each tensor `(..., R, *shape)` as a contiguous `(..., n, R)`, where `n` is the number of elements of `shape`."""
    return [
        tensor.reshape((*tensor.shape[: tensor.dim() - len(spec.shape)], spec.shape.numel())).mT.contiguous()
        for tensor, spec in zip(tensors, specs, strict=True)
    ]


def _lanes_first(tensors: Tensors, specs: Sequence[TensorSpec]) -> list[Tensor]:
    """Each tensor `(..., n, R)` as `(..., R, *shape)`."""
    return [
        tensor.mT.reshape((*tensor.shape[:-2], tensor.shape[-1], *spec.shape))
        for tensor, spec in zip(tensors, specs, strict=True)
    ]


def _pointers(tensors: Tensors) -> Any:
    """A C array of pointers to the tensors' numbers."""
    return (ctypes.c_void_p * max(len(tensors), 1))(*(tensor.data_ptr() for tensor in tensors))


def _on_a_stack(num_bytes: int, function: Callable[..., None], arguments: Sequence[Any], held: Any) -> None:
    """Calls `function(*arguments)` in a thread whose stack has so many bytes and a margin.

    Args:
        num_bytes: that the function may take of the stack.
        function: machine code.
        arguments: of the function, some of them pointers into the memory of `held`.
        held: tensors, which must live until the function is done, even where waiting for it is interrupted.
    """

    def call(_held: Any = held) -> None:
        function(*arguments)

    stack_bytes = 1 << (num_bytes + STACK_MARGIN_BYTES).bit_length()
    before = threading.stack_size(stack_bytes)
    try:
        done = _thread_with(stack_bytes, os.getpid()).submit(call)
    finally:
        threading.stack_size(before)
    done.result()


@lru_cache(maxsize=2)
def _thread_with(stack_bytes: int, process: int) -> ThreadPoolExecutor:
    """A thread with a stack of this size. It is used again, since a new stack has to be mapped page by page.

    Threads do not outlive a fork, so each process has its own.
    """
    return ThreadPoolExecutor(1, f"stack_of_{stack_bytes}_in_{process}")
