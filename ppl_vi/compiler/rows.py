"""Finds the parts of a step that run over the rows of the data, so that each is done in sweeps.

The rows of a regression's design matrix are such an axis, and so is every plate over data. What belongs to a row is
computed, added to totals, differentiated and forgotten, one block of rows after another: nothing of the data's length
is written to memory, and the processor's vectors are filled by rows however few fits or draws there are.

The axis is known by its length, which no other axis of a value may share. A value that has it is computed from others
of the same row, from parts of data that have the axis, and from values without it, which all rows share. Only sums over
rows, largest and smallest values, and additions at places that data tell (`theta[group]` read backwards) leave it. A
value of a row that needs a total over all rows, as in a softmax over them, is computed in a second sweep, and what it
needs of the first is computed again.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate

from ppl_vi.compiler.identities import added
from ppl_vi.compiler.logarithms import without_logarithms
from ppl_vi.compiler.trace import LazyGraphModule
from ppl_vi.compiler.values import operation_name

aten = torch.ops.aten

# With fewer rows than these, lanes of fits are filled as well, and a sweep is not worth its overhead.
MIN_ROWS = 64
SUMS = {"sum", "mm", "bmm", "mv", "dot"}
EXTREMES = {"amax": "max", "amin": "min"}
SCATTERS = {"index_put", "_unsafe_index_put", "scatter_add", "index_add"}
# Operations whose result has the axis of rows only if their operand has it.
KEEPING = {
    "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "permute", "transpose", "t", "select", "slice", "split",
    "split_with_sizes", "unbind", "cat", "stack", "tril", "triu", "diagonal", "clone", "_reshape_alias",
    "diagonal_backward", "gather",
}  # fmt: skip
# Operations that make neighbours of rows meet.
MIXING = {"cumsum", "flip", "roll", "constant_pad_nd", "slice_backward", "select_backward", "cat", "repeat"}


class NotByRowsError(Exception):
    """A part of a step can't be done row by row; the message says why."""


@dataclass(frozen=True)
class Total:
    """How the rows' contributions are put together.

    Attributes:
        kind: "sum", "max", "min"; "logarithm", of the product of all; or "scatter": each row's contribution is added at
            a place that data tell.
        shape: of the total.
        dim: of a scatter: the axis that is indexed.
        index: of a scatter: the number of the row input that holds the places.
    """

    kind: str
    shape: torch.Size
    dim: int = 0
    index: int = -1


@dataclass(frozen=True, eq=False)
class Sweep:
    """One pass over the rows.

    Attributes:
        graph: of one row: its inputs are the row's own and then those that all rows share, its outputs one
            contribution to each total. The axis of rows has length 1 in it.
        axis: the number of this axis among those of the step.
        num_inputs: how many inputs are the row's own.
        totals: what becomes of the contributions.
        terms: for each of the last totals, which are logarithms, the sign with which it is added to another, and the
            number of that.
    """

    graph: GraphModule
    axis: int
    num_inputs: int
    totals: tuple[Total, ...]
    terms: tuple[tuple[int, int], ...] = ()
    __name__: ClassVar[str] = "sweep"  # torch.fx writes it where the graph is printed as code

    def __call__(self, *_: Any) -> Any:
        """A node of a graph calls something; a sweep is translated, never called."""
        raise NotImplementedError("a sweep over rows runs as machine code only")


@dataclass(frozen=True)
class Axis:
    """An axis of rows, and the data that have it.

    Attributes:
        length: how many rows there are.
        inputs: the placeholders of data that have the axis, in the order of a sweep's inputs.
        sizes: for each of these, of how many elements it picks one; None where it picks none.
    """

    length: int
    inputs: tuple[Node, ...]
    sizes: tuple[int | None, ...]


@dataclass(frozen=True)
class Rows:
    """The axes of rows of a step."""

    axes: tuple[Axis, ...] = ()

    @property
    def lengths(self) -> list[int]:
        """How many rows each axis has."""
        return [axis.length for axis in self.axes]


def swept(graph: GraphModule, prepared: Sequence[Node]) -> Rows:
    """Replaces, in place, what runs over rows by sweeps.

    Args:
        graph: of a step.
        prepared: placeholders of data.

    Returns:
        The axes; none where there are no rows or too few, or nothing can be done row by row.
    """
    axes: list[Axis] = []
    lengths = {n for node in prepared for n in node.meta["val"].shape if n >= MIN_ROWS}
    for length in sorted(lengths, reverse=True):
        try:
            axis = _swept(graph, length, len(axes), set(prepared))
        except NotByRowsError:
            continue
        if axis is not None:
            axes.append(axis)
    return Rows(tuple(axes))


