"""The fits of `benchmarks.ppls`: each system's, at its default and at the common setting, in growing numbers of steps.

A fit is a generator of `Snapshot`s. Seconds are of processor time, a compiler's included. What makes draws of a fit, to
measure it, is not counted.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ppls_models import data_of
from ppl_vi.approximations.approximation import Approximation

RATE, PARTICLES, STEPS = 0.01, 10, 10_000  # the common setting: Adam's step size, draws a step, steps
LADDER = (100, 300, 1000, 3000, 10_000)  # numbers of steps at which a fit is looked at
NUM_DRAWS = 4000
FAMILIES = {"AutoNormal": "mean field", "AutoMultivariateNormal": "full rank"}


@dataclass(frozen=True)
class Snapshot:
    """A fit after a number of steps.

    Attributes:
        steps: how many; 0 of a method that is not told how many to take.
        seconds: of processor time that they took.
        compile_seconds: of processor time before the first step: the model is traced and compiled.
        approximation: what was found.
    """

    steps: int
    seconds: float
    compile_seconds: float
    approximation: Approximation


def processor_seconds() -> float:
    """Of this process and of those that it has started and awaited."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def ladder_to(last: int) -> tuple[int, ...]:
    """The numbers of steps up to the last."""
    return (*(steps for steps in LADDER if steps < last), last)


def ppl_vi_fit(model: str, setting: str, family: str) -> Iterator[Snapshot]:
    """`ppl_vi.fit` at its defaults, which decides itself how many steps it takes."""
    import ppl_vi
    from models import ZOO

    target = ZOO[model]()
    began = processor_seconds()
    found = ppl_vi.fit(target, family)
    seconds = processor_seconds() - began
    began = processor_seconds()
    ppl_vi.fit(target, family, seed=1)
    again = processor_seconds() - began
    yield Snapshot(0, again, seconds - again, found.approximation(num=NUM_DRAWS))


def pyro_fit(model: str, setting: str, family: str) -> Iterator[Snapshot]:
    """Pyro's SVI; its default is that of the SVI tutorial: Adam of size 0.0005, one draw a step, 5000 steps."""
    import pyro
    import torch
    from pyro.infer import SVI, Trace_ELBO, autoguide

    from models import ZOO

    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    target = ZOO[model]()
    rate, particles, last = (0.0005, 1, 5000) if setting == "default" else (RATE, PARTICLES, STEPS)
    began = processor_seconds()
    guide = getattr(autoguide, family)(target.model)
    svi = SVI(target.model, guide, pyro.optim.Adam({"lr": rate}), Trace_ELBO(num_particles=particles))
    svi.step(*target.row(0))
    begun, seconds, done = processor_seconds() - began, 0.0, 1
    for steps in ladder_to(last):
        began = processor_seconds()
        for _ in range(steps - done):
            svi.step(*target.row(0))
        seconds, done = seconds + processor_seconds() - began, steps
        yield Snapshot(steps, seconds, begun, _of_pyro(target, guide))


def _of_pyro(target: Any, guide: Any) -> Approximation:
    import ppl_vi

    fit = ppl_vi.fit(target, ppl_vi.fitted(guide))
    return fit.approximation(num=NUM_DRAWS)


def numpyro_fit(model: str, setting: str, family: str) -> Iterator[Snapshot]:
    """NumPyro's SVI in a jitted loop; its default is that of `SVI`'s own example: Adam of size 0.0005, 2000 steps."""
    import jax
    import numpyro
    from numpyro.infer import SVI, Trace_ELBO, autoguide

    from benchmarks.ppls_numpyro_models import NUMPYRO_MODELS
    from ppl_vi.adapters.numpyro import approximation

    data, found = data_of(model), NUMPYRO_MODELS[model]
    rate, particles, last = (0.0005, 1, 2000) if setting == "default" else (RATE, PARTICLES, STEPS)
    began = processor_seconds()
    guide = getattr(autoguide, family)(found)
    svi = SVI(found, guide, numpyro.optim.Adam(rate), Trace_ELBO(num_particles=particles))
    advance = jax.jit(lambda state, num: jax.lax.fori_loop(0, num, lambda _, now: svi.update(now, *data)[0], state))
    state = jax.block_until_ready(advance(svi.init(jax.random.PRNGKey(0), *data), 1))
    begun, seconds, done = processor_seconds() - began, 0.0, 1
    for steps in ladder_to(last):
        began = processor_seconds()
        state = jax.block_until_ready(advance(state, steps - done))
        seconds, done = seconds + processor_seconds() - began, steps
        yield Snapshot(steps, seconds, begun, approximation(guide, svi.get_params(state), data, num_draws=NUM_DRAWS))


def pymc_fit(model: str, setting: str, family: str) -> Iterator[Snapshot]:
    """PyMC's ADVI: by default 10,000 steps of `adagrad_window` of size 0.001 with one draw each."""
    import pymc as pm

    from benchmarks.ppls_pymc_models import pymc_model
    from ppl_vi.adapters.pymc import approximation

    made, last = pymc_model(model), STEPS
    ladder, kept, spared = ladder_to(last), [], 0.0
    common = {"obj_n_mc": PARTICLES, "obj_optimizer": pm.adam(learning_rate=RATE)}

    def look(approx: Any, _: Any, step: int) -> None:
        """Keeps the parameters after the first step and those of the ladder; the time of this is spared."""
        nonlocal spared
        if step == 1 or step in ladder:
            now = processor_seconds()
            kept.append((step, now - began - spared, [value.get_value() for value in approx.params]))
            spared += processor_seconds() - now

    began = processor_seconds()
    with made:
        inference = {"mean field": pm.ADVI, "full rank": pm.FullRankADVI}[FAMILIES[family]](random_seed=0)
        settings = common if setting == "common" else {}
        inference.fit(last, callbacks=[look], progressbar=False, **settings)
    (_, begun, _), *rest = kept
    for steps, seconds, values in rest:
        for parameter, value in zip(inference.approx.params, values, strict=True):
            parameter.set_value(value)
        yield Snapshot(steps, seconds - begun, begun, approximation(inference.approx, num_draws=NUM_DRAWS))


