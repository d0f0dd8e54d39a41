"""Models to measure guides on, one file each: the Pyro model, its targets, its source."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from models import (
    banana,
    beta_binomial,
    eight_schools,
    exponential_normal,
    funnel,
    gamma_poisson,
    half_normal,
    normal_normal,
)
from ppl_vi.target import Target

ZOO: dict[str, Callable[[], Target]] = {
    "exponential_normal": partial(exponential_normal.target, [0.5]),
    "normal_normal": normal_normal.target,
    "beta_binomial": beta_binomial.target,
    "gamma_poisson": gamma_poisson.target,
    "half_normal": half_normal.target,
    "banana": banana.target,
    "funnel": funnel.target,
    "eight_schools_centred": partial(eight_schools.target, "centred"),
    "eight_schools_non_centred": partial(eight_schools.target, "non_centred"),
}

__all__ = ["ZOO"]
