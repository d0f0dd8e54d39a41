"""A number that says how far it can be trusted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """The value of a metric for each problem and replica.

    Attributes:
        value: `(B, R)`; infinite values stand as such.
        std_error: Monte Carlo standard error, `(B, R)`; 0 for values by quadrature, inf where the variance is infinite.
        error: numerical error of values by quadrature, `(B, R)`.
        unit: "nats", "1", ...
        reason: why a value is infinite or missing, or "".
    """

    value: np.ndarray
    std_error: np.ndarray
    error: np.ndarray
    unit: str
    reason: str = ""
