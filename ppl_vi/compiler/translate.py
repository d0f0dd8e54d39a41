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

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import scipy.special
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ppl_vi.compiler.trace import written_down

HEADER = Path(__file__).with_name("lanes.h")
MOST_BYTES = 2**26  # of a group's values: beyond the second cache they still run several times faster than batched
MOST_GROUPS, GROUPED = 4, 1000  # groups whose steps alternate, so that one's arithmetic fills the other's waits
WRITTEN_OUT = 4  # passes of a loop
MOST_ELEMENTS = 2**18  # of one value, whose places are written out in the code
MOST_CHOICES = 32  # that a count picks from
DISTINCT = 0.5  # of the elements of a value: where no more differ, these alone are computed
ERFCX_TERMS = {torch.float32: 12, torch.float64: 23}  # whose last is below rounding
ERF_TERMS = {torch.float32: 7, torch.float64: 12}
C_TYPES = {torch.float32: "float", torch.float64: "double"}


class UnsupportedError(Exception):
    """A graph does something that has no translation here; the message names it."""


def num_lanes(num_replicas: int, dtype: torch.dtype) -> int:
    """Fits in a vector: 64 bytes of them, fewer where there are fewer replicas."""
    most = 64 // dtype.itemsize
    return min(most, max(4, 1 << (num_replicas - 1).bit_length()))


# ---- the functions' coefficients


def _polynomial(function: Callable[[np.ndarray], np.ndarray], num: int) -> str:
    """Coefficients, the constant first, of the polynomial through `function` at Chebyshev's points of [-1, 1]."""
    interpolate: Any = np.polynomial.chebyshev.chebinterpolate
    found = np.polynomial.chebyshev.cheb2poly(interpolate(function, 63)[:num])
    return ", ".join(repr(float(c)) for c in found)


def _scaled_erfcx(t: np.ndarray) -> np.ndarray:
    x = 3.75 * (1 + t) / (1 - t)
    return (1 + 2 * x) * scipy.special.erfcx(x)


def _erf_over_x(w: np.ndarray) -> np.ndarray:
    x = np.sqrt((1 + w) / 2)
    return scipy.special.erf(x) / x


@cache
def special_functions() -> str:
    """The definitions that lanes.h needs of the error function."""
    lines = ["template <class T> struct Coefficients;"]
    for dtype, name in C_TYPES.items():
        lines.append(
            f"template <> struct Coefficients<{name}> {{\n"
            f"static constexpr {name} erfcx[] = {{{_polynomial(_scaled_erfcx, ERFCX_TERMS[dtype])}}},\n"
            f"erf[] = {{{_polynomial(_erf_over_x, ERF_TERMS[dtype])}}};\n}};"
        )
    return "\n".join(lines)


def prelude(dtype: torch.dtype, num_replicas: int) -> str:
    """All that a translation stands on, for so many fits side by side; for a full vector of them all larger numbers."""
    lanes = num_lanes(num_replicas, dtype)
    return "\n".join(
        [
            "#include <cstddef>",
            "using std::size_t;",
            f"constexpr int LANES = {lanes}, VALID = {min(lanes, num_replicas)};",
            f"using Real = {C_TYPES[dtype]};",
            special_functions(),
            HEADER.read_text(),
        ]
    )


# ---- values and what computes them


@dataclass(frozen=True)
class Ref:
    """A value: elements of an array, `index` of its shape.

    `kind` says what the array's elements are: "V" numbers of all lanes, "M" conditions of all lanes, "T" numbers that
    all lanes share, "B" such conditions.
    """

    array: str
    kind: str
    index: Tensor

    def moved(self, index: Tensor) -> Ref:
        """The same elements in another order."""
        return Ref(self.array, self.kind, index)


Value = Ref | Tensor


@dataclass(frozen=True, eq=False)
class Loop:
    """`out[i] = text` for every `i`, or, with `into`, `out[into[i]] = text` of that element and the operand.

    `wants` says of what kind the text takes each operand.
    """

    out: str
    kind: str
    num: int
    text: str
    operands: tuple[Value, ...]
    wants: str
    into: Tensor | None = None
    start: str = ""


@dataclass(frozen=True, eq=False)
class Block:
    """Code of its own, with the arrays that it makes and reads."""

    out: tuple[tuple[str, str, int], ...]  # name, kind, elements
    reads: tuple[str, ...]
    code: str


