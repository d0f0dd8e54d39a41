"""A step's graph as one C++ function in which many fits lie side by side in the processor's vectors.

The graph is that of one fit, without axes for problems and replicas, traced by `ppl_vi.svi.engines.step.trace_one`. Each of
its numbers becomes a vector of `LANES` fits. All steps of a block are taken with some fits before the next ones', so
that nothing but noise and bounds goes through memory between steps. Operations that change order and shape alone
(views, slices, transposes, concatenations) are worked out here and cost nothing at run time; what does not depend on
parameters or noise is computed once a block; loops over the same number of elements are fused. Counts, which torch
holds as integers, are numbers like all others here, and each fit has its own: what a count picks is chosen by comparing
it with every number that it may be.

The arithmetic is in lanes.h, whose functions are held to torch's and mpmath's by the tests.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ppl_vi.compiler.emit import _FRAME, GROUPED, MOST_BYTES, MOST_GROUPS, _group, _literal, _needed, _number, _passes
from ppl_vi.compiler.operations import BINARY, COMPARISONS, COUNTING, LOGICAL, MOVES, SHAPED, UNARY
from ppl_vi.compiler.places import _affine, _counted_off, _period, _runs
from ppl_vi.compiler.trace import written_down
from ppl_vi.compiler.values import (
    DISTINCT,
    MOST_CHOICES,
    MOST_ELEMENTS,
    WRITTEN_OUT,
    Block,
    Item,
    Loop,
    Ref,
    UnsupportedError,
    Value,
    _at,
    _constant,
    _distinct,
    _expanded,
    _name,
    _reads,
    _reshaped,
    _sections,
    _shape,
    _writes,
)
from ppl_vi.compiler.vectors import num_lanes, prelude

# ---- the functions' coefficients


# ---- values and what computes them


# ---- the operations


def decomposed(graph: GraphModule, example: Sequence[Tensor]) -> GraphModule:
    """The graph with what has no translation here replaced by what it is made of, where torch knows that."""
    for _ in range(3):
        computed = [node for node in graph.graph.nodes if node.op == "call_function" and node.all_input_nodes]
        foreign = {node.target for node in computed if not _known_here(node)}
        table: Any = {op: how for op, how in torch._decomp.decomposition_table.items() if op in foreign}
        if not table:
            break
        graph = written_down(graph, example, table)
    return graph


def _known_here(node: Node) -> bool:
    name = _name(node)
    known = (UNARY, BINARY, COMPARISONS, LOGICAL, MOVES, SHAPED)
    return any(name in some for some in known) or hasattr(Translation, f"_op_{name}")


class Translation:
    """From the graph of one fit's step to items, and from items to code.

    Args:
        graph: of `(rate, correction, weight, alive, theta, first, second, total, unit, *args, *noise)`.
        dtype: of all numbers.
        num_noise: of the arguments at the end, which are noise.
    """

    STATE = ("alive", "theta", "first", "second", "total", "unit")

    def __init__(self, graph: GraphModule, dtype: torch.dtype, num_noise: int) -> None:
        self.graph, self.dtype, self.num_noise = graph, dtype, num_noise
        self.items: list[Item] = []
        self.values: dict[Node, Any] = {}
        self.tables: dict[tuple[Any, ...], str] = {}
        self.constants: list[str] = []
        self.varying: set[str] = set()  # arrays that change from step to step
        self.sizes: dict[str, int] = {}
        self.data: list[tuple[str, int]] = []
        self.noise: list[tuple[str, int]] = []
        self.count = 0
        for node in graph.graph.nodes:
            self._visit(node)

    # ---- from nodes to values

    def _visit(self, node: Node) -> None:
        if node.op == "placeholder":
            self.values[node] = self._argument(node, len(self.values))
        elif node.op == "get_attr":
            self.values[node] = _constant(getattr(self.graph, str(node.target)))
        elif node.op == "output":
            self.outputs = [self._value(given) for given in node.args[0]]  # type: ignore[union-attr]
        elif node.target is operator.getitem:
            self.values[node] = self.values[node.args[0]][node.args[1]]  # type: ignore[index]
        else:
            self.values[node] = self._computed(node)

    def _argument(self, node: Node, position: int) -> Value:
        like = node.meta["val"]
        index, num = torch.arange(like.numel()).reshape(like.shape), like.numel()
        if num > MOST_ELEMENTS:
            raise UnsupportedError(f"an argument of {num} numbers")
        num_inputs = sum(n.op == "placeholder" for n in self.graph.graph.nodes)
        if like.dtype != (torch.bool if position == 3 else self.dtype):
            raise UnsupportedError(f"an argument of {like.dtype}")
        if position < 3:
            return self._known(f"scalar_{position}", "T", index, varying=True)
        if position < 9:
            name = self.STATE[position - 3]
            return self._known(name, "M" if name == "alive" else "V", index, varying=name != "unit")
        if position >= num_inputs - self.num_noise:
            self.noise.append((f"noise_{len(self.noise)}", num))
            return self._known(self.noise[-1][0], "V", index, varying=True)
        self.data.append((f"data_{len(self.data)}", num))
        return self._known(self.data[-1][0], "T", index, varying=False)

    def _known(self, name: str, kind: str, index: Tensor, varying: bool) -> Ref:
        if varying:
            self.varying.add(name)
        return Ref(name, kind, index)

    def _value(self, given: Any) -> Value:
        if isinstance(given, Node):
            found = self.values[given]
            if isinstance(found, tuple):
                raise UnsupportedError(f"several values of {given.target}")
            return found
        return torch.as_tensor(given, dtype=torch.bool if isinstance(given, bool) else self.dtype)

    def _computed(self, node: Node) -> Any:
        name, inputs, like = _name(node), [self.values[n] for n in node.all_input_nodes], node.meta.get("val")
        if name in SHAPED:
            return torch.full(node.meta["val"].shape, SHAPED[name], dtype=node.meta["val"].dtype)
        if name in ("full_like", "fill"):
            return torch.full(node.meta["val"].shape, node.args[1], dtype=node.meta["val"].dtype)  # type: ignore[arg-type]
        if all(isinstance(value, Tensor) for value in inputs):
            return self._evaluated(node)
        counted = isinstance(like, Tensor) and like.dtype == torch.int64 and name in (*COUNTING, *MOVES)
        if isinstance(like, Tensor) and like.dtype not in (self.dtype, torch.bool) and not counted:
            raise UnsupportedError(f"{node.target} gives {like.dtype}")
        if name in MOVES and not self._converts(node):
            return self._moved(node)
        special = getattr(self, f"_op_{name}", None)
        if special is not None:
            return special(node)
        return self._pointwise(node, name)

    def _evaluated(self, node: Node) -> Any:
        def known(given: Any) -> Any:
            return self.values[given] if isinstance(given, Node) else given

        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), known)
        found = node.target(*args, **kwargs)  # type: ignore[operator]
        return tuple(found) if isinstance(found, (tuple, list)) else found

    # ---- order and shape

    def _converts(self, node: Node) -> bool:
        source = node.args[0]
        if _name(node) != "_to_copy" or not isinstance(source, Node):
            return False
        return bool(source.meta["val"].dtype != node.meta["val"].dtype)

    def _moved(self, node: Node) -> Any:
        """The operation done to the elements' places instead of the elements, counted from 1; 0 is the number 0."""
        sources: list[Value] = []
        begin = [1]
        name = _name(node)
        indices = {n for n in node.all_input_nodes[1:] if name in ("index", "index_select", "index_put", "gather")}
        wholes = [self._value(n) for n in node.all_input_nodes if n.meta["val"].dtype == torch.int64]
        if any(isinstance(self._value(n), Ref) and n.meta["val"].dtype == torch.int64 for n in indices):
            raise UnsupportedError(f"{node.target}: an index that depends on values")
        if not indices and len({type(value) for value in wholes}) > 1:
            raise UnsupportedError(f"{node.target} of counts and constants")

        def places(given: Any) -> Any:
            if not isinstance(given, Node):
                return given
            value = self._value(given)
            if isinstance(value, Tensor) and not value.is_floating_point() and (sources or value.dtype != torch.bool):
                return value  # an index
            sources.append(value)
            shape, num = _shape(value), _shape(value).numel()
            found = torch.arange(begin[0], begin[0] + num).reshape(shape)
            begin[0] += num
            like = given.meta.get("val")
            if like is not None and num and 0 not in like.stride():
                found = torch.empty_strided(shape, like.stride(), dtype=found.dtype).copy_(found)
            return found

        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), places)
        kwargs = {key: value for key, value in kwargs.items() if key not in ("dtype", "memory_format", "device")}
        filling: Any = args[2] if name == "constant_pad_nd" and len(args) > 2 else 0
        if filling != 0:
            sources.append(torch.full((1,), float(filling), dtype=self.dtype))
            args = (*args[:2], begin[0])
        try:
            found: Any = args[0] if name == "_to_copy" else node.target(*args, **kwargs)  # type: ignore[operator]
        except Exception as error:
            raise UnsupportedError(f"{node.target} of places: {error}") from error
        if isinstance(found, (tuple, list)):
            return tuple(self._taken(sources, piece) for piece in found)
        return self._taken(sources, found)

    def _taken(self, sources: Sequence[Value], places: Tensor) -> Value:
        """The elements at these places of the sources laid end to end."""
        begin, used = 1, []
        for source in sources:
            num = source.index.numel() if isinstance(source, Ref) else source.numel()
            mask = (places >= begin) & (places < begin + num)
            if bool(mask.any()):
                used.append((source, mask, (places - begin).clamp(0, max(num - 1, 0))))
            begin += num
        if not used:
            return torch.zeros(places.shape, dtype=self.dtype)
        if len(used) == 1:
            source, mask, at = used[0]
            whole = _at(source, at)
            if bool(mask.all()):
                return whole
            if isinstance(whole, Tensor):
                return torch.where(mask, whole, torch.zeros_like(whole))
            if whole.kind in "MB":
                return self._loop("({0} & {1})", "M", places.shape, (mask, whole), "MM")
            return self._loop("choose({0}, {1}, V{{}})", "V", places.shape, (mask, whole), "MV")
        if any(isinstance(source, Ref) and source.kind == "M" for source, _, _ in used):
            raise UnsupportedError("conditions joined")
        return self._joined(used, places.shape)

    def _joined(self, used: Sequence[tuple[Value, Tensor, Tensor]], shape: torch.Size) -> Ref:
        """One array of elements of several, copied run by run where these are few."""
        name, lines, reads = self._new(), [], []
        covered = torch.zeros(shape, dtype=torch.bool)
        for _, mask, _ in used:
            covered |= mask
        if not bool(covered.all()):
            lines += _passes(shape.numel(), lambda i: [f"{name}[{i}] = V{{}};"])
        for source, mask, at in used:
            where, places = mask.reshape(-1).nonzero()[:, 0].tolist(), at.reshape(-1)
            if isinstance(source, Ref):
                reads.append(source.array)
            runs = _runs(where)
            if len(runs) > WRITTEN_OUT:  # one loop for all of them
                to, there = Ref(name, "V", torch.tensor(where)), _at(source, places[where])
                lines.append(f"for (int i = 0; i < {len(where)}; ++i)")
                lines.append(f"{self._operand(to, 'V')} = {self._operand(there, 'V')};")
                continue
            for first, num in runs:
                there = _at(source, places[first : first + num])
                lines += _passes(
                    num,
                    lambda i, first=first, there=there: [  # type: ignore[misc]
                        f"{name}[{first} + {i}] = {self._operand(there, 'V', (i,))};"
                    ],
                )
        return self._block((name,), (shape,), reads, lines)[0]

    # ---- arithmetic

    def _new(self) -> str:
        self.count += 1
        return f"x{self.count}"

    def _loop(self, text: str, kind: str, shape: torch.Size, operands: Iterable[Value], wants: str = "") -> Ref:
        """A value whose every element is `text` of those of the operands; the same of the same is computed once."""
        spread = tuple(_expanded(operand, shape) for operand in operands)
        if 1 < shape.numel() <= MOST_ELEMENTS:
            once, among = _distinct(spread)
            if len(once) <= DISTINCT * shape.numel():
                few = tuple(_at(operand, once) for operand in spread)
                return self._array(text, kind, once.shape, few, wants).moved(among.reshape(shape))
        return self._array(text, kind, shape, spread, wants)

    def _array(self, text: str, kind: str, shape: torch.Size, operands: tuple[Value, ...], wants: str = "") -> Ref:
        """The same of operands of that shape, each element in a place of its own."""
        num = shape.numel()
        if num > MOST_ELEMENTS:
            raise UnsupportedError(f"a value of {num} numbers")
        found = Ref(self._new(), kind, torch.arange(num).reshape(shape))
        self._add(Loop(found.array, kind, num, text, operands, wants or "V" * len(operands)))
        return found

    def _block(
        self, names: Sequence[str], shapes: Sequence[torch.Size], reads: Sequence[str], lines: Sequence[str]
    ) -> list[Ref]:
        out = tuple((name, "V", shape.numel()) for name, shape in zip(names, shapes, strict=True))
        if max(shape.numel() for shape in shapes) > MOST_ELEMENTS:
            raise UnsupportedError("a value of too many numbers")
        self._add(Block(out, tuple(reads), "\n".join(lines)))
        return [
            Ref(name, "V", torch.arange(shape.numel()).reshape(shape))
            for name, shape in zip(names, shapes, strict=True)
        ]

    def _add(self, item: Item) -> None:
        if _reads(item) & self.varying:
            self.varying.update(name for name, _, _ in _writes(item))
        for name, _, num in _writes(item):
            self.sizes[name] = num
        self.items.append(item)

    def _pointwise(self, node: Node, name: str) -> Ref:
        kwargs = {key: value for key, value in node.kwargs.items() if value is not None}
        alpha = kwargs.pop("alpha", 1)
        if kwargs and name not in ("clamp", "addcmul", "addcdiv"):
            raise UnsupportedError(f"{node.target} with {', '.join(kwargs)}")
        args = list(node.args)
        shape = torch.broadcast_shapes(*(_shape(self._value(a)) for a in args if isinstance(a, (Node, int, float))))
        if name in UNARY:
            return self._loop(UNARY[name], "V", shape, [self._value(args[0])])
        if name in BINARY:
            if len(args) > 2:
                raise UnsupportedError(f"{node.target} of {len(args)}")
            text = BINARY[name] if alpha == 1 else BINARY[name].replace("{1}", f"(Real({alpha!r}) * {{1}})")
            return self._loop(text, "V", shape, [self._value(a) for a in args[:2]])
        if name in COMPARISONS:
            return self._loop(COMPARISONS[name], "M", shape, [self._value(a) for a in args])
        if name in LOGICAL:
            return self._loop(LOGICAL[name], "M", shape, [self._value(a) for a in args], "M" * len(args))
        raise UnsupportedError(str(node.target))

    def _op__to_copy(self, node: Node) -> Ref:
        kind = "M" if node.meta["val"].dtype == torch.bool else "V"
        counted = node.meta["val"].dtype == torch.int64 and node.args[0].meta["val"].dtype == torch.bool  # type: ignore[union-attr]
        if node.meta["val"].dtype not in (torch.bool, self.dtype) and not counted:
            raise UnsupportedError(f"{node.target} to {node.meta['val'].dtype}")
        text = "{0}" if kind == "V" else "({0} != 0)"
        return self._loop(text, kind, node.meta["val"].shape, [self._value(node.args[0])])

    def _op_where(self, node: Node) -> Ref:
        mask, one, other = (self._value(a) for a in node.args)
        if node.meta["val"].dtype == torch.bool:
            return self._loop("(({0} & {1}) | (~{0} & {2}))", "M", node.meta["val"].shape, (mask, one, other), "MMM")
        return self._loop("choose({0}, {1}, {2})", "V", node.meta["val"].shape, (mask, one, other), "MVV")

    def _op_masked_fill(self, node: Node) -> Ref:
        value, mask, filling = (self._value(a) for a in node.args)
        return self._loop("choose({0}, {1}, {2})", "V", node.meta["val"].shape, (mask, filling, value), "MVV")

    def _op_clamp(self, node: Node) -> Ref:
        low = node.kwargs.get("min", node.args[1] if len(node.args) > 1 else None)
        high = node.kwargs.get("max", node.args[2] if len(node.args) > 2 else None)
        text, operands = "{0}", [self._value(node.args[0])]
        for bound, function in ((low, "maximum"), (high, "minimum")):
            if bound is not None:
                text = f"{function}({text}, {{{len(operands)}}})"
                operands.append(self._value(bound))
        return self._loop(text, "V", node.meta["val"].shape, operands)

    def _op_pow(self, node: Node) -> Ref:
        base, exponent = (self._value(a) for a in node.args[:2])
        text = "power({0}, {1})"
        if isinstance(exponent, Tensor) and exponent.numel() == 1:
            number = exponent.item()
            if number == 0.5:
                text = "square_root({0})"
            elif number == int(number) and 0 < abs(number) <= 8:
                text = f"({' * '.join(['{0}'] * int(abs(number)))})"
                text = f"(1 / {text})" if number < 0 else text
        operands = [base, exponent] if "{1}" in text else [base]
        return self._loop(text, "V", node.meta["val"].shape, operands)

    def _op_remainder(self, node: Node) -> Ref:
        if node.meta["val"].dtype != torch.int64:
            raise UnsupportedError(f"{node.target} of {node.meta['val'].dtype}")
        operands = [self._value(a) for a in node.args]
        return self._loop("({0} - {1} * floor({0} / {1}))", "V", node.meta["val"].shape, operands)

    def _op_polygamma(self, node: Node) -> Ref:
        if node.args[0] != 1:
            raise UnsupportedError(f"polygamma of order {node.args[0]}")
        return self._loop("trigamma({0})", "V", node.meta["val"].shape, [self._value(node.args[1])])

    def _op_addcmul(self, node: Node) -> Ref:
        factor = float(node.kwargs.get("value", 1))  # type: ignore[arg-type]
        operands = [self._value(a) for a in node.args]
        return self._loop(f"({{0}} + Real({factor!r}) * {{1}} * {{2}})", "V", node.meta["val"].shape, operands)

    def _op_softplus(self, node: Node) -> Ref:
        x, beta, threshold = self._softplus(node.args)
        text = "choose({0} * {1} > {2}, {0}, log_of_1_plus(exponential({0} * {1})) / {1})"
        return self._loop(text, "V", node.meta["val"].shape, (x, beta, threshold))

    def _op_softplus_backward(self, node: Node) -> Ref:
        x, beta, threshold = self._softplus(node.args[1:])
        text = "choose({1} * {2} > {3}, {0}, {0} * sigmoid({1} * {2}))"
        return self._loop(text, "V", node.meta["val"].shape, (self._value(node.args[0]), x, beta, threshold))

    def _softplus(self, args: Sequence[Any]) -> list[Value]:
        """Its argument, beta and threshold."""
        return [self._value(a) for a in (*args, *(1.0, 20.0)[len(args) - 1 :])]

    def _op_threshold_backward(self, node: Node) -> Ref:
        operands = [self._value(a) for a in node.args]
        return self._loop("choose({1} <= {2}, V{{}}, {0})", "V", node.meta["val"].shape, operands)

    def _op_log_sigmoid_forward(self, node: Node) -> tuple[Ref, Tensor]:
        x = self._value(node.args[0])
        text = "(minimum({0}, V{{}}) - log_of_1_plus(exponential(-absolute({0}))))"
        return self._loop(text, "V", _shape(x), [x]), torch.zeros(0, dtype=self.dtype)

    def _op_log_sigmoid_backward(self, node: Node) -> Ref:
        operands = [self._value(a) for a in node.args[:2]]
        return self._loop("({0} * sigmoid(-{1}))", "V", node.meta["val"].shape, operands)

    # ---- sums and products

    def _reduced(self, node: Node, start: str, text: str) -> Ref:
        source, like = self._value(node.args[0]), node.args[0].meta["val"]  # type: ignore[union-attr]
        shape = node.meta["val"].shape
        asked: Any = node.args[1] if len(node.args) > 1 and node.args[1] not in (None, []) else range(like.dim())
        dims = [d % max(like.dim(), 1) for d in ([asked] if isinstance(asked, int) else asked)]
        kept = torch.Size(1 if d in dims else n for d, n in enumerate(like.shape))
        into = torch.arange(kept.numel()).reshape(kept).expand(like.shape).reshape(-1)
        if like.numel() == kept.numel():
            return self._loop("{0}", "V", shape, [_reshaped(source, shape)])
        if like.numel() > MOST_ELEMENTS:
            raise UnsupportedError(f"a sum of {like.numel()} numbers")
        found = Ref(self._new(), "V", torch.arange(kept.numel()).reshape(shape))
        flat = (_reshaped(source, torch.Size([like.numel()])),)
        self._add(Loop(found.array, "V", like.numel(), text, flat, "V", into, start))
        return found

    def _op_sum(self, node: Node) -> Ref:
        return self._reduced(node, "V{}", "({to} + {0})")

    def _op_mean(self, node: Node) -> Ref:
        total = self._reduced(node, "V{}", "({to} + {0})")
        ratio = node.args[0].meta["val"].numel() / max(node.meta["val"].numel(), 1)  # type: ignore[union-attr]
        return self._loop(f"({{0}} * Real({1 / ratio!r}))", "V", node.meta["val"].shape, [total])

    def _op_amax(self, node: Node) -> Ref:
        return self._reduced(node, "all(-INFINITY)", "maximum({to}, {0})")

    def _op_amin(self, node: Node) -> Ref:
        return self._reduced(node, "all(INFINITY)", "minimum({to}, {0})")

    def _op_mm(self, node: Node) -> Ref:
        one, other = (self._value(a) for a in node.args)
        return self._contracted(_reshaped(one, (1, *_shape(one))), _reshaped(other, (1, *_shape(other))), node)

    def _op_bmm(self, node: Node) -> Ref:
        one, other = (self._value(a) for a in node.args)
        return self._contracted(one, other, node)

    def _op_mv(self, node: Node) -> Ref:
        one, other = (self._value(a) for a in node.args)
        return self._contracted(_reshaped(one, (1, *_shape(one))), _reshaped(other, (1, *_shape(other), 1)), node)

    def _op_dot(self, node: Node) -> Ref:
        one, other = (self._value(a) for a in node.args)
        return self._contracted(_reshaped(one, (1, 1, *_shape(one))), _reshaped(other, (1, *_shape(other), 1)), node)

    def _contracted(self, one: Value, other: Value, node: Node) -> Ref:
        batch, rows, inner = _shape(one)
        columns = _shape(other)[-1]
        name, shape = self._new(), node.meta["val"].shape
        left = self._operand(one, "V", ("b", "i", "k"))
        right = self._operand(other, "V", ("b", "k", "j"))
        lines = [
            f"for (int b = 0; b < {batch}; ++b)",
            f"for (int i = 0; i < {rows}; ++i) for (int j = 0; j < {columns}; ++j) {{",
            f"V sum{{}}; for (int k = 0; k < {inner}; ++k) sum += {left} * {right};",
            f"{name}[(b * {rows} + i) * {columns} + j] = sum; }}",
        ]
        reads = [value.array for value in (one, other) if isinstance(value, Ref)]
        return self._block((name,), (shape,), reads, lines)[0]

    def _op_cumsum(self, node: Node) -> Ref:
        given: Any = node.args
        value, shape = self._value(given[0]), node.meta["val"].shape
        dim = given[1] % max(len(shape), 1)
        outer, num, inner = shape[:dim].numel(), shape[dim], shape[dim + 1 :].numel()
        name = self._new()
        element = self._operand(_reshaped(value, (outer, num, inner)), "V", ("o", "k", "i"))
        lines = [
            f"for (int o = 0; o < {outer}; ++o) for (int i = 0; i < {inner}; ++i) {{",
            f"V sum{{}}; for (int k = 0; k < {num}; ++k) {name}[(o * {num} + k) * {inner} + i] = sum += {element}; }}",
        ]
        reads = [value.array] if isinstance(value, Ref) else []
        return self._block((name,), (shape,), reads, lines)[0]

    def _op_gather(self, node: Node) -> Any:
        given: Any = node.args
        at, source = self._value(given[2]), self._value(given[0])
        if isinstance(at, Tensor):
            return self._moved(node)
        shape = _shape(at)
        dim = given[1] % max(len(shape), 1)
        text, choices = "all(NAN)", _sections(source, dim, shape)
        for k in range(len(choices)):
            text = f"choose({{0}} == {k}, {{{k + 1}}}, {text})"
        return self._loop(text, "V", shape, [at, *choices])

    def _op_scatter_add(self, node: Node) -> Ref:
        base, dim, index, source = node.args
        shape = _shape(self._value(base))
        if isinstance(self._value(index), Ref):
            return self._added_where(node, shape, dim % max(len(shape), 1))  # type: ignore[arg-type, operator]
        at = self._index(index)
        grid = torch.meshgrid(*(torch.arange(n) for n in at.shape), indexing="ij")
        places = [at if d == dim % at.dim() else along for d, along in enumerate(grid)]  # type: ignore[operator]
        where = torch.arange(shape.numel()).reshape(shape)[tuple(places)]
        value = self._value(source)
        corner = torch.arange(_shape(value).numel()).reshape(_shape(value))[tuple(slice(0, n) for n in at.shape)]
        return self._accumulated(self._value(base), where, _at(value, corner))

    def _added_where(self, node: Node, shape: torch.Size, dim: int) -> Ref:
        """`scatter_add` at places that counts tell: each place looks which of them are meant for it."""
        base, at, source = (self._value(node.args[i]) for i in (0, 2, 3))
        if any(n != m for d, (n, m) in enumerate(zip(_shape(at), shape, strict=True)) if d != dim):
            raise UnsupportedError(f"{node.target} to a part")
        if max(shape[dim], _shape(at)[dim]) > MOST_CHOICES:
            raise UnsupportedError(f"{node.target} to one of {shape[dim]}")
        place = torch.arange(shape[dim], dtype=self.dtype).reshape([-1 if d == dim else 1 for d in range(len(shape))])
        pairs = zip(_sections(at, dim, shape), _sections(source, dim, shape), strict=False)  # a source may have more
        operands: list[Value] = [base, place, *(value for pair in pairs for value in pair)]
        text = " + ".join(f"choose({{{k}}} == {{1}}, {{{k + 1}}}, V{{{{}}}})" for k in range(2, len(operands), 2))
        return self._loop(f"({{0}} + {text})", "V", shape, operands)

    def _op_index_put(self, node: Node) -> Any:
        if len(node.args) < 4 or not node.args[3]:
            return self._moved(node)
        base, indices, source = node.args[:3]
        shape = _shape(self._value(base))
        picked = tuple(slice(None) if i is None else self._index(i) for i in indices)  # type: ignore[union-attr]
        where = torch.arange(shape.numel()).reshape(shape)[picked]
        return self._accumulated(self._value(base), where, _expanded(self._value(source), where.shape))

    def _index(self, given: Any) -> Tensor:
        value = self._value(given)
        if not isinstance(value, Tensor):
            raise UnsupportedError("an index that depends on values")
        return value

    def _accumulated(self, base: Value, where: Tensor, source: Value) -> Ref:
        """`base`, to whose elements those of `source` are added."""
        shape, name = _shape(base), self._new()
        to = Ref(name, "V", where.reshape(-1))
        lines = [
            f"for (int i = 0; i < {shape.numel()}; ++i) {name}[i] = {self._operand(base, 'V')};",
            f"for (int i = 0; i < {where.numel()}; ++i) {self._operand(to, 'V')} += {self._operand(source, 'V')};",
        ]
        reads = [value.array for value in (base, source) if isinstance(value, Ref)]
        return self._block((name,), (shape,), reads, lines)[0]

    # ---- matrices

    def _whole(self, value: Value) -> Ref:
        """A value as a whole array of its own, in order."""
        shape = _shape(value)
        whole = isinstance(value, Ref) and value.kind == "V" and value.array in self.sizes
        if whole and torch.equal(value.index.reshape(-1), torch.arange(self.sizes[value.array])):  # type: ignore[union-attr]
            return value  # type: ignore[return-value]
        return self._array("{0}", "V", shape, (value,))

    def _op_linalg_cholesky_ex(self, node: Node) -> tuple[Ref, Ref]:
        if node.kwargs.get("upper") or len(node.args) > 1:
            raise UnsupportedError(f"{node.target} of upper triangles")
        source = self._whole(self._value(node.args[0]))
        shape, n = source.index.shape, source.index.shape[-1]
        factor, failed = self._new(), self._new()
        batch = shape[:-2]
        lines = [
            f"for (int b = 0; b < {batch.numel()}; ++b) "
            f"cholesky<{n}>({source.array} + b * {n * n}, {factor} + b * {n * n}, {failed} + b);"
        ]
        found = self._block((factor, failed), (shape, batch), [source.array], lines)
        return found[0], found[1]

    def _op_linalg_solve_triangular(self, node: Node) -> Ref:
        flags = {"upper": False, "left": True, "unitriangular": False} | dict(node.kwargs)
        a, b = (self._value(given) for given in node.args[:2])
        shape = node.meta["val"].shape
        batch, n = shape[:-2], _shape(a)[-1]
        a = self._whole(_expanded(a, torch.Size((*batch, n, n))))
        b = self._whole(_expanded(b, shape))
        rows, columns = shape[-2:]
        name = self._new()
        options = ", ".join(str(bool(flags[key])).lower() for key in ("upper", "left", "unitriangular"))
        lines = [
            f"for (int b = 0; b < {batch.numel()}; ++b) solve_triangular<{rows}, {columns}, {options}>"
            f"({a.array} + b * {n * n}, {b.array} + b * {rows * columns}, {name} + b * {rows * columns});"
        ]
        return self._block((name,), (shape,), [a.array, b.array], lines)[0]

    # ---- code

    def _operand(
        self, value: Value, want: str, axes: Sequence[str] = ("i",), local: dict[str, str] | None = None
    ) -> str:
        """C++ for an element of a value, `V` or `M` by `want`; the axes are the loops' variables."""
        if isinstance(value, Tensor):
            if len(axes) == 1 and axes[0].isdigit():
                return _literal(value.reshape(-1)[int(axes[0])].item(), want)
            if value.numel() and bool((value == value.reshape(-1)[0]).all()):
                return _literal(value.reshape(-1)[0].item(), want)
            value = self._constant_array(value)
        text = (local or {}).get(value.array) or f"{value.array}[{self._place(value, axes)}]"
        if value.kind == "T":
            text = f"all({text})"
        elif value.kind == "B":
            text = f"every({text})"
        has = "V" if value.kind in "VT" else "M"
        if has == want:
            return text
        return f"choose({text}, all(1), V{{}})" if want == "V" else f"({text} != 0)"

    def _place(self, value: Ref, axes: Sequence[str]) -> str:
        index = value.index if len(axes) > 1 else value.index.reshape(-1)
        if len(axes) == 1 and axes[0].isdigit():
            return str(int(index[int(axes[0])]))
        strides = _affine(index)
        if strides is not None:
            offset, steps = strides
            terms = [f"{step} * {axis}" if step != 1 else axis for axis, step in zip(axes, steps, strict=True) if step]
            return " + ".join([*terms, str(offset)] if offset or not terms else terms)
        strides = _affine(value.index) if len(axes) == 1 else None
        if strides is not None:
            return _counted_off(axes[0], value.index.shape, *strides)
        num, step = _period(index) if len(axes) == 1 else (0, 0)
        if num:  # the places of one period, and how far each is from the one before
            first = index[:num]
            begin = f"{self._table('int', first.tolist())}[{axes[0]} % {num}]"
            begin = str(int(first[0])) if bool((first == first[0]).all()) else begin
            return f"{begin} + {step} * ({axes[0]} / {num})"
        name = self._table("int", index.reshape(-1).tolist())
        flat = axes[0]
        for axis, num in zip(axes[1:], index.shape[1:], strict=True):
            flat = f"({flat}) * {num} + {axis}"
        return f"{name}[{flat}]"

    def _constant_array(self, value: Tensor) -> Ref:
        kind, shape = "B" if value.dtype == torch.bool else "T", value.shape
        for dim in range(value.dim()):  # repetitions are not written out
            first = value.narrow(dim, 0, 1)
            if torch.equal(first.expand_as(value), value):
                value = first
        numbers = value.reshape(-1).tolist()
        texts = [str(int(n)) if kind == "B" else _number(n) for n in numbers]
        name = self._table("bool" if kind == "B" else "Real", texts)
        return Ref(name, kind, torch.arange(value.numel()).reshape(value.shape).expand(shape))

    def _table(self, kind: str, numbers: Sequence[Any]) -> str:
        key = (kind, *numbers)
        if key not in self.tables:
            self.tables[key] = f"table_{len(self.tables)}"
            listed = ", ".join(str(n) for n in numbers)
            self.constants.append(f"static constexpr {kind} {self.tables[key]}[] = {{{listed}}};")
        return self.tables[key]

    def code(self, num_replicas: int) -> str:
        """The C++ of the whole for so many replicas: `advance` takes steps of all fits."""
        lanes = num_lanes(num_replicas, self.dtype)
        wanted = {out.array for out in self.outputs if isinstance(out, Ref)}
        items = _needed(self.items, wanted)
        total = sum(num for item in items for _, _, num in _writes(item))
        if (total + 5 * self.size) * lanes * self.dtype.itemsize > MOST_BYTES:
            raise UnsupportedError(f"a step of {total} numbers")
        before = [item for item in items if not any(name in self.varying for name, _, _ in _writes(item))]
        during = [item for item in items if any(name in self.varying for name, _, _ in _writes(item))]
        later = {name for item in during for name in _reads(item)} | wanted
        kept = [made for item in before for made in _writes(item) if made[0] in later]
        body = self._scheduled(during, wanted)
        prologue = self._scheduled(before, later)
        memory = self._memory(kept)
        groups = max(1, min(MOST_GROUPS, GROUPED // max(total, 1)))
        held = 5 * self.size + 1 + sum(num for _, _, num in kept)
        numbers = total + sum(num for _, num in self.noise) + groups * held
        return _FRAME.format(
            prelude=prelude(self.dtype, num_replicas),
            tables="\n".join(self.constants),
            frame_bytes=numbers * lanes * self.dtype.itemsize,
            reads=", ".join(map(str, self._reads())),
            groups=groups,
            prologue="\n".join(prologue),
            body="\n".join(body),
            **memory,
        )

    @property
    def size(self) -> int:
        """Parameters of a fit."""
        return next(n.meta["val"].numel() for i, n in enumerate(self.graph.graph.nodes) if i == 4)

    def _reads(self) -> list[int]:
        arrays = [num for _, num in (*self.data, *self.noise)]
        return [self.dtype.itemsize, self.size, len(self.data), len(self.noise), *arrays]

    def _memory(self, kept: Sequence[tuple[str, str, int]]) -> dict[str, str]:
        """The parts of the frame that move numbers; `kept` is what is computed once for all steps."""
        dim, carried = self.size, ("theta", "first", "second", "total")
        whole = [(name, "V", dim) for name in (*carried, "unit")] + [("alive", "M", 1)]

        def loads(i: str) -> list[str]:
            names = (*carried, "unit")
            return [f"{name}[{i}] = load({name}_in + (b * {dim} + {i}) * num_fits + r);" for name in names]

        def stores(i: str) -> list[str]:
            at = f"* num_problems + b) * {dim} + {i}) * num_fits + r);"
            return [f"store({name}[{i}], out + (({k} {at}" for k, name in enumerate(carried)]

        noise: list[str] = []
        for k, (name, num) in enumerate(self.noise):

            def drawn(i: str, k: int = k, name: str = name, num: int = num) -> list[str]:
                return [f"{name}[{i}] = load(noise[{k}] + ((t * num_problems + b) * {num} + {i}) * num_fits + r);"]

            noise += [f"V {name}[{num}];", *_passes(num, drawn)]
        alive, *new, bound = self.outputs

        def renewed(i: str) -> list[str]:
            values = zip(carried, new, strict=True)
            return [f"{name}[{i}] = {self._operand(value, 'V', (i,))};" for name, value in values]

        return {
            "fields": " ".join(f"{kind} {name}[{num}];" for name, kind, num in (*whole, *kept)),
            "state": "\n".join(f"{kind}* const {name} = group[g].{name};" for name, kind, _ in whole),
            "kept": "\n".join(f"const {kind}* const {name} = group[g].{name};" for name, kind, _ in kept),
            "keep": "\n".join(f"std::memcpy(group[g].{name}, {name}, sizeof {name});" for name, _, _ in kept),
            "loads": "\n".join(_passes(dim, loads)),
            "stores": "\n".join(_passes(dim, stores)),
            "data": "\n".join(
                f"const Real* {name} = data[{k}] + b * {num};" for k, (name, num) in enumerate(self.data)
            ),
            "noise": "\n".join(noise),
            "renewed": "\n".join(_passes(dim, renewed)),
            "alive": self._operand(alive, "M", ("0",)),
            "bound": self._operand(bound, "V", ("0",)),
        }

    def _scheduled(self, items: Sequence[Item], later: set[str]) -> list[str]:
        """Code for items in an order that lets loops of one length be fused."""
        left, made = list(items), {name for item in items for name, _, _ in _writes(item)}
        done: set[str] = set()
        readers: dict[str, int] = {}
        for item in items:
            for name in _reads(item):
                readers[name] = readers.get(name, 0) + 1
        lines: list[str] = []

        def ready(name: str) -> bool:
            return name not in made or name in done

        while left:
            first = next(item for item in left if all(ready(name) for name in _reads(item)))
            if isinstance(first, Block):
                lines += [f"V {name}[{num}];" for name, _, num in first.out] + [first.code]
                group: list[Item] = [first]
            else:
                loops = _group(left, first.num, ready)
                outside = {n for item in left if item not in loops for n in _reads(item)} | later
                lines += self._fused(loops, outside)
                group = list(loops)
            done.update(name for item in group for name, _, _ in _writes(item))
            left = [item for item in left if item not in group]
        return lines

    def _fused(self, loops: Sequence[Loop], outside: set[str]) -> list[str]:
        """One loop for all of them, or, where it is short, each pass written out."""
        num, declared, kept = loops[0].num, [], {loop.out for loop in loops} & outside
        for loop in loops:
            size = num if loop.into is None else int(loop.into.max()) + 1
            if loop.into is not None or loop.out in kept:
                declared.append(f"{loop.kind} {loop.out}[{size}];")
            if loop.into is not None:
                declared += _passes(size, lambda i, loop=loop: [f"{loop.out}[{i}] = {loop.start};"])  # type: ignore[misc]
        return [*declared, *_passes(num, lambda i: self._pass(loops, kept, i))]

    def _pass(self, loops: Sequence[Loop], kept: set[str], at: str) -> list[str]:
        """The statements for one element each, the loop's variable or a number `at`."""
        local: dict[str, str] = {}
        lines = []
        for loop in loops:
            texts = [self._operand(o, w, (at,), local) for o, w in zip(loop.operands, loop.wants, strict=True)]
            if loop.into is not None:
                to = f"{loop.out}[{self._place(Ref(loop.out, 'V', loop.into), (at,))}]"
                lines.append(f"{to} = {loop.text.format(*texts, to=to)};")
                continue
            local[loop.out] = f"v_{loop.out}"
            lines.append(f"const {loop.kind} v_{loop.out} = {loop.text.format(*texts)};")
            if loop.out in kept:
                lines.append(f"{loop.out}[{at}] = v_{loop.out};")
        return lines


# ---- places