def _swept(graph: GraphModule, length: int, axis: int, prepared: set[Node]) -> Axis | None:
    """The same for the axis of one length; None where nothing is computed along it."""
    nodes = list(graph.graph.nodes)
    inside = {node for node in nodes if node.op == "call_function" and _has(node, length)}
    inside |= {
        node for node in nodes if not isinstance(node.meta.get("val"), Tensor) and inside.intersection(node.users)
    }
    if not inside:
        return None
    for node in nodes:
        if node.op in ("placeholder", "get_attr") and node not in prepared and _has(node, length) and node.users:
            raise NotByRowsError(f"{node.name} has the axis and is no data")
    inputs = [node for node in nodes if node in prepared and _has(node, length)]
    totals = [node for node in nodes if node not in inside and any(n in inside for n in node.all_input_nodes)]
    totals += [node for node in nodes if node not in inside and node not in totals and _sums_data(node, inputs)]
    for node in inside:
        _check_inside(node, length)
    levels = _levels(nodes, inside, totals)
    made = []
    for level in sorted({levels[node] for node in totals}):
        wanted = [node for node in totals if levels[node] == level]
        made.append((*_sweep(graph, wanted, inside, inputs, length, axis), wanted))
    sizes = _sizes_picked_from([sweep for sweep, _, _ in made], len(inputs))
    replaced: dict[Node, Node] = {}
    for sweep, shared, wanted in made:
        parts = _replace(graph, sweep, [replaced.get(node, node) for node in shared], wanted)
        replaced |= dict(zip(wanted, parts, strict=True))
    _sort(graph)
    graph.graph.eliminate_dead_code()
    return Axis(length, tuple(inputs), sizes)


def _sizes_picked_from(sweeps: Sequence[Sweep], num_inputs: int) -> tuple[int | None, ...]:
    """Of how many elements each input of the sweeps over one axis picks one.

    Raises:
        NotByRowsError: an input picks from values of several sizes.
    """
    found: list[set[int]] = [set() for _ in range(num_inputs)]
    for sweep in sweeps:
        own = [n for n in sweep.graph.graph.nodes if n.op == "placeholder"][:num_inputs]
        for node in sweep.graph.graph.nodes:
            if operation_name(node) == "index":
                for dim, index in enumerate(node.args[1]):
                    if index in own:
                        found[own.index(index)].add(node.args[0].meta["val"].shape[dim])
        for total in sweep.totals:
            if total.kind == "scatter":
                found[total.index].add(total.shape[total.dim])
    if any(len(sizes) > 1 for sizes in found):
        raise NotByRowsError("rows pick from values of several sizes")
    return tuple(next(iter(sizes), None) for sizes in found)


def _sums_data(node: Node, inputs: Sequence[Node]) -> bool:
    """Whether a node combines data over the rows with nothing that has the axis, as `X.T @ v` of data `X` and `v`."""
    return node.op == "call_function" and any(n in inputs for n in node.all_input_nodes)


def _has(node: Node, length: int) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and length in value.shape


def _check_inside(node: Node, length: int) -> None:
    if not isinstance(node.meta.get("val"), Tensor):
        return
    name, shape = operation_name(node), node.meta["val"].shape
    if list(shape).count(length) != 1:
        raise NotByRowsError(f"{node.name} has two axes of {length}")
    sources = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
    having = [n for n in sources if _has(n, length)]
    if name in MIXING and (name != "cat" or len(having) != len(sources)):
        raise NotByRowsError(f"{node.target} mixes rows or makes them")
    if name in KEEPING and sources and not having:
        raise NotByRowsError(f"{node.target} makes rows of something else")
    if name in ("select", "slice") and _at_dim(node, 1, length):
        raise NotByRowsError(f"{node.target} takes some of the rows")


def _at_dim(node: Node, place: int, length: int) -> bool:
    """Whether the dimension that an operation works on is that of the rows."""
    source: Any = node.args[0]
    dim: Any = node.args[place] if len(node.args) > place else 0
    shape = source.meta["val"].shape
    whole = operation_name(node) == "slice" and node.meta["val"].shape == shape
    return shape[dim] == length and not whole