Item = Loop | Block


def _reads(item: Item) -> set[str]:
    if isinstance(item, Block):
        return set(item.reads)
    return {operand.array for operand in item.operands if isinstance(operand, Ref)}


def _writes(item: Item) -> list[tuple[str, str, int]]:
    if isinstance(item, Block):
        return list(item.out)
    return [(item.out, item.kind, item.num if item.into is None else int(item.into.max()) + 1)]


# ---- the operations

UNARY = {
    "neg": "(-{0})", "exp": "exponential({0})", "log": "logarithm({0})", "log1p": "log_of_1_plus({0})",
    "expm1": "exp_minus_1({0})", "sqrt": "square_root({0})", "rsqrt": "(1 / square_root({0}))",
    "reciprocal": "(1 / {0})", "abs": "absolute({0})", "sign": "sign({0})", "sgn": "sign({0})",
    "tanh": "hyperbolic_tangent({0})", "sigmoid": "sigmoid({0})", "relu": "maximum({0}, V{{}})", "erf": "erf({0})",
    "erfc": "erfc({0})", "special_erfcx": "erfcx({0})", "special_ndtri": "ndtri({0})", "erfinv": "erfinv({0})",
    "special_log_ndtr": "log_ndtr({0})", "lgamma": "log_gamma({0})", "digamma": "digamma({0})",
    "square": "({0} * {0})", "floor": "floor({0})",
    **{name: f"one_by_one({{0}}, [](auto y) {{{{ return std::{name}(y); }}}})"
       for name in ("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "log2",
                    "log10", "exp2", "ceil", "trunc")},
}  # fmt: skip
BINARY = {
    "add": "({0} + {1})", "sub": "({0} - {1})", "rsub": "({1} - {0})", "mul": "({0} * {1})", "div": "({0} / {1})",
    "minimum": "minimum({0}, {1})", "maximum": "maximum({0}, {1})", "hypot": "hypotenuse({0}, {1})",
    "xlogy": "x_log_y({0}, {1})", "_standard_gamma_grad": "standard_gamma_grad({0}, {1})",
    "clamp_min": "maximum({0}, {1})", "clamp_max": "minimum({0}, {1})",
    "sigmoid_backward": "({0} * {1} * (1 - {1}))", "tanh_backward": "({0} * (1 - {1} * {1}))",
}  # fmt: skip
COMPARISONS = {
    "eq": "({0} == {1})", "ne": "({0} != {1})", "lt": "({0} < {1})", "le": "({0} <= {1})", "gt": "({0} > {1})",
    "ge": "({0} >= {1})", "isnan": "({0} != {0})", "isinf": "(absolute({0}) == all(INFINITY))",
    "isfinite": "({0} - {0} == 0)",
}  # fmt: skip
LOGICAL = {
    "bitwise_and": "({0} & {1})", "bitwise_or": "({0} | {1})", "bitwise_xor": "({0} ^ {1})", "bitwise_not": "(~{0})",
    "logical_and": "({0} & {1})", "logical_or": "({0} | {1})", "logical_xor": "({0} ^ {1})", "logical_not": "(~{0})",
}  # fmt: skip
MOVES = {
    "view", "_unsafe_view", "reshape", "expand", "unsqueeze", "squeeze", "permute", "transpose", "t", "select", "slice",
    "diagonal", "alias", "detach", "clone", "lift_fresh_copy", "tril", "triu", "cat", "stack", "slice_backward",
    "select_backward", "diagonal_backward", "slice_scatter", "select_scatter", "as_strided", "as_strided_scatter",
    "copy", "index", "constant_pad_nd", "flip", "repeat", "diag_embed", "unfold", "_to_copy", "movedim", "index_select",
    "roll", "contiguous", "unbind", "split", "split_with_sizes", "diagonal_scatter", "_reshape_alias",
    "view_as", "expand_as",
}  # fmt: skip
COUNTING = {  # what gives whole numbers of whole numbers or conditions
    "sum", "add", "sub", "rsub", "mul", "neg", "abs", "clamp", "clamp_min", "clamp_max", "minimum", "maximum",
    "remainder", "where", "gather", "cumsum",
}  # fmt: skip
SHAPED = {
    "zeros_like": 0.0, "ones_like": 1.0, "new_zeros": 0.0, "new_ones": 1.0, "empty_like": 0.0, "new_empty": 0.0,
    "new_empty_strided": 0.0,
}  # fmt: skip


