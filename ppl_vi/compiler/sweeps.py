"""The C++ of sweeps over rows: vectors hold rows, and each lane of a step makes a sweep of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ppl_vi.compiler.builder import Builder
from ppl_vi.compiler.operations import value_of
from ppl_vi.compiler.rows import Sweep, Total
from ppl_vi.compiler.schedule import scheduled
from ppl_vi.compiler.text import passes
from ppl_vi.compiler.values import Loop, Ref, UnsupportedError, Value, reshaped, shape_of

# What an accumulator holds before the first row, and how a row is added to it where it is a row at all.
STARTS = {"sum": "V{}", "max": "all(-INFINITY)", "min": "all(INFINITY)", "logarithm": "all(1)"}
ADDED = {
    "logarithm": "{to} * choose(valid, factor_mantissa({0}), all(1))",
    "sum": "{to} + choose(valid, {0}, V{{}})",
    "max": "choose(valid, maximum({to}, {0}), {to})",
    "min": "choose(valid, minimum({to}, {0}), {to})",
}
# The sum of a product's exponents, beside the product of its mantissas; each of these is from 0.75 to 1.5, so that the
# product of `BLOCK_VECTORS` of them is neither tiny nor huge.
EXPONENTS_ADDED = "{to} + choose(valid, factor_exponent({0}), V{{}})"
# So many vectors of rows are summed before their sum is added to the total, since the rounding errors of a million rows
# added one by one would be seen in a log density.
BLOCK_VECTORS = 128
ACROSS = {
    "sum": "sum_of_lanes", "logarithm": "sum_of_lanes", "max": "largest_of_lanes", "min": "smallest_of_lanes"
}  # fmt: skip
# The totals of a block of rows that are added to those of the blocks before.
BY_BLOCKS = ("sum", "logarithm")


def sweep_values(build: Builder, node: Node, inputs: Sequence[int]) -> tuple[Ref, ...]:
    """The totals of a sweep.

    Args:
        build: of the step.
        node: of the step's graph, whose target is the sweep.
        inputs: where each of the sweep's own inputs stands among all arrays of rows.
    """
    body = _translated(build, node)
    totals = body.sweep.totals
    names = [build.new_name() for _ in totals]
    lines = [
        "{",
        f"const int64_t num_rows = row_counts[{body.sweep.axis}];",
        "const int64_t stride = (num_rows + LANES - 1) / LANES * LANES;",
        *_pointers(body, inputs),
        *(line for name, total in zip(names, totals, strict=True) for line in _cleared(name, total)),
        "for (int lane = 0; lane < VALID; ++lane) {",
        *_lane_values(body),
        *(line for k, total in enumerate(totals) for line in _accumulator(body.total(k), total)),
        f"for (int64_t block = 0; block < num_rows; block += {BLOCK_VECTORS} * LANES) {{",
        f"const int64_t block_end = block + {BLOCK_VECTORS} * LANES;",
        "const auto add_rows = [&](const int64_t row, const M valid) __attribute__((always_inline)) {",
        *_row_loads(body),
        *scheduled(body.inner.items, _added_later(body), body.inner.tables),
        *(line for k, total in enumerate(totals) if total.kind == "scatter" for line in _added_at_places(body, k)),
        "};",
        "int64_t row = block;",
        "for (; row + LANES <= num_rows && row < block_end; row += LANES) add_rows(row, every(true));",
        "if (row < num_rows && row < block_end) add_rows(row, first_lanes(num_rows - row));",
        *(line for k, total in enumerate(totals) for line in _block_added(body.total(k), total)),
        "}",
        *(line for k, name in enumerate(names) for line in _ended(name, body.total(k), totals[k])),
        "}",
        "}",
    ]
    return tuple(build.block(names, [total.shape for total in totals], body.shared, lines))


@dataclass(frozen=True)
class _Body:
    """A translated sweep.

    Attributes:
        sweep: what was translated.
        prefix: of the names of all its arrays.
        inner: the loops and blocks of one row.
        own: the placeholders of what belongs to a row.
        others: the placeholders of what all rows share.
        shared: the step's values that these stand for.
        contributions: of one row to each total.
    """

    sweep: Sweep
    prefix: str
    inner: Builder
    own: list[Node]
    others: list[Node]
    shared: list[Value]
    contributions: list[Value]

    def total(self, number: int) -> str:
        """The name of a total's accumulator."""
        return f"{self.prefix}total_{number}"


