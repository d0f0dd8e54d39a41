"""How torch's operations are written as C++.

Most operations do the same to each element: for them a table has a line of C++, in which `{0}` and `{1}` are the
elements of the operands. Every other operation has a function in this file, listed in `SPECIAL`. The C++ calls
functions of `vectors.h`, which tests compare with those of torch, SciPy and mpmath.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ppl_vi.compiler.builder import Builder
from ppl_vi.compiler.places import affine
from ppl_vi.compiler.values import (
    MAX_CHOICES,
    Ref,
    UnsupportedError,
    Value,
    elements_at,
    expanded,
    operation_name,
    reshaped,
    sections,
    shape_of,
)

# By name, the C++ of operations that do the same to each element; {0} and {1} are the operands.
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
# Operations that move elements about and compute nothing.
MOVES = {
    "view", "_unsafe_view", "reshape", "expand", "unsqueeze", "squeeze", "permute", "transpose", "t", "select", "slice",
    "diagonal", "alias", "detach", "clone", "lift_fresh_copy", "tril", "triu", "cat", "stack", "slice_backward",
    "select_backward", "diagonal_backward", "slice_scatter", "select_scatter", "as_strided", "as_strided_scatter",
    "copy", "index", "constant_pad_nd", "flip", "repeat", "diag_embed", "unfold", "_to_copy", "movedim", "index_select",
    "roll", "contiguous", "unbind", "split", "split_with_sizes", "diagonal_scatter", "_reshape_alias",
    "view_as", "expand_as",
}  # fmt: skip
# Operations that give integers where all their operands are integers or conditions; the C++ computes with these as
# numbers.
COUNTING = {
    "sum", "add", "sub", "rsub", "mul", "neg", "abs", "clamp", "clamp_min", "clamp_max", "minimum", "maximum",
    "remainder", "where", "gather", "cumsum",
}  # fmt: skip
# Operations that use only the shape of their operand, with the number that fills it.
SHAPED = {
    "zeros_like": 0.0, "ones_like": 1.0, "new_zeros": 0.0, "new_ones": 1.0, "empty_like": 0.0, "new_empty": 0.0,
    "new_empty_strided": 0.0,
}  # fmt: skip


def is_known(node: Node) -> bool:
    """Whether a node's operation has a translation, for some arguments at least."""
    name = operation_name(node)
    return any(name in some for some in (UNARY, BINARY, COMPARISONS, LOGICAL, MOVES, SHAPED, SPECIAL))


def computed(build: Builder, node: Node) -> Any:
    """The value, or the tuple of values, of an operation with an operand that is known only when the code runs.

    Raises:
        UnsupportedError: the operation has no translation.
    """
    name, like = operation_name(node), node.meta.get("val")
    counted = isinstance(like, Tensor) and like.dtype == torch.int64 and name in (*COUNTING, *MOVES)
    if isinstance(like, Tensor) and like.dtype not in (build.dtype, torch.bool) and not counted:
        raise UnsupportedError(f"{node.target} gives {like.dtype}")
    if name == "index" and _row_place(build, node) is not None:
        return _picked(build, node)
    if name in MOVES and not _converts(node):
        return build.moved(node)
    return SPECIAL.get(name, _pointwise)(build, node)


def _row_place(build: Builder, node: Node) -> tuple[int, Ref] | None:
    """The dimension that an operation indexes by the places that rows of data tell, and these; None of all others."""
    given: Any = node.args[1]
    used = [(dim, build.value(index)) for dim, index in enumerate(given) if index is not None]
    if len(used) == 1 and isinstance(used[0][1], Ref) and used[0][1].kind == "I":
        return used[0][0], used[0][1]
    return None


def _picked(build: Builder, node: Node) -> Ref:
    """Elements at a place that each row tells, of numbers that all rows share."""
    dim, index = _row_place(build, node)  # type: ignore[misc]
    source, shape = build.value(node.args[0]), node.meta["val"].shape
    if isinstance(source, Tensor):
        source = build.tables.constant(source)
    if source.kind != "T":
        raise UnsupportedError(f"{node.target} of rows")
    places = source.index.movedim(dim, -1)
    step = affine(places[(0,) * (places.dim() - 1)])
    steps = places[..., 1:] - places[..., :-1]
    if step is None or (steps.numel() and not bool((steps == step[1][0]).all())):
        raise UnsupportedError(f"{node.target} of numbers that are not evenly spaced")
    first, name = Ref(source.array, "T", places[..., 0]), build.new_name()
    lines = [
        f"for (int i = 0; i < {first.index.numel()}; ++i)",
        "for (int l = 0; l < LANES; ++l)",
        f"{name}[i][l] = {source.array}[{build.tables.place(first, ('i',))} + {step[1][0]} * {index.array}[l]];",
    ]
    found = build.block((name,), (torch.Size(first.index.shape),), (source,), lines)[0]
    picked: Any = reshaped(found, shape)  # whose axis of the places has length 1
    return picked