def _name(node: Node) -> str:
    return str(node.target).removeprefix("aten.").partition(".")[0]


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


def _passes(num: int, statements: Callable[[str], list[str]]) -> list[str]:
    """Statements for each of `num` elements: written out where they are few, which lets arrays live in registers."""
    if num > WRITTEN_OUT:
        return [f"for (int i = 0; i < {num}; ++i) {{", *statements("i"), "}"]
    return [line for i in range(num) for line in ("{", *statements(str(i)), "}")]


def _group(left: Sequence[Item], num: int, ready: Callable[[str], bool]) -> list[Loop]:
    """Loops of one length that can run as one: each reads of the others its own element alone."""
    group: list[Loop] = []
    inside: set[str] = set()
    identity = torch.arange(num)

    def fits(loop: Loop) -> bool:
        for operand in loop.operands:
            if not isinstance(operand, Ref) or ready(operand.array):
                continue
            if operand.array not in inside or not torch.equal(operand.index.reshape(-1), identity):
                return False
        return True

    for item in left:  # they are in an order in which each comes after what it reads
        if isinstance(item, Loop) and item.num == num and fits(item):
            group.append(item)
            if item.into is None:
                inside.add(item.out)
    return group


def _needed(items: Sequence[Item], wanted: set[str]) -> list[Item]:
    """Those that something wanted depends on."""
    wanted, kept = set(wanted), []
    for item in reversed(items):
        if any(name in wanted for name, _, _ in _writes(item)):
            kept.append(item)
            wanted |= _reads(item)
    return kept[::-1]


# ---- places


