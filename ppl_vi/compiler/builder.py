"""Builds the loops and blocks of a translation, one operation after another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ppl_vi.compiler.places import runs
from ppl_vi.compiler.text import MAX_WRITTEN_OUT, Tables, passes
from ppl_vi.compiler.values import (
    MAX_ELEMENTS,
    Array,
    Block,
    Item,
    Loop,
    Ref,
    UnsupportedError,
    Value,
    distinct,
    elements_at,
    expanded,
    operation_name,
    reads,
    reshaped,
    shape_of,
    writes,
)

# Where at most this share of a value's elements differ, only these are computed and the others refer to them. Above it
# computing all in one plain loop costs less than finding them by their places.
MAX_DISTINCT_SHARE = 0.5
# Operations that take indices.
INDEXING = ("index", "index_select", "index_put", "gather")


class Builder:
    """Collects the loops and blocks of a translation, and the values that they compute.

    Args:
        dtype: of all numbers.

    Attributes:
        items: what has been built, each after what it reads.
        tables: the constants that the items refer to.
        varying: the names of arrays that may change from step to step.
        sizes: how many elements each array has that was built here.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.items: list[Item] = []
        self.tables = Tables()
        self.varying: set[str] = set()
        self.sizes: dict[str, int] = {}
        self._values: dict[Node, Any] = {}
        self._count = 0

    # ---- values of nodes

    def know(self, node: Node, value: Any) -> None:
        """Makes a value, or a tuple of values, that of a node of the graph."""
        self._values[node] = value

    def known(self, node: Node) -> Any:
        """The value, or the tuple of values, of a node of the graph."""
        return self._values[node]

    def value(self, given: Any) -> Value:
        """The value of an argument: a node or a number.

        Raises:
            UnsupportedError: the node computes several values.
        """
        if isinstance(given, Node):
            found = self._values[given]
            if isinstance(found, tuple):
                raise UnsupportedError(f"several values of {given.target}")
            return found
        return torch.as_tensor(given, dtype=torch.bool if isinstance(given, bool) else self.dtype)

    def constant_index(self, given: Any) -> Tensor:
        """An argument that says which elements are meant.

        Raises:
            UnsupportedError: it is not known while the code is written.
        """
        value = self.value(given)
        if not isinstance(value, Tensor):
            raise UnsupportedError("an index that depends on values")
        return value

    # ---- loops and blocks

    def new_name(self) -> str:
        """A name for an array."""
        self._count += 1
        return f"x{self._count}"

    def loop(self, text: str, kind: str, shape: torch.Size, operands: Iterable[Value], wants: str = "") -> Ref:
        """A value each of whose elements is `text` of the operands' elements; equal elements are computed once.

        Args:
            text, kind, wants: as of `Loop`; all operands are wanted as numbers by default.
            shape: of the value, to which the operands are expanded.
            operands: the values that the text refers to.
        """
        spread = tuple(expanded(operand, shape) for operand in operands)
        if 1 < shape.numel() <= MAX_ELEMENTS:
            once, among = distinct(spread)
            if len(once) <= MAX_DISTINCT_SHARE * shape.numel():
                few = tuple(elements_at(operand, once) for operand in spread)
                return self._array(text, kind, once.shape, few, wants).moved(among.reshape(shape))
        return self._array(text, kind, shape, spread, wants)

    def _array(self, text: str, kind: str, shape: torch.Size, operands: tuple[Value, ...], wants: str = "") -> Ref:
        """The same as `loop` with a place of its own for every element."""
        num = shape.numel()
        if num > MAX_ELEMENTS:
            raise UnsupportedError(f"a value of {num} numbers")
        found = Ref(self.new_name(), kind, torch.arange(num).reshape(shape))
        self.add(Loop(found.array, kind, num, text, operands, wants or "V" * len(operands)))
        return found

    def block(
        self, names: Sequence[str], shapes: Sequence[torch.Size], operands: Sequence[Value], lines: Sequence[str]
    ) -> list[Ref]:
        """Values that C++ lines compute.

        Args:
            names: of the arrays that the lines write, which hold numbers.
            shapes: of the values.
            operands: the values that the lines read.
            lines: the C++.
        """
        if max(shape.numel() for shape in shapes) > MAX_ELEMENTS:
            raise UnsupportedError(f"a value of {max(shape.numel() for shape in shapes)} numbers")
        out = tuple(Array(name, "V", shape.numel()) for name, shape in zip(names, shapes, strict=True))
        arrays = tuple(operand.array for operand in operands if isinstance(operand, Ref))
        self.add(Block(out, arrays, "\n".join(lines)))
        return [
            Ref(name, "V", torch.arange(shape.numel()).reshape(shape))
            for name, shape in zip(names, shapes, strict=True)
        ]

    def add(self, item: Item) -> None:
        """Adds an item; what it writes varies from step to step if something that it reads does."""
        made = writes(item)
        if reads(item) & self.varying:
            self.varying.update(array.name for array in made)
        self.sizes.update({array.name: array.num for array in made})
        self.items.append(item)

    def whole(self, value: Value) -> Ref:
        """A value as an array of its own, its elements in order: the value itself where it is that already."""
        if isinstance(value, Ref) and value.kind == "V" and value.array in self.sizes:
            in_order = torch.arange(self.sizes[value.array])
            if torch.equal(value.index.reshape(-1), in_order):
                return value
        return self._array("{0}", "V", shape_of(value), (value,))

    def copied(self, value: Value, kind: str) -> Ref:
        """A copy of a value in an array of its own, of this kind."""
        return self._array("{0}", kind, shape_of(value), (value,), kind)

    def accumulated(self, base: Value, where: Tensor, source: Value) -> Ref:
        """`base` with each element of `source` added to its element at place `where`."""
        shape, name = shape_of(base), self.new_name()
        element = self.tables.element
        to = element(Ref(name, "V", where.reshape(-1)), "V")
        lines = [
            f"for (int i = 0; i < {shape.numel()}; ++i) {name}[i] = {element(base, 'V')};",
            f"for (int i = 0; i < {where.numel()}; ++i) {to} += {element(source, 'V')};",
        ]
        return self.block((name,), (shape,), (base, source), lines)[0]

    # ---- operations that only move elements

    def moved(self, node: Node) -> Any:
        """The value of an operation that only moves elements, found by applying it to the elements' places.

        The places are counted from 1 through all operands, so that a 0 in the result is a zero that the operation
        filled in.
        """
        name = operation_name(node)
        self._check_indices(node, name)
        sources: list[Value] = []
        begin = 1

        def places(given: Any) -> Any:
            nonlocal begin
            if not isinstance(given, Node):
                return given
            value = self.value(given)
            if isinstance(value, Tensor) and not value.is_floating_point() and (sources or value.dtype != torch.bool):
                return value  # an index, which says where the places go
            sources.append(value)
            found = _counted(begin, value, given)
            begin += found.numel()
            return found

        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), places)
        kwargs = {key: value for key, value in kwargs.items() if key not in ("dtype", "memory_format", "device")}
        filling: Any = args[2] if name == "constant_pad_nd" and len(args) > 2 else 0
        if filling != 0:
            sources.append(torch.full((1,), float(filling), dtype=self.dtype))
            args = (*args[:2], begin)
        try:
            found: Any = args[0] if name == "_to_copy" else node.target(*args, **kwargs)  # type: ignore[operator]
        except Exception as error:
            raise UnsupportedError(f"{node.target} of places: {error}") from error
        if isinstance(found, (tuple, list)):
            return tuple(self._taken(sources, piece) for piece in found)
        return self._taken(sources, found)

    def _check_indices(self, node: Node, name: str) -> None:
        """Refuses to move elements to or from places that are known only when the code runs."""
        indices = {n for n in node.all_input_nodes[1:] if name in INDEXING}
        integers = [n for n in node.all_input_nodes if n.meta["val"].dtype == torch.int64]
        if any(isinstance(self.value(n), Ref) for n in indices.intersection(integers)):
            raise UnsupportedError(f"{node.target}: an index that depends on values")
        if not indices and len({type(self.value(n)) for n in integers}) > 1:
            raise UnsupportedError(f"{node.target} of counts and constants")

    def _taken(self, sources: Sequence[Value], places: Tensor) -> Value:
        """The elements at these places of the sources laid end to end, counted from 1."""
        begin, used = 1, []
        for source in sources:
            num = shape_of(source).numel()
            mask = (places >= begin) & (places < begin + num)
            if bool(mask.any()):
                used.append((source, mask, (places - begin).clamp(0, max(num - 1, 0))))
            begin += num
        if not used:
            return torch.zeros(places.shape, dtype=self.dtype)
        if len(used) == 1:
            return self._masked(*used[0])
        if any(isinstance(source, Ref) and source.kind == "M" for source, _, _ in used):
            raise UnsupportedError("conditions joined")
        return self._joined(used, places.shape)

    def _masked(self, source: Value, mask: Tensor, at: Tensor) -> Value:
        """The elements of one source at places `at`, 0 where the mask is False."""
        found = elements_at(source, at)
        if bool(mask.all()):
            return found
        if isinstance(found, Tensor):
            return torch.where(mask, found, torch.zeros_like(found))
        if found.kind in "MB":
            return self.loop("({0} & {1})", "M", at.shape, (mask, found), "MM")
        return self.loop("choose({0}, {1}, V{{}})", "V", at.shape, (mask, found), "MV")

    def _joined(self, used: Sequence[tuple[Value, Tensor, Tensor]], shape: torch.Size) -> Ref:
        """One array of elements of several sources, copied run by run where the runs are few."""
        name, lines = self.new_name(), []
        covered = torch.zeros(shape, dtype=torch.bool)
        for _, mask, _ in used:
            covered |= mask
        if not bool(covered.all()):
            lines += passes(shape.numel(), lambda i: [f"{name}[{i}] = V{{}};"])
        for source, mask, at in used:
            lines += self._copies(name, source, mask.reshape(-1).nonzero()[:, 0], at.reshape(-1))
        return self.block((name,), (shape,), [source for source, _, _ in used], lines)[0]

    def _copies(self, name: str, source: Value, where: Tensor, places: Tensor) -> list[str]:
        """C++ that copies elements of a source to places `where` of an array."""
        element = self.tables.element
        found = runs(where.tolist())
        if len(found) > MAX_WRITTEN_OUT:
            to, there = Ref(name, "V", where), elements_at(source, places[where])
            return [f"for (int i = 0; i < {len(where)}; ++i)", f"{element(to, 'V')} = {element(there, 'V')};"]
        lines = []
        for first, num in found:
            there = elements_at(source, places[first : first + num])

            def copy(i: str, first: int = first, there: Value = there) -> list[str]:
                return [f"{name}[{first} + {i}] = {element(there, 'V', (i,))};"]

            lines += passes(num, copy)
        return lines

    def reduced(self, node: Node, start: str, text: str) -> Ref:
        """The value of a reduction over dimensions; `start` and `text` as of `Loop`."""
        source, like = self.value(node.args[0]), node.args[0].meta["val"]  # type: ignore[union-attr]
        shape = node.meta["val"].shape
        asked: Any = node.args[1] if len(node.args) > 1 and node.args[1] not in (None, []) else range(like.dim())
        dims = [d % max(like.dim(), 1) for d in ([asked] if isinstance(asked, int) else asked)]
        kept = torch.Size(1 if d in dims else n for d, n in enumerate(like.shape))
        if like.numel() == kept.numel():
            return self.loop("{0}", "V", shape, [reshaped(source, shape)])
        if like.numel() > MAX_ELEMENTS:
            raise UnsupportedError(f"a sum of {like.numel()} numbers")
        into = torch.arange(kept.numel()).reshape(kept).expand(like.shape).reshape(-1)
        found = Ref(self.new_name(), "V", torch.arange(kept.numel()).reshape(shape))
        flat = (reshaped(source, torch.Size([like.numel()])),)
        self.add(Loop(found.array, "V", like.numel(), text, flat, "V", into, start))
        return found


def _counted(begin: int, value: Value, node: Node) -> Tensor:
    """The places of a value's elements counted from `begin`, with the strides that the traced tensor had."""
    shape = shape_of(value)
    found = torch.arange(begin, begin + shape.numel()).reshape(shape)
    like = node.meta.get("val")
    if like is not None and shape.numel() and 0 not in like.stride():
        found = torch.empty_strided(shape, like.stride(), dtype=found.dtype).copy_(found)
    return found
