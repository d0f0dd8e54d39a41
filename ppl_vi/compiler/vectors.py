"""The C++ on which every translated step stands: vectors of lanes, and arithmetic on them.

The arithmetic is in `vectors.h`. Here are the number of lanes of a vector, and the coefficients of two polynomials that
approximate the error function, which `vectors.h` takes as given. They are the truncated Chebyshev series of

    (1 + 2 x) exp(x^2) erfc(x), x >= 0, in t = (x - 3.75) / (x + 3.75)
    erf(x) / x, |x| <= 1, in w = 2 x^2 - 1

as polynomials in t and w. The first is that of Schonfelder (1978), Chebyshev expansions for the error and related
functions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import scipy.special
import torch

HEADER = Path(__file__).with_name("vectors.h")
VECTOR_BYTES = 64  # the widest registers that processors have (AVX-512); narrower ones take a vector in parts
MIN_LANES = 4  # no vector is shorter, also where fewer lanes are served
# How many coefficients each polynomial has. The first that is left out is below the rounding of the dtype, so that more
# would cost time and change nothing.
NUM_ERFCX_COEFFICIENTS = {torch.float32: 12, torch.float64: 23}
NUM_ERF_COEFFICIENTS = {torch.float32: 7, torch.float64: 12}
# The degree of the interpolation from which the Chebyshev series are taken: its own error is below double rounding.
INTERPOLATION_DEGREE = 63
C_TYPES = {torch.float32: "float", torch.float64: "double"}


def lanes_per_vector(num_lanes: int, dtype: torch.dtype) -> int:
    """How many lanes one vector holds: a power of 2, smaller where fewer lanes are to be served."""
    most = VECTOR_BYTES // dtype.itemsize
    return min(most, max(MIN_LANES, 1 << (num_lanes - 1).bit_length()))


def _polynomial(function: Callable[[np.ndarray], np.ndarray], num: int) -> str:
    """The Chebyshev series of a function on [-1, 1], cut to `num` terms, as a polynomial with the constant first."""
    interpolate: Any = np.polynomial.chebyshev.chebinterpolate
    found = np.polynomial.chebyshev.cheb2poly(interpolate(function, INTERPOLATION_DEGREE)[:num])
    return ", ".join(repr(float(c)) for c in found)


def _scaled_erfcx(t: np.ndarray) -> np.ndarray:
    """(1 + 2 x) exp(x^2) erfc(x) at x = 3.75 (1 + t) / (1 - t)."""
    x = 3.75 * (1 + t) / (1 - t)
    return (1 + 2 * x) * scipy.special.erfcx(x)


def _erf_over_x(w: np.ndarray) -> np.ndarray:
    """erf(x) / x at w = 2 x^2 - 1."""
    x = np.sqrt((1 + w) / 2)
    return scipy.special.erf(x) / x


@cache
def polynomial_coefficients() -> str:
    """C++ that defines the polynomials' coefficients for each dtype."""
    lines = ["template <class T> struct Coefficients;"]
    for dtype, name in C_TYPES.items():
        lines.append(
            f"template <> struct Coefficients<{name}> {{\n"
            f"static constexpr {name} erfcx[] = {{{_polynomial(_scaled_erfcx, NUM_ERFCX_COEFFICIENTS[dtype])}}},\n"
            f"erf[] = {{{_polynomial(_erf_over_x, NUM_ERF_COEFFICIENTS[dtype])}}};\n}};"
        )
    return "\n".join(lines)


def prelude(dtype: torch.dtype, num_lanes: int) -> str:
    """The C++ that stands before every translated step.

    Args:
        dtype: of all numbers.
        num_lanes: how many lanes are to be served; the text is the same for all numbers of lanes that fill a vector.
    """
    lanes = lanes_per_vector(num_lanes, dtype)
    return "\n".join(
        [
            "#include <cstddef>",
            "using std::size_t;",
            f"constexpr int LANES = {lanes}, VALID = {min(lanes, num_lanes)};",
            f"using Real = {C_TYPES[dtype]};",
            polynomial_coefficients(),
            HEADER.read_text(),
        ]
    )
