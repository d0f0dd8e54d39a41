"""Bounds on log p(x) by annealed importance sampling, for a decoder of any number of latents.

Chains go from the prior to the posterior through T densities Normal(z; 0, I) p(x | z)^beta_t, 0 = beta_0 < ... <
beta_T = 1, with one transition of Hamiltonian Monte Carlo at each. The weight w of a chain is

    log w = sum_t (beta_t - beta_(t-1)) log p(x | z_(t-1)),

where z_(t-1) is where it stood before temperature t. Whatever T is, E[w] = p(x), so the log of the mean weight lies
below log p(x) on average, by Jensen's inequality. The same path taken backwards from an exact draw of the posterior has
E[1 / w] = 1 / p(x), so minus the log of the mean of 1 / w lies above log p(x) on average. An exact draw is known for
data that were simulated together with their latents. Both bounds become tighter as T grows.

Sources: Neal (2001), Annealed importance sampling; Grosse, Ghahramani and Adams (2015), Sandwiching the marginal
likelihood using bidirectional Monte Carlo; Wu, Burda, Salakhutdinov and Grosse (2017), On the quantitative analysis of
decoder-based generative models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_vi.target.decoder import Decoded
from ppl_vi.target.target import Target
from ppl_vi.truth.decoder.hmc import TemperedChains, transition

# Problems are annealed in blocks with at most this many chains, and with decoded data of at most this many numbers: the
# temporaries of one leapfrog step then stay in the processor's cache. Larger blocks are slower and take more memory.
MAX_CHAINS_AT_ONCE = 2**11
MAX_NUMBERS_AT_ONCE = 2**22
# Inverse temperatures follow a sigmoid from minus to plus this. They lie close together near 0 and near 1, where the
# density changes fastest with them; a larger value leaves fewer of them in between.
SIGMOID_RANGE = 4.0
FIRST_STEP_SIZE = 0.5  # of the pilot run, in the prior's standard deviations
# The pilot's log step size changes from one temperature to the next by this times (acceptance - its target). A larger
# value follows the noise in the acceptance, a smaller one lags behind the density.
ADAPTATION_RATE = 0.2


@dataclass(frozen=True)
class Annealing:
    """The settings of annealed importance sampling.

    Attributes:
        num_temperatures: `T`, the number of densities after the prior.
        num_chains: chains of each problem.
        num_leapfrog: leapfrog steps of each transition.
        acceptance: mean probability of acceptance that the pilot run's step sizes aim at.
    """

    num_temperatures: int = 500
    num_chains: int = 16
    num_leapfrog: int = 5
    acceptance: float = 0.75

    def __post_init__(self) -> None:
        for name, least in (("num_temperatures", 2), ("num_chains", 2), ("num_leapfrog", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.acceptance < 1:
            raise ValueError(f"acceptance must be between 0 and 1, got {self.acceptance}")

    @property
    def betas(self) -> list[float]:
        """The `T + 1` inverse temperatures: sigmoid(4 (2 t / T - 1)), shifted and scaled to go from 0 to 1."""
        sigmoid = 1 / (1 + np.exp(-np.linspace(-SIGMOID_RANGE, SIGMOID_RANGE, self.num_temperatures + 1)))
        return list(((sigmoid - sigmoid[0]) / (sigmoid[-1] - sigmoid[0])).tolist())


@dataclass(frozen=True, eq=False)
class AnnealedBound:
    """A bound on each problem's log evidence that holds on average, from `C` chains.

    Attributes:
        log_evidence: the bound, `(B,)`, nats.
        std_error: its standard error, `(B,)`, nats, by the delta method from the spread of the weights. It is too small
            where few chains carry the weight, and a mode that no chain has found is not in it. Backward chains of a
            problem share their start, and what another start would change is not in it either.
        effective_chains: (sum w)^2 / sum w^2 of the weights that were averaged, `(B,)`.
        acceptance: mean probability of acceptance of a transition, `(B,)`.
        log_weights: log w of forward chains, or -log w of backward chains, `(B, C)`, nats.
    """

    log_evidence: np.ndarray
    std_error: np.ndarray
    effective_chains: np.ndarray
    acceptance: np.ndarray
    log_weights: np.ndarray

    @property
    def finite(self) -> np.ndarray:
        """Whether the bound is a finite number, `(B,)`: it is not where a weight is nan or all weights are 0."""
        return np.isfinite(self.log_evidence)


@dataclass(frozen=True, eq=False)
class Sandwich:
    """Lower and upper bounds on the log evidence of data that were simulated together with their latents.

    Attributes:
        lower: from forward chains.
        upper: from backward chains.
    """

    lower: AnnealedBound
    upper: AnnealedBound

    @property
    def width(self) -> np.ndarray:
        """Upper minus lower bound, `(B,)`, nats.

        The mean over problems is at least the mean distance of either bound from log p(x). A single one may be negative
        by chance.
        """
        return self.upper.log_evidence - self.lower.log_evidence


def annealed_bound(target: Target, settings: Annealing | None = None, *, seed: int = 0) -> AnnealedBound:
    """A lower bound on log p(x) of every problem of a decoded target.

    A pilot run adapts a step size for each temperature and problem. The chains whose weights count then use these with
    other random numbers, so that their mean weight is unbiased.

    Args:
        target: with any number of latents.
        settings: how many temperatures and chains.
        seed: of both runs.

    Raises:
        ValueError: the target has no decoder.
    """
    settings = settings or Annealing()
    with target.isolated(), torch.no_grad():
        return bound_from_weights([run.forward(run.pilot()) for run in _runs(target, settings, seed)])


def annealed_sandwich(target: Target, z: Tensor, settings: Annealing | None = None, *, seed: int = 0) -> Sandwich:
    """Lower and upper bounds on log p(x) where x was simulated with z, which is then an exact posterior draw.

    Args:
        target: whose data were simulated from its own model.
        z: the latents that the data were simulated with, `(B, D)`; all backward chains of a problem start there.
        settings: how many temperatures and chains.
        seed: of all runs.

    Raises:
        ValueError: the target has no decoder, or z has another shape.
    """
    settings = settings or Annealing()
    if z.shape != (target.num_problems, target.dim):
        raise ValueError(f"z must be ({target.num_problems}, {target.dim}), one row a problem, got {tuple(z.shape)}")
    z = z.detach().to(target.device, target.dtype)
    lower, upper = [], []
    with target.isolated(), torch.no_grad():
        for run in _runs(target, settings, seed):
            step_sizes = run.pilot()
            lower.append(run.forward(step_sizes))
            upper.append(run.backward(z[run.rows], step_sizes))
    return Sandwich(bound_from_weights(lower), bound_from_weights(upper, sign=-1))


def _runs(target: Target, settings: Annealing, seed: int) -> Iterator[_Run]:
    """One run for each block of problems."""
    if target.decoded is None:
        raise ValueError(f"target '{target.name}' has no decoder: annealing needs z ~ Normal(0, I) and a decoder")
    chains = min(MAX_CHAINS_AT_ONCE, MAX_NUMBERS_AT_ONCE // sum(arg[0].numel() for arg in target.args))
    size = max(1, chains // settings.num_chains)
    streams = np.random.SeedSequence(seed).generate_state(3, np.uint64)  # pilot, forward, backward
    generators = [torch.Generator(target.device).manual_seed(int(stream >> 1)) for stream in streams]
    for first in range(0, target.num_problems, size):
        rows = slice(first, min(first + size, target.num_problems))
        yield _Run(target.decoded, tuple(arg[rows] for arg in target.args), target.dim, settings, rows, *generators)


@dataclass(frozen=True, eq=False)
class _Run:
    """The annealing of a block of `B` problems.

    `forward` and `backward` give log w `(B, C)` and the mean acceptance `(B,)`. Their step sizes `(T - 1, B)` are those
    at beta_1 to beta_(T-1).

    Attributes:
        decoded: the decoder.
        args: the block's rows of data.
        dim: `D`.
        settings: how many temperatures and chains.
        rows: which problems of the target are in the block.
        for_pilot: generator of the pilot's random numbers.
        for_forward: generator of the forward chains' random numbers.
        for_backward: generator of the backward chains' random numbers.
    """

    decoded: Decoded
    args: tuple[Tensor, ...]
    dim: int
    settings: Annealing
    rows: slice
    for_pilot: torch.Generator
    for_forward: torch.Generator
    for_backward: torch.Generator

    def pilot(self) -> Tensor:
        """The step sizes: each grows or shrinks from one temperature to the next with the acceptance there."""
        chains, betas = self._from_prior(self.for_pilot), self.settings.betas
        log_step, log_steps = chains.z.new_full(chains.z.shape[:1], math.log(FIRST_STEP_SIZE)), []
        for beta in betas[1:-1]:
            chains, accepted = self._move(chains, beta, log_step.exp(), self.for_pilot)
            log_steps.append(log_step)
            log_step = log_step + ADAPTATION_RATE * (accepted.mean(-1) - self.settings.acceptance)
        return torch.stack(log_steps).exp()

    def forward(self, step_sizes: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of chains from the prior to the posterior."""
        chains, betas = self._from_prior(self.for_forward), self.settings.betas
        log_weight, accepted = betas[1] * chains.log_likelihood, []
        for step_size, beta, next_beta in zip(step_sizes, betas[1:], betas[2:], strict=False):
            chains, probability = self._move(chains, beta, step_size, self.for_forward)
            log_weight = log_weight + (next_beta - beta) * chains.log_likelihood
            accepted.append(probability.mean(-1))
        return log_weight, torch.stack(accepted).mean(0)

    def backward(self, z: Tensor, step_sizes: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of chains from posterior draws `z` `(B, D)` to the prior, with the step sizes in reverse."""
        start = z[:, None].expand(-1, self.settings.num_chains, -1)
        chains, betas = TemperedChains.at(self.decoded, self.args, start), self.settings.betas
        log_weight, accepted = (1 - betas[-2]) * chains.log_likelihood, []
        for t in range(len(step_sizes), 0, -1):
            chains, probability = self._move(chains, betas[t], step_sizes[t - 1], self.for_backward)
            log_weight = log_weight + (betas[t] - betas[t - 1]) * chains.log_likelihood
            accepted.append(probability.mean(-1))
        return log_weight, torch.stack(accepted).mean(0)

    def _from_prior(self, generator: torch.Generator) -> TemperedChains:
        shape = len(self.args[0]), self.settings.num_chains, self.dim
        z = torch.randn(shape, generator=generator, device=generator.device)  # `isolated` has set the dtype
        return TemperedChains.at(self.decoded, self.args, z)

    def _move(
        self, chains: TemperedChains, beta: float, step_size: Tensor, generator: torch.Generator
    ) -> tuple[TemperedChains, Tensor]:
        return transition(self.decoded, self.args, chains, beta, step_size, self.settings.num_leapfrog, generator)


def bound_from_weights(blocks: list[tuple[Tensor, Tensor]], sign: int = 1) -> AnnealedBound:
    """The bound sign log(mean over chains of w^sign) of the problems of all blocks.

    Args:
        blocks: of each block, log w `(B, C)` and the mean acceptance `(B,)`.
        sign: 1 for forward chains, -1 for backward ones.
    """
    log_weights = sign * torch.cat([log_weight for log_weight, _ in blocks])
    num_chains = log_weights.shape[-1]
    log_mean = log_weights.logsumexp(-1) - math.log(num_chains)
    relative = (log_weights - log_mean[:, None]).exp()  # their mean is 1
    return AnnealedBound(
        log_evidence=(sign * log_mean).cpu().numpy(),
        std_error=(relative.std(-1) / math.sqrt(num_chains)).cpu().numpy(),
        effective_chains=(num_chains**2 / relative.square().sum(-1)).cpu().numpy(),
        acceptance=torch.cat([accepted for _, accepted in blocks]).cpu().numpy(),
        log_weights=log_weights.cpu().numpy(),
    )
