"""Linear response: the mean field's own answer to how its means move, as the covariance it leaves out.

The means of a mean-field normal are often good where its covariances, all 0, are not, and its variances are too small.
If t'u is added to the log density, the posterior's mean moves by its covariance times t. The mean field's moves by

    d loc / dt = the block of H^-1 that belongs to the locations,

with the second derivatives H of minus the ELBO at the optimum, over locations and scales. That block takes the place of
the covariance. It is exact where the posterior is normal.

The mean field is found by deterministic ADVI (`dadvi.py`): with `objective="dadvi"` on its few draws, else on many
draws in pairs of opposite sign, whose optimum is nearly the ELBO's own.

Sources: Giordano, Broderick and Jordan (2018), Covariances, robustness, and variational Bayes; Giordano, Ingram and
Broderick (2024), Black box variational inference with a deterministic objective.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ppl_vi.svi.ended import EndedFit
from ppl_vi.svi.optimisers.dadvi import ends, num_draws
from ppl_vi.svi.optimisers.method import Method, ended_by
from ppl_vi.svi.optimisers.normals import fixed_draws, no_normal, normals_of, theta_of
from ppl_vi.svi.optimisers.sampled import Optima, SampledElbo
from ppl_vi.svi.program import Program
from ppl_vi.svi.randomness import Draw, quasi_random
from ppl_vi.svi.setup import Strategy
from ppl_vi.svi.start_points import Centres, conditional_scale

# Draws of the mean field under the ELBO, half of them the others with the sign changed. More of them bring its optimum
# nearer to the ELBO's, at a cost in proportion.
NUM_DRAWS = 512
OBJECTIVES = ("trace_elbo", "dadvi")


class NoCovarianceError(ValueError):
    """Linear response gives no covariance; the message says why, and what to do."""


def unsuitable(program: Program, strategy: Strategy) -> str | None:
    """Says why there is no linear response for a program and a strategy, or gives None where there is."""
    if strategy.objective.name not in OBJECTIVES:
        return f"its mean field maximises the ELBO, by the objective {' or '.join(OBJECTIVES)}"
    return no_normal(program)


def with_draws(strategy: Strategy) -> Strategy:
    """The strategy with the number of draws that "auto" stands for."""
    if strategy.objective.name == "dadvi" or strategy.num_particles != "auto":
        return replace(strategy, num_particles=num_draws(strategy))
    return replace(strategy, num_particles=NUM_DRAWS)


def draws(program: Program, strategy: Strategy, num_replicas: int) -> Tensor:
    """The fixed draws of the mean field, `(B, R, M, D)`: in pairs for the ELBO, so that an odd one is left out."""
    num = int(with_draws(strategy).num_particles)
    if strategy.objective.name == "dadvi":
        return fixed_draws(program.target, num, num_replicas, strategy.seed)
    shape = program.target.num_problems, num_replicas
    one = Draw("normal", torch.Size([program.target.dim]), program.target.dtype)
    (half,) = quasi_random([one], max(1, num // 2), shape[0] * shape[1], strategy.seed)
    return torch.cat([half, -half], 1).unflatten(0, shape)


def fit_linear_response(program: Program, strategy: Strategy, initial: Tensor) -> EndedFit:
    """Fits mean-field normals on fixed draws, and gives them linear-response covariances.

    Args:
        program: the model and a normal guide of full covariance in unconstrained space.
        strategy: how; `num_particles` is the number of fixed draws.
        initial: the parameters that fits start at, `(B, R, P)`.

    Raises:
        NoCovarianceError: the optimum of a mean field was not found, or the ELBO is not curved downwards there.
    """
    elbo = SampledElbo(program.target, True, draws(program, strategy, initial.shape[1]).to(initial))
    start = normals_of(program, initial)
    found = elbo.optima(start._replace(factor=torch.diag_embed(start.scale)), strategy.num_steps)
    factor = response(program, elbo, found)
    normals = Centres(found.normals.loc, conditional_scale(factor), factor)
    ended = ended_by("newton", initial, ends(found, theta_of(program, normals)))
    return replace(ended, trajectory=initial.new_empty(0))


def response(program: Program, elbo: SampledElbo, found: Optima) -> Tensor:
    """The Cholesky factors of the linear-response covariances, `(B, R, D, D)`.

    Raises:
        NoCovarianceError: the ELBO is not curved downwards at an optimum.
    """
    dim, name = program.target.dim, program.target.name
    if not bool(found.usable.all()):
        raise NoCovarianceError(f"{name}: there is no linear response: the log density is not finite at any start")
    hessian = elbo.hessians(found.normals)
    whole, info = torch.linalg.cholesky_ex(hessian)
    if bool(info.any()) or not bool(hessian.isfinite().all()):
        raise NoCovarianceError(
            f"{name}: there is no linear response: where the search for the mean field ended, the second derivatives "
            "of minus the ELBO are not positive definite, so that they are no inverse covariance; take more steps or "
            "draws, or AutoMultivariateNormal"
        )
    covariance = torch.cholesky_inverse(whole)[:, :dim, :dim].unflatten(0, elbo.e.shape[:2])
    return program.target.start.scale[:, None, :, None] * torch.linalg.cholesky(covariance)


LINEAR_RESPONSE = Method("linear_response", "fitting on fixed draws", fit_linear_response, unsuitable, with_draws)
