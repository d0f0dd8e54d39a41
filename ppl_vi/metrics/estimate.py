"""A number that says how far it can be trusted."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

LEAK = "the guide puts mass where the posterior has none"
SMALLER = "the guide has no mass where the posterior has some"
ROUNDING = 4 * float(np.finfo(np.float64).eps)

TOO_MUCH = 1.0  # of any unit: a nat is a factor of e, and a distance or a share reaches from 0 to 1


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

    def without_swamped(self) -> Estimate:
        """The same, nan and with the reason where the numerical error reaches both the value and `TOO_MUCH`.

        Such a value says nothing, not even its sign. One below a smaller error stays: that tells that it is small.
        """
        swamped = np.isfinite(self.value) & (self.error >= np.maximum(np.abs(self.value), TOO_MUCH))
        if not swamped.any():
            return self
        worst = float(np.broadcast_to(self.error, self.value.shape)[swamped].max())
        size = f"of up to {worst:.2g} {self.unit}" if np.isfinite(worst) else "which has no bound"
        why = f"the value is lost in its numerical error, {size}"
        reason = f"{self.reason}; {why}" if self.reason else why
        return replace(self, value=np.where(swamped, np.nan, self.value), reason=reason)
