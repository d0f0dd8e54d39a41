"""Machine code for a step of many lanes: fits, chains or points side by side in the processor's vectors.

A step is a function of plain tensors. It is written for one lane, is called again and again with what it gave back the
time before, and knows nothing of what its tensors mean: see `ppl_vi.compiler.translate.Signature` for its arguments.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from ppl_vi.compiler import inductor, toolchain
from ppl_vi.compiler.emit import source
from ppl_vi.compiler.simplify import trace_simplified
from ppl_vi.compiler.translate import Signature, decomposed, translate
from ppl_vi.compiler.values import UnsupportedError
from ppl_vi.compiler.vectors import num_lanes

# Threads have at least half a MiB of stack; steps that need more run in a thread whose stack is made for them.
SMALL_FRAME_BYTES = 2**19
STACK_MARGIN_BYTES = 2**20

Tensors = Sequence[Tensor]


@dataclass(frozen=True)
class Like:
    """The shape of one lane's or one problem's tensor, and its dtype."""

    shape: torch.Size
    dtype: torch.dtype


@dataclass(frozen=True)
class KernelSource:
    """The C++ of a step.

    Attributes:
        code: the C++.
        most_lanes: how many lanes it is for; a full vector of them goes for all larger numbers.
        num_scalars: see `Signature`.
        carried, fixed, data, noise: what each argument is like; `carried` also those that come back.
        results: what else comes back.
        operations: of each of the step's operations in torch, how many numbers it computes.
    """

    code: str = field(repr=False)
    most_lanes: int
    dtype: torch.dtype
    num_scalars: int
    carried: tuple[Like, ...]
    fixed: tuple[Like, ...]
    data: tuple[Like, ...]
    noise: tuple[Like, ...]
    results: tuple[Like, ...]
    operations: tuple[int, ...]

    @property
    def is_cached(self) -> bool:
        """Whether its machine code was compiled before and is in the cache."""
        return toolchain.is_cached(self.code)

    def compile(self) -> Kernel:
        """Compiles the step, or loads the machine code that is kept from before.

        Raises:
            NoCompilerError: there is no C++ compiler.
            RuntimeError: the code does not compile.
        """
        library = toolchain.library(self.code)
        function = library.advance
        function.argtypes, function.restype = [ctypes.c_int64] * 3 + [ctypes.c_void_p] * 7, None
        return Kernel(self, function, ctypes.c_int64.in_dll(library, "frame_bytes").value)


def kernel_source(
    step: Callable[..., Sequence[Tensor]],
    most_lanes: int,
    *,
    num_scalars: int = 0,
    carried: Tensors = (),
    fixed: Tensors = (),
    data: Tensors = (),
    noise: Tensors = (),
) -> KernelSource:
    """Traces a step of one lane and writes its C++.

    Args:
        step: a function of scalars, carried, fixed, data and noise, one after another, that gives back the carried
            tensors and its results.
        most_lanes: how many lanes it will be called with; a full vector of them goes for all larger numbers.
        num_scalars: how many scalars it takes.
        carried, fixed, data, noise: one lane's and one problem's tensors, on the CPU; their shapes and dtypes count.

    Raises:
        UnsupportedError: the step does something that has no translation.
        Exception: whatever a step does that can't be traced.
    """
    inductor.check_version()
    given = (*carried, *fixed, *data, *noise)
    if any(tensor.device.type != "cpu" for tensor in given):
        raise UnsupportedError("numbers on another device")
    dtype = next(tensor.dtype for tensor in given if tensor.is_floating_point())
    example = (*torch.ones(num_scalars, dtype=dtype), *given)
    flat = trace_simplified(step, example)
    graph = decomposed(flat, example)
    signature = Signature(num_scalars, len(carried), len(fixed), len(data), len(noise))
    translation = translate(graph, signature, dtype)
    outputs = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    results = tuple(Like(torch.Size(node.meta["val"].shape), dtype) for node in outputs[len(carried) :])
    code = source(translation, most_lanes)
    return KernelSource(
        code, most_lanes, dtype, num_scalars, _likes(carried), _likes(fixed), _likes(data), _likes(noise), results,
        operation_sizes(flat),
    )  # fmt: skip


def _likes(tensors: Tensors) -> tuple[Like, ...]:
    return tuple(Like(tensor.shape, tensor.dtype) for tensor in tensors)


def operation_sizes(graph: GraphModule) -> tuple[int, ...]:
    """How many numbers each operation of a graph computes."""
    values = (node.meta.get("val") for node in graph.graph.nodes if node.op == "call_function")
    return tuple(value.numel() for value in values if isinstance(value, Tensor))


@dataclass(frozen=True)
class Kernel:
    """The machine code of a step.

    Lanes lie side by side in memory: what comes back is the transpose of a contiguous tensor whose last axis is that of
    the lanes, and tensors in that order are not copied when they are handed in.

    Attributes:
        step: what it was made of.
        advance: the C function.
        frame_bytes: about the most that the function takes of the stack.
    """

    source: KernelSource
    advance: Callable[..., None]
    frame_bytes: int

    def __call__(
        self,
        num_lanes_of: tuple[int, int],
        *,
        scalars: Tensor | None = None,
        carried: Tensors = (),
        fixed: Tensors = (),
        data: Tensors = (),
        noise: Tensors = (),
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Takes steps of all lanes.

        Args:
            num_lanes_of: the number of problems `B` and of the lanes of each, `R`.
            scalars: for each step the step's scalars, `(num_scalars, T)`; one step without scalars by default.
            carried, fixed: `(B, R, *shape)`.
            data: `(B, *shape)`.
            noise: `(T, B, R, *shape)`.

        Returns:
            The carried tensors after the last step, `(B, R, *shape)`, and each step's results, `(T, B, R, *shape)`.

        Raises:
            ValueError: a tensor is not what the machine code was made for.
        """
        step, (batch, lanes) = self.source, num_lanes_of
        scalars = torch.zeros((0, 1), dtype=step.dtype) if scalars is None else scalars.contiguous()
        num_steps = scalars.shape[-1]
        self._check_lanes(lanes)
        (scalars,) = _checked("scalars", [scalars], [Like(torch.Size(), step.dtype)], (step.num_scalars, num_steps))
        per_lane = [
            [_lanes_last(tensor, like) for tensor, like in zip(tensors, likes, strict=True)]
            for tensors, likes in (
                (_checked("carried tensors", carried, step.carried, (batch, lanes)), step.carried),
                (_checked("fixed tensors", fixed, step.fixed, (batch, lanes)), step.fixed),
                (_checked("noise", noise, step.noise, (num_steps, batch, lanes)), step.noise),
            )
        ]
        shared = [tensor.contiguous() for tensor in _checked("data", data, step.data, (batch,))]
        renewed = [torch.empty((batch, like.shape.numel(), lanes), dtype=like.dtype) for like in step.carried]
        results = [
            torch.empty((num_steps, batch, like.shape.numel(), lanes), dtype=like.dtype) for like in step.results
        ]
        groups = (*per_lane[:2], shared, per_lane[2], renewed, results)
        numbers = (num_steps, batch, lanes, scalars.data_ptr())
        self._run((*numbers, *(_pointers(group) for group in groups)), (scalars, groups))
        return (
            [_lanes_first(tensor, like) for tensor, like in zip(renewed, step.carried, strict=True)],
            [_lanes_first(tensor, like) for tensor, like in zip(results, step.results, strict=True)],
        )

    def _check_lanes(self, lanes: int) -> None:
        most, full = self.source.most_lanes, num_lanes(self.source.most_lanes, self.source.dtype)
        if lanes != most and min(lanes, most) < full:
            raise ValueError(f"expected {most} lanes, got {lanes}: make a kernel for so many")

    def _run(self, arguments: Sequence[Any], held: Any) -> None:
        if self.frame_bytes <= SMALL_FRAME_BYTES:
            self.advance(*arguments)
        else:
            _on_a_stack(2 * self.frame_bytes, self.advance, arguments, held)


