"""Bounds on log p(x) by annealed importance sampling, for a decoder of any number of latents.

Chains go from the prior to the posterior through T densities Normal(z; 0, I) p(x | z)^beta_t, 0 = beta_0 < ... <
beta_T = 1, one HMC transition at each, and weigh what they pass,

    log w = sum_t (beta_t - beta_(t-1)) log p(x | z_(t-1)),

so that E[w] = p(x) whatever T: the log of the mean weight lies below log p(x) on average (Jensen). The same path taken
backwards from an exact posterior draw has E[1 / w] = 1 / p(x): minus the log of the mean of 1 / w lies above. An exact
draw is there for data simulated together with their latents. Both tighten as T grows.

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
from ppl_vi.truth.decoder.hmc import Chains, placed, transition

CHAINS_AT_ONCE = 2**11  # their temporaries stay in the cache
NUMBERS_AT_ONCE = 2**22  # in the data that so many chains decode
STEEPNESS = 4.0  # of the sigmoid: temperatures are dense where the density starts and where it settles
FIRST_STEP = 0.5  # of the pilot, in the prior's standard deviations
ADAPTATION = 0.2  # by how much a pilot's log step follows its acceptance


@dataclass(frozen=True)
class Annealing:
    """How to anneal.

    Attributes:
        num_temperatures: `T`.
        num_chains: of each problem.
        num_leapfrog: steps of a transition.
        acceptance: probability that the pilot's steps aim at.
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
        """Inverse temperatures, `T + 1` of them: sigmoid(4 (2 t / T - 1)), moved and scaled to go from 0 to 1."""
        line = np.linspace(-STEEPNESS, STEEPNESS, self.num_temperatures + 1)
        curve = 1 / (1 + np.exp(-line))
        return list(((curve - curve[0]) / (curve[-1] - curve[0])).tolist())


@dataclass(frozen=True, eq=False)
class AnnealedBound:
    """A bound on each problem's log evidence that holds on average, from `C` chains.

    Attributes:
        log_evidence: `(B,)`, nats.
        std_error: of it, `(B,)`, nats: the chains' relative standard error (delta method). It is too small where few
            chains carry the weight, and knows nothing of what none has found. Backward chains share their start, and
            what another start would change is not in it.
        effective_chains: (sum w)^2 / sum w^2 of the weights that were averaged, `(B,)`.
        acceptance: mean probability of a transition, `(B,)`.
        log_weights: of the forward chains log w, of the backward ones -log w, `(B, C)`.
    """

    log_evidence: np.ndarray
    std_error: np.ndarray
    effective_chains: np.ndarray
    acceptance: np.ndarray
    log_weights: np.ndarray

    @property
    def finite(self) -> np.ndarray:
        """Whether a problem has a bound at all, `(B,)`: it has none where a weight is no number."""
        return np.isfinite(self.log_evidence)


@dataclass(frozen=True, eq=False)
class Sandwich:
    """Lower and upper bounds on the log evidence of data that were simulated together with their latents."""

    lower: AnnealedBound
    upper: AnnealedBound

    @property
    def width(self) -> np.ndarray:
        """Upper minus lower, `(B,)`, nats: its mean bounds what either lacks on average; one alone may be negative."""
        return self.upper.log_evidence - self.lower.log_evidence


def annealed_bound(target: Target, settings: Annealing | None = None, *, seed: int = 0) -> AnnealedBound:
    """A lower bound on log p(x) of every problem of a decoded target.

    A pilot run adapts a step size for each temperature and problem; the chains that count then use them with other
    random numbers, so that their mean weight is unbiased.

    Args:
        target: any number of latents.
        settings: how.
        seed: of both runs.

    Raises:
        ValueError: the target has no decoder.
    """
    settings = settings or Annealing()
    with target.isolated(), torch.no_grad():
        return _bound([run.forward(run.pilot()) for run in _runs(target, settings, seed)])


def annealed_sandwich(target: Target, z: Tensor, settings: Annealing | None = None, *, seed: int = 0) -> Sandwich:
    """Lower and upper bounds on log p(x) where x was simulated with z, which is then an exact posterior draw.

    Args:
        target: its data simulated from its own model.
        z: the latents that they were simulated with, `(B, D)`; all backward chains of a problem start there.
        settings: how.
        seed: of all runs.

    Raises:
        ValueError: the target has no decoder, or z another shape.
    """
    settings = settings or Annealing()
    if z.shape != (target.num_problems, target.dim):
        raise ValueError(f"z must be ({target.num_problems}, {target.dim}), one row a problem, got {tuple(z.shape)}")
    z = z.detach().to(target.device, target.dtype)
    lower, upper = [], []
    with target.isolated(), torch.no_grad():
        for run in _runs(target, settings, seed):
            steps = run.pilot()
            lower.append(run.forward(steps))
            upper.append(run.backward(z[run.rows], steps))
    return Sandwich(_bound(lower), _bound(upper, sign=-1))