def _translated(build: Builder, node: Node) -> _Body:
    sweep: Any = node.target
    shared = [build.value(given) for given in node.args]
    prefix = build.new_name() + "_"
    inner = Builder(build.dtype, build.tables, prefix)
    placeholders = [n for n in sweep.graph.graph.nodes if n.op == "placeholder"]
    own, others = placeholders[: sweep.num_inputs], placeholders[sweep.num_inputs :]
    for k, n in enumerate(own):
        inner.know(n, _row_input(n, f"{prefix}row_{k}", build.dtype))
    for k, (n, value) in enumerate(zip(others, shared, strict=True)):
        kind = "B" if n.meta["val"].dtype == torch.bool else "T"
        inner.know(n, value if isinstance(value, Tensor) else _all(f"{prefix}shared_{k}", kind, shape_of(value)))
    body = _Body(sweep, prefix, inner, own, others, shared, _contributions(inner, sweep))
    for k, (value, total) in enumerate(zip(body.contributions, sweep.totals, strict=True)):
        if total.kind != "scatter":
            _accumulate(inner, value, total, body.total(k))
    return body


def _all(name: str, kind: str, shape: torch.Size) -> Ref:
    return Ref(name, kind, torch.arange(shape.numel()).reshape(shape))


def _row_input(node: Node, name: str, dtype: torch.dtype) -> Ref:
    like = node.meta["val"]
    if like.dtype not in (dtype, torch.bool, torch.int64):
        raise UnsupportedError(f"rows of {like.dtype}")
    kind = {torch.bool: "M", torch.int64: "I"}.get(like.dtype, "V")
    return _all(name, kind, like.shape)


def _contributions(inner: Builder, sweep: Sweep) -> list[Value]:
    for node in sweep.graph.graph.nodes:
        if node.op == "output":
            return [inner.value(given) for given in node.args[0]]
        if node.op != "placeholder":
            inner.know(node, value_of(inner, sweep.graph, node))
    raise ValueError("expected a graph with an output")


def _pointers(body: _Body, inputs: Sequence[int]) -> list[str]:
    lines, prefix = [], body.prefix
    for k, (node, place) in enumerate(zip(body.own, inputs, strict=True)):
        like = node.meta["val"]
        c_type = "int64_t" if like.dtype == torch.int64 else "Real"
        lines.append(
            f"const {c_type}* const {prefix}rows_{k} = static_cast<const {c_type}*>(rows[{place}])"
            f" + b * {like.numel()} * stride;"
        )
    return lines


def _cleared(name: str, total: Total) -> list[str]:
    """Lanes that hold no fit are 0."""
    return passes(total.shape.numel(), lambda i: [f"{name}[{i}] = V{{}};"])


def _lane_values(body: _Body) -> list[str]:
    """The numbers of one lane that all rows share."""
    lines: list[str] = []
    tables, prefix = body.inner.tables, body.prefix
    for k, (value, node) in enumerate(zip(body.shared, body.others, strict=True)):
        if isinstance(value, Tensor):
            continue
        num, condition = shape_of(value).numel(), node.meta["val"].dtype == torch.bool

        def copy(i: str, value: Value = value, k: int = k, condition: bool = condition) -> list[str]:
            text = f"({tables.element(value, 'M' if condition else 'V', (i,))})[lane]"
            return [f"{prefix}shared_{k}[{i}] = {text}{' != 0' if condition else ''};"]

        lines += [f"{'bool' if condition else 'Real'} {prefix}shared_{k}[{num}];", *passes(num, copy)]
    return lines


