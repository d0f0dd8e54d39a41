"""The models of `speed_models.py` in NumPyro and PyMC, and whole runs of them.

The label of the mixture is summed out by hand in both: PyMC's ADVI has no enumeration, and NumPyro's needs another
package. The density is that which Pyro's enumeration gives.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.speed_models import JITTER, NUM_GROUPS, data_of

RATE = 0.05  # the size of their Adam's steps

# ---- NumPyro


def _numpyro_poisson(features: Any, counts: Any) -> None:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    weights = numpyro.sample("weights", dist.Normal(jnp.zeros(5), 1.0).to_event(1))
    with numpyro.plate("rows", len(counts)):
        numpyro.sample("counts", dist.Poisson(jnp.exp(features @ weights)), obs=counts)


def _numpyro_logistic(features: Any, labels: Any) -> None:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    weights = numpyro.sample("weights", dist.Normal(jnp.zeros(4), 1.0).to_event(1))
    with numpyro.plate("rows", len(labels)):
        numpyro.sample("labels", dist.Bernoulli(logits=features @ weights), obs=labels)


def _numpyro_hierarchy(y: Any, group: Any) -> None:
    import numpyro
    import numpyro.distributions as dist

    mean, scale = numpyro.sample("mean", dist.Normal(0.0, 5.0)), numpyro.sample("scale", dist.HalfCauchy(5.0))
    with numpyro.plate("groups", NUM_GROUPS):
        effect = numpyro.sample("effect", dist.Normal(mean, scale))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(effect[group], 1.0), obs=y)


def _numpyro_negative_binomial(features: Any, counts: Any) -> None:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    intercept = numpyro.sample("intercept", dist.Normal(0.0, 2.0))
    weights = numpyro.sample("weights", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    dispersion = numpyro.sample("dispersion", dist.Gamma(2.0, 0.5))
    with numpyro.plate("rows", len(counts)):
        rate = dispersion * jnp.exp(-intercept - features @ weights)
        numpyro.sample("counts", dist.GammaPoisson(dispersion, rate), obs=counts)


def _numpyro_mixture(y: Any) -> None:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    share = numpyro.sample("share", dist.Beta(2.0, 2.0))
    low, step = numpyro.sample("low", dist.Normal(0.0, 3.0)), numpyro.sample("step", dist.LogNormal(0.5, 0.7))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5))
    shares = dist.Categorical(jnp.stack([1 - share, share]))
    with numpyro.plate("rows", len(y)):
        parts = dist.Normal(jnp.stack([low, low + step]), scale)
        numpyro.sample("y", dist.MixtureSameFamily(shares, parts), obs=y)


def _numpyro_gaussian_process(x: Any, y: Any) -> None:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    length = numpyro.sample("length", dist.LogNormal(0.0, 0.7))
    height = numpyro.sample("height", dist.LogNormal(0.0, 0.7))
    noise = numpyro.sample("noise", dist.LogNormal(-1.0, 0.7))
    kernel = height**2 * jnp.exp(-((x[:, None] - x) ** 2) / (2 * length**2))
    covariance = kernel + (noise**2 + JITTER) * jnp.eye(len(x))
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), covariance), obs=y)


NUMPYRO_MODELS: dict[str, Callable[..., None]] = {
    "poisson": _numpyro_poisson,
    "logistic": _numpyro_logistic,
    "hierarchy": _numpyro_hierarchy,
    "negative_binomial": _numpyro_negative_binomial,
    "mixture": _numpyro_mixture,
    "gaussian_process": _numpyro_gaussian_process,
}


def numpyro_svi(model: str, particles: int) -> Any:
    """NumPyro's SVI of a model with AutoNormal, in double precision."""
    import jax
    import numpyro
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoNormal

    jax.config.update("jax_enable_x64", True)
    found = NUMPYRO_MODELS[model]
    return SVI(found, AutoNormal(found), numpyro.optim.Adam(RATE), Trace_ELBO(num_particles=particles))


