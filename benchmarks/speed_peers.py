"""The problems and guides of `benchmarks.speed` in NumPyro and PyMC. Rows of a library that isn't installed say so."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.speed_case import Case, MissingError
from benchmarks.speed_engines import target_of
from benchmarks.speed_problems import FORMS, RATE, SLOWING, START_SCALE, initial
from ppl_vi.svi.engines.adam import BETA1, BETA2, EPS


def _require(*packages: str) -> None:
    absent = [package for package in packages if importlib.util.find_spec(package) is None]
    if absent:
        raise MissingError(f"not installed: {', '.join(absent)}")


def _data(case: Case) -> list[np.ndarray]:
    return [value.numpy() for value in target_of(case).row(0)]


# ---- NumPyro


def _numpyro_toy(x: Any) -> None:
    import numpyro
    import numpyro.distributions as dist

    z = numpyro.sample("z", dist.Exponential(1.0))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def _numpyro_eight_schools(y: Any, sigma: Any) -> None:
    import numpyro
    import numpyro.distributions as dist

    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def _numpyro_logistic_regression(features: Any, labels: Any) -> None:
    import numpyro
    import numpyro.distributions as dist

    coefficients = numpyro.sample("coefficients", dist.Normal(0.0, 1.0).expand([features.shape[-1]]).to_event(1))
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(labels)):
        numpyro.sample("labels", dist.Bernoulli(logits=features @ coefficients + intercept), obs=labels)


def _numpyro_gaussian(y: Any) -> None:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([len(y)]).to_event(1))
    numpyro.sample("y", dist.Normal(z + jnp.pad(z[:-1], (1, 0)), 1.0).to_event(1), obs=y)


NUMPYRO_MODELS: dict[str, Callable[..., None]] = {
    "toy": _numpyro_toy,
    "eight_schools": _numpyro_eight_schools,
    "logistic_regression": _numpyro_logistic_regression,
    "gaussian": _numpyro_gaussian,
}


def _lognormal(loc: Any, scale: Any) -> Any:
    import numpyro.distributions as dist

    return dist.LogNormal(loc, scale)


def _gamma(mean: Any, concentration: Any) -> Any:
    import numpyro.distributions as dist

    return dist.Gamma(concentration, concentration / mean)


def _truncated_normal(mode: Any, curvature: Any) -> Any:
    import numpyro.distributions as dist

    return dist.TruncatedNormal(mode * (1 - 1 / curvature), mode / curvature**0.5, low=0.0)


NUMPYRO_FORMS: dict[str, Callable[..., Any]] = {  # by name, with the same parameters as the families of `ppl_vi.guides`
    "lognormal": _lognormal,
    "gamma": _gamma,
    "truncated_normal": _truncated_normal,
}


def _numpyro_function(name: str, dtype: str) -> Callable[..., None]:
    import numpyro
    from numpyro.distributions import constraints

    start = {key: value.numpy() for key, value in initial(FORMS[name], getattr(torch, dtype)).items()}
    kinds = {key: getattr(constraints, "real" if key == "loc" else "positive") for key in start}

    def guide(*_: Any) -> None:
        values = {key: numpyro.param(key, value, constraint=kinds[key]) for key, value in start.items()}
        numpyro.sample("z", NUMPYRO_FORMS[name](**values))

    return guide


def _numpyro_guide(case: Case, model: Callable[..., None]) -> Any:
    from jax.example_libraries import stax
    from numpyro.infer import autoguide, init_to_uniform

    if case.guide in FORMS:
        return _numpyro_function(case.guide, case.dtype)
    start = init_to_uniform(radius=0.0)
    if case.guide == "AutoIAFNormal":  # the architecture that Pyro's has: one flow, 3 D + 1 hidden units, ReLU
        hidden = [3 * target_of(case).dim + 1]
        return autoguide.AutoIAFNormal(
            model, init_loc_fn=start, num_flows=1, hidden_dims=hidden, nonlinearity=stax.Relu
        )
    return getattr(autoguide, case.guide)(model, init_loc_fn=start, init_scale=START_SCALE)


class NumPyroLoop:
    """NumPyro's `SVI.update` for all replicas by `vmap`, each with its own random key, in one compiled `fori_loop`."""

    def __init__(self, case: Case) -> None:
        _require("jax", "numpyro")
        import jax
        import numpyro
        from numpyro.infer import SVI, Trace_ELBO

        model, data = NUMPYRO_MODELS[case.problem], [jax.numpy.array(value) for value in _data(case)]
        adam = numpyro.optim.Adam(lambda t: RATE / jax.numpy.sqrt(1 + t / SLOWING), BETA1, BETA2, EPS)
        svi = SVI(model, _numpyro_guide(case, model), adam, Trace_ELBO(num_particles=case.num_particles))
        state = svi.init(jax.random.PRNGKey(0), *data)
        keys = jax.random.split(state.rng_key, case.replicas)
        self._state = jax.tree.map(lambda leaf: _repeated(leaf, case.replicas), state)._replace(rng_key=keys)
        self._svi, self._case = svi, case

        def step(_: Any, state: Any) -> Any:
            return jax.vmap(lambda one: svi.update(one, *data)[0])(state)

        self._steps = jax.jit(lambda state, num: jax.lax.fori_loop(0, num, step, state), donate_argnums=0)

    def advance(self, num_steps: int) -> None:
        """As in `Loop`."""
        import jax

        self._state = jax.block_until_ready(self._steps(self._state, num_steps))

    def parameters(self) -> dict[str, Tensor]:
        """As in `Loop`."""
        import jax

        params = jax.vmap(self._svi.get_params)(self._state)
        values = {name: torch.from_numpy(np.array(value)) for name, value in params.items() if hasattr(value, "shape")}
        if self._case.guide in FORMS:
            return values
        if self._case.guide not in NUMPYRO_GAUSSIANS:
            raise MissingError("the guide is not Gaussian in unconstrained space")
        return NUMPYRO_GAUSSIANS[self._case.guide](self._case, values)


