"""What SVI maximises: what one draw of the guide contributes, and how draws together become a bound and a loss.

Each objective is a stochastic lower bound on the log evidence. Its loss is a surrogate: the surrogate's gradient is the
estimator of the gradient of minus the bound, while its value need not be minus the bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vi.runtime.names import objective_of
from ppl_vi.svi.program import Particle, Program, analytic_divergence_missing

ParticleOf = Callable[[Program, Tensor, tuple[Tensor, ...], tuple[Tensor, ...]], Particle]


@dataclass(frozen=True)
class Objective:
    """A stochastic bound on the log evidence.

    Attributes:
        name: the name on the command line, with its number if it takes one.
        particle: gives one draw's contribution.
        reduce: turns particles `(P,)` into the surrogate loss and the bound, two scalars in nats.
        additive: whether the bound is a mean over particles, so that any number of them estimates the same bound.
        has_value: whether the loss is minus a function of the parameters, on given noise, that the objective maximises.
        unsuitable: says why the objective can't be used with a program, or gives None where it can.
    """

    name: str
    particle: ParticleOf
    reduce: Callable[[Particle], tuple[Tensor, Tensor]]
    additive: bool = True
    has_value: bool = True
    unsuitable: Callable[[Program], str | None] = lambda program: None


def surrogate_loss(
    program: Program, objective: Objective, theta: Tensor, row: tuple[Tensor, ...], noise: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """The surrogate loss and the bound of one fit, two scalars in nats.

    Args:
        program, objective: what is fitted, and by which objective.
        theta: the parameters, `(D,)`.
        row: the data of one problem.
        noise: for each draw `(P, *shape)`, one line for each particle.
    """
    if not noise:  # where nothing is random, all particles are one
        one = objective.particle(program, theta, row, ())
        return objective.reduce(type(one)(*(part[None] for part in one)))
    return objective.reduce(program.over(lambda draws: objective.particle(program, theta, row, draws))(noise))


def _mean(p: Particle) -> tuple[Tensor, Tensor]:
    """The mean over particles: the ELBO."""
    elbo = p.log_joint - p.log_guide
    surrogate = p.log_joint - p.entropy + elbo.detach() * p.score
    return -surrogate.mean(), elbo.mean()


def _renyi(alpha: float) -> Callable[[Particle], tuple[Tensor, Tensor]]:
    def reduce(p: Particle) -> tuple[Tensor, Tensor]:
        scaled = (1 - alpha) * (p.log_joint - p.log_guide)
        bound = (torch.logsumexp(scaled, 0) - math.log(scaled.shape[0])) / (1 - alpha)
        return -bound, bound

    return reduce


def _no_density(program: Program) -> str | None:
    if program.local:
        return f"site '{program.local}' is drawn for a part of a plate's data only"
    return program.unsupported_density()


def _tail_adaptive(p: Particle) -> tuple[Tensor, Tensor]:
    log_weight = (p.log_joint - p.log_guide).detach()
    rank = 1 + torch.argsort(torch.argsort(log_weight, descending=True))  # 1 is the largest weight
    share = 1 / rank.to(log_weight.dtype)
    surrogate = share / share.sum() * (p.log_joint - p.entropy)
    return -surrogate.sum(), log_weight.mean()


def _nothing_random(program: Program) -> str | None:
    return None if program.draws else "the guide draws nothing, so all samples are one"


def _iwae(num_samples: int) -> Callable[[Particle], tuple[Tensor, Tensor]]:
    def reduce(p: Particle) -> tuple[Tensor, Tensor]:
        weights = (p.log_joint - p.log_guide).unflatten(0, (-1, num_samples))
        bound = (torch.logsumexp(weights, -1) - math.log(num_samples)).mean()
        return -bound, bound

    return reduce


trace_elbo = Objective("trace_elbo", Program.sample, _mean)
score_function = Objective("score_function", Program.sample_score_function, _mean)
stl = Objective("stl", Program.sample_path_derivative, _mean, unsuitable=_no_density)
# Wang, Liu and Liu (2018), Variational inference with tail-adaptive f-divergence, with beta = -1: the path derivative
# of each particle's log weight, in proportion to the inverse of the weight's rank. The bound that is reported is the
# ELBO. Pyro's TraceTailAdaptive_ELBO is not used, because it sorts once and so takes the order of the weights for their
# ranks.
tail_adaptive = Objective(
    "tail_adaptive",
    Program.sample_path_derivative,
    _tail_adaptive,
    additive=False,
    has_value=False,
    unsuitable=lambda program: _nothing_random(program) or _no_density(program),
)
trace_mean_field_elbo = Objective(
    "trace_mean_field_elbo", Program.sample_mean_field, _mean, unsuitable=analytic_divergence_missing
)

# Whose draws stay fixed, so that its optimum is not the ELBO's: `ppl_vi.svi.optimisers.dadvi` takes its steps.
dadvi = Objective("dadvi", Program.sample, _mean, additive=False)
# Whose steps are those of `ppl_vi.svi.optimisers.natural_gradient`.
natural_gradient = Objective("natural_gradient", Program.sample, _mean)


def renyi(alpha: float = 0.5) -> Objective:
    """The Renyi bound `log mean(w^(1-alpha)) / (1-alpha)` over all particles, `w = p(x, z) / q(z)`.

    Source: Li and Turner (2016), Renyi divergence variational inference.

    Raises:
        ValueError: alpha is 1 (that limit is `trace_elbo`) or not finite.
    """
    if not math.isfinite(alpha) or alpha == 1:
        raise ValueError(f"alpha must be finite and not 1 (alpha = 1 is 'trace_elbo'), got {alpha}")
    return Objective(f"renyi:{alpha:g}", Program.sample, _renyi(alpha), additive=False)


def iwae(num_samples: int = 8) -> Objective:
    """The bound `log mean(w)` over K particles, `w = p(x, z) / q(z)`, averaged over groups of K.

    Source: Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders.

    Raises:
        ValueError: K is not positive.
    """
    if num_samples < 1:
        raise ValueError(f"K must be at least 1, got {num_samples}")
    return Objective(
        f"iwae:{num_samples}", Program.sample, _iwae(num_samples), additive=False, unsuitable=_nothing_random
    )


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "trace_elbo": lambda: trace_elbo,
    "score_function": lambda: score_function,
    "stl": lambda: stl,
    "trace_mean_field_elbo": lambda: trace_mean_field_elbo,
    "tail_adaptive": lambda: tail_adaptive,
    "renyi": renyi,
    "iwae": iwae,
    "dadvi": lambda: dadvi,
    "natural_gradient": lambda: natural_gradient,
}


def find_objective(objective: str | Objective) -> Objective:
    """The objective of a name such as `"trace_elbo"` or `"renyi:0.5"`; an `Objective` is given back as it is.

    Raises:
        ValueError: the name is unknown, or what follows the colon is no argument of that objective.
    """
    if isinstance(objective, Objective):
        return objective
    name, number = objective_of(objective)
    return OBJECTIVES[name]() if number is None else OBJECTIVES[name](number)
