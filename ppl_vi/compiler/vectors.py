"""TODO."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import scipy.special
import torch

HEADER = Path(__file__).with_name("vectors.h")
ERFCX_TERMS = {torch.float32: 12, torch.float64: 23}  # whose last is below rounding
ERF_TERMS = {torch.float32: 7, torch.float64: 12}
C_TYPES = {torch.float32: "float", torch.float64: "double"}


def lanes_per_vector(num_replicas: int, dtype: torch.dtype) -> int:
    """Fits in a vector: 64 bytes of them, fewer where there are fewer replicas."""
    most = 64 // dtype.itemsize
    return min(most, max(4, 1 << (num_replicas - 1).bit_length()))


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
    """The definitions that vectors.h needs of the error function."""
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
    lanes = lanes_per_vector(num_replicas, dtype)
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
