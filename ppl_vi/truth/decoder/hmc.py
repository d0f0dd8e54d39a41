"""Hamiltonian Monte Carlo between a decoded target's prior and its posteriors, all chains of all problems at once.

At inverse temperature beta the density is, up to a factor, Normal(z; 0, I) p(x | z)^beta: the prior for beta = 0, the
posterior for beta = 1.

Source: Duane et al. (1987), Hybrid Monte Carlo; Neal (2011), MCMC using Hamiltonian dynamics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vi.target.decoder import Decoded
from ppl_vi.truth.chains.leapfrog import leapfrog
from ppl_vi.truth.chains.sampler import metropolis

# Each chain's step size is multiplied by a random number between 1 - JITTER and 1 + JITTER, so that no trajectory is as
# long as the posterior's period time after time, and returns to its start. Larger values make steps that are refused.
JITTER = 0.25


@dataclass(frozen=True, eq=False)
class TemperedChains:
    """Where `C` chains of each of `B` problems stand.

    Attributes:
        z: their points, `(B, C, D)`.
        log_likelihood: log p(x | z), `(B, C)`, nats.
        slope: the gradient of log p(x | z) in z, `(B, C, D)`. Neither depends on the temperature.
    """

    z: Tensor
    log_likelihood: Tensor
    slope: Tensor

    @staticmethod
    def at(decoded: Decoded, args: tuple[Tensor, ...], z: Tensor) -> TemperedChains:
        """Chains at the points `z` `(B, C, D)` of the problems with those rows of data."""
        with torch.enable_grad():
            at = z.detach().requires_grad_()
            value = decoded.log_likelihood_at(at, *args)
            (slope,) = torch.autograd.grad(value.sum(), at)
        return TemperedChains(at.detach(), value.detach(), slope)

    def log_density(self, beta: float) -> Tensor:
        """The log density at inverse temperature `beta`, up to the prior's constant, `(B, C)`, nats."""
        return beta * self.log_likelihood - self.z.square().sum(-1) / 2

    def force(self, beta: float) -> Tensor:
        """The gradient of `log_density` in z, `(B, C, D)`."""
        return beta * self.slope - self.z


def transition(
    decoded: Decoded,
    args: tuple[Tensor, ...],
    chains: TemperedChains,
    beta: float,
    step_size: Tensor,
    num_leapfrog: int,
    generator: torch.Generator,
) -> tuple[TemperedChains, Tensor]:
    """Moves each chain along one trajectory, and accepts or refuses its end by the rule of Metropolis.

    The transition leaves the density at `beta` invariant and is its own reverse, whatever the step size. An end where
    the density is 0 or nan is refused.

    Args:
        decoded: the decoder.
        args: rows of data, `(B, ...)`.
        chains: where the chains stand.
        beta: inverse temperature.
        step_size: of the leapfrog steps, `(B,)`; each chain varies it by up to a quarter.
        num_leapfrog: number of leapfrog steps.
        generator: of momenta, step sizes and acceptance.

    Returns:
        Where the chains stand now, and the probability with which the end of each was accepted, `(B, C)`.
    """
    like, shape = chains.z, chains.log_likelihood.shape
    momentum = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
    jitter, uniform = torch.rand((2, *shape), generator=generator, dtype=like.dtype, device=like.device)
    h = (step_size[:, None] * (1 + JITTER * (2 * jitter - 1)))[..., None]
    before = chains.log_density(beta) - momentum.square().sum(-1) / 2
    end, momentum = leapfrog(
        chains,
        momentum,
        h,
        num_leapfrog,
        force=lambda at: at.force(beta),
        drift=lambda at, distance: TemperedChains.at(decoded, args, at.z + distance),
    )
    log_ratio = end.log_density(beta) - momentum.square().sum(-1) / 2 - before
    return metropolis(chains, end, log_ratio, uniform)
