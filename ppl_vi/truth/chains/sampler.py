"""Hamiltonian Monte Carlo of many chains at once on the log density of one problem.

Each transition gives every chain a normal momentum, lets it run along a trajectory of leapfrog steps, and accepts or
refuses the end by the rule of Metropolis. During warm-up, dual averaging finds the step size.

Sources: Duane et al. (1987), Hybrid Monte Carlo; Neal (2011), MCMC using Hamiltonian dynamics; Hoffman and Gelman
(2014), The No-U-Turn sampler (dual averaging).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from ppl_vi.runtime.stages import Running
from ppl_vi.target.log_density import Density
from ppl_vi.truth.chains.leapfrog import ChainState, run_trajectories

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Nats: a transition is called divergent if the energy changes by more than this along its trajectory. This is Stan's
# limit. Exact dynamics conserve the energy, and so large a change means that the step size is too long for the place.
MAX_ENERGY_CHANGE = 1000.0

State = TypeVar("State", bound="DataclassInstance")


def metropolis(start: State, end: State, log_ratio: Tensor, uniform: Tensor) -> tuple[State, Tensor]:
    """Where chains stand after the ends of their trajectories have been accepted or refused.

    The probability of acceptance is min(1, exp(log_ratio)). An end whose density is 0 or nan is refused.

    Args:
        start: a dataclass of tensors whose first axes are those of the chains.
        end: the same at the ends of the trajectories.
        log_ratio: log density of end and momentum minus that of start and momentum, one number a chain, nats.
        uniform: a random number between 0 and 1 for each chain.

    Returns:
        The new state, and the probability of acceptance of each chain.
    """
    probability = torch.where(log_ratio.isnan(), 0.0, log_ratio.clamp(max=0.0).exp())
    accepted, chosen = uniform < probability, {}
    for field in fields(start):
        old, new = getattr(start, field.name), getattr(end, field.name)
        where = accepted.reshape(accepted.shape + (1,) * (new.dim() - accepted.dim()))
        chosen[field.name] = torch.where(where, new, old)
    return replace(start, **chosen), probability


def chains_at(density: Density, u: Tensor) -> ChainState:
    """Chains at the points `u` `(C, D)`; one leapfrog step of size 0 computes value and slope there."""
    nothing = torch.zeros_like(u)
    start = ChainState(u, u.new_zeros(len(u)), nothing)
    here, _ = run_trajectories(density, start, nothing, u.new_zeros(len(u), 1), torch.eye(u.shape[1], dtype=u.dtype), 1)
    return replace(here, u=u)


@dataclass(frozen=True, eq=False)
class Transition:
    """What one transition of `C` chains did.

    Attributes:
        state: where the chains stand after it.
        acceptance: probability with which each end was accepted, `(C,)`.
        energy: minus the log density of the start with its new momentum, `(C,)`, nats.
        diverged: which chains made a divergent transition, `(C,)`.
    """

    state: ChainState
    acceptance: Tensor
    energy: Tensor
    diverged: Tensor


@dataclass(frozen=True, eq=False)
class HMC:
    """The settings of Hamiltonian transitions.

    Attributes:
        step_size: of a leapfrog step in whitened coordinates, a scalar or one for each chain, `(C, 1)`.
        trajectory_length: the longest time of a trajectory, the number of its steps times the step size.
        factor: L of the inverse mass matrix L L', `(D, D)`.
        max_leapfrog: the largest number of leapfrog steps of a trajectory.
        inside: whether points `(C, D)` lie where trajectories may end, `(C,)`; None for everywhere. The density counts
            as 0 elsewhere.
    """

    step_size: Tensor
    trajectory_length: float
    factor: Tensor
    max_leapfrog: int = 64
    inside: Callable[[Tensor], Tensor] | None = None

    def transition(self, density: Density, state: ChainState, generator: torch.Generator) -> Transition:
        """Moves each chain along one trajectory, and accepts or refuses its end.

        The time of a trajectory is uniform between 0 and `trajectory_length`, the same for all chains. Each chain
        varies its step size by up to a tenth. Neither lets a trajectory keep returning to where it began.
        """
        like, num_chains = state.u, len(state.u)
        share = float(torch.rand((), generator=generator, dtype=like.dtype))
        time = share * self.trajectory_length
        least = time / self.max_leapfrog  # a step size below it, or of 0, makes as many steps as this
        num_steps = max(1, math.ceil(time / max(float(self.step_size.median()), least))) if time else 1
        momentum = torch.randn(like.shape, generator=generator, dtype=like.dtype)
        jitter, uniform = torch.rand((2, num_chains), generator=generator, dtype=like.dtype)
        step_size = self.step_size * (0.9 + 0.2 * jitter[:, None])
        energy = momentum.square().sum(-1) / 2 - state.value
        end, momentum = run_trajectories(density, state, momentum, step_size, self.factor, num_steps)
        change = momentum.square().sum(-1) / 2 - end.value - energy
        log_ratio = -change if self.inside is None else torch.where(self.inside(end.u), -change, -torch.inf)
        after, acceptance = metropolis(state, end, log_ratio, uniform)
        return Transition(after, acceptance, energy, ~(change < MAX_ENERGY_CHANGE))


class DualAveraging:
    """Finds the step size at which the probability of acceptance has a given mean, for one step size or for many.

    The constants 10, 0.05 and 0.75 are t0, gamma and kappa of Hoffman and Gelman (2014), section 3.2.

    Attributes:
        target: the mean probability of acceptance that is aimed at.
        log_step: logarithm of the step size to try next.
        averaged_log_step: its average over the transitions so far, in which late ones weigh more: the result.
        shortfall: average of the target minus the probability of acceptance.
        count: transitions so far.
    """

    def __init__(self, step_size: Tensor, target: float) -> None:
        self.target, self.center = target, (10 * step_size).log()
        self.log_step = self.averaged_log_step = step_size.log()
        self.shortfall, self.count = torch.zeros_like(step_size), 0

    def update(self, acceptance: Tensor) -> None:
        """Takes in the probability of acceptance of one transition."""
        self.count += 1
        weight = 1 / (self.count + 10)
        self.shortfall = (1 - weight) * self.shortfall + weight * (self.target - acceptance)
        self.log_step = self.center - math.sqrt(self.count) / 0.05 * self.shortfall
        decay = self.count**-0.75
        self.averaged_log_step = decay * self.log_step + (1 - decay) * self.averaged_log_step


def adapt_step_size(
    density: Density,
    state: ChainState,
    hmc: HMC,
    num: int,
    target: float,
    generator: torch.Generator,
    running: Running | None = None,
) -> tuple[list[ChainState], HMC]:
    """Runs `num` transitions that adapt one step size for all chains.

    Args:
        density: that the chains move on.
        state: where they begin.
        hmc: with the step size to begin with, a scalar.
        num: how many transitions.
        target: the mean probability of acceptance that is aimed at.
        generator: of all random numbers.
        running: counts the transitions, if there is one.

    Returns:
        The state after each transition, and `hmc` with the adapted step size.
    """
    tuner = DualAveraging(torch.as_tensor(hmc.step_size, dtype=state.u.dtype), target)
    states = _tuned(density, state, hmc, num, tuner, generator, running)
    return states, replace(hmc, step_size=tuner.averaged_log_step.exp())


def adapt_step_sizes(
    density: Density,
    state: ChainState,
    hmc: HMC,
    num: int,
    target: float,
    generator: torch.Generator,
    running: Running | None = None,
) -> tuple[list[ChainState], HMC]:
    """The same as `adapt_step_size` with a step size for each chain; the median of these is the result.

    So a chain in a steep place takes steps small enough to get out, while the others keep theirs.
    """
    tuner = DualAveraging(torch.full_like(state.value, float(hmc.step_size)), target)
    states = _tuned(density, state, hmc, num, tuner, generator, running)
    return states, replace(hmc, step_size=tuner.averaged_log_step.exp().median())


def _tuned(
    density: Density,
    state: ChainState,
    hmc: HMC,
    num: int,
    tuner: DualAveraging,
    generator: torch.Generator,
    running: Running | None,
) -> list[ChainState]:
    """The state after each of `num` transitions, with the step size or sizes that the tuner asks for."""
    states, for_each_chain = [state], tuner.log_step.dim() > 0
    for _ in range(num):
        step_size = tuner.log_step.exp()
        now = replace(hmc, step_size=step_size[:, None] if for_each_chain else step_size)
        transition = now.transition(density, states[-1], generator)
        states.append(transition.state)
        tuner.update(transition.acceptance if for_each_chain else transition.acceptance.mean())
        if running:
            running.advance()
    return states[1:]