def numpyro_loop(model: str, rows: int, replicas: int, particles: int, steps: int) -> Callable[[], Any]:
    """`SVI.init` and a `fori_loop` of `SVI.update`, mapped over the fits, all jitted: the first run compiles."""
    import jax

    svi, data = numpyro_svi(model, particles), data_of(model, rows)

    def one(key: Any, *data: Any) -> Any:
        state = svi.init(key, *data)
        return jax.lax.fori_loop(0, steps, lambda _, now: svi.update(now, *data)[0], state).optim_state

    run = jax.jit(jax.vmap(one, in_axes=(0, *[None] * len(data))))
    keys, held = jax.random.split(jax.random.PRNGKey(0), replicas), [jax.numpy.asarray(part) for part in data]
    return lambda: jax.block_until_ready(run(keys, *held))


def numpyro_run(model: str, rows: int, particles: int, steps: int) -> Callable[[], Any]:
    """NumPyro's `SVI.run` as a user calls it, without its progress bar: it traces and compiles at every call."""
    import jax

    svi, data = numpyro_svi(model, particles), data_of(model, rows)
    return lambda: jax.block_until_ready(svi.run(jax.random.PRNGKey(0), steps, *data, progress_bar=False).params)


# ---- PyMC


def _pymc_poisson(pm: Any, features: Any, counts: Any) -> None:
    weights = pm.Normal("weights", 0.0, 1.0, shape=5)
    pm.Poisson("counts", pm.math.exp(features @ weights), observed=counts)


def _pymc_logistic(pm: Any, features: Any, labels: Any) -> None:
    weights = pm.Normal("weights", 0.0, 1.0, shape=4)
    pm.Bernoulli("labels", logit_p=features @ weights, observed=labels.astype(int))


def _pymc_hierarchy(pm: Any, y: Any, group: Any) -> None:
    mean, scale = pm.Normal("mean", 0.0, 5.0), pm.HalfCauchy("scale", 5.0)
    effect = pm.Normal("effect", mean, scale, shape=NUM_GROUPS)
    pm.Normal("y", effect[group], 1.0, observed=y)


def _pymc_negative_binomial(pm: Any, features: Any, counts: Any) -> None:
    intercept, weights = pm.Normal("intercept", 0.0, 2.0), pm.Normal("weights", 0.0, 1.0, shape=3)
    dispersion = pm.Gamma("dispersion", 2.0, 0.5)
    pm.NegativeBinomial("counts", mu=pm.math.exp(intercept + features @ weights), alpha=dispersion, observed=counts)


def _pymc_mixture(pm: Any, y: Any) -> None:
    share = pm.Beta("share", 2.0, 2.0)
    low, step = pm.Normal("low", 0.0, 3.0), pm.LogNormal("step", 0.5, 0.7)
    scale = pm.LogNormal("scale", 0.0, 0.5)
    means = pm.math.stack([low, low + step])
    pm.NormalMixture("y", w=pm.math.stack([1 - share, share]), mu=means, sigma=scale, observed=y)


def _pymc_gaussian_process(pm: Any, x: Any, y: Any) -> None:
    import numpy as np

    length, height = pm.LogNormal("length", 0.0, 0.7), pm.LogNormal("height", 0.0, 0.7)
    noise = pm.LogNormal("noise", -1.0, 0.7)
    kernel = height**2 * pm.math.exp(-((x[:, None] - x) ** 2) / (2 * length**2))
    covariance = kernel + (noise**2 + JITTER) * np.eye(len(x))
    pm.MvNormal("y", np.zeros(len(x)), cov=covariance, observed=y)


PYMC_MODELS: dict[str, Callable[..., None]] = {
    "poisson": _pymc_poisson,
    "logistic": _pymc_logistic,
    "hierarchy": _pymc_hierarchy,
    "negative_binomial": _pymc_negative_binomial,
    "mixture": _pymc_mixture,
    "gaussian_process": _pymc_gaussian_process,
}


def pymc_model(model: str, rows: int) -> Any:
    """PyMC's model with its data."""
    import pymc as pm

    with pm.Model() as made:
        PYMC_MODELS[model](pm, *data_of(model, rows))
    return made


def pymc_run(model: str, rows: int, particles: int, steps: int) -> Callable[[], Any]:
    """`pm.fit` by ADVI, without its progress bar: it compiles at every call, for which it keeps code on the disk."""
    import pymc as pm

    adam = pm.adam(learning_rate=RATE)
    settings = {"n": steps, "obj_n_mc": particles, "obj_optimizer": adam, "progressbar": False, "random_seed": 0}
    return partial(pm.fit, method="advi", model=pymc_model(model, rows), **settings)
