"""One function at many points: the only evaluator of the package.

`AtPoints` gives a function's values at many points, `WeightedSum` the sum of a function over weighted points and the
sum's gradient. Where the points are so many that compiling takes less time than it saves, either is done by machine
code (`ppl_vi.compiler.kernel`). Everywhere else, and where there is no compiler or the function has no translation,
torch's own operations run, on chunks of points whose temporaries stay in the processor's cache. Machine code is
compared with these operations at the first points of the call for which it is made, and is not used where it differs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.fx import GraphModule

from ppl_vi.compiler.eager import eager
from ppl_vi.compiler.kernel import Kernel, kernel_source
from ppl_vi.compiler.simplify import trace_simplified
from ppl_vi.compiler.trace import graph_digest, trace

Tensors = Sequence[Tensor]
Vectorise = Callable[..., Callable[..., Any]]  # `torch.func.vmap`, or a loop with its signature
Gate = Callable[[], AbstractContextManager[Any]]

# Machine code is made for a call whose widest temporaries, those of all points together, hold at least this many
# numbers: by measurement torch's operations take about as long for such a call as compiling does. With a larger bound
# more calls run by the slower operations, with a smaller one more calls wait for a compiler that does not pay.
MIN_CALL_NUMBERS = 2**22
# The same bound for a search, which evaluates a weighted sum many times: the numbers of all its evaluations are added
# up.
MIN_SEARCH_NUMBERS = 2**26
# What a point costs torch's operations beside the numbers of its widest temporary, in units of one such number: most
# operations of a log joint are on single numbers.
POINT_OVERHEAD = 20
# Machine code is compared with torch's operations at this many points, or at all of a call of fewer, and is made for no
# fewer than MIN_KERNEL_POINTS. More points would make the comparison more certain, and calls of few points slower.
NUM_CHECKED, MIN_KERNEL_POINTS = 64, 16
# Largest accepted difference between machine code and torch's operations, relative to a point's largest number, in
# double precision. In single precision it is larger by the ratio of the two roundings, 0.05. A larger one would let a
# wrong translation pass, a smaller one would refuse machine code for its rounding alone.
KERNEL_TOLERANCE = 1e-10
# The tolerance of a sum over all points as a multiple of KERNEL_TOLERANCE, because the sum has its own rounding.
SUM_TOLERANCE_RATIO = 10
# Kernels are compiled for this many lanes. They fill a vector of any dtype, so one kernel serves all larger numbers of
# points, too.
KERNEL_LANES = 2**10
# A weighted sum holds the gradients of so many points at once that they have no more numbers than this: 4 MiB in double
# precision, which stay in the processor's cache.
MAX_GRADIENT_NUMBERS = 2**19

_log = logging.getLogger(__name__)


def pays(num_points: int, width: int, overhead: int = POINT_OVERHEAD) -> bool:
    """Whether compiling takes less time than it saves in one call.

    Each call is judged by itself, so that its result does not depend on the calls before it.

    Args:
        num_points: of the call, those of all problems together.
        width: how many numbers the largest temporary of one point has.
        overhead: what else a point costs, in units of one such number.
    """
    return num_points >= MIN_KERNEL_POINTS and num_points * (width + overhead) >= MIN_CALL_NUMBERS


def chunks(num: int, size: int) -> Iterator[slice]:
    """Slices that cut `range(num)` into chunks of `size`, at least 1; the last has what is left."""
    size = max(1, size)
    return (slice(first, first + size) for first in range(0, num, size))


def agree(found: Tensors, expected: Tensors, tolerance: float = KERNEL_TOLERANCE) -> bool:
    """Whether machine code gives a function's values: |found - expected| <= tolerance (1 + max |expected|), by point.

    Args:
        found: tensors by machine code, whose first axis is that of the points.
        expected: the same by torch's operations. Infinities and nans must stand at the same places in both.
        tolerance: for double precision; in single precision it is larger by the ratio of the two roundings.
    """
    return all(
        _agree(got.reshape(len(got), -1), want.reshape(len(want), -1), tolerance)
        for got, want in zip(found, expected, strict=True)
    )


def _agree(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    limit = tolerance * torch.finfo(expected.dtype).eps / torch.finfo(torch.float64).eps
    size = torch.where(expected.isfinite(), expected, 0).abs().amax(1, keepdim=True)
    same = (found == expected) | (found.isnan() & expected.isnan())
    return bool((same | ((found - expected).abs() <= limit * (1 + size))).all())


def _as_tuple(found: Any) -> tuple[Tensor, ...]:
    return tuple(found) if isinstance(found, (tuple, list)) else (found,)


@dataclass(eq=False)
class AtPoints:
    """A function of one point and of data, at many points of one or several problems.

    Attributes:
        function: from `(*point, *data)` to a tensor or several. `point` are tensors of which each point has its own,
            `data` are tensors that all points of a problem share.
        width: how many numbers the largest temporary of one point has.
        chunk_size: at how many points torch's operations run at once.
        vectorise: maps the function over points and over problems.
        gate: gives a context in which alone the function is run.
        sizes: rising numbers of points. For each a graph is traced, padded to that number, and serves all calls for one
            problem of as many points or fewer, with data of the same shapes. Where there are none the function itself
            runs at each call.
        compiles: whether machine code may be made at all.
        is_search: whether so many calls follow that machine code pays for calls of few points, too.
        num_checked: at how many points machine code is compared with torch's operations.
        overhead: what a point costs torch's operations beside its widest temporary, see `pays`.
        is_tried: whether a call was large enough for machine code, so that it was made or found impossible.
        kernel: the machine code, where it was made and gives the function's values.
    """

    function: Callable[..., Any]
    width: int
    chunk_size: int
    vectorise: Vectorise = vmap
    gate: Gate = nullcontext
    sizes: tuple[int, ...] = ()
    compiles: bool = True
    is_search: bool = False
    num_checked: int = NUM_CHECKED
    overhead: int = POINT_OVERHEAD
    is_tried: bool = field(default=False, init=False)
    kernel: Kernel | None = field(default=None, init=False)
    _graphs: dict[int, Callable[..., Any]] = field(default_factory=dict, init=False)

    def __call__(self, points: Tensors, data: Tensors = ()) -> tuple[Tensor, ...]:
        """The function's values.

        Args:
            points: the points' tensors, `(B, S, *shape)` each, for `S` points of each of `B` problems.
            data: those of the problems, `(B, *shape)` each.

        Returns:
            Each of the function's tensors, `(B, S, *shape)`.

        Raises:
            ValueError: there is no point.
        """
        num_problems, num_points = points[0].shape[:2]
        if not num_problems * num_points:
            raise ValueError(f"expected at least one point, got {num_points} points of {num_problems} problems")
        worth_it = self.is_search or pays(num_problems * num_points, self.width, self.overhead)
        if self.compiles and num_points >= MIN_KERNEL_POINTS and worth_it:
            if not self.is_tried:
                self.kernel = self._compiled(
                    [part[:1, : self.num_checked] for part in points], [part[:1] for part in data]
                )
                self.is_tried = True
            if self.kernel is not None:
                return _by_kernel(self.kernel, points, data)
        return self._by_operations(points, data)

    def digest(self, points: Tensors, data: Tensors = ()) -> str | None:
        """A digest of the function's graph, with the tensors that it holds and the data; None where there is no graph.

        Args:
            points, data: as of a call for one problem, of at most as many points as the largest of `sizes`.
        """
        self._by_operations(points, data)
        size = next(size for size in self.sizes if points[0].shape[1] <= size)
        graph = self._graphs[size]
        return graph_digest(graph, data) if isinstance(graph, GraphModule) else None

    def _compiled(self, points: Tensors, data: Tensors) -> Kernel | None:
        """Machine code, None where it can't be had or differs from the function at these points `(1, S, *shape)`."""

        def step(*given: Tensor) -> tuple[Tensor, ...]:
            return _as_tuple(self.function(*given))

        point, row = [part[0, 0] for part in points], [part[0] for part in data]
        try:
            with self.gate():
                kernel = kernel_source(step, KERNEL_LANES, fixed=point, data=row).compile()
            with torch.no_grad():
                expected = self._by_operations(points, data)
            num = points[0].shape[1]
            short = max(0, kernel.source.min_lanes - num)
            found = _by_kernel(kernel, [torch.cat([part, *[part[:, -1:]] * short], 1) for part in points], data)
            found = tuple(part[:, :num] for part in found)
        except Exception as error:  # a model may do anything that tracing, translation or the compiler do not know
            _log.info("points are evaluated by torch's operations: %s", error)
            return None
        if not agree([part[0] for part in found], [part[0] for part in expected]):
            _log.info("points are evaluated by torch's operations: machine code differs from the function")
            return None
        return kernel

    def _by_operations(self, points: Tensors, data: Tensors) -> tuple[Tensor, ...]:
        num_problems, num_points = points[0].shape[:2]
        if self.sizes and num_problems == 1:
            values = self._by_graph([part[0] for part in points], [part[0] for part in data])
            return tuple(value[None] for value in values)
        mapped = self.vectorise(self._over_points(len(points), len(data)), in_dims=0)
        rows = []
        for some_problems in chunks(num_problems, self.chunk_size // num_points):
            parts = []
            for some in chunks(num_points, self.chunk_size):
                few, shared = [part[some_problems, some] for part in points], [part[some_problems] for part in data]
                with self.gate():
                    parts.append(_as_tuple(mapped(*few, *shared)))
            rows.append([torch.cat(tensors, 1) for tensors in zip(*parts, strict=True)])
        return tuple(torch.cat(tensors) for tensors in zip(*rows, strict=True))

    def _over_points(self, num_point_tensors: int, num_data: int) -> Callable[..., Any]:
        """The function at many points of one problem."""
        return self.vectorise(self.function, in_dims=(*[0] * num_point_tensors, *[None] * num_data))

    def _by_graph(self, points: Tensors, data: Tensors) -> tuple[Tensor, ...]:
        """The values `(S, *shape)` at points `(S, *shape)` of one problem, by the graph of the next larger size."""
        num_points = len(points[0])
        size = next((size for size in self.sizes if num_points <= size), self.sizes[-1])
        parts = []
        for some in chunks(num_points, size):
            few = [part[some] for part in points]
            num = len(few[0])
            padded = [torch.cat([part, part[:1].expand(size - num, *part.shape[1:])]) for part in few]
            with self.gate():
                if size not in self._graphs:
                    function = self._over_points(len(points), len(data))
                    self._graphs[size] = _flat(trace, function, (*padded, *data))
                found = _as_tuple(self._graphs[size](*padded, *data))
            parts.append([tensor[:num] for tensor in found])
        return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))


