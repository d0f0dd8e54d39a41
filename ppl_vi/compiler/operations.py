"""TODO."""

from __future__ import annotations

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