def _runs(target: Target, settings: Annealing, seed: int) -> Iterator[_Run]:
    """The problems in blocks of bounded memory."""
    if target.decoded is None:
        raise ValueError(f"target '{target.name}' has no decoder: annealing needs z ~ Normal(0, I) and a decoder")
    chains = min(CHAINS_AT_ONCE, NUMBERS_AT_ONCE // sum(arg[0].numel() for arg in target.args))
    size = max(1, chains // settings.num_chains)
    streams = np.random.SeedSequence(seed).generate_state(3, np.uint64)  # pilot, forward, backward
    generators = [torch.Generator(target.device).manual_seed(int(stream >> 1)) for stream in streams]
    for first in range(0, target.num_problems, size):
        rows = slice(first, min(first + size, target.num_problems))
        yield _Run(target.decoded, tuple(arg[rows] for arg in target.args), target.dim, settings, rows, *generators)


@dataclass(frozen=True, eq=False)
class _Run:
    """A block of `B` problems and the random numbers of its three passes.

    A pass gives log w `(B, C)` and the mean acceptance `(B,)`; `steps` are `(T - 1, B)`, those of beta_1 and on.
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
        """Step sizes: each temperature's starts from the one before, and grows or shrinks with its acceptance."""
        chains, betas = self._from_prior(self.for_pilot), self.settings.betas
        log_step, log_steps = chains.z.new_full(chains.z.shape[:1], math.log(FIRST_STEP)), []
        for beta in betas[1:-1]:
            chains, accepted = self._move(chains, beta, log_step.exp(), self.for_pilot)
            log_steps.append(log_step)
            log_step = log_step + ADAPTATION * (accepted.mean(-1) - self.settings.acceptance)
        return torch.stack(log_steps).exp()

    def forward(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """From the prior to the posterior."""
        chains, betas = self._from_prior(self.for_forward), self.settings.betas
        log_weight, accepted = betas[1] * chains.log_likelihood, []
        for step, beta, after in zip(steps, betas[1:], betas[2:], strict=False):
            chains, probability = self._move(chains, beta, step, self.for_forward)
            log_weight = log_weight + (after - beta) * chains.log_likelihood
            accepted.append(probability.mean(-1))
        return log_weight, torch.stack(accepted).mean(0)

    def backward(self, z: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """From the posterior's draws `z` `(B, D)` to the prior, by the forward run's steps in reverse."""
        start = z[:, None].expand(-1, self.settings.num_chains, -1)
        chains, betas = placed(self.decoded, self.args, start), self.settings.betas
        log_weight, accepted = (1 - betas[-2]) * chains.log_likelihood, []
        for t in range(len(steps), 0, -1):
            chains, probability = self._move(chains, betas[t], steps[t - 1], self.for_backward)
            log_weight = log_weight + (betas[t] - betas[t - 1]) * chains.log_likelihood
            accepted.append(probability.mean(-1))
        return log_weight, torch.stack(accepted).mean(0)

    def _from_prior(self, generator: torch.Generator) -> Chains:
        shape = len(self.args[0]), self.settings.num_chains, self.dim
        z = torch.randn(shape, generator=generator, device=generator.device)  # `isolated` has set the dtype
        return placed(self.decoded, self.args, z)

    def _move(self, chains: Chains, beta: float, step: Tensor, generator: torch.Generator) -> tuple[Chains, Tensor]:
        return transition(self.decoded, self.args, chains, beta, step, self.settings.num_leapfrog, generator)


def _bound(runs: list[tuple[Tensor, Tensor]], sign: int = 1) -> AnnealedBound:
    """From all blocks' log weights: the log of the mean of w^sign, times sign."""
    log_weights = sign * torch.cat([log_weight for log_weight, _ in runs])
    num = log_weights.shape[-1]
    log_mean = log_weights.logsumexp(-1) - math.log(num)
    relative = (log_weights - log_mean[:, None]).exp()  # of mean 1
    return AnnealedBound(
        log_evidence=(sign * log_mean).cpu().numpy(),
        std_error=(relative.std(-1) / math.sqrt(num)).cpu().numpy(),
        effective_chains=(num**2 / relative.square().sum(-1)).cpu().numpy(),
        acceptance=torch.cat([accepted for _, accepted in runs]).cpu().numpy(),
        log_weights=log_weights.cpu().numpy(),
    )
