"""The models of `benchmarks.ppls` in PyMC, with the sites of the zoo's models.

Pytensor keeps a Python float in single precision where it fits, and takes its logarithm there, so that log p(x, z) is
off by 1e-7. Constants whose logarithms are needed are therefore NumPy's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.ppls_models import data_of

FOUR, FIVE, TEN = np.float64(4.0), np.float64(5.0), np.float64(10.0)


def _normal_normal(pm: Any, y: Any) -> None:
    pm.Normal("y", pm.Normal("mu", 5.0, 2.0), 0.22, observed=y)


def _gamma_poisson(pm: Any, deaths: Any) -> None:
    pm.Poisson("deaths", pm.Gamma("rate", alpha=2.0, beta=2.0), observed=deaths.astype(int))


def _logistic_regression(pm: Any, features: Any, labels: Any) -> None:
    coefficients = pm.Normal("coefficients", 0.0, 1.0, shape=features.shape[1])
    intercept = pm.Normal("intercept", 0.0, 1.0)
    pm.Bernoulli("labels", logit_p=features @ coefficients + intercept, observed=labels.astype(int))


def _robust_regression(pm: Any, x: Any, y: Any) -> None:
    intercept, slope = pm.Normal("intercept", 0.0, TEN), pm.Normal("slope", 0.0, TEN)
    pm.StudentT("y", FOUR, mu=intercept + slope * x, sigma=pm.HalfNormal("scale", FIVE), observed=y)


def _eight_schools(pm: Any, y: Any, sigma: Any) -> None:
    mu, tau = pm.Normal("mu", 0.0, FIVE), pm.HalfCauchy("tau", FIVE)
    eta = pm.Normal("eta", 0.0, 1.0, shape=len(y))
    pm.Normal("y", mu + tau * eta, sigma, observed=y)


PYMC_MODELS: dict[str, Callable[..., None]] = {
    "normal_normal": _normal_normal,
    "gamma_poisson": _gamma_poisson,
    "logistic_regression": _logistic_regression,
    "robust_regression": _robust_regression,
    "eight_schools_non_centred": _eight_schools,
}


def pymc_model(model: str) -> Any:
    """PyMC's model with its data."""
    import pymc as pm

    with pm.Model() as made:
        PYMC_MODELS[model](pm, *data_of(model))
    return made
