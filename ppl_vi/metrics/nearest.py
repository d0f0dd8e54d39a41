"""The member of a family nearest to the posterior, for any number of latents: L-BFGS on fixed nodes of noise.

On fixed nodes the ELBO is an ordinary function of the guide's parameters, without noise, and its gradient is exact. The
optimum on one set of nodes is not quite the family's best member; found on two independent sets, it tells by how much.
If both lie at random around the best one, they are, in mean square, twice as far from each other as from it: on either
set, the other's optimum is lower than its own by twice what each falls short of the best. Their midpoint is nearer by
half, unless one density has several parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy import optimize
from torch import Tensor
from torch.func import grad_and_value, vmap

from ppl_vi.mapping import whole_plates
from ppl_vi.metrics.cloud import Rules, rules
from ppl_vi.state import isolated
from ppl_vi.svi.graph import traced
from ppl_vi.svi.pure import Program, guide_sites
from ppl_vi.svi.result import Fit

NUM_STARTS = 3  # of each problem: the replicas that came nearest, those left out from which the way leads straight down
NUM_POINTS = 4096  # nodes of a rule
NUMBERS = 2**18  # of a temporary
MAX_ITERATIONS = 200
MORE = 2  # times that each search goes on if it has not arrived
FLAT = 1e-11  # a step that gains less, relative to max(|ELBO|, 1), is the last: beyond, a rule's own error is climbed
WAY = (0.0, 1 / 3, 2 / 3)  # where the straight way from a start to an optimum is looked at
MEMORY = 40  # of L-BFGS, steps
GAIN = 1e-5  # nats that a converged search may still promise
OUT = 1e100  # what the line search is told where the ELBO is not finite, or no ELBO, so that it turns back
ABOVE = 100.0  # nats: an ELBO that much above log p(x) is rounding in a density that is nearly singular


@dataclass(frozen=True)
class Nearest:
    """Candidates for each problem's best member.

    Attributes:
        theta: the optima on two independent rules and their midpoint, `(B, 3, D)`.
        converged: whether both searches arrived, `(B,)`.
        short: what an optimum on one rule is expected to fall short of the family's best member by, `(B,)`, nats.
    """

    theta: Tensor
    converged: np.ndarray
    short: np.ndarray


def no_gradient(program: Program) -> str:
    """Why a family's members can't be improved along gradients on fixed noise, or ""."""
    if not program.latent_draws:
        return "the guide draws nothing"
    with isolated(program.target.dtype, seed=0), torch.no_grad(), whole_plates():
        noise = tuple(torch.full(draw.shape, 0.5, dtype=draw.dtype) for draw in program.latent_draws)
        trace = program.guide_trace(program.initial, program.target.row(0), noise)
    for name, node in guide_sites(trace).items():
        if not getattr(node["fn"], "has_rsample", False):
            return f"site '{name}' has no reparameterised draw, so its best member can't be found on fixed noise"
    return ""


def nearest_members(fit: Fit, elbo: np.ndarray, log_evidence: np.ndarray, seed: int) -> Nearest:
    """Maximises each problem's ELBO over the family, from its replicas of highest `elbo` `(B, R)`.

    Searches turn back where the ELBO lies far above `log_evidence` `(B,)`, which none can.
    """
    program = fit.program
    first, second = (rules(program.latent_draws, NUM_POINTS, seed + i, num_rules=1) for i in range(2))
    sum_over = _objective(program, first)
    theta, converged, short = [], [], []
    order = np.argsort(-np.where(np.isfinite(elbo), elbo, -np.inf), 1, kind="stable")[:, :NUM_STARTS]
    for problem, replicas in enumerate(order):
        row, objective = fit.target.row(problem), partial(_bounded, sum_over, -float(log_evidence[problem]) - ABOVE)
        one = _minimized(objective, fit.theta[problem, int(replicas[0])], row, first)
        for start in (fit.theta[problem, int(r)] for r in replicas[1:]):
            if not _leads_down(objective, start, one, row, first):
                other = _minimized(objective, start, row, first)
                one = other if other.fun < one.fun else one
        two = _minimized(objective, torch.from_numpy(one.x).to(fit.theta), row, second)
        for _ in range(MORE):
            one = _gone_on(objective, fit.theta, one, two, row, first)
            two = _gone_on(objective, fit.theta, two, one, row, second)
        optima = [torch.from_numpy(result.x) for result in (one, two)]
        theta.append(torch.stack([*optima, (optima[0] + optima[1]) / 2]))
        converged.append(_gain(one) <= GAIN and _gain(two) <= GAIN)
        on_first, on_second = (_function(objective, fit.theta, row, rule) for rule in (first, second))
        short.append((on_first(two.x)[0] - one.fun + on_second(one.x)[0] - two.fun) / 4)
        if converged[-1]:
            short[-1] += max(_gain(one), _gain(two))
    return Nearest(torch.stack(theta).to(fit.theta), np.array(converged), np.array(short))


Objective = Callable[[Tensor, tuple[Tensor, ...], Rules], tuple[Tensor, Tensor]]


def _objective(program: Program, rule: Rules) -> Objective:
    """`(theta, row, rule)` to gradient and value of minus the ELBO on the rule's nodes, of which there are as many.

    A flat graph where it can be traced, of so few nodes at once that its temporaries stay in the cache.
    """
    num_args = len(program.target.args)

    def loss(theta: Tensor, *given: Tensor) -> Tensor:
        row, noise, weight = given[:num_args], given[num_args:-1], given[-1]
        particle = vmap(lambda draws: program.sample(theta, row, draws))(noise)
        return -(weight * (particle.log_joint - particle.log_guide)).sum()

    size = rule.weight.shape[1]
    while size % 2 == 0 and size * program.target.width > NUMBERS:
        size //= 2
    piece = (*(part[0, :size] for part in rule.noise), rule.weight[0, :size])
    example = (program.initial, *program.target.row(0), *piece)
    graph = grad_and_value(loss)
    with isolated(program.target.dtype, seed=0), suppress(Exception):  # what can't be traced is only slower
        graph = traced(graph, example)

    def objective(theta: Tensor, row: tuple[Tensor, ...], rule: Rules) -> tuple[Tensor, Tensor]:
        pieces = zip(*(part[0].split(size) for part in (*rule.noise, rule.weight)), strict=True)
        gradients, values = zip(*(graph(theta, *row, *piece) for piece in pieces), strict=True)
        return torch.stack(gradients).sum(0), torch.stack(values).sum()

    return objective


def _bounded(
    objective: Objective, least: float, theta: Tensor, row: tuple[Tensor, ...], rule: Rules
) -> tuple[Tensor, Tensor]:
    """The same, minus the ELBO nan where it lies below the least it can be."""
    gradient, value = objective(theta, row, rule)
    return gradient, torch.where(value < least, torch.nan, value)


Function = Callable[[np.ndarray], tuple[float, np.ndarray]]


def _function(objective: Objective, like: Tensor, row: tuple[Tensor, ...], rule: Rules) -> Function:
    """Minus the ELBO on a rule and its gradient, as SciPy takes them."""

    def function(x: np.ndarray) -> tuple[float, np.ndarray]:
        with isolated(like.dtype, seed=0), torch.no_grad():
            gradient, value = objective(torch.from_numpy(x).to(like), row, rule)
        if not (bool(value.isfinite()) and bool(gradient.isfinite().all())):
            return OUT, np.zeros_like(x)
        return float(value), gradient.double().numpy()

    return function


def _leads_down(
    objective: Objective, start: Tensor, end: optimize.OptimizeResult, row: tuple[Tensor, ...], rule: Rules
) -> bool:
    """Whether the straight way from a start to an optimum never climbs: a search from there would end there too."""
    function, begin = _function(objective, start, row, rule), start.detach().double().numpy()
    heights = [function(begin + share * (end.x - begin))[0] for share in WAY]
    return bool((np.diff([*heights, end.fun]) < 0).all())


def _minimized(objective: Objective, start: Tensor, row: tuple[Tensor, ...], rule: Rules) -> optimize.OptimizeResult:
    return optimize.minimize(
        _function(objective, start, row, rule),
        start.detach().double().numpy(),
        jac=True,
        method="L-BFGS-B",
        options={"maxcor": MEMORY, "maxiter": MAX_ITERATIONS, "maxfun": 2 * MAX_ITERATIONS, "ftol": FLAT, "gtol": 1e-7},
    )


def _gone_on(
    objective: Objective,
    like: Tensor,
    own: optimize.OptimizeResult,
    other: optimize.OptimizeResult,
    row: tuple[Tensor, ...],
    rule: Rules,
) -> optimize.OptimizeResult:
    """A search that has not arrived, short of steps or lost far out, from the lower of the two points."""
    if _gain(own) <= GAIN:
        return own
    lower = _function(objective, like, row, rule)(other.x)[0] < own.fun
    return _minimized(objective, torch.from_numpy((other if lower else own).x).to(like), row, rule)


def _gain(result: optimize.OptimizeResult) -> float:
    """What a quasi-Newton step still promises, nats."""
    return float(result.jac @ result.hess_inv.matvec(result.jac)) / 2
