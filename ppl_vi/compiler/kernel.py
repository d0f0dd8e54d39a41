"""TODO."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ppl_vi.compiler import inductor, toolchain
from ppl_vi.compiler.simplify import traced
from ppl_vi.compiler.translate import Translation, decomposed
from ppl_vi.compiler.values import UnsupportedError
from ppl_vi.compiler.vectors import num_lanes
from ppl_vi.svi.engines.compiled import Reads
from ppl_vi.svi.engines.step import State
from ppl_vi.target.isolation import isolated

SMALL_FRAME = 2**19  # bytes of the stack that any thread has
ROOM = 2**20  # bytes


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