def _constant(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise UnsupportedError("a constant that is no tensor")
    return value.detach()


def _shape(value: Value) -> torch.Size:
    return value.index.shape if isinstance(value, Ref) else value.shape


def _at(value: Value, places: Tensor) -> Value:
    if isinstance(value, Tensor):
        return value.reshape(-1)[places]
    return value.moved(value.index.reshape(-1)[places])


def _sections(value: Value, dim: int, shape: torch.Size) -> list[Value]:
    """A value's sections across `dim`, one each of its places, cut and repeated to a shape."""
    index = value.index if isinstance(value, Ref) else torch.arange(value.numel()).reshape(value.shape)
    num = index.shape[dim]
    if num > MOST_CHOICES:
        raise UnsupportedError(f"one of {num} by a count")
    corner = index[tuple(slice(None) if d == dim else slice(0, n) for d, n in enumerate(shape))]
    found = []
    for k in range(num):
        places = corner.narrow(dim, k, 1).expand(shape)
        found.append(value.moved(places) if isinstance(value, Ref) else value.reshape(-1)[places])
    return found


def _distinct(operands: Sequence[Value]) -> tuple[Tensor, Tensor]:
    """Of the elements of operands of one shape, the first places of those that differ from all before, and for each
    element which of them it equals: one stands for all that a plate or an enumerated value repeats."""
    key = torch.zeros(_shape(operands[0]).numel(), dtype=torch.int64)
    for operand in operands:
        values, which = torch.unique(_bits(operand), return_inverse=True)
        _, key = torch.unique(key * len(values) + which, return_inverse=True)
    every = torch.arange(len(key))
    first = torch.full((int(key.max()) + 1,), len(key)).scatter_reduce(0, key, every, "amin")
    order = first.argsort()
    return first[order], order.argsort()[key]


def _bits(value: Value) -> Tensor:
    """Whole numbers that are the same where a value's elements are."""
    if isinstance(value, Ref):
        return value.index.reshape(-1)
    flat = value.reshape(-1)
    return flat.double().contiguous().view(torch.int64) if flat.is_floating_point() else flat.to(torch.int64)


def _reshaped(value: Value, shape: Sequence[int]) -> Value:
    return value.reshape(shape) if isinstance(value, Tensor) else value.moved(value.index.reshape(shape))


def _expanded(value: Value, shape: torch.Size) -> Value:
    return value.expand(shape) if isinstance(value, Tensor) else value.moved(value.index.expand(shape))


def _affine(index: Tensor) -> tuple[int, list[int]] | None:
    """Offset and strides, where the elements lie evenly, or None."""
    offset = int(index.reshape(-1)[0]) if index.numel() else 0
    steps, expected = [], torch.full((), offset)
    for dim in range(index.dim()):
        num = index.shape[dim]
        step = int(index.select(dim, 1).reshape(-1)[0]) - offset if num > 1 else 0
        steps.append(step)
        along = torch.arange(num) * step
        expected = expected + along.reshape([-1 if d == dim else 1 for d in range(index.dim())])
    return (offset, steps) if torch.equal(expected.expand(index.shape), index) else None


def _period(index: Tensor) -> tuple[int, int]:
    """The least number of elements after which all places are as before but for one step, and that step, or (0, 0)."""
    size = index.numel()
    for num in (n for n in range(1, size // 2 + 1) if size % n == 0):
        steps = index[num:] - index[:-num]
        if bool((steps == steps[0]).all()):
            return num, int(steps[0])
    return 0, 0


def _counted_off(axis: str, shape: torch.Size, offset: int, steps: Sequence[int]) -> str:
    """C++ for the place of element number `axis` of a shape, whose elements lie evenly along each of its axes."""
    terms, inner = [str(offset)] if offset else [], shape.numel()
    for dim, (num, step) in enumerate(zip(shape, steps, strict=True)):
        inner //= num
        if step:
            along = f"{axis} / {inner}" if inner > 1 else axis
            terms.append(f"{step} * ({along}{f' % {num}' if dim and inner * num < shape.numel() else ''})")
    return " + ".join(terms) or "0"


def _runs(where: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbours among rising numbers, as first and how many."""
    runs: list[tuple[int, int]] = []
    for place in where:
        if runs and place == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((place, 1))
    return runs


def _number(value: float) -> str:
    if math.isnan(value):
        return "Real(NAN)"
    if math.isinf(value):
        return "Real(INFINITY)" if value > 0 else "Real(-INFINITY)"
    return f"Real({value!r})"


def _literal(value: Any, want: str) -> str:
    if want == "M":
        return f"every({int(bool(value))})"
    return f"all({_number(float(value))})"


_FRAME = """{prelude}
{tables}
struct Group {{ {fields} }};
extern "C" const int64_t frame_bytes = {frame_bytes};  // at most about so many on the stack of `advance`
// Of what `advance` reads: bytes of a number, parameters, arrays of data and of noise, and the numbers in each of them.
extern "C" const int64_t reads[] = {{{reads}}};

// The last vector of fits is full, too: it begins among those of the last but one, which gives the same numbers twice.
inline int64_t place(int64_t begin, int g, int64_t num_fits) {{
    const int64_t next = begin + g * LANES, last = num_fits - VALID;
    return next < last ? next : last;
}}

extern "C" void advance(int64_t num_steps, int64_t num_problems, int64_t num_fits, const Real* scalars,
                        const bool* alive_in, const Real* theta_in, const Real* first_in, const Real* second_in,
                        const Real* total_in, const Real* unit_in, bool* alive_out, Real* out, Real* bounds,
                        const Real* const* data, const Real* const* noise) {{
constexpr int most = {groups};
Group group[most];
for (int64_t b = 0; b < num_problems; ++b)
for (int64_t begin = 0; begin < num_fits; begin += most * LANES) {{
const int64_t left = (num_fits - begin + LANES - 1) / LANES;
const int num_groups = left < most ? left : most;
{data}
for (int g = 0; g < num_groups; ++g) {{
const int64_t r = place(begin, g, num_fits);
{state}
{loads}
alive[0] = load(alive_in + b * num_fits + r);
{prologue}
{keep}
}}
for (int64_t t = 0; t < num_steps; ++t) {{
const Real scalar_0[] = {{scalars[t]}}, scalar_1[] = {{scalars[num_steps + t]}};
const Real scalar_2[] = {{scalars[2 * num_steps + t]}};
for (int g = 0; g < num_groups; ++g) {{
const int64_t r = place(begin, g, num_fits);
{state}
{kept}
{noise}
{body}
store({bound}, bounds + (t * num_problems + b) * num_fits + r);
{renewed}
alive[0] = {alive};
}}
}}
for (int g = 0; g < num_groups; ++g) {{
const int64_t r = place(begin, g, num_fits);
{state}
store(alive[0], alive_out + b * num_fits + r);
{stores}
}}
}}
}}
"""
