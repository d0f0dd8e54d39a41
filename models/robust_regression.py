"""Phone calls from Belgium by year: a line through data with outliers, with Student's t noise.

    intercept ~ Normal(0, 10),  slope ~ Normal(0, 10),  scale ~ HalfNormal(5),
    y_n ~ StudentT(4, intercept + slope x_n, scale)

y is in tens of millions of calls, x in decades from 1961.5. In some years minutes were counted instead of calls.

Source: Rousseeuw and Leroy (1987), Robust regression and outlier detection, table 2.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vi.target.target import Target

FIRST_YEAR = 1950
CALLS = (  # tens of millions, from 1950 on
    0.44, 0.47, 0.47, 0.59, 0.66, 0.73, 0.81, 0.88, 1.06, 1.20, 1.35, 1.49, 1.61, 2.12, 11.90, 12.40, 14.20, 15.90,
    18.20, 21.20, 4.30, 2.40, 2.70, 2.90,
)  # fmt: skip

DEGREES = 4.0  # degrees of freedom of Student's t


def model(x: Tensor, y: Tensor) -> None:
    """The year of each observation as x, and the observations y, `(N,)` each."""
    intercept = pyro.sample("intercept", dist.Normal(x.new_zeros(()), 10.0))
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(()), 10.0))
    scale = pyro.sample("scale", dist.HalfNormal(x.new_full((), 5.0)))
    with pyro.plate("years", len(y)):
        pyro.sample("y", dist.StudentT(DEGREES, intercept + slope * x, scale), obs=y)


def target(dtype: torch.dtype = torch.float64) -> Target:
    """The phone calls as one problem of three latents."""
    y = torch.tensor([CALLS], dtype=dtype)
    years = FIRST_YEAR + torch.arange(len(CALLS), dtype=dtype)
    return Target(model, (((years - 1961.5) / 10)[None], y), name="robust_regression", dtype=dtype)
