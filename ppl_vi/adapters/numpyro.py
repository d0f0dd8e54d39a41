"""NumPyro: an `Approximation` from any guide with its parameters, and log p(x, z) of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ppl_vi.approximations.approximation import Approximation, Draws


def approximation(
    guide: Callable[..., Any],
    params: Mapping[str, Any],
    args: Sequence[Any] = (),
    *,
    kwargs: Mapping[str, Any] | None = None,
    num_draws: int = 10_000,
    seed: int = 0,
    name: str = "",
    seconds: float | None = None,
) -> Approximation:
    """Draws of a NumPyro guide, and log q of each where the guide states a density over the latents alone.

    The guide is run once for each draw, with its parameters put in and its samples recorded. log q is the sum of
    `log_prob` over the recorded sites. `AutoNormal` records the latents themselves. The continuous autoguides record
    one auxiliary vector u and, for each latent z = T(u), a point mass with log density -log |dT/du|: the sum is
    log q(z) = log q(u) - log |dz/du|, a density over the constrained latents. Where a guide has other auxiliary
    variables, as `AutoDAIS` has, the sum is a density over these as well, and log q is left unknown.

    Args:
        guide: an autoguide or a guide function. An autoguide has been set up, as it is after `SVI.run`.
        params: what `SVI.get_params` or `SVI.run(...).params` has: on the parameters' own supports.
        args, kwargs: what the guide is called with.
        num_draws: how many draws there are.
        seed: of the draws.
        name: what tables call it; the guide's class or name by default.
        seconds: what the fit took.

    Raises:
        ImportError: NumPyro is not installed.
        ValueError: the guide draws nothing.
    """
    import jax
    import numpyro
    from numpyro import handlers

    def one(key: Any) -> tuple[dict[str, Any], Any]:
        with handlers.block():
            program = handlers.substitute(handlers.seed(guide, key), data=dict(params))
            trace = handlers.trace(program).get_trace(*args, **(kwargs or {}))
        sites = {key: site for key, site in trace.items() if _is_drawn(site)}
        return {key: site["value"] for key, site in sites.items()}, sum(_log_prob(site) for site in sites.values())

    with handlers.block(), handlers.seed(rng_seed=0), handlers.substitute(data=dict(params)):
        shown = handlers.trace(guide).get_trace(*args, **(kwargs or {}))
    latents = [key for key, site in shown.items() if _is_drawn(site) and not _is_auxiliary(site)]
    if not latents:
        raise ValueError("the guide draws no latent: expected a guide with sites of type 'sample'")
    values, log_q = jax.jit(jax.vmap(one))(jax.random.split(jax.random.PRNGKey(seed), num_draws))
    draws: Draws = {key: np.asarray(values[key])[None] for key in latents}
    density = np.asarray(log_q)[None] if _is_over_latents(shown, getattr(guide, "latent_dim", None)) else None
    called = name or f"NumPyro {getattr(guide, '__name__', type(guide).__name__)}"
    return Approximation(draws, density, called, f"numpyro {numpyro.__version__}", seconds)


def log_joint(
    model: Callable[..., Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
) -> Callable[[Draws], np.ndarray]:
    """log p(x, z) of a NumPyro model, nats, as a function of latents `{site: (N, *shape)}` that returns `(N,)`.

    The latents are on their own supports, and no Jacobian is added: what `ppl_vi.same_density` compares, called with
    `vectorised=True`. Plates that take a subsample of their data are taken as the model has them.

    Raises:
        ImportError: NumPyro is not installed.
    """
    import jax
    from numpyro.infer.util import log_density

    density = jax.jit(jax.vmap(lambda latents: log_density(model, tuple(args), dict(kwargs or {}), latents)[0]))
    return lambda latents: np.asarray(density({key: jax.numpy.asarray(value) for key, value in latents.items()}))


def _is_drawn(site: Mapping[str, Any]) -> bool:
    return site["type"] == "sample" and not site.get("is_observed", False)


def _is_auxiliary(site: Mapping[str, Any]) -> bool:
    return bool((site.get("infer") or {}).get("is_auxiliary", False))


def _is_point(site: Mapping[str, Any]) -> bool:
    fn = site["fn"]
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn).__name__ == "Delta"


def _log_prob(site: Mapping[str, Any]) -> Any:
    return site["fn"].log_prob(site["value"]).sum()


def _is_over_latents(trace: Mapping[str, Mapping[str, Any]], latent_dim: int | None) -> bool:
    """Whether the density of the recorded sites is one over the latents alone."""
    drawn = [site for site in trace.values() if _is_drawn(site)]
    auxiliary = [site for site in drawn if _is_auxiliary(site)]
    points = [site for site in drawn if _is_point(site) and not _is_auxiliary(site)]
    if not auxiliary:
        return not points
    all_points = len(points) == len(drawn) - len(auxiliary)
    return all_points and latent_dim is not None and sum(np.size(site["value"]) for site in auxiliary) == latent_dim
