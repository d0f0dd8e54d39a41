"""The C++ on which every translated step stands: vectors of lanes, and arithmetic on them.

The arithmetic is in `vectors.h`. Here are the number of lanes of a vector, and the coefficients of four polynomials,
which `vectors.h` takes as given. They are the truncated Chebyshev series of

    (1 + 2 x) exp(x^2) erfc(x), x >= 0, in t = (x - 3.75) / (x + 3.75)
    erf(x) / x, |x| <= 1, in w = 2 x^2 - 1
    (exp(r) - 1 - r) / r^2, |r| <= log(2) / 2
    (2 atanh(s) - 2 s) / s^3, |s| <= 0.2, in s^2

as polynomials in t, w, r and s^2. The first is that of Schonfelder (1978), Chebyshev expansions for the error and
related functions.
"""

from __future__ import annotations

import math
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
NUM_EXPONENTIAL_COEFFICIENTS = {torch.float32: 5, torch.float64: 10}
NUM_LOGARITHM_COEFFICIENTS = {torch.float32: 3, torch.float64: 8}
# Where e^r and log((1 + s) / (1 - s)) are needed: |r| is at most MAX_EXPONENT, s^2 at most MAX_SQUARE.
MAX_EXPONENT, MAX_SQUARE = math.log(2) / 2, 0.2**2
# The degree of the interpolation from which the Chebyshev series are taken: its own error is below double rounding.
INTERPOLATION_DEGREE = 63
NUM_SERIES = 25  # terms of series whose terms fall at least as fast as MAX_SQUARE^k
C_TYPES = {torch.float32: "float", torch.float64: "double"}


def lanes_per_vector(num_lanes: int, dtype: torch.dtype, by_rows: bool = False) -> int:
    """How many lanes one vector holds: a power of 2, smaller where fewer lanes are to be served.

    Args:
        num_lanes: how many lanes are to be served.
        dtype: of all numbers.
        by_rows: whether vectors also hold rows of data, which fill them however few lanes there are.
    """
    most = VECTOR_BYTES // dtype.itemsize
    return most if by_rows else min(most, max(MIN_LANES, 1 << (num_lanes - 1).bit_length()))


def _polynomial(
    function: Callable[[np.ndarray], np.ndarray], num: int, interval: tuple[float, float] = (-1.0, 1.0)
) -> str:
    """A function's Chebyshev series on an interval, cut to `num` terms, as a polynomial with the constant first."""
    series: Any = np.polynomial.Chebyshev.interpolate(function, INTERPOLATION_DEGREE, domain=interval)
    found = series.truncate(num).convert(kind=np.polynomial.Polynomial)
    return "{" + ", ".join(repr(float(c)) for c in found.coef) + "}"


def _scaled_erfcx(t: np.ndarray) -> np.ndarray:
    """(1 + 2 x) exp(x^2) erfc(x) at x = 3.75 (1 + t) / (1 - t)."""
    x = 3.75 * (1 + t) / (1 - t)
    return (1 + 2 * x) * scipy.special.erfcx(x)


def _erf_over_x(w: np.ndarray) -> np.ndarray:
    """erf(x) / x at w = 2 x^2 - 1."""
    x = np.sqrt((1 + w) / 2)
    return scipy.special.erf(x) / x


def _exponential_rest(r: np.ndarray) -> np.ndarray:
    """(exp(r) - 1 - r) / r^2 for small r, by its series."""
    return np.polynomial.polynomial.polyval(r, [1 / math.factorial(k + 2) for k in range(NUM_SERIES)])


def _logarithm_rest(square: np.ndarray) -> np.ndarray:
    """(2 atanh(s) - 2 s) / s^3 for small s^2, by its series."""
    return np.polynomial.polynomial.polyval(square, [2 / (2 * k + 3) for k in range(NUM_SERIES)])


@cache
def polynomial_coefficients() -> str:
    """C++ that defines the polynomials' coefficients for each dtype."""
    lines = ["template <class T> struct Coefficients;"]
    for dtype, name in C_TYPES.items():
        texts = {
            "erfcx": _polynomial(_scaled_erfcx, NUM_ERFCX_COEFFICIENTS[dtype]),
            "erf": _polynomial(_erf_over_x, NUM_ERF_COEFFICIENTS[dtype]),
            "exponential": _polynomial(
                _exponential_rest, NUM_EXPONENTIAL_COEFFICIENTS[dtype], (-MAX_EXPONENT, MAX_EXPONENT)
            ),
            "logarithm": _polynomial(_logarithm_rest, NUM_LOGARITHM_COEFFICIENTS[dtype], (0.0, MAX_SQUARE)),
        }
        arrays = ",\n".join(f"{function}[] = {text}" for function, text in texts.items())
        lines.append(f"template <> struct Coefficients<{name}> {{\nstatic constexpr {name} {arrays};\n}};")
    return "\n".join(lines)


def prelude(dtype: torch.dtype, num_lanes: int, by_rows: bool = False) -> str:
    """The C++ that stands before every translated step.

    Args:
        dtype: of all numbers.
        num_lanes: how many lanes are to be served; the text is the same for all numbers of lanes that fill a vector.
        by_rows: whether vectors also hold rows of data.
    """
    lanes = lanes_per_vector(num_lanes, dtype, by_rows)
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
