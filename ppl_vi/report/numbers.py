"""Numbers as text: three significant digits, and no digit that is only rounding error."""

from __future__ import annotations

import math
from typing import Any

MISSING = "–"  # stands for a number that does not exist


def number(value: Any) -> float:
    """A value of a record as a float: None becomes nan, and the strings "inf" and "-inf" become infinite."""
    return math.nan if value is None else float(value)


def three_digits(value: Any, error: Any = None) -> str:
    """A value of a record in three significant digits.

    A value that is not larger than its error `e` is shown as `<e`, and as `?` where the error has no bound.
    """
    v, e = number(value), number(error)
    if math.isnan(v):
        return MISSING
    if math.isinf(v):
        return "inf" if v > 0 else "-inf"
    if v == 0:
        return "0"
    if math.isinf(e):
        return "?"
    if abs(v) <= e:
        return f"<{short(e, 1)}"
    return short(v, 3)


def short(value: float, digits: int) -> str:
    """A number of significant digits; in scientific notation, such as 1.23e-7, below 0.001 and from 10^digits."""
    if not math.isfinite(value):
        return f"{value}"
    if 1e-3 <= abs(value) < 10**digits:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        return f"{value:.{decimals}f}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def nats(value: Any) -> str:
    """A log evidence or an ELBO with three decimals; from a million on in three significant digits."""
    v = number(value)
    return three_digits(value) if not math.isfinite(v) or abs(v) >= 1e6 else f"{v:.3f}"