def _by_kernel(kernel: Kernel, points: Tensors, data: Tensors) -> tuple[Tensor, ...]:
    _, results = kernel((points[0].shape[0], points[0].shape[1]), fixed=points, data=data)
    return tuple(result[0] for result in results)


def _flat(tracing: Callable[..., Any], function: Callable[..., Any], example: Tensors) -> Callable[..., Any]:
    """The graph that `tracing(function, example)` gives; the function itself where it can't be traced.

    Graphs are made and run inside of the gate: where a function makes tensors of the default dtype, so does its graph.
    """
    try:
        return tracing(function, example)
    except Exception as error:  # a model may do anything that tracing does not know, which is only slower
        _log.info("points are evaluated without a graph: %s", error)
        return function


@dataclass(eq=False)
class WeightedSum:
    """The sum over points of w_i f(x, point_i, data), and its gradient in x.

    Attributes:
        function: from `(x, *point, *data)` to a scalar.
        width: how many numbers the largest temporary of one point has.
        chunk_size: at about how many points torch's operations run at once.
        gate: gives a context in which alone the function is run.
        kernel: the machine code, where `compile` made it.
    """

    function: Callable[..., Tensor]
    width: int
    chunk_size: int
    gate: Gate = nullcontext
    kernel: Kernel | None = field(default=None, init=False)
    _graphs: dict[int, Callable[..., Any]] = field(default_factory=dict, init=False)

    def __call__(self, x: Tensor, points: Tensors, weight: Tensor, data: Tensors = ()) -> tuple[Tensor, Tensor]:
        """The gradient `(D,)` and the sum, a scalar.

        Args:
            x: `(D,)`.
            points: the points' tensors, `(S, *shape)` each.
            weight: w, `(S,)`.
            data: tensors that all points share.
        """
        if self.kernel is not None:
            return _summed(self.kernel, x, points, weight, data)
        return self._by_operations(x, points, weight, data)

    def compile(self, x: Tensor, points: Tensors, weight: Tensor, data: Tensors = ()) -> None:
        """Makes machine code for arguments like these, unless it can't be had or differs from the function here."""
        num = len(points)
        few, few_weights = [part[:NUM_CHECKED] for part in points], weight[:NUM_CHECKED]
        pieces = zip(*(part.split(max(1, self.chunk_size)) for part in (*few, few_weights)), strict=True)
        gradient_of_one = grad_and_value(self.function)

        def step(*given: Tensor) -> tuple[Tensor, Tensor]:
            point, x, row = given[:num], given[num], given[num + 1 :]
            return gradient_of_one(x, *point, *row)

        try:
            with self.gate():
                parts = [_over_points(self.function, num)(x, *piece, *data) for piece in pieces]
                expected = [torch.stack(tensors).sum(0) for tensors in zip(*parts, strict=True)]
                kernel = kernel_source(
                    step, KERNEL_LANES, fixed=[part[0] for part in points], data=(x, *data)
                ).compile()
            found = _summed(kernel, x, few, few_weights, data)
        except Exception as error:  # a model may do anything that tracing, translation or the compiler do not know
            _log.info("a weighted sum is computed by torch's operations: %s", error)
            return
        # Gradient and value stand in one row, so that the tolerance is relative to the largest number of both.
        got, want = (torch.cat([part.reshape(-1) for part in parts])[None] for parts in (found, expected))
        if agree([got], [want], SUM_TOLERANCE_RATIO * KERNEL_TOLERANCE):
            self.kernel = kernel
        else:
            _log.info("a weighted sum is computed by torch's operations: machine code differs from the function")

    def _by_operations(self, x: Tensor, points: Tensors, weight: Tensor, data: Tensors) -> tuple[Tensor, Tensor]:
        """By graphs of equal chunks, halved while they are even and larger than `chunk_size`."""
        size = len(weight)
        while size % 2 == 0 and size > self.chunk_size:
            size //= 2
        pieces = zip(*(part.split(size) for part in (*points, weight)), strict=True)
        with self.gate():
            if size not in self._graphs:
                example = (x, *(part[:size] for part in (*points, weight)), *data)
                self._graphs[size] = _flat(_simplified, _over_points(self.function, len(points)), example)
            slopes, values = zip(*(self._graphs[size](x, *few, *data) for few in pieces), strict=True)
        return torch.stack(slopes).sum(0), torch.stack(values).sum()


