"""The objective gap: what it costs in reverse KL that SVI maximised another objective than the ELBO.

An importance-weighted or Renyi bound has its optimum elsewhere in the family, and a fit that has arrived there is still
away from the ELBO's. The objective gap is the reverse KL of the objective's own optimum near the fit, minus that of the
ELBO's. The optimization gap is then measured from the objective's optimum. It may be negative, as a fit that falls
short of that optimum may be nearer to the posterior.

The optimum is found by L-BFGS on fixed noise, on two independent sets, and lies in the middle of these two optima. How
much their divergences differ from that of the middle is the stated standard error. It is 0 but for rounding where the
draws that the objective takes together are so few numbers that a lattice spans them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import optimize
from torch import Tensor
from torch.func import grad_and_value

from ppl_vi.metrics.sampled.noise_rules import MAX_LATTICE_DIM, noise_rules
from ppl_vi.runtime.stages import stage
from ppl_vi.svi.objectives import OBJECTIVES, Objective, find_objective, surrogate_loss
from ppl_vi.svi.optimisers import METHODS, method_of
from ppl_vi.svi.optimisers.normals import as_noise, fixed_draws
from ppl_vi.svi.randomness import pseudo_random
from ppl_vi.svi.result import Fit
from ppl_vi.svi.setup import auto_particles, group_size

# Draws of each set of noise: so many, or fewer where the model's largest temporary at all of them would have more than
# MAX_NUMBERS numbers, but MIN_GROUPS groups of the draws that the objective takes together.
NUM_DRAWS, MAX_NUMBERS, MIN_GROUPS = 2**14, 2**23, 16
# Groups of draws with no more numbers than this are spread evenly, by Sobol points; others are independent.
MAX_EVEN_NUMBERS = 64
# L-BFGS ends with the first step that gains less than this, relative to max(|bound|, 1), or after so many iterations.
VALUE_TOLERANCE, MAX_ITERATIONS = 1e-10, 200
REJECTED_VALUE = 1e100  # given to the line search where the bound is not finite, so that it turns back
NO_OPTIMUM = "the objective is no function of the parameters whose optimum could be found"
CHANGED_AFTERWARDS = "the guide that is measured is made of the one whose objective was maximised"
UNKNOWN = "the objective is none of those that are known by name"


class ObjectiveOptima(NamedTuple):
    """The objective's own optimum near each replica.

    Attributes:
        theta: the middle of the optima on two sets of noise, and these two, `(B, R, 3, D)`.
        reason: why there are none; "" where there are.
    """

    theta: Tensor
    reason: str = ""


def maximises_elbo(fit: Fit) -> bool:
    """Whether the objective by which fits were made has the optimum of the ELBO."""
    objective = _objective(fit)
    return objective is not None and objective.additive


def _objective(fit: Fit) -> Objective | None:
    """The objective of a fit by its name; None where it is a caller's own."""
    known = fit.objective.partition(":")[0] in OBJECTIVES
    return find_objective(fit.objective) if known else None


def objective_optima(fit: Fit) -> ObjectiveOptima:
    """The optima of a fit's objective near its replicas, on fixed noise."""
    objective, nothing = _objective(fit), fit.theta[:, :, None][:, :, :0]
    if objective is None:
        return ObjectiveOptima(nothing, UNKNOWN)
    if not objective.has_value or any(draw.kind == "seed" for draw in fit.program.draws):
        return ObjectiveOptima(nothing, NO_OPTIMUM)
    if fit.objective in METHODS:
        is_own = method_of(fit.family, fit.objective) is METHODS[fit.objective]
        return _on_fixed_draws(fit, objective) if is_own else ObjectiveOptima(nothing, CHANGED_AFTERWARDS)
    groups = [_groups(fit, objective, seed) for seed in (fit.seed + 70, fit.seed + 71)]
    rows = []
    with stage("the objective's own optimum"), fit.program.isolated():
        for problem in range(fit.target.num_problems):
            for start in fit.theta[problem]:
                one = _optimum(fit, objective, problem, start, groups[0])
                two = _optimum(fit, objective, problem, one, groups[1])
                rows.append(torch.stack([(one + two) / 2, one, two]))
    return ObjectiveOptima(torch.stack(rows).unflatten(0, fit.theta.shape[:2]).to(fit.theta))