def _checked(role: str, tensors: Tensors, likes: Sequence[Like], prefix: tuple[int, ...]) -> Tensors:
    """The tensors, if they are what machine code takes them for: reading other memory would end the process."""
    expected = [(like.dtype, (*prefix, *like.shape), "cpu") for like in likes]
    given = [(tensor.dtype, tuple(tensor.shape), tensor.device.type) for tensor in tensors]
    if given != expected:
        raise ValueError(f"machine code reads {role} of (dtype, shape, device) {expected}; got {given}")
    return tensors


def _lanes_last(tensor: Tensor, like: Like) -> Tensor:
    """`(..., R, *shape)` as a contiguous `(..., n, R)`."""
    return tensor.reshape((*tensor.shape[: tensor.dim() - len(like.shape)], -1)).mT.contiguous()


def _lanes_first(tensor: Tensor, like: Like) -> Tensor:
    """`(..., n, R)` as `(..., R, *shape)`."""
    return tensor.mT.reshape((*tensor.shape[:-2], tensor.shape[-1], *like.shape))


def _pointers(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * max(len(tensors), 1))(*(tensor.data_ptr() for tensor in tensors))


def _on_a_stack(size: int, function: Callable[..., None], arguments: Sequence[Any], held: Any) -> None:
    """Calls `function(*arguments)` in a thread whose stack has so many bytes and a margin.

    Args:
        size: of the stack; a process has 8 MiB of it, and a function that takes more would end the process.
        function: machine code.
        arguments: of the function, pointers into `held` among them.
        held: what the pointers point into; kept until the function is done, also when waiting for it is interrupted.
    """

    def call(_held: Any = held) -> None:
        function(*arguments)

    whole = 1 << (size + STACK_MARGIN_BYTES).bit_length()
    before = threading.stack_size(whole)
    try:
        done = _thread_with(whole, os.getpid()).submit(call)
    finally:
        threading.stack_size(before)
    done.result()


@lru_cache(maxsize=2)
def _thread_with(stack_size: int, process: int) -> ThreadPoolExecutor:
    """A thread that was started with this stack size and is kept, since a new stack has to be mapped page by page.

    Threads do not outlive a fork, so each process has its own.
    """
    return ThreadPoolExecutor(1, f"stack_of_{stack_size}_in_{process}")
