"""From the graph of a step to the loops and blocks of C++ that compute it.

A step is a function of tensors that is called again and again, each time with what it gave back the time before
(`ppl_vi.compiler.kernel`). The graph is that of one lane: one fit, one chain, one point. In the C++ each of its numbers
becomes a vector of `LANES` numbers. What is the same in all steps, since it depends on no scalar, carried tensor or
noise, is computed once for all of them. In the C++ integers are floating-point numbers, too, and each lane has its own:
an element that a computed integer selects is found by comparing the integer with each value that it may take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ppl_vi.compiler.builder import Builder
from ppl_vi.compiler.operations import is_known, value_of
from ppl_vi.compiler.rows import Rows, Sweep
from ppl_vi.compiler.sweeps import sweep_values
from ppl_vi.compiler.text import Tables
from ppl_vi.compiler.trace import trace
from ppl_vi.compiler.values import MAX_ELEMENTS, Array, Item, Ref, UnsupportedError, Value

# How often operations without a translation are decomposed: the operations of a decomposition may need one themselves.
# In all steps seen so far three rounds reached operations that have a translation, or that have no decomposition.
NUM_DECOMPOSITIONS = 3


@dataclass(frozen=True)
class Signature:
    """How many arguments of each role a step takes, in the order of the attributes.

    A step gives back the new carried tensors, and then its results.

    Attributes:
        num_scalars: numbers that all lanes share and that differ from step to step.
        num_carried: tensors of a lane that each step changes.
        num_fixed: tensors of a lane that stay.
        num_data: tensors that all lanes of a problem share.
        num_noise: tensors of a lane that differ from step to step.
        num_prepared: tensors that were computed from data alone; they stand before the noise.
    """

    num_scalars: int
    num_carried: int
    num_fixed: int
    num_data: int
    num_noise: int
    num_prepared: int = 0


@dataclass(frozen=True)
class Translation:
    """A translated step.

    Attributes:
        dtype: of all numbers.
        items: what computes it, each after what it reads.
        tables: the constants that the items refer to.
        varying: the names of arrays that change from step to step.
        carried, fixed, data, noise: the arrays of the arguments, see `Signature`.
        renewed: the values that the carried arrays take after the step.
        results: what else the step gives back.
    """

    dtype: torch.dtype
    items: tuple[Item, ...]
    tables: Tables
    varying: frozenset[str]
    num_scalars: int
    carried: tuple[Array, ...]
    fixed: tuple[Array, ...]
    data: tuple[Array, ...]
    prepared: tuple[Array, ...]
    noise: tuple[Array, ...]
    has_sweeps: bool
    renewed: tuple[Value, ...]
    results: tuple[Value, ...]


def decomposed(graph: GraphModule, example: Sequence[Tensor]) -> GraphModule:
    """The graph in which operations without a translation are replaced by torch's decompositions of them."""
    for _ in range(NUM_DECOMPOSITIONS):
        nodes = [node for node in graph.graph.nodes if node.op == "call_function" and node.all_input_nodes]
        foreign = {node.target for node in nodes if not is_known(node)}
        table: Any = {op: how for op, how in torch._decomp.decomposition_table.items() if op in foreign}
        if not table:
            break
        graph = trace(graph, example, table)
    return graph


def translate(graph: GraphModule, signature: Signature, dtype: torch.dtype, rows: Rows | None = None) -> Translation:
    """Translates the graph of one lane's step.

    Args:
        graph: of the step.
        signature: of its arguments.
        dtype: of all numbers.
        rows: the axes that its sweeps run over, if it has any.

    Raises:
        UnsupportedError: it does something that has no translation.
    """
    build = Builder(dtype)
    arguments = _arguments(build, [node for node in graph.graph.nodes if node.op == "placeholder"], signature)
    outputs: list[Value] = []
    places = _places(rows or Rows())
    for node in graph.graph.nodes:
        if node.op == "output":
            outputs = [build.value(given) for given in node.args[0]]
        elif isinstance(node.target, Sweep):
            build.know(node, sweep_values(build, node, places[node.target.axis]))
        elif node.op != "placeholder":
            build.know(node, value_of(build, graph, node))
    renewed, results = outputs[: signature.num_carried], outputs[signature.num_carried :]
    return Translation(
        dtype=dtype,
        num_scalars=signature.num_scalars,
        carried=arguments["carried"],
        fixed=arguments["fixed"],
        data=arguments["data"],
        prepared=arguments["prepared"],
        noise=arguments["noise"],
        has_sweeps=bool(rows and rows.axes),
        renewed=_without_overwriting(build, arguments["carried"], renewed),
        results=tuple(results),
        items=tuple(build.items),
        tables=build.tables,
        varying=frozenset(build.varying),
    )


def _places(rows: Rows) -> list[list[int]]:
    """Where the inputs of each axis's sweeps stand among all arrays of rows."""
    found, begin = [], 0
    for axis in rows.axes:
        found.append(list(range(begin, begin + len(axis.inputs))))
        begin += len(axis.inputs)
    return found


def _arguments(build: Builder, nodes: Sequence[Node], signature: Signature) -> dict[str, tuple[Array, ...]]:
    """The arrays of a step's arguments by their role."""
    roles = {
        "scalars": signature.num_scalars, "carried": signature.num_carried, "fixed": signature.num_fixed,
        "data": signature.num_data, "prepared": signature.num_prepared, "noise": signature.num_noise,
    }  # fmt: skip
    if len(nodes) != sum(roles.values()):
        raise ValueError(f"expected a step of {sum(roles.values())} arguments, got one of {len(nodes)}")
    found: dict[str, tuple[Array, ...]] = {}
    remaining = iter(nodes)
    for role, num in roles.items():
        found[role] = tuple(_argument(build, next(remaining), role, k) for k in range(num))
    return found


def _argument(build: Builder, node: Node, role: str, number: int) -> Array:
    like = node.meta["val"]
    if not node.users and role in ("data", "prepared"):  # nothing reads it, or sweeps alone do
        return Array(f"{role}_{number}", "T", 0)
    if like.numel() > MAX_ELEMENTS:
        raise UnsupportedError(f"an argument of {like.numel()} numbers")
    condition = like.dtype == torch.bool and role in ("carried", "fixed")
    if like.dtype != build.dtype and not condition:
        raise UnsupportedError(f"an argument of {like.dtype}")
    shared = role in ("scalars", "data", "prepared")
    array = Array(f"{role}_{number}", "T" if shared else "M" if condition else "V", like.numel())
    if role in ("scalars", "carried", "noise"):
        build.varying.add(array.name)
    build.know(node, Ref(array.name, array.kind, torch.arange(like.numel()).reshape(like.shape)))
    return array


def _without_overwriting(build: Builder, carried: Sequence[Array], renewed: Sequence[Value]) -> tuple[Value, ...]:
    """The new values of the carried arrays; those that lie in a carried array, which may be overwritten, are copied."""
    names = {array.name for array in carried}
    found: list[Value] = []
    for array, value in zip(carried, renewed, strict=True):
        is_carried = isinstance(value, Ref) and value.array in names
        stays = is_carried and value.array == array.name and _in_order(value)  # type: ignore[union-attr, arg-type]
        found.append(build.copied(value, array.kind) if is_carried and not stays else value)
    return tuple(found)


def _in_order(value: Ref) -> bool:
    return torch.equal(value.index.reshape(-1), torch.arange(value.index.numel()))
