"""A function of tensors as a graph of the operations that it comes down to.

What `torch.fx.experimental.proxy_tensor.make_fx` gives, to the same operations in the same order, in a third of the
time: that sends a stand-in of each value through torch's dispatcher a second time, and keeps count of sizes known at
run time alone, which a step has not.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

aten = torch.ops.aten
PLAIN = (Tensor, nn.Parameter)
VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}  # what such operations ask for
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
MASKS = (torch.bool, torch.uint8)  # dtypes of indices whose values say how much is taken
DECIDES = "data-dependent control flow: {} asks for the value of what is being traced"

Decompositions = dict[Any, Callable[..., Any]]


def trace(
    function: Callable[..., Any], example: Sequence[Tensor], decompositions: Decompositions | None = None
) -> GraphModule:
    """A function as a graph, for inputs like `example`: the same shapes, strides, dtypes and device.

    A node's `meta["val"]` is like its value but without numbers, on torch's device "meta". Tensors that the function
    holds become the graph's own.

    Args:
        function: of as many tensors, to one or a sequence of them.
        example: what it is called with.
        decompositions: by operation, a function of the same arguments that says what it is made of.

    Raises:
        RuntimeError: the function asks for a number that depends on its inputs.
        Exception: whatever the function raises.
    """
    scribe = _Scribe(decompositions or {})
    inputs = [tensor.detach() for tensor in example]  # an object each, should one tensor be given twice
    for number, tensor in enumerate(inputs):
        scribe.know(tensor, scribe.graph.placeholder(f"input_{number}"))
    with scribe:
        out = function(*inputs)
    scribe.graph.output(map_aggregate(out, scribe.node_of))
    scribe.graph.eliminate_dead_code(lambda node: node.is_impure() or is_in_place(node))
    return GraphModule(scribe.holder, scribe.graph)


def is_in_place(node: Node) -> bool:
    """Whether a node changes one of its arguments in place."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


class _Scribe(TorchDispatchMode):
    """Writes down each operation that is done while it is entered."""

    def __init__(self, decompositions: Decompositions) -> None:
        super().__init__()
        self.decompositions = decompositions
        self.graph, self.holder = Graph(), nn.Module()
        self.nodes = WeakTensorKeyDictionary()
        self.held: set[Node] = set()  # tensors that no operation here has made
        self.fixed: set[Node] = set()  # made here of nothing but numbers in the code and what is held
        self.num_held = 0

    def know(self, tensor: Tensor, node: Node) -> None:
        """From now on the node stands for the tensor."""
        self.nodes[tensor] = node
        with torch._C._DisableTorchDispatch():
            node.meta["val"] = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")

    def node_of(self, given: Any) -> Any:
        """The node that stands for a tensor, a new one where no operation here has made it; other values themselves."""
        if not isinstance(given, Tensor):
            return given
        if given not in self.nodes:
            name = f"held_{self.num_held}"
            self.num_held += 1
            self.holder.register_buffer(name, given.detach())
            self.know(given, self.graph.get_attr(name))
            self.held.add(self.nodes[given])
        return self.nodes[given]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not all(kind in PLAIN for kind in types):
            return NotImplemented
        if func in INDEXED:
            args = (args[0], self._places(args[1]), *args[2:])
        if _asks(func, args):
            return self._number(func, args, kwargs)
        how = self.decompositions.get(func) or (func.decompose if func._can_decompose() else None)
        if how is not None:
            with self:
                return how(*args, **kwargs)
        if func is aten.lift_fresh.default:
            func = aten.lift_fresh_copy.default  # the graph runs more than once
        given = map_aggregate(args, self.node_of), map_aggregate(kwargs, self.node_of)
        node = self.graph.create_node("call_function", func, *given, name=func.overloadpacket.__name__)
        self._judge(func, node, args)
        out = func(*args, **kwargs)
        if isinstance(out, Tensor):
            self.know(out, node)
        elif isinstance(out, (tuple, list)):
            for place, part in enumerate(out):
                if isinstance(part, Tensor):
                    self.know(part, self.graph.call_function(operator.getitem, (node, place)))
        return out

    def _judge(self, func: Any, node: Node, args: Any) -> None:
        """Whether the node's value is the same whatever the inputs are."""
        sources, random = set(node.all_input_nodes), torch.Tag.nondeterministic_seeded in func.tags
        if sources <= self.fixed | self.held and not random:
            self.fixed.add(node)
        elif is_in_place(node):
            memory = args[0].untyped_storage().data_ptr()  # what is written to may be a view of some of them
            self.fixed -= {n for t, n in self.nodes.items() if t.untyped_storage().data_ptr() == memory}

    def _places(self, indices: Any) -> list[Any]:
        """Indices with the places in a mask instead of the mask, where these are the same whatever the inputs are."""
        found: list[Any] = []
        for index in indices:
            known = index is not None and index.dtype in MASKS and self.node_of(index) in self.fixed | self.held
            found.extend(index.nonzero().unbind(1) if known else [index])
        return found

    def _number(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What a tensor that depends on no input says of itself."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not {self.node_of(tensor) for tensor in tensors} <= self.fixed | self.held:
            raise RuntimeError(DECIDES.format(func))
        return func(*args, **kwargs)


def _asks(func: Any, args: Any) -> bool:
    """Whether an operation's result is a number of Python's, or as large as the values of its inputs say."""
    if func is aten.index.Tensor:
        return any(index is not None and index.dtype in MASKS for index in args[1])
    return bool(VALUES & set(func.tags))
