"""What a translated graph consists of: values, and the loops and blocks of C++ that compute them.

A value is a tensor of the traced function. Its numbers lie in a one-dimensional C++ array, of which each element holds
one number of every lane, and the value itself is the tensor of their places in that array. So an operation that only
moves numbers about (a view, a slice, a transpose) changes the places while the code is written, and costs nothing when
the code runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

# The C++ may list the place of every element of a value, so that this bounds its length, and with it the time of the
# C++ compiler. A function with a larger value has no translation, and runs by inductor or by torch's operations.
MAX_ELEMENTS = 2**18
# An element that a computed integer (a count) selects is found by comparing the integer with each value that it may
# take. There may be at most this many: a function that needs more has no translation, as comparing would take too long.
MAX_CHOICES = 32


class UnsupportedError(Exception):
    """A graph does something that has no translation to C++; the message names it."""


@dataclass(frozen=True)
class Ref:
    """A value that is computed when the code runs.

    Attributes:
        array: the name of the C++ array that holds its numbers.
        kind: what the array's elements are: "V" a vector of numbers, one for each lane; "M" a vector of conditions;
            "T" one number that all lanes share; "B" one such condition; "I" places, whole numbers that rows tell.
        index: the place in the array of each of the value's elements, of the value's shape.
    """

    array: str
    kind: str
    index: Tensor

    def moved(self, index: Tensor) -> Ref:
        """The value whose elements lie at these places of the same array."""
        return Ref(self.array, self.kind, index)


Value = Ref | Tensor  # a tensor is a value that is known while the code is written


@dataclass(frozen=True, eq=False)
class Loop:
    """One statement for every element: `out[i] = text` or, with `into`, a reduction `out[into[i]] = text`.

    Attributes:
        out: the array that is written.
        kind: of its elements, as `Ref.kind`.
        num: how often the statement runs.
        text: the right-hand side, with `{0}`, `{1}`, ... for the operands and, in a reduction, `{to}` for the element
            that is written.
        operands: values of `num` elements each.
        wants: one letter for each operand, "V" or "M": as what the text takes it.
        into: the element that each of the `num` statements of a reduction changes.
        start: what the elements of a reduction hold before; "" where the array is there already.
    """

    out: str
    kind: str
    num: int
    text: str
    operands: tuple[Value, ...]
    wants: str
    into: Tensor | None = None
    start: str = ""


@dataclass(frozen=True)
class Array:
    """An array that a piece of code writes: its name, the kind of its elements as `Ref.kind`, and how many."""

    name: str
    kind: str
    num: int


@dataclass(frozen=True, eq=False)
class Block:
    """C++ that is no loop over elements, with the arrays that it writes and the names of those that it reads."""

    out: tuple[Array, ...]
    reads: tuple[str, ...]
    code: str


Item = Loop | Block


def reads(item: Item) -> set[str]:
    """The names of the arrays that an item reads."""
    if isinstance(item, Block):
        return set(item.reads)
    return {operand.array for operand in item.operands if isinstance(operand, Ref)}


def writes(item: Item) -> list[Array]:
    """The arrays that an item writes."""
    if isinstance(item, Block):
        return list(item.out)
    num = item.num if item.into is None else int(item.into.max()) + 1
    return [Array(item.out, item.kind, num)]


def operation_name(node: Node) -> str:
    """The name of a node's operation without its overload: `add` of `aten.add.Tensor`."""
    return str(node.target).removeprefix("aten.").partition(".")[0]


def shape_of(value: Value) -> torch.Size:
    """The shape of a value."""
    return value.index.shape if isinstance(value, Ref) else value.shape


def elements_at(value: Value, places: Tensor) -> Value:
    """The elements of a value at these places, counted in its own order, in the shape of `places`."""
    if isinstance(value, Tensor):
        return value.reshape(-1)[places]
    return value.moved(value.index.reshape(-1)[places])


def reshaped(value: Value, shape: Sequence[int]) -> Value:
    """A value in another shape of as many elements."""
    return value.reshape(shape) if isinstance(value, Tensor) else value.moved(value.index.reshape(shape))


def expanded(value: Value, shape: torch.Size) -> Value:
    """A value expanded to a shape, as `Tensor.expand`."""
    return value.expand(shape) if isinstance(value, Tensor) else value.moved(value.index.expand(shape))


def sections(value: Value, dim: int, shape: torch.Size) -> list[Value]:
    """The slices of a value along `dim`, each cut and expanded to `shape`.

    Raises:
        UnsupportedError: there are more than `MAX_CHOICES`.
    """
    index = value.index if isinstance(value, Ref) else torch.arange(value.numel()).reshape(value.shape)
    num = index.shape[dim]
    if num > MAX_CHOICES:
        raise UnsupportedError(f"one of {num} by a count")
    corner = index[tuple(slice(None) if d == dim else slice(0, n) for d, n in enumerate(shape))]
    found = []
    for k in range(num):
        places = corner.narrow(dim, k, 1).expand(shape)
        found.append(value.moved(places) if isinstance(value, Ref) else value.reshape(-1)[places])
    return found


def distinct(operands: Sequence[Value]) -> tuple[Tensor, Tensor]:
    """Finds elements that are equal in all operands, as those that a plate or an enumerated site repeats.

    Args:
        operands: values of one shape.

    Returns:
        The places of the elements that differ from all before them, `(N,)`, and for every element which of the `N` it
        equals.
    """
    key = torch.zeros(shape_of(operands[0]).numel(), dtype=torch.int64)
    for operand in operands:
        values, which = torch.unique(_identity(operand), return_inverse=True)
        _, key = torch.unique(key * len(values) + which, return_inverse=True)
    every = torch.arange(len(key))
    first = torch.full((int(key.max()) + 1,), len(key)).scatter_reduce(0, key, every, "amin")
    order = first.argsort()
    return first[order], order.argsort()[key]


def _identity(value: Value) -> Tensor:
    """Integers that are equal where a value's elements are the same."""
    if isinstance(value, Ref):
        return value.index.reshape(-1)
    flat = value.reshape(-1)
    return flat.double().contiguous().view(torch.int64) if flat.is_floating_point() else flat.to(torch.int64)