def dadvi_fit(model: str, setting: str, family: str) -> Iterator[Snapshot]:
    """DADVI of pymc-extras: by default 30 fixed draws."""
    import pymc_extras

    from benchmarks.ppls_pymc_models import pymc_model
    from ppl_vi.adapters.pymc import approximation_of_dadvi

    made = pymc_model(model)

    def once() -> Any:
        return pymc_extras.fit(method="dadvi", model=made, random_seed=0, progressbar=False)

    tree, begun, seconds = _twice(once)
    yield Snapshot(0, seconds, begun, approximation_of_dadvi(tree, made, num_draws=NUM_DRAWS))


def pathfinder_fit(model: str, setting: str, family: str) -> Iterator[Snapshot]:
    """Pathfinder of pymc-extras: by default four paths and 1000 draws resampled by their importance."""
    import pymc_extras

    from benchmarks.ppls_pymc_models import pymc_model
    from ppl_vi.adapters.pymc import approximation_of_draws

    made = pymc_model(model)
    quiet = {"progressbar": False, "display_summary": False, "concurrent": None}

    def once() -> Any:
        return pymc_extras.fit_pathfinder(made, random_seed=0, **quiet)

    tree, begun, seconds = _twice(once)
    yield Snapshot(0, seconds, begun, approximation_of_draws(tree, made))


def _unconstrained(model: str) -> tuple[Callable[[Any], Any], Callable[[Any], Any], Any]:
    """The log density of NumPyro's model in unconstrained numbers, the latents as a function of them, and a start."""
    import jax
    from numpyro.infer.util import initialize_model

    from benchmarks.ppls_numpyro_models import NUMPYRO_MODELS

    made = initialize_model(jax.random.PRNGKey(0), NUMPYRO_MODELS[model], model_args=data_of(model))
    potential, constrain = made.potential_fn, made.postprocess_fn
    return lambda u: -potential(u), constrain, made.param_info.z


def blackjax_fit(model: str, setting: str, family: str) -> Iterator[Snapshot]:
    """BlackJAX's mean-field VI: by default 100 draws a step. It has no step size of its own: Adam of 0.01 is taken."""
    import blackjax
    import jax
    import optax

    from ppl_vi.adapters.blackjax import approximation_of_meanfield

    began = processor_seconds()
    density, constrain, start = _unconstrained(model)
    num = {"num_samples": PARTICLES} if setting == "common" else {}
    algorithm = blackjax.meanfield_vi(density, optax.adam(RATE), **num)

    def step(_: Any, carried: tuple[Any, Any]) -> tuple[Any, Any]:
        key, now = jax.random.split(carried[0])
        return key, algorithm.step(now, carried[1])[0]

    advance = jax.jit(lambda carried, count: jax.lax.fori_loop(0, count, step, carried))
    carried = jax.block_until_ready(advance((jax.random.PRNGKey(0), algorithm.init(start)), 1))
    begun, seconds, done = processor_seconds() - began, 0.0, 1
    for steps in ladder_to(STEPS):
        began = processor_seconds()
        carried = jax.block_until_ready(advance(carried, steps - done))
        seconds, done = seconds + processor_seconds() - began, steps
        found = approximation_of_meanfield(carried[1], constrain, num_draws=NUM_DRAWS)
        yield Snapshot(steps, seconds, begun, found)


def blackjax_pathfinder_fit(model: str, setting: str, family: str) -> Iterator[Snapshot]:
    """BlackJAX's Pathfinder of one path: by default 200 draws for each ELBO."""
    import blackjax
    import jax

    from ppl_vi.adapters.blackjax import approximation_of_pathfinder

    density, constrain, start = _unconstrained(model)

    def once() -> Any:
        return jax.block_until_ready(blackjax.vi.pathfinder.approximate(jax.random.PRNGKey(0), density, start)[0])

    state, begun, seconds = _twice(once)
    yield Snapshot(0, seconds, begun, approximation_of_pathfinder(state, constrain, num_draws=NUM_DRAWS))


def stan_fit(model: str, setting: str, family: str) -> Iterator[Snapshot]:
    """Stan's ADVI by rstan, which decides itself how many steps it takes, up to 10,000."""
    from benchmarks.ppls_stan_models import stan_model
    from models import ZOO
    from ppl_vi.adapters.stan import advi, approximation

    algorithm = {"mean field": "meanfield", "full rank": "fullrank"}[FAMILIES[family]]
    with tempfile.TemporaryDirectory() as folder:
        fitted = advi(*stan_model(model), Path(folder, "vb.csv"), algorithm=algorithm)
        found = approximation(fitted.csv, ZOO[model](), num_draws=NUM_DRAWS, system=fitted.system)
    yield Snapshot(0, fitted.seconds, fitted.compile_seconds, found)


def _twice(once: Callable[[], Any]) -> tuple[Any, float, float]:
    """What a function returns, the seconds that its second call saves, and those of the second call."""
    began = processor_seconds()
    found = once()
    first = processor_seconds() - began
    began = processor_seconds()
    once()
    second = processor_seconds() - began
    return found, first - second, second