def _as_numbers(build: Builder, value: Value) -> Value:
    """The places that rows of data tell, as vectors of numbers; other values as they are."""
    if not isinstance(value, Ref) or value.kind != "I":
        return value
    name, place = build.new_name(), build.tables.place(value, ("i",))
    lines = [
        f"for (int i = 0; i < {value.index.numel()}; ++i)",
        f"for (int l = 0; l < LANES; ++l) {name}[i][l] = Real({value.array}[({place}) * stride + l]);",
    ]
    return build.block((name,), (torch.Size(value.index.shape),), (value,), lines)[0]


def filled(node: Node) -> Tensor | None:
    """The value of an operation that uses only the shape of its operand; None for other operations."""
    name = operation_name(node)
    if name in SHAPED:
        return torch.full(node.meta["val"].shape, SHAPED[name], dtype=node.meta["val"].dtype)
    if name in ("full_like", "fill"):
        number: Any = node.args[1]
        return torch.full(node.meta["val"].shape, number, dtype=node.meta["val"].dtype)
    return None


def _converts(node: Node) -> bool:
    """Whether a node changes the dtype of its operand."""
    source = node.args[0]
    if operation_name(node) != "_to_copy" or not isinstance(source, Node):
        return False
    return bool(source.meta["val"].dtype != node.meta["val"].dtype)


def _pointwise(build: Builder, node: Node) -> Ref:
    name = operation_name(node)
    kwargs = {key: value for key, value in node.kwargs.items() if value is not None}
    alpha = kwargs.pop("alpha", 1)
    if kwargs:
        raise UnsupportedError(f"{node.target} with {', '.join(kwargs)}")
    args = list(node.args)
    shape = torch.broadcast_shapes(*(shape_of(build.value(a)) for a in args if isinstance(a, (Node, int, float))))
    if name in UNARY:
        return build.loop(UNARY[name], "V", shape, [build.value(args[0])])
    if name in BINARY:
        if len(args) > 2:
            raise UnsupportedError(f"{node.target} of {len(args)}")
        scaled = "{0}" if name == "rsub" else "{1}"  # rsub(x, y) is y - alpha x
        text = BINARY[name] if alpha == 1 else BINARY[name].replace(scaled, f"(Real({alpha!r}) * {scaled})")
        return build.loop(text, "V", shape, [build.value(a) for a in args[:2]])
    if name in COMPARISONS:
        return build.loop(COMPARISONS[name], "M", shape, [build.value(a) for a in args])
    if name in LOGICAL:
        return build.loop(LOGICAL[name], "M", shape, [build.value(a) for a in args], "M" * len(args))
    raise UnsupportedError(str(node.target))


def _to_copy(build: Builder, node: Node) -> Ref:
    kind = "M" if node.meta["val"].dtype == torch.bool else "V"
    counted = node.meta["val"].dtype == torch.int64 and node.args[0].meta["val"].dtype == torch.bool  # type: ignore[union-attr]
    if node.meta["val"].dtype not in (torch.bool, build.dtype) and not counted:
        raise UnsupportedError(f"{node.target} to {node.meta['val'].dtype}")
    text = "{0}" if kind == "V" else "({0} != 0)"
    return build.loop(text, kind, node.meta["val"].shape, [build.value(node.args[0])])


def _where(build: Builder, node: Node) -> Ref:
    mask, one, other = (build.value(a) for a in node.args)
    if node.meta["val"].dtype == torch.bool:
        return build.loop("(({0} & {1}) | (~{0} & {2}))", "M", node.meta["val"].shape, (mask, one, other), "MMM")
    return build.loop("choose({0}, {1}, {2})", "V", node.meta["val"].shape, (mask, one, other), "MVV")


def _masked_fill(build: Builder, node: Node) -> Ref:
    value, mask, filling = (build.value(a) for a in node.args)
    return build.loop("choose({0}, {1}, {2})", "V", node.meta["val"].shape, (mask, filling, value), "MVV")


