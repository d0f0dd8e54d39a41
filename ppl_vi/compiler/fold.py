"""Constant folding: a traced graph with known numbers instead of the operations that compute them.

A gradient starts from 1 and passes through means, signs and unit scales, so that a third of a step's operations
multiply one constant by another. Two things are folded, up to rounding: tensors that hold the same number everywhere,
and chains of factors, as -(2 x) / 3, which become one product.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

aten = torch.ops.aten

# Operations that make a tensor of one number, with this number.
CREATED = {
    aten.zeros.default: 0.0, aten.zeros_like.default: 0.0, aten.new_zeros.default: 0.0,
    aten.ones.default: 1.0, aten.ones_like.default: 1.0, aten.new_ones.default: 1.0,
}  # fmt: skip
# Operations that fill a tensor with an argument, with the argument's place.
FILLED = {aten.full.default: 1, aten.full_like.default: 1, aten.new_full.default: 2, aten.scalar_tensor.default: 0}
# Operations that, given a tensor of one number, give the same number in another shape.
UNCHANGED = {
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.expand.default, aten.unsqueeze.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, aten.detach.default, aten.clone.default,
    aten.alias.default, aten.permute.default, aten.transpose.int, aten.slice.Tensor, aten.select.int, aten.mean.dim,
    aten.lift_fresh_copy.default, aten._to_copy.default,
}  # fmt: skip
SUMS = {aten.sum.dim_IntList, aten.sum.default}
POINTWISE = {
    aten.neg.default, aten.exp.default, aten.log.default, aten.sqrt.default, aten.rsqrt.default, aten.square.default,
    aten.reciprocal.default, aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.add.Scalar,
    aten.sub.Scalar, aten.mul.Scalar, aten.div.Scalar, aten.rsub.Scalar, aten.pow.Tensor_Scalar,
}  # fmt: skip
ARITHMETIC = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor}
# What each operation becomes when its arguments change places.
SWAPPED = {aten.add.Tensor: aten.add.Tensor, aten.mul.Tensor: aten.mul.Tensor, aten.sub.Tensor: aten.rsub.Scalar}


def fold(module: GraphModule, device: torch.device) -> None:
    """Folds the constants of a graph in place. It leaves behind operations that nothing uses.

    Args:
        module: the graph.
        device: of all its tensors.
    """
    known: dict[Node, Any] = {}
    for node in list(module.graph.nodes):
        value = _value(module, node, known)
        if value is not None:
            known[node] = known[_filled(node, value, device)] = value
        else:
            _with_numbers(node)
            _one_factor(node)


def _value(module: GraphModule, node: Node, known: dict[Node, Any]) -> Tensor | None:
    """The number that a node's value holds everywhere, as a tensor of no dimensions; None where there is none."""
    like = node.meta.get("val")
    if node.op == "get_attr":
        held = getattr(module, str(node.target))
        return held.reshape(()) if isinstance(held, Tensor) and _float(held) and held.numel() == 1 else None
    if node.op != "call_function" or not isinstance(like, Tensor) or not _float(like):
        return None
    target: Any = node.target
    if target in CREATED or target in FILLED:
        number = CREATED[target] if target in CREATED else node.args[FILLED[target]]
        return torch.tensor(number, dtype=like.dtype) if isinstance(number, (int, float)) else None
    if not (target in UNCHANGED or target in SUMS or target in POINTWISE):
        return None
    tensors: Any = node.all_input_nodes
    if not all(source in known for source in tensors):
        return None
    if target in POINTWISE:
        given: Any = [known[arg] if isinstance(arg, Node) else arg for arg in node.args]
        return target(*given, **node.kwargs)
    number = known[tensors[0]] if tensors else node.args[0]
    number = torch.as_tensor(number).to(like.dtype)
    return number * (tensors[0].meta["val"].numel() // max(1, like.numel())) if target in SUMS else number


def _float(value: Tensor) -> bool:
    return value.is_floating_point()


def _filled(node: Node, value: Tensor, device: torch.device) -> Node:
    """Gives a node's users a new node instead, that fills a tensor with its value."""
    if node.target is aten.full.default:
        return node
    like = node.meta["val"]
    with node.graph.inserting_after(node):
        full = node.graph.call_function(
            aten.full.default, (list(like.shape), value.item()), {"dtype": like.dtype, "device": device}
        )
    full.meta = dict(node.meta)
    node.replace_all_uses_with(full)
    return full


def _with_numbers(node: Node) -> None:
    """Turns arithmetic with a tensor of one number into arithmetic with the number, where the shape stays the same."""
    if node.target not in ARITHMETIC or node.kwargs:
        return
    one, other = node.args
    if isinstance(other, Node) and other.target is aten.full.default and alike(node, one):
        node.args = (one, other.args[1])
    elif isinstance(one, Node) and one.target is aten.full.default and alike(node, other) and node.target in SWAPPED:
        node.target = SWAPPED[node.target]
        node.args = (other, one.args[1])


def _one_factor(node: Node) -> None:
    """Turns a product of several numbers and a tensor into a product of one number and the tensor."""
    found = _factor(node)
    if found is None:
        return
    source, factor = found
    before = _factor(source)
    if before is None or not math.isfinite(factor * before[1]) or factor * before[1] == 0:
        return
    node.target, node.args = aten.mul.Tensor, (before[0], factor * before[1])


def _factor(node: Node) -> tuple[Node, float] | None:
    """The tensor and the number whose product a node is, or None."""
    if not node.args or not isinstance(node.args[0], Node) or not alike(node, node.args[0]):
        return None
    source = node.args[0]
    if node.target is aten.neg.default:
        return source, -1.0
    number = node.args[1] if len(node.args) > 1 else None
    if node.kwargs or not isinstance(number, (int, float)) or not number or not math.isfinite(number):
        return None
    if node.target in (aten.mul.Tensor, aten.mul.Scalar):
        return source, float(number)
    return (source, 1 / number) if node.target in (aten.div.Tensor, aten.div.Scalar) else None


def alike(one: Any, other: Any) -> bool:
    """Whether two nodes hold tensors of one shape and dtype."""
    if not isinstance(one, Node) or not isinstance(other, Node):
        return False
    first, second = one.meta.get("val"), other.meta.get("val")
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return False
    return first.shape == second.shape and first.dtype == second.dtype
