"""BlackJAX: an `Approximation` from its mean-field VI and its Pathfinder.

BlackJAX fits a density of unconstrained numbers u, a pytree, that the user gives it. The user says what the latents
are, `z = T(u)`; log q(z) is log q(u) less log |dz/du|, whose Jacobian is computed by automatic differentiation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ppl_vi.approximations.approximation import Approximation

Constrain = Callable[[Any], dict[str, Any]]


def approximation_of_meanfield(
    state: Any,
    constrain: Constrain,
    *,
    num_draws: int = 10_000,
    seed: int = 0,
    name: str = "BlackJAX mean field",
    seconds: float | None = None,
) -> Approximation:
    """Draws of `blackjax.meanfield_vi`'s state, with log q of each.

    Args:
        state: an `MFVIState`: `mu`, and `rho`, the logarithms of standard deviations.
        constrain: the latents `{site: value}` of one pytree of unconstrained numbers, such as NumPyro's
            `constrain_fn` or `lambda u: {"rate": jnp.exp(u["rate"])}`; as many numbers as are given to it.
        num_draws, seed: of the draws.
        name: what tables call it.
        seconds: what the fit took.

    Raises:
        ImportError: BlackJAX is not installed.
        ValueError: `constrain` changes how many numbers there are.
    """
    import jax
    from blackjax.vi import meanfield_vi

    u = meanfield_vi.sample(jax.random.PRNGKey(seed), state, num_draws)
    log_q = jax.vmap(meanfield_vi.generate_meanfield_logdensity(state.mu, state.rho))(u)
    return _constrained(u, log_q, constrain, name, seconds)


def approximation_of_pathfinder(
    state: Any,
    constrain: Constrain,
    *,
    num_draws: int = 10_000,
    seed: int = 0,
    name: str = "BlackJAX Pathfinder",
    seconds: float | None = None,
) -> Approximation:
    """Draws of the state that `blackjax.vi.pathfinder.approximate` returns first, with log q of each.

    The arguments are those of `approximation_of_meanfield`, and so is what is raised.
    """
    import jax
    from blackjax.vi import pathfinder

    u, log_q = pathfinder.sample(jax.random.PRNGKey(seed), state, num_draws)
    return _constrained(u, log_q, constrain, name, seconds)


def _constrained(u: Any, log_q: Any, constrain: Constrain, name: str, seconds: float | None) -> Approximation:
    import blackjax
    import jax
    from jax.flatten_util import ravel_pytree

    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], u))
    flat = jax.vmap(lambda one: ravel_pytree(one)[0])(u)

    def of_flat(one: Any) -> Any:
        return ravel_pytree(constrain(unravel(one)))[0]

    jacobian = jax.jit(jax.vmap(jax.jacfwd(of_flat)))(flat)
    if jacobian.shape[1] != jacobian.shape[2]:
        raise ValueError(
            f"constrain must return as many numbers as it takes; it takes {jacobian.shape[2]} and returns "
            f"{jacobian.shape[1]}"
        )
    log_jacobian = np.linalg.slogdet(np.asarray(jacobian))[1]
    draws = {key: np.asarray(value)[None] for key, value in jax.vmap(constrain)(u).items()}
    found = np.asarray(log_q) - log_jacobian
    return Approximation(draws, found[None], name, f"blackjax {blackjax.__version__}", seconds)
