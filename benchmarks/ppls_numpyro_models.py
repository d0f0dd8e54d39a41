"""The models of `benchmarks.ppls` in NumPyro, with the sites of the zoo's models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _normal_normal(y: Any) -> None:
    import numpyro
    import numpyro.distributions as dist

    mu = numpyro.sample("mu", dist.Normal(5.0, 2.0))
    with numpyro.plate("weighings", len(y)):
        numpyro.sample("y", dist.Normal(mu, 0.22), obs=y)


def _gamma_poisson(deaths: Any) -> None:
    import numpyro
    import numpyro.distributions as dist

    rate = numpyro.sample("rate", dist.Gamma(2.0, 2.0))
    with numpyro.plate("years", len(deaths)):
        numpyro.sample("deaths", dist.Poisson(rate), obs=deaths)


def _logistic_regression(features: Any, labels: Any) -> None:
    import numpyro
    import numpyro.distributions as dist

    coefficients = numpyro.sample("coefficients", dist.Normal(0.0, 1.0).expand([features.shape[-1]]).to_event(1))
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(labels)):
        numpyro.sample("labels", dist.Bernoulli(logits=features @ coefficients + intercept), obs=labels)


def _robust_regression(x: Any, y: Any) -> None:
    import numpyro
    import numpyro.distributions as dist

    intercept = numpyro.sample("intercept", dist.Normal(0.0, 10.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 10.0))
    scale = numpyro.sample("scale", dist.HalfNormal(5.0))
    with numpyro.plate("years", len(y)):
        numpyro.sample("y", dist.StudentT(4.0, intercept + slope * x, scale), obs=y)


def _eight_schools(y: Any, sigma: Any) -> None:
    import numpyro
    import numpyro.distributions as dist

    mu, tau = numpyro.sample("mu", dist.Normal(0.0, 5.0)), numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(y)):
        eta = numpyro.sample("eta", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)


NUMPYRO_MODELS: dict[str, Callable[..., None]] = {
    "normal_normal": _normal_normal,
    "gamma_poisson": _gamma_poisson,
    "logistic_regression": _logistic_regression,
    "robust_regression": _robust_regression,
    "eight_schools_non_centred": _eight_schools,
}