def _clamp(build: Builder, node: Node) -> Ref:
    low = node.kwargs.get("min", node.args[1] if len(node.args) > 1 else None)
    high = node.kwargs.get("max", node.args[2] if len(node.args) > 2 else None)
    text, operands = "{0}", [build.value(node.args[0])]
    for bound, function in ((low, "maximum"), (high, "minimum")):
        if bound is not None:
            text = f"{function}({text}, {{{len(operands)}}})"
            operands.append(build.value(bound))
    return build.loop(text, "V", node.meta["val"].shape, operands)


def _pow(build: Builder, node: Node) -> Ref:
    base, exponent = (build.value(a) for a in node.args[:2])
    text = "power({0}, {1})"
    if isinstance(exponent, Tensor) and exponent.numel() == 1:
        number = exponent.item()
        if number == 0.5:
            text = "square_root({0})"
        elif number == int(number) and 0 < abs(number) <= 8:
            text = f"({' * '.join(['{0}'] * int(abs(number)))})"
            text = f"(1 / {text})" if number < 0 else text
    operands = [base, exponent] if "{1}" in text else [base]
    return build.loop(text, "V", node.meta["val"].shape, operands)


def _remainder(build: Builder, node: Node) -> Ref:
    if node.meta["val"].dtype != torch.int64:
        raise UnsupportedError(f"{node.target} of {node.meta['val'].dtype}")
    operands = [build.value(a) for a in node.args]
    return build.loop("({0} - {1} * floor({0} / {1}))", "V", node.meta["val"].shape, operands)


def _polygamma(build: Builder, node: Node) -> Ref:
    if node.args[0] != 1:
        raise UnsupportedError(f"polygamma of order {node.args[0]}")
    return build.loop("trigamma({0})", "V", node.meta["val"].shape, [build.value(node.args[1])])


def _addcmul(build: Builder, node: Node) -> Ref:
    factor = float(node.kwargs.get("value", 1))  # type: ignore[arg-type]
    operands = [build.value(a) for a in node.args]
    return build.loop(f"({{0}} + Real({factor!r}) * {{1}} * {{2}})", "V", node.meta["val"].shape, operands)


def _softplus(build: Builder, node: Node) -> Ref:
    x, beta, threshold = _softplus_arguments(build, node.args)
    text = "choose({0} * {1} > {2}, {0}, log_of_1_plus(exponential({0} * {1})) / {1})"
    return build.loop(text, "V", node.meta["val"].shape, (x, beta, threshold))


def _softplus_backward(build: Builder, node: Node) -> Ref:
    x, beta, threshold = _softplus_arguments(build, node.args[1:])
    text = "choose({1} * {2} > {3}, {0}, {0} * sigmoid({1} * {2}))"
    return build.loop(text, "V", node.meta["val"].shape, (build.value(node.args[0]), x, beta, threshold))


def _softplus_arguments(build: Builder, args: Sequence[Any]) -> list[Value]:
    """The argument, beta and threshold of softplus, the last two by default 1 and 20."""
    return [build.value(a) for a in (*args, *(1.0, 20.0)[len(args) - 1 :])]


def _threshold_backward(build: Builder, node: Node) -> Ref:
    operands = [build.value(a) for a in node.args]
    return build.loop("choose({1} <= {2}, V{{}}, {0})", "V", node.meta["val"].shape, operands)


def _log_sigmoid_forward(build: Builder, node: Node) -> tuple[Ref, Tensor]:
    x = build.value(node.args[0])
    text = "(minimum({0}, V{{}}) - log_of_1_plus(exponential(-absolute({0}))))"
    return build.loop(text, "V", shape_of(x), [x]), torch.zeros(0, dtype=build.dtype)


def _log_sigmoid_backward(build: Builder, node: Node) -> Ref:
    operands = [build.value(a) for a in node.args[:2]]
    return build.loop("({0} * sigmoid(-{1}))", "V", node.meta["val"].shape, operands)


def _sum(build: Builder, node: Node) -> Ref:
    return build.reduced(node, "V{}", "({to} + {0})")


def _mean(build: Builder, node: Node) -> Ref:
    total = build.reduced(node, "V{}", "({to} + {0})")
    ratio = node.args[0].meta["val"].numel() / max(node.meta["val"].numel(), 1)  # type: ignore[union-attr]
    return build.loop(f"({{0}} * Real({1 / ratio!r}))", "V", node.meta["val"].shape, [total])


def _amax(build: Builder, node: Node) -> Ref:
    return build.reduced(node, "all(-INFINITY)", "maximum({to}, {0})")


def _amin(build: Builder, node: Node) -> Ref:
    return build.reduced(node, "all(INFINITY)", "minimum({to}, {0})")


def _mm(build: Builder, node: Node) -> Ref:
    one, other = (build.value(a) for a in node.args)
    return _contracted(build, reshaped(one, (1, *shape_of(one))), reshaped(other, (1, *shape_of(other))), node)


