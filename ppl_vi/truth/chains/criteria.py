"""The criteria that reference draws have to meet, and the figures of the chains that they are applied to.

Sources: Magnusson et al. (2024), posteriordb; Vehtari et al. (2021), Rank-normalization, folding, and localization: an
improved R-hat; Betancourt (2016), Diagnosing suboptimal cotangent disintegrations in Hamiltonian Monte Carlo.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ppl_vi.truth.result import Check

# Draws that miss one of these limits make the truth uncertified.
MAX_R_HAT = 1.01  # the limit of Vehtari et al. (2021): above it the chains disagree about the posterior
MIN_EFFECTIVE_SAMPLE_SIZE = 5000  # in bulk and tails; it keeps standard errors of means below 1.5% of a deviation
MAX_CORRELATION = 0.05  # of a draw with the next one of its chain
MIN_E_FMI = 0.2  # below it chains move through the energies too slowly to reach the tails
MAX_STANDARD_ERRORS = 4.0  # between two estimates of log p(x): once in 16,000 runs by chance alone
MAX_LOG_EVIDENCE_ERROR = 0.05  # nats: joint standard error of both estimates, so that their agreement says something
MAX_PARETO_K_HAT = 0.7  # above it the importance weights have too heavy a tail for a reliable standard error
# Chains that stay in separate modes: the standard deviation of their means is more than APART of that within a chain,
# and the means of the two halves of a chain differ by less than HALVES_AGREE of it, unlike those of slow chains.
APART, HALVES_AGREE = 0.5, 0.25


@dataclass(frozen=True)
class Criterion:
    """One of the criteria that the draws have to meet.

    Attributes:
        name: which figure.
        value: what it is.
        limit: what it may be at most, or has to be at least.
        at_least: whether the limit is the smallest value allowed.
    """

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def check(self) -> Check:
        """As a check, whose figure must not exceed its tolerance: a limit from below is divided by the value."""
        if self.at_least:
            error = self.limit / self.value if self.value else math.inf
            return Check(f"{self.limit:g} divided by {self.name}", error, 1.0)
        return Check(self.name, self.value, self.limit)

    @property
    def failure(self) -> str:
        """In words what is wrong; "" where the criterion is met."""
        if self.check.error <= self.check.tolerance:
            return ""
        return f"{self.name} is {self.value:.3g} and must be at {'least' if self.at_least else 'most'} {self.limit:g}"


def autocorrelation(values: Tensor, lag: int) -> Tensor:
    """The correlation of draws `(N, C, K)` with those `lag` later, about the common mean of all chains, `(K,)`."""
    away = values - values.mean((0, 1))
    return (away[lag:] * away[:-lag]).mean((0, 1)) / away.square().mean((0, 1))


def stay_apart(numbers: Tensor) -> bool:
    """Whether chains stay in separate modes: each has settled, in another place than others.

    Along some number the means of the chains are spread by much more than those of the two halves of each chain differ.

    Args:
        numbers: as `chain_criteria` takes them.
    """
    half = len(numbers) // 2
    first, second = numbers[:half].mean(0), numbers[half : 2 * half].mean(0)  # (C, K)
    within = numbers.var(0).mean(0)
    between = ((first + second) / 2).var(0) / within
    drift = ((first - second) / 2).square().mean(0) / within
    return bool(((between > APART**2) & (drift < (HALVES_AGREE**2) * between)).any())


def energy_information(energy: np.ndarray) -> float:
    """E-FMI: the mean square of the changes of a chain's energies `(T,)` relative to their variance; 0 where constant.

    Source: Betancourt (2016), equation 2.
    """
    variance = energy.var(ddof=1)
    return float(np.square(np.diff(energy)).mean() / variance) if variance > 0 else 0.0


def chain_criteria(numbers: Tensor, energy: Tensor, num_diverged: int) -> tuple[Criterion, ...]:
    """The criteria for the chains themselves, each with the worst figure over all numbers and chains.

    Args:
        numbers: every coordinate of the draws and their log density, `(N, C, K)`, draws by chains.
        energy: of every transition, `(T, C)`, nats.
        num_diverged: how many transitions were divergent.
    """
    from arviz_stats.base import array_stats  # importing it takes two seconds, with xarray and pandas

    chains = numbers.permute(2, 1, 0).cpu().numpy()  # number, chain, draw
    r_hat = max(float(array_stats.rhat(one)) for one in chains)
    bulk = min(float(array_stats.ess(one, method="bulk")) for one in chains)
    tail = min(float(array_stats.ess(one, method="tail", prob=(0.05, 0.95))) for one in chains)
    e_fmi = min(map(energy_information, energy.T.cpu().double().numpy()))
    correlation = float(autocorrelation(numbers, 1).abs().max())
    return (
        Criterion("split R-hat", r_hat, MAX_R_HAT),
        Criterion("smallest effective sample size in bulk", bulk, MIN_EFFECTIVE_SAMPLE_SIZE, at_least=True),
        Criterion("smallest effective sample size in the tails", tail, MIN_EFFECTIVE_SAMPLE_SIZE, at_least=True),
        Criterion("largest correlation of a draw with the next one of its chain", correlation, MAX_CORRELATION),
        Criterion("number of divergent transitions", float(num_diverged), 0.0),
        Criterion("smallest E-FMI of a chain", e_fmi, MIN_E_FMI, at_least=True),
    )