def _on_fixed_draws(fit: Fit, objective: Objective) -> ObjectiveOptima:
    """The optima on the draws of the fit itself, which are what its objective is: all three are one."""
    e = fixed_draws(fit.target, int(fit.num_particles), fit.num_replicas, fit.seed)
    noise, rows = as_noise(fit.program, e), []
    with stage("the objective's own optimum"), fit.program.isolated():
        for problem in range(fit.target.num_problems):
            for r, start in enumerate(fit.theta[problem]):
                group = Groups(tuple(part[problem, r][None] for part in noise), start.new_ones(1))
                one = _optimum(fit, objective, problem, start, group)
                rows.append(torch.stack([one] * 3))
    return ObjectiveOptima(torch.stack(rows).unflatten(0, fit.theta.shape[:2]).to(fit.theta))


class Groups(NamedTuple):
    """Noise for `G` groups of the draws that an objective takes together, and the weight of each.

    Attributes:
        noise: of each draw `(G, K, *shape)`.
        weight: `(G,)`, summing to 1.
    """

    noise: tuple[Tensor, ...]
    weight: Tensor


def _groups(fit: Fit, objective: Objective, seed: int) -> Groups:
    """Groups of noise: a lattice over few normal numbers, even points of some dozens, else independent ones."""
    draws, together = fit.program.draws, group_size(objective)
    if together == 1:  # the objective takes all draws of a step together
        together = auto_particles(objective, fit.engine) if fit.num_particles == "auto" else fit.num_particles
    num = max(MIN_GROUPS, min(NUM_DRAWS, MAX_NUMBERS // fit.target.width) // together)
    numbers = together * sum(draw.shape.numel() for draw in draws)
    if numbers > MAX_EVEN_NUMBERS:
        generator = torch.Generator(device=fit.theta.device).manual_seed(seed)
        noise = pseudo_random(draws, (num, together), generator)
        return Groups(noise, torch.full((num,), 1.0 / num).to(fit.theta))
    rule = noise_rules(draws * together, num if numbers > MAX_LATTICE_DIM else NUM_DRAWS, seed, num_rules=1)
    parts = [part[0].to(fit.theta.device) for part in rule.noise]
    each = tuple(torch.stack(parts[j :: len(draws)], 1) for j in range(len(draws)))
    return Groups(each, rule.weight[0].to(fit.theta))


def _optimum(fit: Fit, objective: Objective, problem: int, start: Tensor, groups: Groups) -> Tensor:
    """Where the mean loss over groups of noise is lowest near `start`, `(D,)`; nan where it has no value."""
    row, program = fit.target.row(problem), fit.program

    def mean_loss(theta: Tensor) -> Tensor:
        each = program.over(lambda noise: surrogate_loss(program, objective, theta, row, noise)[0])(groups.noise)
        return (each * groups.weight).sum()

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        gradient, value = grad_and_value(mean_loss)(torch.from_numpy(x).to(start))
        if not (bool(value.isfinite()) and bool(gradient.isfinite().all())):
            return REJECTED_VALUE, np.zeros_like(x)
        return float(value), gradient.cpu().double().numpy()

    begin = start.detach().cpu().double().numpy()
    if not np.isfinite(begin).all():
        return torch.full_like(start, torch.nan)
    options = {"maxiter": MAX_ITERATIONS, "ftol": VALUE_TOLERANCE, "gtol": 1e-8}
    found = optimize.minimize(loss, begin, jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x).to(start) if found.fun < REJECTED_VALUE else torch.full_like(start, torch.nan)