def _bmm(build: Builder, node: Node) -> Ref:
    one, other = (build.value(a) for a in node.args)
    return _contracted(build, one, other, node)


def _mv(build: Builder, node: Node) -> Ref:
    one, other = (build.value(a) for a in node.args)
    return _contracted(build, reshaped(one, (1, *shape_of(one))), reshaped(other, (1, *shape_of(other), 1)), node)


def _dot(build: Builder, node: Node) -> Ref:
    one, other = (build.value(a) for a in node.args)
    return _contracted(build, reshaped(one, (1, 1, *shape_of(one))), reshaped(other, (1, *shape_of(other), 1)), node)


def _contracted(build: Builder, one: Value, other: Value, node: Node) -> Ref:
    """The matrix products of a batch: of `(b, i, k)` and `(b, k, j)`."""
    batch, rows, inner = shape_of(one)
    columns = shape_of(other)[-1]
    name, shape = build.new_name(), node.meta["val"].shape
    left = build.tables.element(one, "V", ("b", "i", "k"))
    right = build.tables.element(other, "V", ("b", "k", "j"))
    lines = [
        f"for (int b = 0; b < {batch}; ++b) product<{rows}, {inner}, {columns}>(",
        f"[&](int i, int k) {{ return {left}; }}, [&](int k, int j) {{ return {right}; }},",
        f"{name} + b * {rows * columns});",
    ]
    return build.block((name,), (shape,), (one, other), lines)[0]


def _cumsum(build: Builder, node: Node) -> Ref:
    given: Any = node.args
    value, shape = build.value(given[0]), node.meta["val"].shape
    dim = given[1] % max(len(shape), 1)
    outer, num, inner = shape[:dim].numel(), shape[dim], shape[dim + 1 :].numel()
    name = build.new_name()
    element = build.tables.element(reshaped(value, (outer, num, inner)), "V", ("o", "k", "i"))
    lines = [
        f"for (int o = 0; o < {outer}; ++o) for (int i = 0; i < {inner}; ++i) {{",
        f"V sum{{}}; for (int k = 0; k < {num}; ++k) {name}[(o * {num} + k) * {inner} + i] = sum += {element}; }}",
    ]
    return build.block((name,), (shape,), (value,), lines)[0]


def _gather(build: Builder, node: Node) -> Any:
    given: Any = node.args
    at, source = _as_numbers(build, build.value(given[2])), build.value(given[0])
    if isinstance(at, Tensor):
        return build.moved(node)
    shape = shape_of(at)
    dim = given[1] % max(len(shape), 1)
    text, choices = "all(NAN)", sections(source, dim, shape)
    for k in range(len(choices)):
        text = f"choose({{0}} == {k}, {{{k + 1}}}, {text})"
    return build.loop(text, "V", shape, [at, *choices])


def _scatter_add(build: Builder, node: Node) -> Ref:
    base, dim, index, source = node.args
    shape = shape_of(build.value(base))
    if isinstance(build.value(index), Ref):
        return _added_where(build, node, shape, dim % max(len(shape), 1))  # type: ignore[arg-type, operator]
    at = build.constant_index(index)
    grid = torch.meshgrid(*(torch.arange(n) for n in at.shape), indexing="ij")
    places = [at if d == dim % at.dim() else along for d, along in enumerate(grid)]  # type: ignore[operator]
    where = torch.arange(shape.numel()).reshape(shape)[tuple(places)]
    value = build.value(source)
    corner = torch.arange(shape_of(value).numel()).reshape(shape_of(value))[tuple(slice(0, n) for n in at.shape)]
    return build.accumulated(build.value(base), where, elements_at(value, corner))


def _added_where(build: Builder, node: Node, shape: torch.Size, dim: int) -> Ref:
    """`scatter_add` where the index is computed: each element compares its own place with all of the index."""
    base, at, source = (_as_numbers(build, build.value(node.args[i])) for i in (0, 2, 3))
    if any(n != m for d, (n, m) in enumerate(zip(shape_of(at), shape, strict=True)) if d != dim):
        raise UnsupportedError(f"{node.target} to a part")
    if max(shape[dim], shape_of(at)[dim]) > MAX_CHOICES:
        raise UnsupportedError(f"{node.target} to one of {shape[dim]}")
    place = torch.arange(shape[dim], dtype=build.dtype).reshape([-1 if d == dim else 1 for d in range(len(shape))])
    pairs = zip(sections(at, dim, shape), sections(source, dim, shape), strict=False)  # a source may have more
    operands: list[Value] = [base, place, *(value for pair in pairs for value in pair)]
    text = " + ".join(f"choose({{{k}}} == {{1}}, {{{k + 1}}}, V{{{{}}}})" for k in range(2, len(operands), 2))
    return build.loop(f"({{0}} + {text})", "V", shape, operands)


