"""The order of a translation's loops and blocks: loops over the same number of elements run as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ppl_vi.compiler.text import Tables, flat_place, nested_passes, passes
from ppl_vi.compiler.values import Block, Item, Loop, Ref, reads, reshaped, shape_of, writes


def scheduled(items: Sequence[Item], later: set[str], tables: Tables) -> list[str]:
    """C++ for items, in an order in which loops over the same number of elements run as one.

    Args:
        items: each after what it reads.
        later: the names of the arrays that are read after the items.
        tables: the constants that they refer to.
    """
    left, made = list(items), {array.name for item in items for array in writes(item)}
    done: set[str] = set()
    lines: list[str] = []

    def ready(name: str) -> bool:
        return name not in made or name in done

    while left:
        first = next(item for item in left if all(ready(name) for name in reads(item)))
        if isinstance(first, Block):
            lines += [f"V {array.name}[{array.num}];" for array in first.out] + [first.code]
            group: list[Item] = [first]
        else:
            loops = _group(left, first.num, ready)
            outside = {name for item in left if item not in loops for name in reads(item)} | later
            lines += _fused(loops, outside, tables)
            group = list(loops)
        done.update(array.name for item in group for array in writes(item))
        left = [item for item in left if item not in group]
    return lines


def _group(left: Sequence[Item], num: int, ready: Callable[[str], bool]) -> list[Loop]:
    """Loops over `num` elements that can run as one: each reads of the others only the current element."""
    group: list[Loop] = []
    inside: set[str] = set()
    identity = torch.arange(num)

    def fits(loop: Loop) -> bool:
        for operand in loop.operands:
            if not isinstance(operand, Ref) or ready(operand.array):
                continue
            if operand.array not in inside or not torch.equal(operand.index.reshape(-1), identity):
                return False
        return True

    for item in left:  # each stands after what it reads
        if isinstance(item, Loop) and item.num == num and fits(item):
            group.append(item)
            if item.into is None:
                inside.add(item.out)
    return group


def _fused(loops: Sequence[Loop], outside: set[str], tables: Tables) -> list[str]:
    """One C++ loop for several; arrays that nothing in `outside` names are single variables inside it."""
    declared, kept = [], {loop.out for loop in loops if loop.into is None} & outside
    for loop in loops:
        (array,) = writes(loop)
        if loop.start or loop.out in kept:
            declared.append(f"{array.kind} {array.name}[{array.num}];")
        if loop.start:

            def begin(i: str, loop: Loop = loop) -> list[str]:
                return [f"{loop.out}[{i}] = {loop.start};"]

            declared += passes(array.num, begin)
    shape = _common_shape(loops)
    return [*declared, *nested_passes(shape, lambda axes: _pass(loops, kept, axes, shape, tables))]


def _common_shape(loops: Sequence[Loop]) -> torch.Size:
    """The shape over whose axes the elements are counted: that of all operands, axes of length 1 left out."""
    shapes = {shape_of(operand) for loop in loops for operand in loop.operands}
    found = {torch.Size(n for n in shape if n != 1) for shape in shapes}
    return found.pop() if len(found) == 1 else torch.Size([loops[0].num])


def _pass(loops: Sequence[Loop], kept: set[str], axes: tuple[str, ...], shape: torch.Size, tables: Tables) -> list[str]:
    """The statements for one element, whose place along each axis is a loop's variable or a numeral."""
    local: dict[str, str] = {}
    lines = []
    at = flat_place(axes, shape)
    for loop in loops:
        operands = [reshaped(operand, shape) for operand in loop.operands]
        texts = [tables.element(o, w, axes, local) for o, w in zip(operands, loop.wants, strict=True)]
        if loop.into is not None:
            to = f"{loop.out}[{tables.place(Ref(loop.out, 'V', loop.into.reshape(shape)), axes)}]"
            lines.append(f"{to} = {loop.text.format(*texts, to=to)};")
            continue
        local[loop.out] = f"v_{loop.out}"
        lines.append(f"const {loop.kind} v_{loop.out} = {loop.text.format(*texts)};")
        if loop.out in kept:
            lines.append(f"{loop.out}[{at}] = v_{loop.out};")
    return lines
