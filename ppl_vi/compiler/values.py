"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

WRITTEN_OUT = 4  # passes of a loop
MOST_ELEMENTS = 2**18  # of one value, whose places are written out in the code
MOST_CHOICES = 32  # that a count picks from
DISTINCT = 0.5  # of the elements of a value: where no more differ, these alone are computed


class UnsupportedError(Exception):
    """A graph does something that has no translation here; the message names it."""


@dataclass(frozen=True)
class Ref:
    """A value: elements of an array, `index` of its shape.

    `kind` says what the array's elements are: "V" numbers of all lanes, "M" conditions of all lanes, "T" numbers that
    all lanes share, "B" such conditions.
    """

    array: str
    kind: str
    index: Tensor

    def moved(self, index: Tensor) -> Ref:
        """The same elements in another order."""
        return Ref(self.array, self.kind, index)


Value = Ref | Tensor


@dataclass(frozen=True, eq=False)
class Loop:
    """`out[i] = text` for every `i`, or, with `into`, `out[into[i]] = text` of that element and the operand.

    `wants` says of what kind the text takes each operand.
    """

    out: str
    kind: str
    num: int
    text: str
    operands: tuple[Value, ...]
    wants: str
    into: Tensor | None = None
    start: str = ""


@dataclass(frozen=True, eq=False)
class Block:
    """Code of its own, with the arrays that it makes and reads."""

    out: tuple[tuple[str, str, int], ...]  # name, kind, elements
    reads: tuple[str, ...]
    code: str


Item = Loop | Block


def _reads(item: Item) -> set[str]:
    if isinstance(item, Block):
        return set(item.reads)
    return {operand.array for operand in item.operands if isinstance(operand, Ref)}


def _writes(item: Item) -> list[tuple[str, str, int]]:
    if isinstance(item, Block):
        return list(item.out)
    return [(item.out, item.kind, item.num if item.into is None else int(item.into.max()) + 1)]


def _name(node: Node) -> str:
    return str(node.target).removeprefix("aten.").partition(".")[0]


def _constant(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise UnsupportedError("a constant that is no tensor")
    return value.detach()


def _shape(value: Value) -> torch.Size:
    return value.index.shape if isinstance(value, Ref) else value.shape


def _at(value: Value, places: Tensor) -> Value:
    if isinstance(value, Tensor):
        return value.reshape(-1)[places]
    return value.moved(value.index.reshape(-1)[places])


def _sections(value: Value, dim: int, shape: torch.Size) -> list[Value]:
    """A value's sections across `dim`, one each of its places, cut and repeated to a shape."""
    index = value.index if isinstance(value, Ref) else torch.arange(value.numel()).reshape(value.shape)
    num = index.shape[dim]
    if num > MOST_CHOICES:
        raise UnsupportedError(f"one of {num} by a count")
    corner = index[tuple(slice(None) if d == dim else slice(0, n) for d, n in enumerate(shape))]
    found = []
    for k in range(num):
        places = corner.narrow(dim, k, 1).expand(shape)
        found.append(value.moved(places) if isinstance(value, Ref) else value.reshape(-1)[places])
    return found


def _distinct(operands: Sequence[Value]) -> tuple[Tensor, Tensor]:
    """Of the elements of operands of one shape, the first places of those that differ from all before, and for each
    element which of them it equals: one stands for all that a plate or an enumerated value repeats."""
    key = torch.zeros(_shape(operands[0]).numel(), dtype=torch.int64)
    for operand in operands:
        values, which = torch.unique(_bits(operand), return_inverse=True)
        _, key = torch.unique(key * len(values) + which, return_inverse=True)
    every = torch.arange(len(key))
    first = torch.full((int(key.max()) + 1,), len(key)).scatter_reduce(0, key, every, "amin")
    order = first.argsort()
    return first[order], order.argsort()[key]


def _bits(value: Value) -> Tensor:
    """Whole numbers that are the same where a value's elements are."""
    if isinstance(value, Ref):
        return value.index.reshape(-1)
    flat = value.reshape(-1)
    return flat.double().contiguous().view(torch.int64) if flat.is_floating_point() else flat.to(torch.int64)


def _reshaped(value: Value, shape: Sequence[int]) -> Value:
    return value.reshape(shape) if isinstance(value, Tensor) else value.moved(value.index.reshape(shape))


def _expanded(value: Value, shape: torch.Size) -> Value:
    return value.expand(shape) if isinstance(value, Tensor) else value.moved(value.index.expand(shape))
