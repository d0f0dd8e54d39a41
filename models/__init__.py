"""Models to measure guides on, one file each: the Pyro model, its data, its `Target`, and its source.

`ZOO` lists those of the zoo benchmark. `exponential_normal.py` is the toy, and the file to open first and to copy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from models import (
    banana,
    beta_binomial,
    correlated_gaussian,
    eight_schools,
    exponential_normal,
    funnel,
    gamma_poisson,
    half_normal,
    linear_regression,
    logistic_regression,
    mixture,
    normal_normal,
    ppca,
    robust_regression,
)
from ppl_vi.target.target import Target

# By name, the functions that make the zoo's targets, each of one problem.
ZOO: dict[str, Callable[[], Target]] = {
    "exponential_normal": partial(exponential_normal.target, [0.5]),
    "normal_normal": normal_normal.target,
    "beta_binomial": beta_binomial.target,
    "gamma_poisson": gamma_poisson.target,
    "half_normal": half_normal.target,
    "banana": banana.target,
    "logistic_regression": logistic_regression.shuttle,
    "mixture": mixture.target,
    "ppca": ppca.iris,
    "robust_regression": robust_regression.target,
    "linear_regression": linear_regression.target,
    "correlated_gaussian": correlated_gaussian.target,
    "funnel": funnel.target,
    "eight_schools_centred": partial(eight_schools.target, "centred"),
    "eight_schools_non_centred": partial(eight_schools.target, "non_centred"),
}

__all__ = ["ZOO"]
