"""Hamiltonian Monte Carlo of many chains at once on one problem's log density, as traced by `Density`.

Sources: Duane et al. (1987), Hybrid Monte Carlo; Neal (2011), MCMC using Hamiltonian dynamics; Hoffman and Gelman
(2014), The No-U-Turn sampler (dual averaging).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppl_vi.target.log_density import Density
from ppl_vi.truth.chains.leapfrog import Phase, advanced

DIVERGED = 1000.0  # nats of energy that a trajectory may be off, as in Stan


@dataclass(frozen=True, eq=False)
class ChainState:
    """Where `C` chains stand.

    Attributes:
        u: `(C, D)`.
        value: the log density there, `(C,)`, nats.
        slope: its derivative, `(C, D)`.
    """

    u: Tensor
    value: Tensor
    slope: Tensor

    def moved(self, to: ChainState, where: Tensor) -> ChainState:
        """These chains, those marked in `where` `(C,)` in their new place."""
        return ChainState(
            torch.where(where[:, None], to.u, self.u),
            torch.where(where, to.value, self.value),
            torch.where(where[:, None], to.slope, self.slope),
        )


def chains_at(density: Density, u: Tensor) -> ChainState:
    """Chains at `u` `(C, D)`: a step of no length tells value and slope."""
    still = Phase(u, torch.zeros_like(u), u.new_zeros(len(u)), torch.zeros_like(u))
    here = advanced(density, still, u.new_zeros(len(u), 1), torch.eye(u.shape[1], dtype=u.dtype), 1)
    return ChainState(u, here.value, here.slope)


@dataclass(frozen=True, eq=False)
class Moved:
    """One transition.

    Attributes:
        state: after it.
        acceptance: its probability, `(C,)`.
        energy: of the state after it with the momentum it began with, `(C,)`, nats.
        diverged: trajectories that went astray, `(C,)`.
    """

    state: ChainState
    acceptance: Tensor
    energy: Tensor
    diverged: Tensor


@dataclass(frozen=True, eq=False)
class HMC:
    """How trajectories run: a step, the longest time, and a factor L of the metric's inverse L L'.

    Attributes:
        step: of the leapfrog rule in whitened coordinates, a scalar or `(C, 1)`.
        time: the longest of a trajectory; each has a random share of it.
        factor: `(D, D)`.
        max_leapfrog: leapfrog steps of a trajectory at most.
    """

    step: Tensor
    time: float
    factor: Tensor
    max_leapfrog: int = 64

    def transition(self, density: Density, state: ChainState, generator: torch.Generator) -> Moved:
        """One trajectory of each chain, accepted or refused by Metropolis' rule.

        The time is uniform up to `time`, the same for all chains, each of which varies its step by up to a tenth.
        """
        like, num = state.u, len(state.u)
        share = float(torch.rand((), generator=generator, dtype=like.dtype))
        num_steps = max(1, math.ceil(min(self.max_leapfrog, share * self.time / float(self.step.median()))))
        momentum = torch.randn(like.shape, generator=generator, dtype=like.dtype)
        jitter, threshold = torch.rand((2, num), generator=generator, dtype=like.dtype)
        h = self.step * (0.9 + 0.2 * jitter[:, None])
        before = momentum.square().sum(-1) / 2 - state.value
        begin = Phase(state.u, momentum, state.value, state.slope)
        end = advanced(density, begin, h, self.factor, num_steps)
        change = end.momentum.square().sum(-1) / 2 - end.value - before
        # a trajectory that ends where the density is 0 or no number is refused
        acceptance = torch.where(change.isnan(), 0.0, (-change).clamp(max=0.0).exp())
        accepted = threshold < acceptance
        moved = state.moved(ChainState(end.u, end.value, end.slope), accepted)
        return Moved(moved, acceptance, before, ~(change < DIVERGED))


class DualAveraging:
    """Finds the log step at which the acceptance is `goal` (Hoffman and Gelman 2014, section 3.2), one or many."""

    def __init__(self, step: Tensor, goal: float) -> None:
        self.goal, self.center = goal, (10 * step).log()
        self.log_step, self.mean, self.off, self.count = step.log(), step.log(), torch.zeros_like(step), 0

    def update(self, acceptance: Tensor) -> None:
        """After a transition."""
        self.count += 1
        weight = 1 / (self.count + 10)
        self.off = (1 - weight) * self.off + weight * (self.goal - acceptance)
        self.log_step = self.center - math.sqrt(self.count) / 0.05 * self.off
        decay = self.count**-0.75
        self.mean = decay * self.log_step + (1 - decay) * self.mean


def adapt_step_size(
    density: Density, state: ChainState, kernel: HMC, num: int, goal: float, generator: torch.Generator
) -> tuple[list[ChainState], HMC]:
    """Runs `num` transitions that settle the step of all chains; gives the state after each."""
    tuner = DualAveraging(torch.as_tensor(kernel.step, dtype=state.u.dtype), goal)
    states = _tuned(density, state, kernel, num, tuner, generator)
    return states, replace(kernel, step=tuner.mean.exp())


def adapt_step_sizes(
    density: Density, state: ChainState, kernel: HMC, num: int, goal: float, generator: torch.Generator
) -> tuple[list[ChainState], HMC]:
    """The same with a step of its own for each chain, so that those in steep places get out; then their median."""
    tuner = DualAveraging(torch.full_like(state.value, float(kernel.step)), goal)
    states = _tuned(density, state, kernel, num, tuner, generator)
    return states, replace(kernel, step=tuner.mean.exp().median())


def _tuned(
    density: Density,
    state: ChainState,
    kernel: HMC,
    num: int,
    tuner: DualAveraging,
    generator: torch.Generator,
) -> list[ChainState]:
    """The state after each of `num` transitions by the tuner's step, one for all chains or one for each."""
    states, own = [state], tuner.log_step.dim() > 0
    for _ in range(num):
        step = tuner.log_step.exp()
        moved = replace(kernel, step=step[:, None] if own else step).transition(density, states[-1], generator)
        states.append(moved.state)
        tuner.update(moved.acceptance if own else moved.acceptance.mean())
    return states[1:]
