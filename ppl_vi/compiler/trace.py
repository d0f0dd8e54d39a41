"""Tracing: the graph of the torch operations that a function of tensors comes down to.

The graph has the operations that `torch.fx.experimental.proxy_tensor.make_fx` finds, in the same order, in a third of
the time. `make_fx` also sends a fake tensor for each value through torch's dispatcher, and supports sizes that are
known only when the graph runs; the functions traced here need neither, since all their sizes follow from their inputs'
sizes.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx._lazy_graph_module import _LazyGraphModule as LazyGraphModule  # its Python is written when it is run
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

aten = torch.ops.aten
PLAIN_TYPES = (Tensor, nn.Parameter)  # subclasses with a dispatcher of their own are left to it
# Torch's tags of operations that give a number of Python's, or a tensor whose size depends on the values of their
# inputs.
DATA_DEPENDENT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
# Where the end of a slice stands among the arguments. The largest of all integers, which means none, overflows under
# `vmap` where the slice takes steps.
END_OF_SLICE = {aten.slice.Tensor: 3, aten.slice_scatter.default: 4}
MASK_DTYPES = (torch.bool, torch.uint8)  # an index of these dtypes takes as many elements as it has true ones
DATA_DEPENDENT_MESSAGE = "data-dependent control flow: {} asks for the value of what is being traced"

Decompositions = dict[Any, Callable[..., Any]]


def trace(
    function: Callable[..., Any], example: Sequence[Tensor], decompositions: Decompositions | None = None
) -> GraphModule:
    """The graph of a function, for inputs like `example`: of the same shapes, strides, dtypes and device.

    A node's `meta["val"]` is a tensor on torch's device "meta" with the shape, strides and dtype of the node's value.
    Tensors that the function takes from outside its arguments (a closure's data, say) become buffers of the graph.

    Args:
        function: of as many tensors as `example` has, to a tensor or a sequence of tensors.
        example: the tensors with which the function is called once.
        decompositions: for some operations, functions of the same arguments that take the operation's place.

    Raises:
        RuntimeError: the function asks for the value of a tensor that depends on its inputs, as in `if x > 0`.
        Exception: whatever the function raises.
    """
    tracer = Tracer(decompositions or {})
    inputs = [tensor.detach() for tensor in example]  # new objects, since one tensor may be given as two arguments
    for number, tensor in enumerate(inputs):
        tracer.know(tensor, tracer.graph.placeholder(f"input_{number}"))
    with tracer:
        out = function(*inputs)
    tracer.graph.output(map_aggregate(out, tracer.node_of))
    tracer.graph.eliminate_dead_code(lambda node: node.is_impure() or is_in_place(node))
    return LazyGraphModule(tracer.holder, tracer.graph)


def graph_digest(graph: GraphModule, inputs: Sequence[Tensor] = ()) -> str:
    """A digest of a graph's operations, of the tensors that it holds, and of some of its inputs.

    Two graphs with the same digest are the same function. A digest is the same in every process, with the same versions
    of Python and torch.
    """
    digest = hashlib.sha256(str(graph.graph).encode())
    for tensor in (*(held for _, held in sorted(graph.named_buffers())), *inputs):
        digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def is_in_place(node: Node) -> bool:
    """Whether a node changes one of its arguments in place."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


class Tracer(TorchDispatchMode):
    """Adds a node to its graph for each operation that torch dispatches while it is entered.

    Args:
        decompositions: as of `trace`.

    Attributes:
        graph: the operations so far.
        holder: a module whose buffers are the tensors from outside, to which the graph refers by name.
        nodes: the node of each tensor.
        outside: the nodes of tensors that no operation here has made and that are no inputs.
        constant: the nodes of operations on nothing but numbers, tensors from outside and other constant nodes: their
            values are the same whatever the inputs are.
    """

    def __init__(self, decompositions: Decompositions) -> None:
        super().__init__()
        self.decompositions = decompositions
        self.graph, self.holder = Graph(), nn.Module()
        self.nodes = WeakTensorKeyDictionary()
        self.outside: set[Node] = set()
        self.constant: set[Node] = set()

    def know(self, tensor: Tensor, node: Node) -> None:
        """Makes a node that of a tensor."""
        self.nodes[tensor] = node
        with torch._C._DisableTorchDispatch():
            node.meta["val"] = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")

    def node_of(self, given: Any) -> Any:
        """The node of a tensor, a new one where it comes from outside; whatever is no tensor is given back."""
        if not isinstance(given, Tensor):
            return given
        if given not in self.nodes:
            name = f"held_{len(self.outside)}"
            self.holder.register_buffer(name, given.detach())
            self.know(given, self.graph.get_attr(name))
            self.outside.add(self.nodes[given])
        return self.nodes[given]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Does one operation and adds its node; torch calls this for each."""
        kwargs = kwargs or {}
        if not all(kind in PLAIN_TYPES for kind in types):
            return NotImplemented
        if func in INDEXING:
            args = (args[0], self._without_known_masks(args[1]), *args[2:])
        if func in END_OF_SLICE:
            args = _within(args, END_OF_SLICE[func])
        if _is_data_dependent(func, args):
            return self._known_value(func, args, kwargs)
        decomposition = self.decompositions.get(func) or (func.decompose if func._can_decompose() else None)
        if decomposition is not None:
            with self:
                return decomposition(*args, **kwargs)
        if func is aten.lift_fresh.default:
            func = aten.lift_fresh_copy.default  # else a run that writes to the constant in place would spoil the next
        given = map_aggregate(args, self.node_of), map_aggregate(kwargs, self.node_of)
        node = self.graph.create_node("call_function", func, *given, name=func.overloadpacket.__name__)
        self._mark_constant(func, node, args)
        out = func(*args, **kwargs)
        if isinstance(out, Tensor):
            self.know(out, node)
        elif isinstance(out, (tuple, list)):
            for place, part in enumerate(out):
                if isinstance(part, Tensor):
                    self.know(part, self.graph.call_function(operator.getitem, (node, place)))
        return out

    def _mark_constant(self, func: Any, node: Node, args: Any) -> None:
        """Adds a node to the constant ones if it is, and takes out those that the operation overwrites otherwise."""
        sources, is_random = set(node.all_input_nodes), torch.Tag.nondeterministic_seeded in func.tags
        if sources <= self.constant | self.outside and not is_random:
            self.constant.add(node)
        elif is_in_place(node):
            memory = args[0].untyped_storage().data_ptr()  # views of the same memory are overwritten, too
            self.constant -= {n for t, n in self.nodes.items() if t.untyped_storage().data_ptr() == memory}

    def _without_known_masks(self, indices: Any) -> list[Any]:
        """The indices, each mask that depends on no input replaced by the places of its true elements."""
        found: list[Any] = []
        for index in indices:
            is_mask = index is not None and index.dtype in MASK_DTYPES
            is_known = is_mask and self.node_of(index) in self.constant | self.outside
            found.extend(index.nonzero().unbind(1) if is_known else [index])
        return found

    def _known_value(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of a data-dependent operation on tensors that depend on no input; no node is added for it.

        Raises:
            RuntimeError: one of the tensors depends on an input.
        """
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not {self.node_of(tensor) for tensor in tensors} <= self.constant | self.outside:
            raise RuntimeError(DATA_DEPENDENT_MESSAGE.format(func))
        return func(*args, **kwargs)


def _within(args: Any, place: int) -> Any:
    """The arguments of a slice whose end, at a place among them, is no farther out than the tensor."""
    if len(args) <= place or args[place] is None:
        return args
    tensor, dim = args[0], args[place - 2]
    return (*args[:place], min(args[place], tensor.shape[dim]), *args[place + 1 :])


def _is_data_dependent(func: Any, args: Any) -> bool:
    """Whether an operation gives a number of Python's, or a tensor whose size depends on the values of its inputs."""
    if func is aten.index.Tensor:
        return any(index is not None and index.dtype in MASK_DTYPES for index in args[1])
    return bool(DATA_DEPENDENT & set(func.tags))