def _levels(nodes: Sequence[Node], inside: set[Node], totals: Sequence[Node]) -> dict[Node, int]:
    """How many sweeps have to be done before a node can be computed; of a total, the number of its own sweep."""
    found: dict[Node, int] = {}
    after: dict[Node, int] = {}  # for what uses the node
    for node in nodes:
        found[node] = max((after[n] for n in node.all_input_nodes), default=0)
        after[node] = found[node] + (node in totals)
    return found


def _sweep(
    graph: GraphModule, wanted: Sequence[Node], inside: set[Node], inputs: Sequence[Node], length: int, axis: int
) -> tuple[Sweep, list[Node]]:
    """The sweep of some totals, and the nodes without the axis that it needs."""
    needed = _ancestors(wanted, inside)
    order = [node for node in graph.graph.nodes if node in needed or node in wanted]
    outside = _outside(order, inside, inputs)
    constants = [node for node in outside if node.op != "placeholder" and not node.all_input_nodes]
    shared = [node for node in outside if node not in constants]
    part, copies = Graph(), {}
    for node in (*inputs, *shared):
        copies[node] = _placeholder(part, node, length)
    for node in constants:
        copies[node] = part.node_copy(node)
    totals, outputs = [], []
    for node in order:
        if node in inside:
            copies[node] = _of_one_row(part, node, copies, length)
    for node in wanted:
        total, contribution = _total(part, node, copies, inputs, length)
        totals.append(total)
        outputs.append(contribution)
    terms = []
    for place, total in enumerate(totals[: len(wanted)]):
        if total.kind == "sum" and outputs.count(outputs[place]) == 1:
            outputs[place], logarithms = without_logarithms(part, outputs[place])
            terms += [(sign, place) for sign, _ in logarithms]
            totals += [Total("logarithm", total.shape) for _ in logarithms]
            outputs += [number for _, number in logarithms]
    part.output(tuple(outputs))
    return Sweep(LazyGraphModule(graph, part), axis, len(inputs), tuple(totals), tuple(terms)), shared


def _ancestors(wanted: Sequence[Node], inside: set[Node]) -> set[Node]:
    needed: set[Node] = set()
    ahead = [n for node in wanted for n in node.all_input_nodes if n in inside]
    while ahead:
        node = ahead.pop()
        if node not in needed:
            needed.add(node)
            ahead.extend(n for n in node.all_input_nodes if n in inside)
    return needed


def _outside(order: Sequence[Node], inside: set[Node], inputs: Sequence[Node]) -> list[Node]:
    """The nodes without the axis that others need, in the order in which they are first used."""
    found: list[Node] = []
    for node in order:
        for source in node.all_input_nodes:
            if source not in inside and source not in inputs and source not in found:
                found.append(source)
    return found


def _placeholder(part: Graph, node: Node, length: int) -> Node:
    copy = part.placeholder(node.name)
    like = node.meta["val"]
    shape = [1 if n == length else n for n in like.shape]
    copy.meta["val"] = torch.empty(shape, dtype=like.dtype, device="meta")
    return copy


def _of_one_row(part: Graph, node: Node, copies: dict[Node, Node], length: int) -> Node:
    """A node's copy in the graph of one row."""

    def changed(given: Any) -> Any:
        return copies[given] if isinstance(given, Node) else given

    args = tuple(_sizes(arg, length) for arg in node.args)
    args, kwargs = map_aggregate(args, changed), map_aggregate(node.kwargs, changed)
    copy = part.call_function(node.target, args, kwargs)  # type: ignore[arg-type]
    _value(copy)
    if not isinstance(copy.meta["val"], Tensor):
        return copy
    expected = [1 if n == length else n for n in node.meta["val"].shape]
    if list(copy.meta["val"].shape) != expected:
        raise NotByRowsError(f"{node.target} of one row gives {tuple(copy.meta['val'].shape)}, not {tuple(expected)}")
    return copy


def _sizes(arg: Any, length: int) -> Any:
    """A list of sizes with 1 for the number of rows."""
    whole = isinstance(arg, (list, tuple)) and all(isinstance(n, int) for n in arg)
    return [1 if n == length else n for n in arg] if whole else arg


