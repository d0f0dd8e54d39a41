"""The models of `benchmarks.ppls` in PyMC, with the sites of the zoo's models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.ppls_models import data_of


def _normal_normal(pm: Any, y: Any) -> None:
    pm.Normal("y", pm.Normal("mu", 5.0, 2.0), 0.22, observed=y)


def _gamma_poisson(pm: Any, deaths: Any) -> None:
    pm.Poisson("deaths", pm.Gamma("rate", alpha=2.0, beta=2.0), observed=deaths.astype(int))


def _logistic_regression(pm: Any, features: Any, labels: Any) -> None:
    coefficients = pm.Normal("coefficients", 0.0, 1.0, shape=features.shape[1])
    intercept = pm.Normal("intercept", 0.0, 1.0)
    pm.Bernoulli("labels", logit_p=features @ coefficients + intercept, observed=labels.astype(int))


def _robust_regression(pm: Any, x: Any, y: Any) -> None:
    intercept, slope = pm.Normal("intercept", 0.0, 10.0), pm.Normal("slope", 0.0, 10.0)
    pm.StudentT("y", 4.0, mu=intercept + slope * x, sigma=pm.HalfNormal("scale", 5.0), observed=y)


def _eight_schools(pm: Any, y: Any, sigma: Any) -> None:
    mu, tau = pm.Normal("mu", 0.0, 5.0), pm.HalfCauchy("tau", 5.0)
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
