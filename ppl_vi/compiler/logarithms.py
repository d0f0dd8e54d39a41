"""Sums of logarithms over rows as logarithms of products: one logarithm for many rows.

A Bernoulli's density by its logit has log(1 + e) in every row, and of its sum over rows only the logarithm of the
product is needed. Numbers are multiplied as mantissas, which can't overflow, beside the sum of their exponents.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from ppl_vi.compiler.fold import alike
from ppl_vi.compiler.identities import MOVES, added, dtype_of

aten = torch.ops.aten
SUMS = {aten.add.Tensor: 1, aten.sub.Tensor: -1}  # with the sign of the second term
WHOLE_SUMS = (aten.sum.dim_IntList, aten.sum.default)


def without_logarithms(part: Graph, contribution: Node) -> tuple[Node, list[tuple[int, Node]]]:
    """Takes logarithms that are terms of one row's contribution to a sum out of it, in place.

    Args:
        part: the graph of one row.
        contribution: a node of it, which only the total uses.

    Returns:
        The contribution without them, and for each its sign and the number of which it is the logarithm.
    """
    found: list[tuple[int, Node]] = []
    return _without(part, contribution, 1, found, num_users=0), found


def _without(part: Graph, node: Any, sign: int, found: list[tuple[int, Node]], num_users: int = 1) -> Any:
    """The same for a term of this sign, which so many others use; what stands in its place."""
    if not isinstance(node, Node) or node.op != "call_function" or len(node.users) != num_users or node.kwargs:
        return node
    if node.target is aten.neg.default or _only_moves(node):
        _without(part, node.args[0], -sign if node.target is aten.neg.default else sign, found)
    elif node.target in SUMS and len(node.args) == 2:
        signs = (1, SUMS[node.target])
        for place, term in enumerate(node.args):
            other = node.args[1 - place]
            if _is_free_logarithm(term, node) and dtype_of(other) == dtype_of(node):
                found.append((sign * signs[place], term.args[0]))  # type: ignore[union-attr, arg-type]
                left = _in_place_of(part, node, other, signs[1 - place])
                part.erase_node(term)  # type: ignore[arg-type]
                return _without(part, left, sign, found, num_users)
        for term, own in zip(node.args, signs, strict=True):
            _without(part, term, sign * own, found)
    return node


def _only_moves(node: Node) -> bool:
    """Whether a node holds the numbers of its first argument, each once."""
    source = node.args[0] if node.args else None
    return (
        (node.target in MOVES or node.target in WHOLE_SUMS)
        and isinstance(source, Node)
        and source.meta["val"].numel() == node.meta["val"].numel()
        and source.meta["val"].dtype == node.meta["val"].dtype
    )


def _is_free_logarithm(term: Any, node: Node) -> bool:
    """Whether a term is a logarithm that nothing but this sum needs."""
    return isinstance(term, Node) and term.target is aten.log.default and len(term.users) == 1 and alike(term, node)


def _in_place_of(part: Graph, node: Node, term: Any, sign: int) -> Node:
    """Puts a sum's other term in its place."""
    with part.inserting_before(node):
        if not alike(term, node):
            term = added(part, aten.expand.default, term, list(node.meta["val"].shape))
        if sign < 0:
            term = added(part, aten.neg.default, term)
    node.replace_all_uses_with(term)
    part.erase_node(node)
    return term