def _value(node: Node) -> None:
    """Finds what a new node's value is like."""

    def like(given: Any) -> Any:
        return given.meta["val"] if isinstance(given, Node) else given

    args, kwargs = map_aggregate(node.args, like), dict(map_aggregate(node.kwargs, like))
    if "device" in kwargs:
        kwargs["device"] = torch.device("meta")
    try:
        node.meta["val"] = node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception as error:
        raise NotByRowsError(f"{node.target} of one row: {error}") from error


def _total(
    part: Graph, node: Node, copies: dict[Node, Node], inputs: Sequence[Node], length: int
) -> tuple[Total, Node]:
    """How a node without the axis comes from the rows, and its contribution of one row."""
    name, shape = operation_name(node), node.meta["val"].shape
    if name in SCATTERS:
        return _scattered(node, copies, inputs, shape)
    if name in SUMS:
        contribution = _of_one_row(part, node, copies, length)
        if name in ("mm", "bmm"):  # of one column and one row: nothing is summed
            contribution.target = aten.mul.Tensor
        return Total("sum", shape), contribution
    if name == "mean":
        return Total("sum", shape), _mean(part, node, copies)
    if name in EXTREMES:
        return Total(EXTREMES[name], shape), _of_one_row(part, node, copies, length)
    raise NotByRowsError(f"{node.target} over rows")


def _mean(part: Graph, node: Node, copies: dict[Node, Node]) -> Node:
    """A row's contribution to a mean: its sum over the number of all elements."""
    source: Any = node.args[0]
    ratio = node.meta["val"].numel() / source.meta["val"].numel()
    if len(node.args) > 1:
        total = part.call_function(aten.sum.dim_IntList, (copies[source], *node.args[1:]))
    else:
        total = part.call_function(aten.sum.default, (copies[source],))
    _value(total)
    scaled = part.call_function(aten.mul.Tensor, (total, ratio))
    _value(scaled)
    return scaled


def _scattered(node: Node, copies: dict[Node, Node], inputs: Sequence[Node], shape: torch.Size) -> tuple[Total, Node]:
    """Additions to a tensor of zeros at places that data tell."""
    if operation_name(node) not in ("index_put", "_unsafe_index_put") or len(node.args) < 4 or not node.args[3]:
        raise NotByRowsError(f"{node.target} over rows")
    base, indices, source = node.args[:3]
    used = [(dim, index) for dim, index in enumerate(indices) if index is not None]  # type: ignore[arg-type]
    zero = isinstance(base, Node) and base.target is aten.full.default and base.args[1] == 0
    if not zero or len(used) != 1 or used[0][1] not in inputs or used[0][1].meta["val"].dim() != 1:
        raise NotByRowsError(f"{node.target} in another form")
    dim, index = used[0]
    if source not in copies or copies[source].meta["val"].dim() != len(shape):  # type: ignore[index]
        raise NotByRowsError(f"{node.target} of something else")
    return Total("scatter", shape, dim, list(inputs).index(index)), copies[source]  # type: ignore[index]


def _replace(graph: GraphModule, sweep: Sweep, shared: Sequence[Node], wanted: Sequence[Node]) -> list[Node]:
    """Puts a sweep in the place of its totals."""
    with graph.graph.inserting_before(wanted[0]):
        new = graph.graph.create_node("call_function", sweep, tuple(shared), name="sweep")
        parts = [graph.graph.call_function(operator.getitem, (new, place)) for place in range(len(sweep.totals))]
        for part, total in zip(parts, sweep.totals, strict=True):
            part.meta["val"] = torch.empty(total.shape, dtype=wanted[0].meta["val"].dtype, device="meta")
        for logarithm, (sign, place) in zip(parts[len(wanted) :], sweep.terms, strict=True):
            parts[place] = added(graph.graph, aten.add.Tensor if sign > 0 else aten.sub.Tensor, parts[place], logarithm)
    parts = parts[: len(wanted)]
    for node, part in zip(wanted, parts, strict=True):
        part.meta = dict(node.meta)
        node.replace_all_uses_with(part)
    return parts


def _sort(graph: GraphModule) -> None:
    """Puts the nodes in an order in which each stands after its inputs, in place."""
    output = next(node for node in graph.graph.nodes if node.op == "output")
    done: set[Node] = set()
    for first in [node for node in graph.graph.nodes if node is not output]:
        stack = [first]
        while stack:
            node = stack[-1]
            ahead = [n for n in node.all_input_nodes if n not in done]
            if ahead:
                stack.extend(ahead)
                continue
            stack.pop()
            if node not in done:
                done.add(node)
                output.prepend(node)