def _repeated(leaf: Any, num: int) -> Any:
    import jax.numpy as jnp

    return jnp.repeat(jnp.asarray(leaf)[None], num, 0)


def _independent(case: Case, values: dict[str, Tensor]) -> dict[str, Tensor]:
    names = [site.name for site in target_of(case).latents]

    def part(kind: str) -> Tensor:
        return torch.cat([values[f"{name}_auto_{kind}"].reshape(case.replicas, -1) for name in names], 1)

    return {"loc": part("loc"), "factor": torch.diag_embed(part("scale"))}


def _dense(case: Case, values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"loc": values["auto_loc"], "factor": values["auto_scale_tril"]}


def _low_rank(case: Case, values: dict[str, Tensor]) -> dict[str, Tensor]:
    scale = values["auto_scale"]
    factor = torch.cat([values["auto_cov_factor"] * scale[..., None], torch.diag_embed(scale)], -1)
    return {"loc": values["auto_loc"], "factor": factor}


NUMPYRO_GAUSSIANS: dict[str, Callable[[Case, dict[str, Tensor]], dict[str, Tensor]]] = {
    "AutoNormal": _independent,
    "AutoMultivariateNormal": _dense,
    "AutoLowRankMultivariateNormal": _low_rank,
}


def numpyro_loop(case: Case) -> NumPyroLoop:
    """The engine that takes steps by NumPyro's SVI."""
    return NumPyroLoop(case)


# ---- PyMC


def _pymc_toy(pm: Any, x: Any) -> None:
    z = pm.Exponential("z", 1.0)
    pm.Normal("x", z, 1.0, observed=x)


def _pymc_eight_schools(pm: Any, y: Any, sigma: Any) -> None:
    mu, tau = pm.Normal("mu", 0.0, 5.0), pm.HalfCauchy("tau", 5.0)
    theta = pm.Normal("theta", mu, tau, shape=len(y))
    pm.Normal("y", theta, sigma, observed=y)


def _pymc_logistic_regression(pm: Any, features: Any, labels: Any) -> None:
    coefficients = pm.Normal("coefficients", 0.0, 1.0, shape=features.shape[1])
    intercept = pm.Normal("intercept", 0.0, 1.0)
    pm.Bernoulli("labels", logit_p=features @ coefficients + intercept, observed=labels.astype(int))


PYMC_MODELS: dict[str, Callable[..., None]] = {
    "toy": _pymc_toy,
    "eight_schools": _pymc_eight_schools,
    "logistic_regression": _pymc_logistic_regression,
}
PYMC_GUIDES = {"lognormal": "ADVI", "AutoNormal": "ADVI", "AutoMultivariateNormal": "FullRankADVI"}


class PyMCLoop:
    """The compiled step of PyMC's ADVI, for one fit. PyMC's Adam keeps its first step size, which never falls."""

    def __init__(self, case: Case) -> None:
        _require("pymc")
        if case.guide not in PYMC_GUIDES or case.problem not in PYMC_MODELS:
            raise MissingError(f"PyMC's ADVI has no guide like {case.guide}")
        import pymc as pm

        with pm.Model():
            PYMC_MODELS[case.problem](pm, *_data(case))
            inference = getattr(pm, PYMC_GUIDES[case.guide])(random_seed=0)
        adam = pm.adam(learning_rate=RATE, beta1=BETA1, beta2=BETA2, epsilon=EPS)
        # With the loss, as `pm.fit` has it: PyMC renews the draws of what a function returns, and a step that returns
        # nothing takes the same draws for ever.
        self._step = inference.objective.step_function(obj_n_mc=case.num_particles, obj_optimizer=adam, score=True)

    def advance(self, num_steps: int) -> None:
        """As in `Loop`."""
        for _ in range(num_steps):
            self._step()

    def parameters(self) -> dict[str, Tensor]:
        """As in `Loop`."""
        raise MissingError("PyMC's Adam keeps its first step size, so its fit stays noisy")


def pymc_loop(case: Case) -> PyMCLoop:
    """The engine that takes steps by PyMC's ADVI."""
    return PyMCLoop(case)
