"""Identities of exponentials and logarithms, by which a traced graph takes fewer operations, and avoids inf / inf.

Likelihoods of counts and labels are written by rates and logits, whose exponentials and logarithms cancel in part. The
derivatives that torch takes do not know that: that of y log(rate) is y / rate, times the rate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from ppl_vi.compiler.fold import alike

aten = torch.ops.aten
RESHAPES = (
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.unsqueeze.default, aten.squeeze.default,
    aten.squeeze.dim, aten.squeeze.dims,
)  # fmt: skip
# Operations that change places and shape alone, and keep every number.
MOVES = (*RESHAPES, aten.permute.default, aten.t.default, aten.transpose.int, aten.expand.default)


def with_identities(node: Node) -> bool:
    """Puts, in place, what has fewer operations in the place of a node; whether it did."""
    return (
        _without_logarithm_of_exponential(node)
        or _without_exponential_as_factor_and_divisor(node)
        or _with_one_exponential(node)
    )


def added(graph: Graph, target: Any, *args: Any) -> Node:
    """A new node of a graph, with its value's likeness."""
    node = graph.call_function(target, args)
    node.meta["val"] = target(*(arg.meta["val"] if isinstance(arg, Node) else arg for arg in args))
    return node


def _moved(node: Any) -> tuple[Any, list[Node]]:
    """What a node holds in other places, and the moves that brought it there, the first of them first."""
    moves: list[Node] = []
    while isinstance(node, Node) and node.target in MOVES:
        moves.insert(0, node)
        node = node.args[0]
    return node, moves


def _move(value: Any, moves: list[Node]) -> Any:
    """The same moves of another node, or of a number, which has no places."""
    for move in moves:
        if isinstance(value, Node):
            value = added(move.graph, move.target, value, *move.args[1:])
    return value


def dtype_of(node: Any) -> torch.dtype | None:
    """A node's dtype, None where it is no tensor."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value.dtype if isinstance(value, Tensor) else None


def _without_logarithm_of_exponential(node: Node) -> bool:
    """x log(exp y) becomes x y, as in a Poisson's density where the rate is an exponential."""
    if node.target is not aten.xlogy.Tensor:
        return False
    rate, moves = _moved(node.args[1])
    if not isinstance(rate, Node) or rate.target is not aten.exp.default or dtype_of(rate) != dtype_of(node):
        return False
    with node.graph.inserting_before(node):
        exponent = _move(rate.args[0], moves)
    node.target, node.args = aten.mul.Tensor, (node.args[0], exponent)
    return True


def _without_exponential_as_factor_and_divisor(node: Node) -> bool:
    """(a / e + c) e becomes a + c e for an exponential e, as in the derivative of a Poisson's density by log(rate)."""
    if node.target is not aten.mul.Tensor or node.kwargs:
        return False
    for total, exponential in (node.args, node.args[::-1]):
        inner, after = _moved(total)
        if not (_is(exponential, aten.exp.default) and _is(inner, aten.add.Tensor)) or inner.kwargs:
            continue
        ratio, other = inner.args
        divisor, before = _moved(ratio.args[1]) if _is(ratio, aten.div.Tensor) else (None, [])
        if divisor is not exponential or not _stay([*before, *after], exponential):
            continue
        if alike(ratio, inner) and alike(node, exponential):
            _distribute(node, exponential, ratio.args[0], other, after)  # type: ignore[arg-type]
            return True
    return False


def _distribute(node: Node, exponential: Node, numerator: Node, other: Any, after: list[Node]) -> None:
    with node.graph.inserting_before(node):
        shape = list(after[0].args[0].meta["val"].shape) if after else list(node.meta["val"].shape)  # type: ignore[union-attr]
        whole = added(node.graph, aten.expand.default, numerator, shape)
        factor = _move(other, after)
        product = exponential if factor == 1 else added(node.graph, aten.mul.Tensor, exponential, factor)
        whole = _move(whole, after)
    node.target, node.args = aten.add.Tensor, (whole, product)


def _is(node: Any, target: Any) -> bool:
    return isinstance(node, Node) and node.target is target


def _stay(moves: list[Node], node: Any) -> bool:
    """Whether, after all of some moves, every number of a node is where it was."""
    start = torch.empty(node.meta["val"].shape, device="meta")
    value = start
    for move in moves:
        value = move.target(value, *move.args[1:])  # type: ignore[operator]
    is_view = value is start or value._base is start
    return is_view and value.shape == start.shape and value.stride() == start.stride()


def _with_one_exponential(node: Node) -> bool:
    """exp(-m) and exp(u - m) with m = max(u, 0), one of which is 1, become choices between 1 and exp(-|u|).

    Their sum becomes 1 + exp(-|u|). Bernoulli densities by logits are written so, lest an exponential overflow.
    """
    if node.target is not aten.clamp_min.default or node.args[1] != 0:
        return False
    u: Any = node.args[0]
    exponents = [user for user in node.users if user.target is aten.neg.default or (
        user.target is aten.sub.Tensor and user.args == (u, node) and not user.kwargs)]  # fmt: skip
    found = [(exponent, user) for exponent in exponents for user in exponent.users if _is(user, aten.exp.default)]
    if len({exponent.target for exponent, _ in found}) < 2:
        return False
    graph = node.graph
    with graph.inserting_before(node):
        small = added(graph, aten.exp.default, added(graph, aten.neg.default, added(graph, aten.abs.default, u)))
        is_positive = added(graph, aten.ge.Scalar, u, 0)
        at_zero = added(graph, aten.where.ScalarOther, is_positive, small, 1.0)  # exp(-m)
        at_u = added(graph, aten.where.ScalarSelf, is_positive, 1.0, small)  # exp(u - m)
        total = added(graph, aten.add.Tensor, small, 1.0)
    for exponent, exponential in found:
        exponential.replace_all_uses_with(at_zero if exponent.target is aten.neg.default else at_u)
    for user in list(at_zero.users):
        if user.target is aten.add.Tensor and set(user.args) == {at_zero, at_u} and not user.kwargs:
            user.replace_all_uses_with(total)
    return True
