"""The C++ text of single elements of values, and the tables of constants that it refers to."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_vi.compiler.places import affine, affine_text, period
from ppl_vi.compiler.values import Ref, UnsupportedError, Value

# A loop of at most this many passes is written out pass by pass, so that the C++ compiler keeps its arrays in
# registers.
MAX_WRITTEN_OUT = 4


def passes(num: int, statements: Callable[[str], list[str]]) -> list[str]:
    """C++ that runs `statements(i)` for `i` from 0 to `num - 1`, as a loop or, where they are few, written out."""
    if num > MAX_WRITTEN_OUT:
        return [f"for (int i = 0; i < {num}; ++i) {{", *statements("i"), "}"]
    return [line for i in range(num) for line in ("{", *statements(str(i)), "}")]


def nested_passes(shape: Sequence[int], statements: Callable[[tuple[str, ...]], list[str]]) -> list[str]:
    """C++ that runs `statements(axes)` for each element of a shape: a loop for each axis."""
    num = math.prod(shape)
    if len(shape) <= 1 or num <= MAX_WRITTEN_OUT:
        if len(shape) == 1:
            return passes(num, lambda i: statements((i,)))
        places = itertools.product(*(range(n) for n in shape))
        return [line for axes in places for line in ("{", *statements(tuple(map(str, axes))), "}")]
    axes = tuple(f"i{k}" for k in range(len(shape)))
    heads = [f"for (int {axis} = 0; {axis} < {n}; ++{axis})" for axis, n in zip(axes, shape, strict=True)]
    return [*heads, "{", *statements(axes), "}"]


def flat_place(axes: Sequence[str], shape: Sequence[int]) -> str:
    """C++ for the number of an element of a shape, whose place along each axis is given."""
    if all(axis.isdigit() for axis in axes):
        place = 0
        for axis, num in zip(axes, shape, strict=True):
            place = place * num + int(axis)
        return str(place)
    flat = axes[0]
    for axis, num in zip(axes[1:], shape[1:], strict=True):
        flat = f"({flat}) * {num} + {axis}"
    return flat


def _number_of(axes: Sequence[str], shape: Sequence[int]) -> int:
    """The number of an element whose place, in a row or along each axis, is given by numerals."""
    if len(axes) == 1:
        return int(axes[0])
    return int(flat_place(axes, shape)) if axes else 0


def number(value: float) -> str:
    """C++ for one number."""
    if math.isnan(value):
        return "Real(NAN)"
    if math.isinf(value):
        return "Real(INFINITY)" if value > 0 else "Real(-INFINITY)"
    return f"Real({value!r})"


def literal(value: Any, want: str) -> str:
    """C++ for a vector that has the same number ("V") or condition ("M") in every lane."""
    return f"every({int(bool(value))})" if want == "M" else f"all({number(float(value))})"


class Tables:
    """Constant arrays of a piece of C++, each written once however often it is referred to."""

    def __init__(self) -> None:
        self._names: dict[tuple[Any, ...], str] = {}
        self.definitions: list[str] = []

    def name(self, c_type: str, entries: Sequence[Any]) -> str:
        """The name of the array of these entries, which is defined where it is new."""
        key = (c_type, *entries)
        if key not in self._names:
            self._names[key] = f"table_{len(self._names)}"
            listed = ", ".join(str(n) for n in entries)
            self.definitions.append(f"static constexpr {c_type} {self._names[key]}[] = {{{listed}}};")
        return self._names[key]

    def element(
        self, value: Value, want: str, axes: Sequence[str] = ("i",), local: Mapping[str, str] | None = None
    ) -> str:
        """C++ for one element of a value.

        Args:
            value: the value.
            want: "V" for a vector of numbers, "M" for a vector of conditions.
            axes: C++ for the element's position: one for its number in the value's order, or one for each axis.
            local: C++ that stands for the current element of an array, by the array's name.

        Raises:
            UnsupportedError: the value is of whole numbers.
        """
        if isinstance(value, Tensor):
            if all(axis.isdigit() for axis in axes):
                return literal(value.reshape(-1)[_number_of(axes, value.shape)].item(), want)
            if value.numel() and bool((value == value.reshape(-1)[0]).all()):
                return literal(value.reshape(-1)[0].item(), want)
            value = self.constant(value)
        if value.kind == "I":
            raise UnsupportedError("whole numbers that rows of data hold, in an operation on numbers")
        text = (local or {}).get(value.array) or f"{value.array}[{self.place(value, axes)}]"
        if value.kind == "T":
            text = f"all({text})"
        elif value.kind == "B":
            text = f"every({text})"
        has = "V" if value.kind in "VT" else "M"
        if has == want:
            return text
        return f"choose({text}, all(1), V{{}})" if want == "V" else f"({text} != 0)"

    def place(self, value: Ref, axes: Sequence[str]) -> str:
        """C++ for the place of one element in the value's array; `axes` as of `element`."""
        index = value.index if len(axes) > 1 else value.index.reshape(-1)
        if all(axis.isdigit() for axis in axes):
            return str(int(index.reshape(-1)[_number_of(axes, index.shape)]))
        even = affine(index)
        if even is not None:
            offset, strides = even
            terms = [
                f"{step} * {axis}" if step != 1 else axis for axis, step in zip(axes, strides, strict=True) if step
            ]
            return " + ".join([*terms, str(offset)] if offset or not terms else terms)
        if len(axes) == 1:
            return self._place_in_row(value, index, axes[0])
        return f"{self.name('int', index.reshape(-1).tolist())}[{flat_place(axes, index.shape)}]"

    def _place_in_row(self, value: Ref, index: Tensor, element: str) -> str:
        """C++ for the place of element number `element`, where the row of all places is not evenly spaced."""
        even = affine(value.index)
        if even is not None:
            return affine_text(element, value.index.shape, *even)
        repeated = period(index)
        if repeated is None:
            return f"{self.name('int', index.tolist())}[{element}]"
        num, step = repeated
        first = index[:num]
        if bool((first == first[0]).all()):
            begin = str(int(first[0]))
        else:
            begin = f"{self.name('int', first.tolist())}[{element} % {num}]"
        return f"{begin} + {step} * ({element} / {num})"

    def constant(self, value: Tensor) -> Ref:
        """A value that is known while the code is written, as a table; what is repeated along an axis stands once."""
        kind, shape = "B" if value.dtype == torch.bool else "T", value.shape
        for dim in range(value.dim()):
            first = value.narrow(dim, 0, 1)
            if torch.equal(first.expand_as(value), value):
                value = first
        entries = [str(int(n)) if kind == "B" else number(n) for n in value.reshape(-1).tolist()]
        name = self.name("bool" if kind == "B" else "Real", entries)
        return Ref(name, kind, torch.arange(value.numel()).reshape(value.shape).expand(shape))
