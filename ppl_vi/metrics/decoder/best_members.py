"""The member of an amortized family nearest to each posterior: many starts, Newton's method on quadrature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vi.guides.amortized import Head
from ppl_vi.metrics.decoder.elbo_expansion import ElboExpansion, ElboRules, elbo_expansion
from ppl_vi.metrics.decoder.lattice_values import CachedLattice, lattice_elbo
from ppl_vi.metrics.decoder.starts import mean_and_covariance, mixture_starts, multistart
from ppl_vi.numerics.mixtures import GaussianMixtures
from ppl_vi.numerics.newton import descent_step, predicted_gain
from ppl_vi.numerics.rules import num_rule_levels
from ppl_vi.target.target import Target

# A climb ends where a further step of Newton's method promises a gain of no more than this, in nats: ROUGH_GAIN in the
# first, coarse rounds, whose rule has a larger error, and FINE_GAIN in the last one, which is about as large as
# rounding.
ROUGH_GAIN = 1e-6
FINE_GAIN = 1e-10
# Rules are fine enough where the next finer one promises no more than this, relative to max(1, |ELBO|), in nats.
SETTLED_GAIN = 3e-8
# A best member counts as converged where neither a further step nor the quadrature's error is larger than this,
# relative to max(1, |ELBO|), in nats.
CONVERGED_GAIN = 1e-6
# An optimum that by the coarsest rule lies this many nats below the best one may still turn out the best by a finer
# rule. A larger number keeps more optima, each of which is climbed again.
MAX_DEFICIT = 0.2
# Two optima count as one where their log densities differ by less than this, in nats: two climbs to one optimum end
# closer together.
SAME_DENSITY = 0.01
# The most iterations of Newton's method in a climb; one that needs more does not count as converged.
MAX_CLIMB_STEPS = 100


class ClimbRound(NamedTuple):
    """A round of the first climbs: so many steps of each, after which rivals within so many nats go on."""

    num_steps: int
    within: float


CLIMB_ROUNDS = (
    ClimbRound(6, 3.0),
    ClimbRound(6, 1.0),
    ClimbRound(12, MAX_DEFICIT),
    ClimbRound(MAX_CLIMB_STEPS, MAX_DEFICIT),
)
# Mixtures have many optima of nearly one height and start near them, so that rivals are closer.
MIXTURE_CLIMB_ROUNDS = (
    ClimbRound(0, 0.03),
    ClimbRound(6, 0.01),
    ClimbRound(12, 0.003),
    ClimbRound(MAX_CLIMB_STEPS, 0.001),
)


@dataclass(frozen=True)
class BestMembers:
    """The best member of a family for each problem.

    Attributes:
        local: its local parameters, `(B, num_outputs)`.
        elbo: its ELBO, by lattices that were refined until they agreed, `(B,)`, nats.
        elbo_error: of quadrature, `(B,)`, nats.
        converged: whether a further step promises no more than `CONVERGED_GAIN`, by the last rule and by the next finer
            one, and the error is no larger, `(B,)`. Flat directions, as of equal components, do not count.
    """

    local: Tensor
    elbo: Tensor
    elbo_error: Tensor
    converged: Tensor


def best_members(
    target: Target, head: Head, local: Tensor, *, starts: Tensor | None = None, lattice: CachedLattice | None = None
) -> BestMembers:
    """Maximises the ELBO of each problem over the family's local parameters.

    The starts are the encoder's own parameters, those of `multistart`, and what the caller adds. With the best members
    of a poorer family (`embed`) among them, those of a family that holds it are never worse. Newton's method has the
    exact Hessian of the quadrature. Since an optimiser exploits a rule of few nodes, the rules grow until two in a row
    have one optimum.

    Args:
        target: with a decoder.
        head: the family.
        local: the encoder's parameters, `(B, num_outputs)`, float64.
        starts: further ones, `(B, M, num_outputs)`.
        lattice: of the target, where there is one already.

    Raises:
        ValueError: the target has no decoder or more latents than quadrature reaches.

    Source: Cremer, Li and Duvenaud (2018), Inference suboptimality in variational autoencoders; their per-datum best
    has one start and a stochastic optimiser.
    """
    given = local[:, None] if starts is None else torch.cat([local[:, None], starts], 1)
    given = given.detach()
    lattice = CachedLattice(target) if lattice is None else lattice
    if lattice.target is not target:
        raise ValueError(f"the lattice is of target '{lattice.target.name}', not of '{target.name}'")
    if head.num_components == 1:
        found, problem = multistart(lattice, head, given[:, 0])
    else:
        found, problem = mixture_starts(lattice, head, given)
    everyone = torch.arange(len(local), device=local.device)
    theta = torch.cat([given.flatten(0, 1), found])
    problem = torch.cat([everyone.repeat_interleave(given.shape[1]), problem])
    theta, problem = _climb_coarsely(lattice, head, theta, problem)
    theta, problem, promise = _polish(lattice, head, theta, problem)
    final = lattice_elbo(lattice, head, theta, problem)
    chosen = _best(final.value, problem, len(local))
    sure = torch.maximum(promise, final.error)[chosen] <= CONVERGED_GAIN * final.value[chosen].abs().clamp(min=1)
    return BestMembers(theta[chosen], final.value[chosen], final.error[chosen], sure)


@torch.no_grad()
def embed(head: Head, other: Head, local: Tensor) -> Tensor:
    """Local parameters in `head`'s family near another family's members, `(..., num_outputs)`.

    They are those of the Gaussian with a member's mean and covariance: exact where the member is one Gaussian, which
    `head`'s family holds, and a start to search from otherwise.
    """
    loc, covariance = mean_and_covariance(GaussianMixtures(*other.components(local)))
    return head.initial(loc, torch.linalg.inv(covariance))


def _best(value: Tensor, problem: Tensor, num_problems: int) -> Tensor:
    """The row of each problem's largest value, `(B,)`."""
    order = torch.argsort(torch.where(value.isnan(), -torch.inf, value), stable=True)
    row = torch.empty(num_problems, dtype=torch.long, device=value.device)
    for one, place in zip(problem[order].tolist(), order.tolist(), strict=True):
        row[one] = place  # the last one written is the largest
    return row


