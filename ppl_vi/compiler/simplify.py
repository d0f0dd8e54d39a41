"""Simplifies a traced graph, which may then run a thousand times.

Tracing through `vmap` and Pyro's handlers leaves a third of a step's operations unused, repeated, or without an effect:
times 1, plus 0, to the power 1, the logarithm of an exponential. Without them the results are the same up to rounding.
One result is changed on purpose: where a matrix has no Cholesky factor, the factor is nan instead of an error, so that
of a batch of fits only the fit of that matrix fails.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functionalize
from torch.fx import GraphModule, Node
from torch.fx.passes.dialect.common.cse_pass import CSEPass

from ppl_vi.compiler.fold import SUMS, alike, fold
from ppl_vi.compiler.identities import RESHAPES, added, dtype_of, with_identities
from ppl_vi.compiler.trace import is_in_place, trace

aten = torch.ops.aten
# The sign by which the number of a diagonal is multiplied: where the product is at least 0, the operation leaves a
# matrix of one element as it is.
TRIANGLES = {aten.tril.default: 1, aten.triu.default: -1}
PRODUCTS = (aten.bmm.default, aten.mm.default)
# The second argument with which each operation gives back its first.
NEUTRAL = {aten.mul.Tensor: 1, aten.add.Tensor: 0, aten.sub.Tensor: 0, aten.div.Tensor: 1, aten.pow.Tensor_Scalar: 1}


def trace_simplified(function: Callable[..., Any], example: tuple[Tensor, ...]) -> GraphModule:
    """The simplified graph of a function, for inputs like `example`: of the same shapes, dtypes and device.

    Raises:
        Exception: whatever a function does that can't be traced.
    """
    return simplify(trace(function, example), example)


def simplify(module: GraphModule, example: tuple[Tensor, ...]) -> GraphModule:
    """The same graph with fewer operations, none of them in place; `example` are the inputs it was traced with."""
    # A second trace, since `functionalize` can't take the function itself: it does not know autograd.Function.
    if any(is_in_place(node) for node in module.graph.nodes):
        module = trace(functionalize(module), example)
    fold(module, example[0].device)
    for node in list(module.graph.nodes):
        _nan_for_failed_cholesky(node)
        _inline_number(node)
        _as_one_view(node)
        _without_matrices_of_one(node)
        same = _same_as(node) or _part_of_whole(node)
        if same is not None:
            node.replace_all_uses_with(same)
    module = _without_repetitions(module)
    if any([with_identities(node) for node in list(module.graph.nodes)]):
        module = _without_repetitions(module)
    module.recompile()
    return module


def _without_repetitions(module: GraphModule) -> GraphModule:
    """The same graph without operations that nothing uses, or that are done twice."""
    module.graph.eliminate_dead_code()
    found = CSEPass()(module)
    return found.graph_module if found else module


def _nan_for_failed_cholesky(node: Node) -> None:
    """Makes a Cholesky factor that does not exist nan, instead of an error that would end all fits of the batch."""
    if node.target is not aten._linalg_check_errors.default:
        return
    info: Any = node.args[0]
    factorised: Any = info.args[0] if info.target is operator.getitem else info
    if factorised.target is not aten.linalg_cholesky_ex.default:
        return
    graph = node.graph
    for factor in [user for user in factorised.users if user.args[1] == 0]:
        users = list(factor.users)
        with graph.inserting_before(node):
            failed = added(graph, aten.gt.Scalar, info, 0)
            for _ in range(2):
                failed = added(graph, aten.unsqueeze.default, failed, -1)
            poisoned = added(graph, aten.where.ScalarSelf, failed, math.nan, factor)
        for user in users:
            user.replace_input_with(factor, poisoned)
    graph.erase_node(node)


def _inline_number(node: Node) -> None:
    """Gives operations the Python number itself where the traced code made it a tensor of no dimensions."""
    source = node.args[0] if node.target is aten._to_copy.default else None
    if isinstance(source, (int, float)) and not isinstance(source, bool):
        for user in list(node.users):
            like = user.args[0] if user.args else None
            if user.target in NEUTRAL and user.args[1] is node and dtype_of(like) == node.meta["val"].dtype:
                user.args = (like, source)


def _as_one_view(node: Node) -> None:
    """Turns a sum over dimensions of size 1 into a view, and a view of a view into one view."""
    source: Any = node.args[0] if node.args else None
    if not isinstance(source, Node) or node.target not in (*RESHAPES, *SUMS):
        return
    value, before = node.meta.get("val"), source.meta.get("val")
    if not isinstance(value, Tensor) or not isinstance(before, Tensor) or value.numel() != before.numel():
        return
    while source.target in RESHAPES and _contiguous(source.args[0]):
        source = source.args[0]
    if value.dtype == before.dtype and _contiguous(source):
        node.target, node.args, node.kwargs = aten.view.default, (source, list(value.shape)), {}


def _contiguous(node: Any) -> bool:
    return bool(node.meta["val"].is_contiguous())


def _without_matrices_of_one(node: Node) -> None:
    """Turns solving with 1 x 1 matrices into division, and a matrix product over one index into a plain product."""
    if node.target is aten.linalg_solve_triangular.default and _shape(node.args[0])[-1:] == (1,):
        if not node.kwargs.get("unitriangular"):
            node.target, node.args, node.kwargs = aten.div.Tensor, (node.args[1], node.args[0]), {}
    elif node.target in PRODUCTS and _shape(node.args[0])[-1:] == (1,):
        node.target = aten.mul.Tensor


def _shape(node: Any) -> tuple[int, ...]:
    """A node's shape, () where it is no tensor."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _same_as(node: Node) -> Node | None:
    """An earlier node with the same value, or None."""
    if not node.args or not isinstance(node.args[0], Node):
        return None
    source: Any = node.args[0]
    if node.target in RESHAPES:
        while source.target in RESHAPES and not alike(node, source):
            source = source.args[0]
        return source if alike(node, source) else None
    if not alike(node, source):
        return None
    if node.target in (aten.expand.default, aten.detach.default):
        return source
    if node.target in TRIANGLES and _shape(node)[-2:] == (1, 1):
        off: Any = node.args[1] if len(node.args) > 1 else 0
        return source if off * TRIANGLES[node.target] >= 0 else None
    if node.target is aten.log.default and source.target is aten.exp.default:
        return source.args[0]
    if node.target in NEUTRAL and not node.kwargs and node.args[1] == NEUTRAL[node.target]:
        return source
    return None


def _part_of_whole(node: Node) -> Node | None:
    """The part itself, where a node splits a tensor that was joined of parts into the same parts; else None."""
    if node.target is not operator.getitem:
        return None
    pieces: Any = node.args[0]
    if pieces.target is not aten.split_with_sizes.default:
        return None
    whole, sizes, *dim = pieces.args
    if whole.target is not aten.cat.default:
        return None
    parts, *along = whole.args
    num_dims = whole.meta["val"].dim()
    axis = (along[0] if along else 0) % num_dims
    if (dim[0] if dim else 0) % num_dims != axis:
        return None
    same = [part.meta["val"].shape[axis] for part in parts] == list(sizes)
    return parts[node.args[1]] if same else None
