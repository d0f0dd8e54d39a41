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

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ppl_vi.numerics.newton import minimize_by
from ppl_vi.svi.ended import EndedFit
from ppl_vi.svi.optimisers.derivatives import derivatives_of
from ppl_vi.svi.optimisers.method import Ends, Method, ended_by, statuses
from ppl_vi.svi.optimisers.normals import (
    as_vectors,
    fixed_noise,
    is_mean_field,
    no_normal,
    normals_of,
    packed,
    sampled_loss,
    theta_of,
    unpacked,
)
from ppl_vi.svi.program import Program
from ppl_vi.svi.setup import Strategy
from ppl_vi.svi.status import Status

# The fixed draws of a fit where nobody asks for another number: those of the paper.
NUM_DRAWS = 30
# A fit has arrived where Newton's method promises to gain no more than this, nats, beside what rounding hides. It is
# far below every tolerance that is of use: the last iterations double the number of right digits.
GAIN_TOLERANCE = 1e-14
# Where the draws of a start meet a point without density, the normal is made this much narrower, so many times at most.
NARROWER, MAX_NARROWINGS = 0.25, 12
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
            "near the ELBO's optimum, or AutoNormal with guide 'linear_response' for its covariances"
        )
    return None


@dataclass(frozen=True, eq=False)
class Solved:
    """The optima of the ELBO on fixed draws.

    Attributes:
        x: as `packed` gives it, `(N, P)`.
        values: the lowest minus ELBO so far after every evaluation, `(T, N)`, nats.
        gain: what Newton's method still promises to gain, `(N,)`, nats.
        converged: whether that is no more than `GAIN_TOLERANCE` and rounding, `(N,)`.
    """

    x: Tensor
    values: Tensor
    gain: Tensor
    converged: Tensor


def solved(program: Program, start: Tensor, e: Tensor, rows: tuple[Tensor, ...], max_steps: int) -> Solved:
    """Minimises minus the ELBO on fixed draws, for `N` fits at once.

    Args:
        program: the model and the guide.
        start: `(N, P)`, as `packed` gives it.
        e: the draws, `(N, M, D)`.
        rows: each fit's data, with leading axis `N`.
        max_steps: Newton's iterations at most.
    """
    loss = sampled_loss(program.target, is_mean_field(program))
    derivatives = derivatives_of(loss, (e, *rows), program.target.width * e.shape[1])
    seen: list[Tensor] = []

    def noted(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value, gradient, hessian = derivatives(x)
        finite = torch.where(value.isfinite(), value, torch.inf)
        seen.append(finite if not seen else torch.minimum(seen[-1], finite))
        return value, gradient, hessian

    found = minimize_by(noted, start, tolerance=GAIN_TOLERANCE, max_steps=max_steps)
    return Solved(found.x, torch.stack(seen), found.gain, found.converged)


def fit_dadvi(program: Program, strategy: Strategy, initial: Tensor) -> EndedFit:
    """Fits by deterministic ADVI, each replica on draws of its own.

    Args:
        program: the model and a normal guide in unconstrained space.
        strategy: how; `num_particles` is the number of fixed draws, `num_steps` bounds Newton's iterations.
        initial: the parameters that fits start at, `(B, R, P)`.
    """
    shape, mean_field = initial.shape[:2], is_mean_field(program)
    e = as_vectors(fixed_noise(program, num_draws(strategy), shape[1], strategy.seed)).flatten(0, 1).to(initial)
    rows = tuple(arg.repeat_interleave(shape[1], 0) for arg in program.target.args)
    start, usable = _finite_start(program, packed(normals_of(program, initial), mean_field).flatten(0, 1), e, rows)
    x, converged = start.clone(), torch.zeros_like(usable)
    gain, values = torch.full_like(start[:, 0], torch.inf), torch.full_like(start[:1, 0], torch.nan).expand(1, len(x))
    if bool(usable.any()):
        found = solved(program, start[usable], e[usable], tuple(row[usable] for row in rows), strategy.num_steps)
        x[usable], gain[usable], converged[usable] = found.x, found.gain, found.converged
        values = torch.full((len(found.values), len(x)), torch.nan).to(found.values)
        values[:, usable] = found.values
    theta = theta_of(program, unpacked(x.unflatten(0, shape), program.target.dim, mean_field))
    status = statuses(converged.reshape(shape), usable.reshape(shape))
    gain, num = gain.reshape(shape), len(values) - 1
    num_steps = np.where(status == Status.DIVERGED, 0, num)
    reasons = _reasons(status, gain.cpu().numpy(), num)
    return ended_by("newton", initial, Ends(theta, -values[1:].unflatten(1, shape), gain, status, reasons, num_steps))


def _finite_start(program: Program, start: Tensor, e: Tensor, rows: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Starts `(N, P)` whose draws all have a density, made narrower where needed, and which of them have, `(N,)`."""
    loss, dim = sampled_loss(program.target, is_mean_field(program)), program.target.dim

    def finite(x: Tensor) -> Tensor:
        with torch.no_grad():
            values = [loss(*one) for one in zip(x, e, *rows, strict=True)]
        return torch.stack(values).isfinite()

    usable = finite(start)
    for _ in range(MAX_NARROWINGS):
        if bool(usable.all()):
            break
        narrower = start.clone()
        narrower[:, dim : 2 * dim] += float(np.log(NARROWER))
        narrower[:, 2 * dim :] *= NARROWER
        start = torch.where(usable[:, None], start, narrower)
        usable = finite(start)
    return start, usable


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