def _accumulator(name: str, total: Total) -> list[str]:
    num = total.shape.numel()
    if total.kind == "scatter":
        return [f"Real {name}[{num}] = {{}};"]
    lines = [f"V {name}[{num}];", *passes(num, lambda i: [f"{name}[{i}] = {STARTS[total.kind]};"])]
    if total.kind == "logarithm":
        lines.append(f"V {name}_exponents[{num}] = {{}};")
    return [*lines, f"V {name}_whole[{num}] = {{}};"] if total.kind in BY_BLOCKS else lines


def _block_added(name: str, total: Total) -> list[str]:
    """The total of a block of rows, added to that of those before, and begun anew."""
    if total.kind not in BY_BLOCKS:
        return []
    of_product = total.kind == "logarithm"

    def added(i: str) -> list[str]:
        block = f"logarithm_of_product({name}[{i}], {name}_exponents[{i}])" if of_product else f"{name}[{i}]"
        begun = [f"{name}[{i}] = {STARTS[total.kind]};", *([f"{name}_exponents[{i}] = V{{}};"] if of_product else [])]
        return [f"{name}_whole[{i}] += {block};", *begun]

    return passes(total.shape.numel(), added)


def _row_loads(body: _Body) -> list[str]:
    lines: list[str] = []
    prefix = body.prefix
    for k, node in enumerate(body.own):
        like = node.meta["val"]
        name, rows = f"{prefix}row_{k}", f"{prefix}rows_{k}"
        if like.dtype == torch.int64:
            lines.append(f"const int64_t* const {name} = {rows} + row;")
            continue
        condition = like.dtype == torch.bool

        def load(i: str, name: str = name, rows: str = rows, condition: bool = condition) -> list[str]:
            return [f"{name}[{i}] = load_rows({rows} + {i} * stride + row){' != 0' if condition else ''};"]

        lines += [f"{'M' if condition else 'V'} {name}[{like.numel()}];", *passes(like.numel(), load)]
    return lines


def _accumulate(inner: Builder, value: Value, total: Total, name: str) -> None:
    """Adds a row's contribution to its total, in the loop that computes it where that can be."""
    whole = reshaped(value, total.shape)
    into = torch.arange(total.shape.numel())
    inner.add(Loop(name, "V", len(into), ADDED[total.kind], (whole,), "V", into))
    if total.kind == "logarithm":
        inner.add(Loop(f"{name}_exponents", "V", len(into), EXPONENTS_ADDED, (whole,), "V", into))


def _added_later(body: _Body) -> set[str]:
    """The arrays that are read after all loops: those whose elements are added at places."""
    pairs = zip(body.contributions, body.sweep.totals, strict=True)
    return {value.array for value, total in pairs if isinstance(value, Ref) and total.kind == "scatter"}


def _added_at_places(body: _Body, number: int) -> list[str]:
    """A row's contribution, added at the place that the row tells."""
    total, tables = body.sweep.totals[number], body.inner.tables
    places = torch.arange(total.shape.numel()).reshape(total.shape)
    first = places.narrow(total.dim, 0, 1)
    step = int(places.stride(total.dim))
    begin = tables.place(Ref("", "V", first), ("i",))
    return [
        f"for (int i = 0; i < {first.numel()}; ++i) {{",
        f"const V added = {tables.element(body.contributions[number], 'V', ('i',))};",
        "for (int l = 0; l < LANES && row + l < num_rows; ++l)",
        f"{body.total(number)}[{begin} + {step} * {body.prefix}row_{total.index}[l]] += added[l];",
        "}",
    ]


def _ended(name: str, accumulator: str, total: Total) -> list[str]:
    """The totals of one lane."""
    if total.kind == "scatter":
        return passes(total.shape.numel(), lambda i: [f"{name}[{i}][lane] = {accumulator}[{i}];"])
    across, accumulator = ACROSS[total.kind], f"{accumulator}_whole" if total.kind in BY_BLOCKS else accumulator
    return passes(total.shape.numel(), lambda i: [f"{name}[{i}][lane] = {across}({accumulator}[{i}]);"])