def _climb_coarsely(lattice: CachedLattice, head: Head, theta: Tensor, problem: Tensor) -> tuple[Tensor, Tensor]:
    """Climbs from every start by the coarsest rule; each problem's best optimum and its rivals are left.

    Climbs that have met, and those that fell far behind, are dropped between the rounds.
    """
    for round_ in CLIMB_ROUNDS if head.num_components == 1 else MIXTURE_CLIMB_ROUNDS:
        climb = ascend(lattice, head, theta, problem, 0, ROUGH_GAIN, round_.num_steps)
        kept = rivals(head, climb.theta, problem, climb.at.value, round_.within)
        theta, problem = climb.theta[kept], problem[kept]
        if bool(climb.converged[kept].all()):
            break
    return theta, problem


@torch.no_grad()
def rivals(head: Head, theta: Tensor, problem: Tensor, value: Tensor, within: float) -> Tensor:
    """Of members, the rows that may still turn out to be the best of their problem, in order.

    Args:
        head: the family.
        theta: the members, `(N, num_outputs)`.
        problem: that of each, `(N,)`.
        value: the ELBO of each, `(N,)`, nats.
        within: how many nats below its problem's best a rival may be. Of members that have one density, the best is
            left alone.
    """
    mixture, num = GaussianMixtures(*head.components(theta)), int(problem.max()) + 1
    value = torch.where(value.isnan(), -torch.inf, value)
    pending, kept = torch.arange(len(problem), device=problem.device), []
    top = value[_best(value, problem, num)][problem] if len(problem) else value
    pending = pending[(value >= top - within)[pending]]
    while len(pending):
        found, group = problem[pending].unique(return_inverse=True)
        best = pending[_best(value[pending], group, len(found))]
        kept.append(best)
        pending = pending[~_same_density(mixture.rows(pending), mixture.rows(best[group]))]
    return torch.cat(kept).sort().values


def _same_density(one: GaussianMixtures, other: GaussianMixtures) -> Tensor:
    """Whether two mixtures have one density, however their components are numbered, `(N,)`.

    It is compared at the other's means, and two standard deviations from these along each axis of its factors.
    """
    middle = other.locs.flatten(1, -2)
    spread = (other.locs[:, :, None] + 2 * other.trils.mT).flatten(1, 2)
    z = torch.cat([middle, spread, 2 * other.locs.repeat_interleave(other.locs.shape[-1], 1) - spread], 1)
    return (one.log_prob(z) - other.log_prob(z)).abs().amax(-1) < SAME_DENSITY


