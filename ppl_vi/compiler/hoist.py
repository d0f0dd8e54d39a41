"""Takes out of a step's graph what depends on data alone, so that it is computed once instead of at every step.

Normalising constants such as log y! of counts, masks and products of data, and sums of these over all rows become
arguments of the step. Nothing is taken out that is larger than the data it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ppl_vi.compiler.trace import LazyGraphModule

# Fewer numbers than these are left in the graph: computing them anew costs less than handing them in.
MIN_NUMBERS = 64

Prepare = Callable[..., list[Tensor]]


def hoisted(graph: GraphModule, data: Sequence[Node], before: Node) -> tuple[Prepare, list[Node], list[int]]:
    """Replaces, in place, each part of the graph that is computed from data and constants alone by an argument.

    Args:
        graph: of a step.
        data: the placeholders of data, in order.
        before: the node before which the new arguments are put.

    Returns:
        The function of the data that computes the new arguments, their placeholders, and which of the data it reads.
    """
    of_data = _of_data(graph, set(data))
    taken = [node for node in graph.graph.nodes if node in of_data and _worth(node) and _used_elsewhere(node, of_data)]
    prepare, read = _subgraph(graph, data, taken)
    placeholders = []
    for number, node in enumerate(taken):
        with graph.graph.inserting_before(before):
            new = graph.graph.placeholder(f"prepared_{number}")
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user not in of_data)
        placeholders.append(new)
    # operations that write to their arguments come from decompositions, and write to what was made for that alone
    graph.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    return prepare, placeholders, read


def _of_data(graph: GraphModule, data: set[Node]) -> set[Node]:
    """The nodes that depend on data and constants alone, and hold no more numbers than the data that they come from."""
    found: set[Node] = set()
    constants: set[Node] = set()
    for node in graph.graph.nodes:
        if node in data or node.op == "get_attr":
            found.add(node)
            continue
        if node.op != "call_function" or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            continue
        sources = set(node.all_input_nodes)
        if sources <= constants:  # numbers that stand in the code
            constants.add(node)
        elif sources <= found | constants and _size(node) <= max(map(_size, sources & found)):
            found.add(node)
    return found


def _size(node: Node) -> int:
    """How many numbers a node's value has; for a node of several values, those of its first input."""
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return int(value.numel())
    return _size(node.all_input_nodes[0]) if node.all_input_nodes else 0


def _worth(node: Node) -> bool:
    """Whether a node, or what it is computed from, is large enough to be handed in."""
    if not isinstance(node.meta.get("val"), Tensor):
        return False
    return max([_size(node), *map(_size, node.all_input_nodes)]) >= MIN_NUMBERS


def _used_elsewhere(node: Node, of_data: set[Node]) -> bool:
    return any(user not in of_data for user in node.users)


def _subgraph(graph: GraphModule, data: Sequence[Node], wanted: Sequence[Node]) -> tuple[Prepare, list[int]]:
    """The function from data to the values of some nodes, and the places of the data that it reads."""
    part, copies = Graph(), {}
    for node in data:
        copies[node] = part.placeholder(node.name)
    needed: set[Node] = set()
    open_nodes = list(wanted)
    while open_nodes:
        node = open_nodes.pop()
        if node not in needed:
            needed.add(node)
            open_nodes.extend(node.all_input_nodes)
    for node in graph.graph.nodes:
        if node in needed and node not in copies:
            copies[node] = part.node_copy(node, lambda n: copies[n])
    part.output([copies[node] for node in wanted])
    module = LazyGraphModule(graph, part)
    return lambda *given: list(module(*given)), [place for place, node in enumerate(data) if copies[node].users]
