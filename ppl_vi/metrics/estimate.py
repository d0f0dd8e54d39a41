"""`Estimate`: the value of a metric together with how far it can be trusted.

There are two kinds of uncertainty, and they are never mixed: the standard error of Monte Carlo, and a bound on the
numerical error of a deterministic computation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ppl_vi.runtime.showing import short_repr

# Reasons why a divergence is infinite.
LEAK = "the guide puts mass where the posterior has none"
SMALLER = "the guide has no mass where the posterior has some"
# The relative rounding error of a sum in float64: a few units in the last place. It is added to every numerical error,
# so that no error is stated as smaller than what float64 can hold.
ROUNDING = 4 * float(np.finfo(np.float64).eps)
# A value whose numerical error reaches both this and the value's own size is not shown. At 1 nat a probability is
# unknown by a factor of e, and distances and shares of mass range from 0 to 1. A larger limit would let through values
# of which not even the sign is known.
MAX_SWAMPING_ERROR = 1.0


@dataclass(frozen=True)
class Estimate:
    """The value of a metric for each problem and replica.

    Attributes:
        value: the values, `(B, R)` for `B` problems and `R` replicas. An infinite value stands as such, and one that
            does not exist is nan.
        std_error: the Monte Carlo standard error, `(B, R)`: 0 for values by quadrature, inf where the variance is
            infinite, nan where it is not known.
        error: the bound on the numerical error, `(B, R)`: 0 for values by Monte Carlo alone.
        unit: the unit of all three: "nats"; "1" for a number without unit; "sd", the posterior's standard deviation;
            "z", the unit of the latent; "draws".
        reason: why a value is infinite or missing; "" where none is.
    """

    value: np.ndarray
    std_error: np.ndarray
    error: np.ndarray
    unit: str
    reason: str = ""

    __repr__ = short_repr

    def without_swamped(self) -> Estimate:
        """The same estimate, with nan and the reason for each value that is swamped by its numerical error.

        A value is swamped where the error reaches both the value's size and `MAX_SWAMPING_ERROR`: then not even its
        sign is known. A value below an error that is smaller than the limit stays, because it is known to be small.
        """
        swamped = np.isfinite(self.value) & (self.error >= np.maximum(np.abs(self.value), MAX_SWAMPING_ERROR))
        if not swamped.any():
            return self
        worst = float(np.broadcast_to(self.error, self.value.shape)[swamped].max())
        size = f"of up to {worst:.2g} {self.unit}" if np.isfinite(worst) else "which has no bound"
        why = f"the value is lost in its numerical error, {size}"
        reason = f"{self.reason}; {why}" if self.reason else why
        return replace(self, value=np.where(swamped, np.nan, self.value), reason=reason)
