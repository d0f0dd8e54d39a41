"""Deterministic ADVI: the ELBO on a few fixed draws, maximised by Newton's method until its gradient vanishes.

With the draws held fixed, the ELBO of a normal is an ordinary function of its parameters, which a second-order method
takes to its optimum, with nothing to tune. The optimum is that of these draws and not the ELBO's own: what that costs
is the objective gap (`ppl_vi.metrics.objective_gap`), and the spread over replicas, each of which has draws of its own,
shows how much it depends on the draws.

A normal with full covariance has no optimum on as few draws as latent numbers: all draws then lie in a hyperplane, and
the entropy grows without bound along the direction across it while the draws stay where they are.

Source: Giordano, Ingram and Broderick (2024), Black box variational inference with a deterministic objective: faster,
more accurate, and even more black box.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor

from ppl_vi.svi.ended import EndedFit
from ppl_vi.svi.optimisers.method import Ends, Method, ended_by, statuses
from ppl_vi.svi.optimisers.normals import fixed_draws, is_mean_field, no_normal, normals_of, theta_of
from ppl_vi.svi.optimisers.sampled import GAIN_TOLERANCE, Optima, SampledElbo
from ppl_vi.svi.program import Program
from ppl_vi.svi.setup import Strategy
from ppl_vi.svi.status import Status

# The fixed draws of a fit where nobody asks for another number: those of the paper.
NUM_DRAWS = 30
NO_DENSITY = "diverged at step 0: the log density is not finite at the draws of the start, however narrow it is made"


def num_draws(strategy: Strategy) -> int:
    """How many fixed draws each fit has: `NUM_DRAWS` for "auto"."""
    return NUM_DRAWS if strategy.num_particles == "auto" else strategy.num_particles


def unsuitable(program: Program, strategy: Strategy) -> str | None:
    """Says why a guide can't be fitted so, or gives None where it can."""
    reason = no_normal(program)
    if reason is not None:
        return reason
    num, dim = num_draws(strategy), program.target.dim
    if not is_mean_field(program) and num <= dim:
        return (
            f"with {num} draws of {dim} latent numbers a full covariance has no optimum: across the plane of the draws "
            f"the entropy grows without bound; take num_particles of at least {dim + 1}, several times as many to be "
            "near the ELBO's optimum, or the guide linear_response for the covariances"
        )
    return None


def fit_dadvi(program: Program, strategy: Strategy, initial: Tensor) -> EndedFit:
    """Fits by deterministic ADVI, each replica on draws of its own.

    Args:
        program: the model and a normal guide in unconstrained space.
        strategy: how; `num_particles` is the number of fixed draws, `num_steps` bounds Newton's iterations.
        initial: the parameters that fits start at, `(B, R, P)`.
    """
    e = fixed_draws(program.target, num_draws(strategy), initial.shape[1], strategy.seed)
    sampled = SampledElbo(program.target, is_mean_field(program), e)
    found = sampled.optima(normals_of(program, initial), strategy.num_steps)
    return ended_by("newton", initial, ends(found, theta_of(program, found.normals)))


def ends(found: Optima, theta: Tensor) -> Ends:
    """How fits ended whose parameters are `theta` `(B, R, P)`."""
    status, num = statuses(found.converged, found.usable), len(found.values) - 1
    num_steps = np.where(status == Status.DIVERGED, 0, num)
    return Ends(theta, found.values[1:], found.gain, status, _reasons(status, found.gain.cpu().numpy(), num), num_steps)


def _reasons(status: np.ndarray, gain: np.ndarray, num: int) -> np.ndarray:
    """Why each fit ended as it did, `(B, R)`."""
    reasons = np.full(status.shape, NO_DENSITY, dtype=object)
    for at in np.ndindex(status.shape):
        if status[at] == Status.CONVERGED:
            reasons[at] = f"the gradient on the fixed draws vanishes: at most {gain[at]:.1e} nats to gain there"
        elif status[at] == Status.NOT_CONVERGED:
            reasons[at] = (
                f"after {num} iterations of Newton's method the gradient on the fixed draws does not vanish: at most "
                f"{gain[at]:.1e} nats to gain there, where the tolerance is {GAIN_TOLERANCE:g}"
            )
    return reasons


DADVI = Method(
    "dadvi",
    "fitting on fixed draws",
    fit_dadvi,
    unsuitable,
    lambda strategy: replace(strategy, num_particles=num_draws(strategy)),
)
