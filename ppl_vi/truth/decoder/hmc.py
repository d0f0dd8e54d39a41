"""Hamiltonian Monte Carlo on the path from a decoded target's prior to its posteriors, all chains at once.

The density at inverse temperature beta is, up to a factor, Normal(z; 0, I) p(x | z)^beta.

Source: Duane et al. (1987), Hybrid Monte Carlo; Neal (2011), MCMC using Hamiltonian dynamics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vi.target.decoder import Decoded

JITTER = 0.25  # of a chain's step: no trajectory has the period of the posterior for long


@dataclass(frozen=True, eq=False)
class Chains:
    """Where `C` chains of each of `B` problems stand.

    Attributes:
        z: `(B, C, D)`.
        log_likelihood: log p(x | z), `(B, C)`, nats.
        slope: its derivative in z, `(B, C, D)`: neither depends on the temperature.
    """

    z: Tensor
    log_likelihood: Tensor
    slope: Tensor

    def log_density(self, beta: float) -> Tensor:
        """At inverse temperature `beta`, `(B, C)`, up to the prior's constant."""
        return beta * self.log_likelihood - self.z.square().sum(-1) / 2

    def force(self, beta: float) -> Tensor:
        """Derivative of `log_density`, `(B, C, D)`."""
        return beta * self.slope - self.z

    def moved(self, to: Chains, where: Tensor) -> Chains:
        """These chains, those marked in `where` `(B, C)` in their new place."""
        return Chains(
            torch.where(where[..., None], to.z, self.z),
            torch.where(where, to.log_likelihood, self.log_likelihood),
            torch.where(where[..., None], to.slope, self.slope),
        )


def placed(decoded: Decoded, args: tuple[Tensor, ...], z: Tensor) -> Chains:
    """Chains at `z` `(B, C, D)` of the problems with those rows of data."""
    with torch.enable_grad():
        at = z.detach().requires_grad_()
        value = decoded.log_likelihood_at(at, *args)
        (slope,) = torch.autograd.grad(value.sum(), at)
    return Chains(at.detach(), value.detach(), slope)


def transition(
    decoded: Decoded,
    args: tuple[Tensor, ...],
    chains: Chains,
    beta: float,
    step: Tensor,
    num_leapfrog: int,
    generator: torch.Generator,
) -> tuple[Chains, Tensor]:
    """One trajectory of each chain, accepted or refused by Metropolis' rule.

    It leaves the density at `beta` invariant and is its own reverse, whatever the step. A trajectory that ends where
    the density is 0 or no number is refused.

    Args:
        decoded: the decoder.
        args: rows of data, `(B, ...)`.
        chains: where they stand.
        beta: inverse temperature.
        step: of the leapfrog rule, `(B,)`; each chain's own varies about it by up to a quarter.
        num_leapfrog: leapfrog steps.
        generator: of momenta, steps and decisions.

    Returns:
        Where the chains went, and the probability with which each was accepted, `(B, C)`.
    """
    like, shape = chains.z, chains.log_likelihood.shape
    momentum = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
    factor, threshold = torch.rand((2, *shape), generator=generator, dtype=like.dtype, device=like.device)
    h = (step[:, None] * (1 + JITTER * (2 * factor - 1)))[..., None]
    before = chains.log_density(beta) - momentum.square().sum(-1) / 2
    end = chains
    for _ in range(num_leapfrog):
        momentum = momentum + h / 2 * end.force(beta)
        end = placed(decoded, args, end.z + h * momentum)
        momentum = momentum + h / 2 * end.force(beta)
    log_ratio = end.log_density(beta) - momentum.square().sum(-1) / 2 - before
    probability = torch.where(log_ratio.isnan(), 0.0, log_ratio.clamp(max=0.0).exp())
    return chains.moved(end, threshold < probability), probability
