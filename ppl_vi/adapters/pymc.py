"""PyMC and pymc-extras: an `Approximation` from ADVI, full-rank ADVI, Pathfinder and DADVI, and log p(x, z) of a model.

PyMC fits in unconstrained numbers u; `z = T(u)` by the transforms that its model has. log q(z) is that of the Gaussian
at u less log |dz/du|, both computed by PyMC's own transforms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ppl_vi.approximations.approximation import Approximation, Draws

GAUSSIAN = ("MeanField", "FullRank")


def approximation(
    fitted: Any,
    *,
    num_draws: int = 10_000,
    seed: int = 0,
    name: str = "",
    seconds: float | None = None,
) -> Approximation:
    """Draws of what `pm.fit` returns, with log q of each where it is a mean-field or full-rank Gaussian.

    Args:
        fitted: an approximation of PyMC. Of others, as of SVGD's particles, there are draws alone.
        num_draws: how many draws there are.
        seed: of the draws.
        name: what tables call it; its class by default.
        seconds: what the fit took.

    Raises:
        ImportError: PyMC is not installed.
    """
    import pymc

    kind, model = type(fitted).__name__, fitted.model
    made: dict[str, Any] = {"name": name or f"PyMC {kind}", "system": f"pymc {pymc.__version__}", "seconds": seconds}
    if kind not in GAUSSIAN:
        posterior = fitted.sample(num_draws, random_seed=seed, return_inferencedata=True).posterior
        return Approximation(_of_sites(posterior, model), None, **made)
    covariance = np.diag(fitted.std.eval() ** 2) if kind == "MeanField" else fitted.cov.eval()
    (group,) = fitted.groups
    places = {key: (where, shape) for key, where, shape, _ in group.ordering.values()}
    return _gaussian(model, fitted.mean.eval(), np.linalg.cholesky(covariance), places, num_draws, seed, made)


def approximation_of_dadvi(
    tree: Any,
    model: Any,
    *,
    num_draws: int = 10_000,
    seed: int = 0,
    name: str = "PyMC DADVI",
    seconds: float | None = None,
) -> Approximation:
    """Draws of what `pymc_extras.fit_dadvi` has found, with log q of each: the mean-field Gaussian of its optimum.

    Args:
        tree: what `fit_dadvi` returns: its group `optimizer_result` has means and logarithms of sds, one after the
            other, of the unconstrained numbers in the order of the model's value variables.
        model: PyMC's model.
        num_draws, seed, name, seconds: as `approximation` has them.

    Raises:
        ImportError: PyMC or pymc-extras is not installed.
        ValueError: there is no optimum of twice as many numbers as the model has.
    """
    import pymc_extras

    start = model.initial_point()
    ends = np.cumsum([0, *(np.size(value) for value in start.values())])
    found = np.asarray(tree.optimizer_result["x"].values).ravel()
    if len(found) != 2 * ends[-1]:
        raise ValueError(
            f"DADVI's optimum must have {2 * ends[-1]} numbers, two for each of the model; got {len(found)}"
        )
    places = {key: (slice(ends[k], ends[k + 1]), np.shape(value)) for k, (key, value) in enumerate(start.items())}
    made = {"name": name, "system": f"pymc-extras {pymc_extras.__version__}", "seconds": seconds}
    mean, log_sd = np.split(found, 2)
    return _gaussian(model, mean, np.diag(np.exp(log_sd)), places, num_draws, seed, made)


def approximation_of_draws(
    tree: Any, model: Any, *, name: str = "PyMC Pathfinder", seconds: float | None = None
) -> Approximation:
    """The draws in the group `posterior` of what pymc-extras' `fit_pathfinder` and others return.

    By default Pathfinder's draws are resampled by Pareto-smoothed importance weights: what they are of has no density
    that is known, and log q is None.

    Raises:
        ImportError: pymc-extras is not installed.
    """
    import pymc_extras

    return Approximation(
        _of_sites(tree.posterior, model), None, name, f"pymc-extras {pymc_extras.__version__}", seconds
    )


def log_joint(model: Any) -> Callable[[Draws], np.ndarray]:
    """log p(x, z) of a PyMC model, nats, as a function of latents `{site: (N, *shape)}` that returns `(N,)`.

    The latents are on their own supports, and no Jacobian is added: what `ppl_vi.same_density` compares, called with
    `vectorised=True`.

    Raises:
        ImportError: PyMC is not installed.
    """
    values = {variable.name: model.rvs_to_values[variable] for variable in model.free_RVs}
    transforms = {variable.name: model.rvs_to_transforms[variable] for variable in model.free_RVs}
    inputs = {variable.name: variable.type(f"{variable.name}_own") for variable in model.free_RVs}
    parents = {variable.name: variable.owner.inputs for variable in model.free_RVs}
    moved = {
        values[key]: inputs[key] if transforms[key] is None else transforms[key].forward(inputs[key], *parents[key])
        for key in inputs
    }
    from pytensor import function
    from pytensor.graph.replace import graph_replace

    density = graph_replace([model.logp(jacobian=False)], moved, strict=False)[0]
    run = function(list(inputs.values()), density, on_unused_input="ignore")

    def of_points(latents: Draws) -> np.ndarray:
        rows = zip(*(latents[key] for key in inputs), strict=True)
        return np.array([float(run(*row)) for row in rows])

    return of_points


def _gaussian(
    model: Any,
    mean: np.ndarray,
    scale: np.ndarray,
    places: Mapping[str, tuple[slice, tuple[int, ...]]],
    num_draws: int,
    seed: int,
    made: Mapping[str, Any],
) -> Approximation:
    """Draws z of a Gaussian of unconstrained numbers, mean + scale noise, and log q(z)."""
    noise = np.random.default_rng(seed).standard_normal((num_draws, len(mean)))
    u = mean + noise @ scale.T
    by_name = {key: u[:, where].reshape(num_draws, *shape) for key, (where, shape) in places.items()}
    draws, log_jacobian = _constrained(model, by_name)
    constant = np.log(np.diag(scale)).sum() + len(mean) * np.log(2 * np.pi) / 2
    log_q = -(noise**2).sum(1) / 2 - constant - log_jacobian
    return Approximation({key: value[None] for key, value in draws.items()}, log_q[None], **made)


def _constrained(model: Any, unconstrained: Draws) -> tuple[Draws, np.ndarray]:
    """The latents on their own supports, and log |dz/du| of all of them, `(N,)`, by PyMC's transforms."""
    import pytensor.tensor as pt
    from pytensor import function
    from pytensor.graph.replace import vectorize_graph

    names, outputs, log_det = [], [], pt.zeros(())
    for variable in model.free_RVs:
        value, transform = model.rvs_to_values[variable], model.rvs_to_transforms[variable]
        inputs = variable.owner.inputs
        names.append(variable.name)
        outputs.append(value if transform is None else transform.backward(value, *inputs))
        if transform is not None:
            log_det = log_det + transform.log_jac_det(value, *inputs).sum()
    outputs = model.replace_rvs_by_values([*outputs, log_det])
    values = [model.rvs_to_values[variable] for variable in model.free_RVs]
    many = [pt.tensor(value.name, shape=(None, *value.type.shape), dtype=value.dtype) for value in values]
    found = vectorize_graph(outputs, replace=dict(zip(values, many, strict=True)))
    run = function(many, found, mode="FAST_COMPILE", on_unused_input="ignore")
    *latents, log_jacobian = run(*(unconstrained[value.name] for value in values))
    num = len(next(iter(unconstrained.values())))
    return dict(zip(names, latents, strict=True)), np.broadcast_to(log_jacobian, num)


def _of_sites(posterior: Any, model: Any) -> Draws:
    return {
        variable.name: np.asarray(posterior[variable.name].transpose("chain", "draw", ...).values)
        for variable in model.free_RVs
    }