def _polish(lattice: CachedLattice, head: Head, theta: Tensor, problem: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Climbs by finer and finer rules until the next would not climb farther.

    As the rules' errors fall, so does the distance at which a rival may still win.

    Returns:
        The optima that are left, the problem of each, and how much a further step promises by the last rule or the
        next, whichever promises more, `(M,)`, nats.
    """
    deficit = MAX_DEFICIT / 10 if head.num_components == 1 else MIXTURE_CLIMB_ROUNDS[-1].within
    value, promise = torch.zeros_like(theta[:, 0]), torch.full_like(theta[:, 0], torch.inf)
    settled = torch.zeros_like(problem, dtype=torch.bool)
    for level in range(2, num_rule_levels(lattice.dim) - 1):
        pending = (~settled).nonzero()[:, 0]
        climb = ascend(lattice, head, theta[pending], problem[pending], level, FINE_GAIN)
        theta, value = theta.index_copy(0, pending, climb.theta), value.index_copy(0, pending, climb.at.value)
        finer = elbo_expansion(lattice, head, climb.theta, problem[pending], level + 1, curved=False)
        gains = [predicted_gain(gradient, climb.at.hessian) for gradient in (climb.at.gradient, finer.gradient)]
        promise = promise.index_copy(0, pending, torch.maximum(*gains))
        settled = promise <= SETTLED_GAIN * value.abs().clamp(min=1)
        kept = rivals(head, theta, problem, value, deficit * 0.1 ** (level - 2))
        theta, problem, value, promise, settled = (part[kept] for part in (theta, problem, value, promise, settled))
        if bool(settled.all()):
            break
    return theta, problem, promise


class Climb(NamedTuple):
    """Where `N` climbs ended.

    Attributes:
        theta: the members, `(N, num_outputs)`.
        at: the ELBO there, with its derivatives.
        converged: whether a further step promises no more than the tolerance, `(N,)`.
    """

    theta: Tensor
    at: ElboExpansion
    converged: Tensor


def ascend(
    lattice: CachedLattice,
    head: Head,
    theta: Tensor,
    problem: Tensor,
    level: int,
    tolerance: float,
    max_steps: int = MAX_CLIMB_STEPS,
) -> Climb:
    """Newton's method in a trust region for the ELBO by rules of one level.

    Steps are measured by Fisher's information: one of length d changes q by d^2 / 2 nats at most, however narrow it is.
    Only the climbs that have not converged are computed.

    Args:
        lattice: of the target.
        head: the family.
        theta: starts, `(N, num_outputs)`.
        problem: that of each, `(N,)`.
        level: of the rules.
        tolerance: nats that a further step may still promise.
        max_steps: iterations at most.

    Source: Nocedal and Wright (2006), Numerical optimization, chapter 4.
    """
    theta = theta.clone()
    at = elbo_expansion(lattice, head, theta, problem, level)
    radius, converged = torch.ones_like(at.value), torch.zeros_like(problem, dtype=torch.bool)
    noise = 32 * torch.finfo(theta.dtype).eps  # what rounding may change an ELBO by, relative to it
    for _ in range(max_steps):
        gain = predicted_gain(at.gradient, at.hessian)
        converged = gain <= tolerance + noise * at.value.abs()
        active = (~converged & gain.isfinite() & (radius.square() > tolerance)).nonzero()[:, 0]
        if not len(active):
            break
        gradient, hessian = at.gradient[active], at.hessian[active]
        step = descent_step(gradient, hessian, radius[active])
        promised = -(step * gradient).sum(-1) - (step * (hessian @ step[..., None]).squeeze(-1)).sum(-1) / 2
        move = torch.linalg.solve_triangular(at.metric[active].mT, step[..., None], upper=True).squeeze(-1)
        # by the rules of the point that is left: the two sums differ by the step alone
        rules = at.rules.rows(active)
        trial = elbo_expansion(lattice, head, theta[active] + move, problem[active], level, rules=rules)
        rise = trial.value - at.value[active] + noise * at.value[active].abs()
        usable = trial.gradient.isfinite().all(-1) & trial.hessian.isfinite().all(-1).all(-1)
        better = usable & (rise >= 0.1 * promised.clamp(min=0))
        length = torch.linalg.vector_norm(step, dim=-1)
        radius[active] = torch.where(better, torch.maximum(radius[active], 2 * length), length / 4)
        moved = active[better]
        theta[moved] += move[better]
        at.put(moved, trial.rows(better.nonzero()[:, 0]))
        if len(moved):
            _renew_rules(lattice, head, theta, problem, level, at, moved)
    return Climb(theta, at, converged)


def _renew_rules(
    lattice: CachedLattice, head: Head, theta: Tensor, problem: Tensor, level: int, at: ElboExpansion, moved: Tensor
) -> None:
    """Expands the ELBO anew by the rules that are due where components have grown too narrow or too wide for theirs.

    Args:
        lattice, head, theta, problem, level: those of `ascend`.
        at: the ELBO at `theta`, whose rows are overwritten.
        moved: the rows that have moved.
    """
    old = at.rules.rows(moved)
    rules = old.fitted(ElboRules.of(GaussianMixtures(*head.components(theta[moved])), level))
    wrong = rules.differs(old).nonzero()[:, 0]
    if len(wrong):
        rows = moved[wrong]
        at.put(rows, elbo_expansion(lattice, head, theta[rows], problem[rows], level, rules=rules.rows(wrong)))
