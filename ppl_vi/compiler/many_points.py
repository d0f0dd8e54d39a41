"""One function at many points: the only evaluator of the package.

`AtPoints` gives a function's values at many points, `WeightedSum` the sum of a function over many points and the sum's
gradient. Either is done by machine code where the points are so many that making it pays; otherwise, and where there is
no compiler or no translation, torch's own operations run on so many points at once that their temporaries stay in the
cache. Machine code is held to those operations at the first points it is asked for, and is not used where it differs.
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

from ppl_vi.compiler.eager import eager
from ppl_vi.compiler.kernel import Kernel, written
from ppl_vi.compiler.simplify import traced
from ppl_vi.compiler.trace import trace

Tensors = Sequence[Tensor]
Vectorise = Callable[..., Callable[..., Any]]  # torch.func.vmap, or what stands for it where a function can't be mapped
Gate = Callable[[], AbstractContextManager[Any]]

# Machine code takes as long to make as a call whose widest temporaries, of all points together, hold so many numbers.
WORTH_NUMBERS = 2**22
# The same for a search, which evaluates a sum many times.
SEARCH_WORTH_NUMBERS = 2**26
# Operations on single numbers take as long at one point as one on so many numbers more than the widest temporary has.
POINT_OVERHEAD = 20
# Points at which machine code is held to the function, and the fewest for which it is made.
NUM_CHECKED = 64
# Largest difference between machine code and the function, relative to the largest number of a point, in double
# precision; in single precision it is larger by as much as the rounding is.
AGREEMENT = 1e-10
# The machine code of so many lanes serves all larger numbers of points: its vectors are full.
MANY_LANES = 2**10
# Gradients of single points are held together up to so many numbers: 4 MiB in double precision.
MAX_GRADIENT_NUMBERS = 2**19

_log = logging.getLogger(__name__)


def pays(num_points: int, width: int) -> bool:
    """Whether machine code is worth being made for a call at so many points.

    It is decided for each call alone, so that what a call gives does not depend on the calls before it.

    Args:
        num_points: of the call.
        width: how many numbers the largest temporary of one point has.
    """
    return num_points >= NUM_CHECKED and num_points * (width + POINT_OVERHEAD) >= WORTH_NUMBERS


def blocks(num: int, size: int) -> Iterator[slice]:
    """`range(num)` in slices of `size`, 1 at least."""
    size = max(1, size)
    return (slice(first, first + size) for first in range(0, num, size))


def agree(found: Tensors, expected: Tensors, tolerance: float = AGREEMENT) -> bool:
    """Whether machine code gives a function's values.

    Args:
        found, expected: tensors whose first axis is that of the points; infinities and nans must be the same in both.
        tolerance: of the difference, relative to the largest number of a point and to 1, in double precision.
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


def _tuple(found: Any) -> tuple[Tensor, ...]:
    return tuple(found) if isinstance(found, (tuple, list)) else (found,)


