"""Short chains from dispersed starts: they would find mass of a posterior that importance draws have missed.

A search for a mode begins at each of the dispersed starts, half of which are draws of the prior. Where it ends, a chain
starts, off the mode by more than the posterior is wide. The chains move by Hamiltonian Monte Carlo with the covariance
of the importance draws as their inverse mass matrix. What they find must be what the importance draws say: the chains
agree with each other, and with the draws about the mean and two quantiles of every coordinate and of the log density.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from scipy.special import ndtri, stdtr
from torch import Tensor

from ppl_vi.target.log_density import Density
from ppl_vi.truth.chains.sampler import HMC, adapt_step_size, adapt_step_sizes, chains_at
from ppl_vi.truth.importance.weighted import QUANTILES, weighted_quantiles

NUM_WITNESSES = 32
# Transitions with a step size for each chain; then with a common step size; then the ones that are kept. A chain that
# has not reached the others by then speaks against the importance draws.
NUM_ARRIVING = 15
NUM_SETTLING = 15
NUM_KEPT = 60
# The kept transitions are made again at half the step size, from where the chains have come, if one was divergent.
MAX_RUNS = 4
# Chains start at a normal draw about the end of a search, with this many times the standard deviations of the
# importance draws. Starts that are more dispersed than the posterior let chains tell that they agree.
DISPERSION = 2.0
# A start where the density is 0, or outside of the chain's region, is moved half the way back so many times, and then
# to where the search ended.
MAX_HALVINGS = 6
# In whitened coordinates: of the leapfrog steps, before the first transition.
FIRST_STEP_SIZE = 0.5
# Half a period of a standard normal density.
TRAJECTORY_LENGTH = math.pi
# Leapfrog steps of a trajectory. More would let chains arrive in fewer transitions, each of which would cost more.
MAX_LEAPFROG = 16
ACCEPTANCE = 0.9  # the mean probability of acceptance that step sizes aim at


@dataclass(frozen=True, eq=False)
class Witnesses:
    """The short chains.

    Attributes:
        u: their points after each transition, `(N, C, D)`.
        value: the log density there, `(N, C)`, nats.
        num_diverged: how many of the kept transitions were divergent.
    """

    u: Tensor
    value: Tensor
    num_diverged: int


def run_witnesses(
    density: Density,
    ends: Tensor,
    factor: Tensor,
    generator: torch.Generator,
    inside: Callable[[Tensor], Tensor] | None = None,
) -> Witnesses:
    """Runs the chains.

    Args:
        density: that they move on.
        ends: of searches from dispersed starts, `(C, D)`.
        factor: L of the importance draws' covariance L L', `(D, D)`.
        generator: of all random numbers.
        inside: whether points `(S, D)` lie in the region that chains must not leave, `(S,)`, for which they then have
            the density as their distribution; None for the whole space.
    """
    noise = DISPERSION * torch.randn(ends.shape, generator=generator, dtype=ends.dtype) @ factor.mT
    start = _started(density, ends, noise, inside)
    hmc = HMC(torch.tensor(FIRST_STEP_SIZE), TRAJECTORY_LENGTH, factor, MAX_LEAPFROG, inside)
    states, hmc = adapt_step_sizes(density, chains_at(density, start), hmc, NUM_ARRIVING, ACCEPTANCE, generator)
    states, hmc = adapt_step_size(density, states[-1], hmc, NUM_SETTLING, ACCEPTANCE, generator)
    state = states[-1]
    for _ in range(MAX_RUNS):
        kept, num_diverged = [state], 0
        for _ in range(NUM_KEPT):
            transition = hmc.transition(density, kept[-1], generator)
            num_diverged += int(transition.diverged.sum())
            kept.append(transition.state)
        if not num_diverged:
            break
        state, hmc = kept[-1], replace(hmc, step_size=hmc.step_size / 2)
    return Witnesses(torch.stack([s.u for s in kept[1:]]), torch.stack([s.value for s in kept[1:]]), num_diverged)


def _started(density: Density, ends: Tensor, noise: Tensor, inside: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Starts of chains: ends, moved by as much of the noise, halved and halved again, as keeps them in the region."""
    for _ in range(MAX_HALVINGS):
        good = density(ends + noise).isfinite()
        good = good if inside is None else good & inside(ends + noise)
        if bool(good.all()):
            break
        noise = torch.where(good[:, None], noise, noise / 2)
    return ends + torch.where(good[:, None], noise, 0.0)


def largest_disagreement(numbers: Tensor, weight: Tensor, seen: Tensor) -> float:
    """The largest difference between importance draws and chains, in standard errors.

    It is taken over the mean and two quantiles of each number. The standard error of the chains comes from their
    spread; since they are few, the ratio has Student's distribution, and is told as the deviation of a normal variable
    that is as improbable.

    Args:
        numbers: of the importance draws, `(S, K)`.
        weight: of these, `(S,)`.
        seen: the same numbers of the chains, `(N, C, K)`.
    """
    num_chains, worst = seen.shape[1], 0.0
    for k in range(numbers.shape[1]):
        x, y = numbers[:, k], seen[..., k]
        limits = weighted_quantiles(x, weight, QUANTILES)
        pairs = [(x, y)] + [((x <= limit).to(x), (y <= limit).to(y)) for limit in limits]
        for drawn, by_chain in pairs:
            mean, means = weight @ drawn, by_chain.mean(0)
            variance = (weight * (drawn - mean)).square().sum() + means.var() / num_chains
            ratio = float((means.mean() - mean).abs() / variance.sqrt())
            worst = max(worst, float(-ndtri(stdtr(num_chains - 1, -ratio))), key=_size)
    return worst


def _size(figure: float) -> float:
    return math.inf if math.isnan(figure) else figure
