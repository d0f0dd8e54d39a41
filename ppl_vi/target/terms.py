"""A log density as a sum of terms: the elements of a few tensors, found in its traced graph.

The log joint of a model ends in sums: over the sites, over the elements of plates and events, over Jacobians. Walking
back from the result through additions, sums, changes of sign, of shape, and multiplications by numbers leads to the
tensors whose elements are the terms. Which latent numbers each term depends on is then seen by changing them one by
one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.fx import GraphModule, Node

from ppl_vi.compiler.identities import MOVES
from ppl_vi.compiler.many_points import chunks
from ppl_vi.compiler.simplify import trace_simplified
from ppl_vi.target.target import Target, drawn_point

aten = torch.ops.aten
SUMS = (aten.sum.default, aten.sum.dim_IntList)
COPIES = (aten.clone.default, aten.alias.default)
# At most so many numbers are computed together where latent numbers are changed one by one: 32 MiB.
MAX_NUMBERS_AT_ONCE = 2**22


@dataclass(frozen=True, eq=False)
class Terms:
    """The terms of one problem's log density.

    Attributes:
        graph: from a point `(D,)` to tensors of any shapes.
        factors: by which the elements of each tensor are multiplied.
        constant: what has to be added to the sum of all.
    """

    graph: GraphModule
    factors: tuple[float, ...]
    constant: float

    @staticmethod
    def of(target: Target, problem: int) -> Terms:
        """The terms of the log density of one problem in the coordinates of `Target.constrain`.

        Raises:
            Exception: whatever the model does that can't be traced.
        """
        row = target.row(problem)
        with target.isolated(seed=0):
            point = drawn_point(target)
            graph = trace_simplified(lambda u: target.log_density_of_row(u, *row), (point,))
        output = next(node for node in reversed(graph.graph.nodes) if node.op == "output")
        (total,) = output.all_input_nodes
        found = _Sum({}, 0.0)
        found.add(total, 1.0)
        with graph.graph.inserting_before(output):
            graph.graph.output(tuple(found.factors))
        graph.graph.erase_node(output)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        return Terms(graph, tuple(found.factors.values()), found.constant)

    def __call__(self, u: Tensor) -> Tensor:
        """The terms at a point `(D,)`, `(T,)`, nats; the constant is added to the last one."""
        tensors = self.graph(u)
        parts = [(factor * part).reshape(-1) for factor, part in zip(self.factors, tensors, strict=True)]
        parts[-1] = torch.cat([parts[-1][:-1], parts[-1][-1:] + self.constant])
        return torch.cat(parts)

    def dependencies(self, points: Tensor) -> Tensor:
        """Which latent numbers each term depends on, `(D, T)`, seen at points `(N, D)`.

        A number is replaced by nan, which nearly every operation hands on, and by the number of the next point, which
        shows what nan does not: comparisons. A term that changes, by however little, depends on the number.
        """
        dim = points.shape[1]
        size = max(1, MAX_NUMBERS_AT_ONCE // (dim * max(1, len(self(points[0])))))
        every = torch.eye(dim, dtype=torch.bool)
        found = []
        for some in chunks(dim, size):
            changed = torch.zeros(())
            for point, other in zip(points, points.roll(1, 0), strict=True):
                before = vmap(self)(point.repeat(len(every[some]), 1))  # as many as below, for the same rounding
                for value in (torch.full_like(point, math.nan), other):
                    after = vmap(self)(torch.where(every[some], value, point))
                    changed = changed + ((after != before) & ~(after.isnan() & before.isnan()))
            found.append(changed > 0)
        return torch.cat(found)


@dataclass
class _Sum:
    """What a node is the sum of.

    Attributes:
        factors: for each node that is no sum, the factor with which its elements are added.
        constant: the numbers that are added.
    """

    factors: dict[Node, float]
    constant: float

    def add(self, node: Node, factor: float) -> None:
        """Adds the elements of a node, each times a factor."""
        target, args = node.target, node.args
        alpha = float(node.kwargs.get("alpha", 1))  # type: ignore[arg-type]
        if target is aten.add.Tensor:
            self._add_all(node, [(args[0], factor), (args[1], alpha * factor)])
        elif target is aten.sub.Tensor:
            self._add_all(node, [(args[0], factor), (args[1], -alpha * factor)])
        elif target is aten.rsub.Scalar and len(args) == 2:
            self._add_all(node, [(args[0], -factor), (args[1], factor)])
        elif target is aten.neg.default:
            self._add_all(node, [(args[0], -factor)])
        elif target is aten.mul.Tensor and not isinstance(args[1], Node):
            self._add_all(node, [(args[0], factor * float(args[1]))])  # type: ignore[arg-type]
        elif target is aten.div.Tensor and not isinstance(args[1], Node):
            self._add_all(node, [(args[0], factor / float(args[1]))])  # type: ignore[arg-type]
        elif target in SUMS and not node.kwargs:
            self.add(args[0], factor)  # type: ignore[arg-type]
        elif target in MOVES or target in COPIES:
            self._add_all(node, [(args[0], factor)])
        else:
            self.factors[node] = self.factors.get(node, 0.0) + factor

    def _add_all(self, node: Node, parts: list[tuple[Any, float]]) -> None:
        """Adds parts that were broadcast to the shape of a node, each element as often as it stands there."""
        num = _num_elements(node)
        for part, factor in parts:
            if isinstance(part, Node):
                self.add(part, factor * num / _num_elements(part))
            else:
                self.constant += factor * num * float(part)


def _num_elements(node: Node) -> int:
    return int(node.meta["val"].numel())