@dataclass(eq=False)
class AtPoints:
    """A function of one point and of data, at many points.

    Attributes:
        function: `(*point, *data)` to a tensor or several: `point` are tensors of which each point has its own, `data`
            tensors that the points of a problem share.
        width: how many numbers the largest temporary of one point has.
        block: how many points torch's operations take at once.
        vectorise: maps the function over points.
        gate: entered whenever the function runs.
        sizes: numbers of points for which the operations are traced to a flat graph, which then serves every call of
            as many points or fewer of one problem; without any the function is run anew at each call.
        compiles: whether machine code may be made at all.
    """

    function: Callable[..., Any]
    width: int
    block: int
    vectorise: Vectorise = vmap
    gate: Gate = nullcontext
    sizes: tuple[int, ...] = ()
    compiles: bool = True
    kernels: list[Kernel | None] = field(default_factory=list, init=False)
    _graphs: dict[int, Callable[..., Any]] = field(default_factory=dict, init=False)

    def __call__(self, points: Tensors, data: Tensors = ()) -> tuple[Tensor, ...]:
        """The function's values.

        Args:
            points: the points' tensors, `(B, S, *shape)`.
            data: those of the problems, `(B, *shape)`.

        Returns:
            Each of the function's tensors, `(B, S, *shape)`.
        """
        batch, num = points[0].shape[:2]
        if self.compiles and num >= NUM_CHECKED and pays(batch * num, self.width):
            kernel = self._kernel(points, data)
            if kernel is not None:
                return _by_kernel(kernel, points, data)
        return self._by_operations(points, data)

    def _kernel(self, points: Tensors, data: Tensors) -> Kernel | None:
        """The machine code, made at the first call; None where it can't be had or differs from the function."""
        if not self.kernels:
            few = [part[:1, :NUM_CHECKED] for part in points]
            self.kernels.append(_held_to(self, few, [part[:1] for part in data]))
        return self.kernels[0]

    def _by_operations(self, points: Tensors, data: Tensors) -> tuple[Tensor, ...]:
        batch, num = points[0].shape[:2]
        if self.sizes and batch == 1:
            return self._by_graph([part[0] for part in points], [part[0] for part in data])
        inner = self.vectorise(self.function, in_dims=(*(0 for _ in points), *(None for _ in data)))
        mapped = self.vectorise(inner, in_dims=0)
        rows = []
        for few in blocks(batch, self.block // max(num, 1)):
            parts = []
            for some in blocks(num, self.block):
                with self.gate():
                    parts.append(_tuple(mapped(*(part[few, some] for part in points), *(part[few] for part in data))))
            rows.append([torch.cat(tensors, 1) for tensors in zip(*parts, strict=True)])
        return tuple(torch.cat(tensors) for tensors in zip(*rows, strict=True))

    def _by_graph(self, points: Tensors, data: Tensors) -> tuple[Tensor, ...]:
        """The values `(1, S, *shape)` at points `(S, *shape)` of one problem."""
        num = len(points[0])
        size = next((size for size in self.sizes if num <= size), self.sizes[-1])
        parts = []
        for some in blocks(num, size):
            few = [part[some] for part in points]
            here = len(few[0])
            padded = [torch.cat([part, part[:1].expand(size - here, *part.shape[1:])]) for part in few]
            with self.gate():
                found = _tuple(self._graph(size, padded, data)(*padded, *data))
            parts.append([tensor[:here] for tensor in found])
        return tuple(torch.cat(tensors)[None] for tensors in zip(*parts, strict=True))

    def _graph(self, size: int, points: Tensors, data: Tensors) -> Callable[..., Any]:
        if size not in self._graphs:
            mapped = self.vectorise(self.function, in_dims=(*(0 for _ in points), *(None for _ in data)))
            self._graphs[size] = _flat(mapped, [*points, *data])
        return self._graphs[size]


def _flat(function: Callable[..., Any], example: Tensors) -> Callable[..., Any]:
    """A function as a flat graph; itself where it can't be traced, as when it decides by a value.

    It is made and run inside of the gate: a graph makes tensors of the default dtype where the function does.
    """
    try:
        return trace(function, example)
    except Exception as error:  # whatever a model does that tracing does not know
        _log.info("a function runs untraced: %s", error)
        return function


def _held_to(at_points: AtPoints, points: Tensors, data: Tensors) -> Kernel | None:
    """Machine code for a function that gives its values at these few points of one problem, `(1, S, *shape)`."""

    def step(*given: Tensor) -> tuple[Tensor, ...]:
        return _tuple(at_points.function(*given))

    try:
        with at_points.gate():
            fixed, row = [part[0, 0] for part in points], [part[0] for part in data]
            kernel = written(step, MANY_LANES, fixed=fixed, data=row).compiled()
        with torch.no_grad():
            expected = at_points._by_operations(points, data)
        found = _by_kernel(kernel, points, data)
    except Exception as error:  # whatever a model does that tracing, translation or the compiler do not know
        _log.info("points run operation by operation: %s", error)
        return None
    if not agree([part[0] for part in found], [part[0] for part in expected]):
        _log.info("points run operation by operation: machine code differs from the function")
        return None
    return kernel


def _by_kernel(kernel: Kernel, points: Tensors, data: Tensors) -> tuple[Tensor, ...]:
    batch, num = points[0].shape[:2]
    _, results = kernel((batch, num), fixed=points, data=data)
    return tuple(result[0] for result in results)


@dataclass(eq=False)
class WeightedSum:
    """The sum over points i of w_i f(x, point_i, data), and its gradient in x.

    Attributes:
        function: `(x, *point, *data)` to a scalar.
        width: how many numbers the largest temporary of one point has.
        block: how many points torch's operations take at once.
        gate: entered whenever the function runs.
        kernel: the machine code, where it was made: see `compile`.
    """

    function: Callable[..., Tensor]
    width: int
    block: int
    gate: Gate = nullcontext
    kernel: Kernel | None = field(default=None, init=False)
    _graphs: dict[int, Callable[..., Any]] = field(default_factory=dict, init=False)

    def __call__(self, x: Tensor, points: Tensors, weight: Tensor, data: Tensors = ()) -> tuple[Tensor, Tensor]:
        """The gradient `(D,)` and the sum, at `x` `(D,)`.

        Args:
            x: of the function.
            points: the points' tensors, `(S, *shape)`.
            weight: `(S,)`.
            data: of one problem.
        """
        if self.kernel is not None:
            return _summed(self.kernel, x, points, weight, data)
        return self._by_operations(x, points, weight, data)

    def compile(self, x: Tensor, points: Tensors, weight: Tensor, data: Tensors = ()) -> None:
        """Makes machine code for arguments like these, unless it can't be had or differs from the function here."""
        few = [part[:NUM_CHECKED] for part in (*points, weight)]
        gradient = grad_and_value(self.function)
        num = len(points)

        def step(*given: Tensor) -> tuple[Tensor, Tensor]:
            return gradient(given[num], *given[:num], *given[num + 1 :])

        try:
            with self.gate():
                expected = _on_points(self.function, len(few) - 1)(x, *few, *data)
                kernel = written(step, MANY_LANES, fixed=[part[0] for part in points], data=(x, *data)).compiled()
            found = _summed(kernel, x, few[:-1], few[-1], data)
        except (
            Exception
        ) as error:  # whatever a guide or model does that tracing, translation or the compiler do not know
            _log.info("a sum runs operation by operation: %s", error)
            return
        both = [torch.cat([part.reshape(-1) for part in parts])[None] for parts in (found, expected)]
        if agree(both[:1], both[1:], 10 * AGREEMENT):  # the sum has its own rounding
            self.kernel = kernel
        else:
            _log.info("a sum runs operation by operation: machine code differs from the function")

    def _by_operations(self, x: Tensor, points: Tensors, weight: Tensor, data: Tensors) -> tuple[Tensor, Tensor]:
        """By a flat graph, where the function can be traced, of as many points as stay in the cache."""
        size = len(weight)
        while size % 2 == 0 and size > self.block:
            size //= 2
        pieces = zip(*(part.split(size) for part in (*points, weight)), strict=True)
        with self.gate():
            if size not in self._graphs:
                self._graphs[size] = self._traced(x, [part[:size] for part in (*points, weight)], data)
            slopes, values = zip(*(self._graphs[size](x, *few, *data) for few in pieces), strict=True)
        return torch.stack(slopes).sum(0), torch.stack(values).sum()

    def _traced(self, x: Tensor, few: Tensors, data: Tensors) -> Callable[..., Any]:
        summed = _on_points(self.function, len(few) - 1)
        try:
            return eager(traced(summed, (x, *few, *data)))
        except Exception as error:  # what can't be traced is only slower
            _log.info("a sum runs untraced: %s", error)
            return summed


def _on_points(function: Callable[..., Tensor], num: int) -> Callable[..., tuple[Tensor, Tensor]]:
    """`(x, *points, weight, *data)` to the gradient and value of the weighted sum, of so many points' tensors."""

    def total(x: Tensor, *given: Tensor) -> Tensor:
        points, weight, data = given[:num], given[num], given[num + 1 :]
        values = vmap(lambda *point: function(x, *point, *data))(*points)
        return (weight * values).sum()

    return grad_and_value(total)


def _summed(kernel: Kernel, x: Tensor, points: Tensors, weight: Tensor, data: Tensors) -> tuple[Tensor, Tensor]:
    """The weighted sum of a kernel's gradients and values, so many points at once as take no more than some MiB."""
    pieces = math.ceil(len(weight) * len(x) / MAX_GRADIENT_NUMBERS)
    gradient, total = torch.zeros_like(x), x.new_zeros(())
    shared = [part[None] for part in (x, *data)]
    for *few, w in zip(*(part.tensor_split(pieces) for part in (*points, weight)), strict=True):
        _, (slopes, values) = kernel((1, len(w)), fixed=[part[None] for part in few], data=shared)
        gradient, total = gradient + w @ slopes[0, 0], total + w @ values[0, 0]
    return gradient, total