def _simplified(function: Callable[..., Any], example: tuple[Tensor, ...]) -> Callable[..., Any]:
    return eager(trace_simplified(function, example))


def _over_points(function: Callable[..., Tensor], num: int) -> Callable[..., tuple[Tensor, Tensor]]:
    """`(x, *points, weight, *data)`, with `num` tensors of points, to the weighted sum's gradient and value."""

    def total(x: Tensor, *given: Tensor) -> Tensor:
        points, weight, data = given[:num], given[num], given[num + 1 :]
        values = vmap(lambda *point: function(x, *point, *data))(*points)
        return (weight * values).sum()

    return grad_and_value(total)


def _summed(kernel: Kernel, x: Tensor, points: Tensors, weight: Tensor, data: Tensors) -> tuple[Tensor, Tensor]:
    """The weighted sum of a kernel's gradients and values, in pieces of at most `MAX_GRADIENT_NUMBERS`."""
    num_pieces = math.ceil(len(weight) * len(x) / MAX_GRADIENT_NUMBERS)
    gradient, total = torch.zeros_like(x), x.new_zeros(())
    shared = [part[None] for part in (x, *data)]
    for *few, w in zip(*(part.tensor_split(num_pieces) for part in (*points, weight)), strict=True):
        _, (slopes, values) = kernel((1, len(w)), fixed=[part[None] for part in few], data=shared)
        gradient, total = gradient + w @ slopes[0, 0], total + w @ values[0, 0]
    return gradient, total