def _index_put(build: Builder, node: Node) -> Any:
    if len(node.args) < 4 or not node.args[3]:
        return build.moved(node)
    base, indices, source = node.args[:3]
    shape = shape_of(build.value(base))
    picked = tuple(slice(None) if i is None else build.constant_index(i) for i in indices)  # type: ignore[union-attr]
    where = torch.arange(shape.numel()).reshape(shape)[picked]
    return build.accumulated(build.value(base), where, expanded(build.value(source), where.shape))


def _linalg_cholesky_ex(build: Builder, node: Node) -> tuple[Ref, Ref]:
    if node.kwargs.get("upper") or len(node.args) > 1:
        raise UnsupportedError(f"{node.target} of upper triangles")
    source = build.whole(build.value(node.args[0]))
    shape, n = source.index.shape, source.index.shape[-1]
    factor, failed = build.new_name(), build.new_name()
    batch = shape[:-2]
    lines = [
        f"for (int b = 0; b < {batch.numel()}; ++b) "
        f"cholesky<{n}>({source.array} + b * {n * n}, {factor} + b * {n * n}, {failed} + b);"
    ]
    found = build.block((factor, failed), (shape, batch), (source,), lines)
    return found[0], found[1]


def _linalg_solve_triangular(build: Builder, node: Node) -> Ref:
    flags = {"upper": False, "left": True, "unitriangular": False} | dict(node.kwargs)
    a, b = (build.value(given) for given in node.args[:2])
    shape = node.meta["val"].shape
    batch, n = shape[:-2], shape_of(a)[-1]
    a = build.whole(expanded(a, torch.Size((*batch, n, n))))
    b = build.whole(expanded(b, shape))
    rows, columns = shape[-2:]
    name = build.new_name()
    options = ", ".join(str(bool(flags[key])).lower() for key in ("upper", "left", "unitriangular"))
    lines = [
        f"for (int b = 0; b < {batch.numel()}; ++b) solve_triangular<{rows}, {columns}, {options}>"
        f"({a.array} + b * {n * n}, {b.array} + b * {rows * columns}, {name} + b * {rows * columns});"
    ]
    return build.block((name,), (shape,), (a, b), lines)[0]


# Operations with a function of their own, by name.
SPECIAL: dict[str, Callable[[Builder, Node], Any]] = {
    "_to_copy": _to_copy,
    "where": _where,
    "masked_fill": _masked_fill,
    "clamp": _clamp,
    "pow": _pow,
    "remainder": _remainder,
    "polygamma": _polygamma,
    "addcmul": _addcmul,
    "softplus": _softplus,
    "softplus_backward": _softplus_backward,
    "threshold_backward": _threshold_backward,
    "log_sigmoid_forward": _log_sigmoid_forward,
    "log_sigmoid_backward": _log_sigmoid_backward,
    "sum": _sum,
    "mean": _mean,
    "amax": _amax,
    "amin": _amin,
    "mm": _mm,
    "bmm": _bmm,
    "mv": _mv,
    "dot": _dot,
    "cumsum": _cumsum,
    "gather": _gather,
    "scatter_add": _scatter_add,
    "index_put": _index_put,
    "linalg_cholesky_ex": _linalg_cholesky_ex,
    "linalg_solve_triangular": _linalg_solve_triangular,
}


def value_of(build: Builder, graph: GraphModule, node: Node) -> Any:
    """The value of a node, or the tuple of its values."""
    if node.op == "get_attr":
        held = getattr(graph, str(node.target))
        if not isinstance(held, Tensor):
            raise UnsupportedError("a constant that is no tensor")
        return held.detach()
    if node.target is operator.getitem:
        source, place = node.args
        return build.known(source)[place]  # type: ignore[arg-type]
    found = filled(node)
    if found is not None:
        return found
    if all(isinstance(build.known(given), Tensor) for given in node.all_input_nodes):
        return _evaluated(build, node)
    return computed(build, node)


def _evaluated(build: Builder, node: Node) -> Any:
    """The value of an operation on constants."""

    def known(given: Any) -> Any:
        return build.known(given) if isinstance(given, Node) else given

    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), known)
    found = node.target(*args, **kwargs)  # type: ignore[operator]
    return tuple(found) if isinstance(found, (tuple, list)) else found
