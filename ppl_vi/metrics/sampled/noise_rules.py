"""Rules of noise nodes, and where the members of a family take them: what any number of latents is scored by.

A guide turns base noise into latents. Noise at the nodes of a rule, each with a weight, turns expectations under the
guide into sums. Several independently randomised rules give as many answers, whose spread tells how far their mean can
be trusted. There are two kinds of rule:

- For up to three standard normal numbers, a lattice with a random shift, weighted by the normal density. On average
  over the shift its sum is unbiased, and for smooth integrands its error falls exponentially with the number of nodes
  (Trefethen and Weideman 2014, The exponentially convergent trapezoidal rule).
- Otherwise scrambled Sobol points (Owen 1997, Scrambled net variance for integrals of smooth functions).

All members of one call see the same noise, so that their differences are known better than their values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from ppl_vi.numerics.mixtures import LOG_2PI
from ppl_vi.svi.randomness import Draw, quasi_random
from ppl_vi.svi.result import Fit
from ppl_vi.target.evaluation import drawn_at_once, log_joint
from ppl_vi.target.sites import latents_of, numbers_of

# The number of independently randomised rules. The standard error over 8 of them is itself known to about a quarter.
NUM_RULES = 8
# A lattice of noise reaches this many standard deviations from 0: 2e-17 of the mass lies beyond, which is below
# rounding.
LATTICE_REACH = 8.5
# The most normal numbers that a lattice spans: in more dimensions it would have too few nodes along each axis.
MAX_LATTICE_DIM = 3


@dataclass(frozen=True)
class NoiseRules:
    """`S` independently randomised rules of `P` nodes each for the noise of a guide.

    Attributes:
        noise: of each draw `(S, P, *shape)`.
        weight: `(S, P)`, summing to 1 over the nodes.
    """

    noise: tuple[Tensor, ...]
    weight: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Expectations by each rule, values at the nodes `(..., S, P)` to `(..., S)`.

        An expectation is infinite where a value at one of its nodes is.
        """
        infinite = torch.isinf(values)
        sums = (torch.where(infinite, 0.0, values) * self.weight).sum(-1)
        return torch.where(infinite.any(-1), torch.where(infinite, values, 0.0).sum(-1), sums)


def noise_rules(draws: tuple[Draw, ...], num_points: int, seed: int, num_rules: int = NUM_RULES) -> NoiseRules:
    """Rules of about `num_points` nodes each: lattices for few normal numbers, Sobol points otherwise."""
    sizes = [draw.shape.numel() for draw in draws]
    if sum(sizes) == 0:  # the guide draws nothing
        weight = torch.full((num_rules, 1), 1.0, dtype=torch.float64)
        return NoiseRules(tuple(torch.zeros((num_rules, 1, *draw.shape), dtype=draw.dtype) for draw in draws), weight)
    if any(draw.kind != "normal" for draw in draws) or sum(sizes) > MAX_LATTICE_DIM:
        return sobol_rules(draws, num_points, seed, num_rules)
    dim = sum(sizes)
    count = max(8, math.ceil(num_points ** (1 / dim) - 1e-9))
    spacing = 2 * LATTICE_REACH / count
    shift = torch.from_numpy(np.random.default_rng(seed).random((num_rules, dim)))
    axes = -LATTICE_REACH + spacing * (
        torch.arange(count, dtype=torch.float64)[:, None] + shift[:, None]
    )  # (S, count, dim)
    index = torch.cartesian_prod(*[torch.arange(count)] * dim).reshape(-1, dim)
    nodes = torch.stack([axes[:, index[:, d], d] for d in range(dim)], -1)
    log_weight = dim * (math.log(spacing) - LOG_2PI / 2) - nodes.square().sum(-1) / 2
    weight = log_weight.exp()
    parts = nodes.split(sizes, -1)
    noise = tuple(p.reshape(*p.shape[:2], *d.shape).to(d.dtype) for p, d in zip(parts, draws, strict=True))
    return NoiseRules(noise, weight / weight.sum(-1, keepdim=True))


def sobol_rules(draws: tuple[Draw, ...], num_points: int, seed: int, num_rules: int = NUM_RULES) -> NoiseRules:
    """Scrambled Sobol points, all of one weight."""
    noise = quasi_random(draws, num_points, num_rules, seed)
    return NoiseRules(noise, torch.full((num_rules, num_points), 1.0 / num_points, dtype=torch.float64))


@dataclass(frozen=True)
class GuideNodes:
    """Where the nodes of common rules take the members of a family.

    Attributes:
        rules: the nodes.
        z: the latents' own numbers, site after site, `(B, R, S, P, K)`.
    """

    rules: NoiseRules
    z: Tensor


@dataclass(frozen=True)
class ScoredNodes(GuideNodes):
    """Members of a family at the nodes of common rules.

    Attributes:
        log_joint: log p(x, z), the formula continued where z is outside the support, `(B, R, S, P)`, nats.
        log_guide: log q(z), likewise.
        inside: whether z is inside the model's support, likewise.
    """

    log_joint: Tensor
    log_guide: Tensor
    inside: Tensor

    @property
    def log_weight(self) -> Tensor:
        """log p(x, z) - log q(z), -inf outside the support."""
        return torch.where(self.inside, self.log_joint - self.log_guide, -torch.inf)


def scored_nodes(fit: Fit, theta: Tensor, rule: NoiseRules) -> ScoredNodes:
    """Log joint and guide density where the rules' nodes take members `theta` `(B, R, D)` of a fit's family."""
    target = fit.target

    def one(point: Tensor, row: tuple[Tensor, ...], draws: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        values, log_guide = fit.program.drawn(point, row, draws)
        return numbers_of(target.latents, values), log_guide, target.inside(values)

    z, log_guide, inside = _over_nodes(fit, theta, rule, one)
    joint = log_joint(target, latents_of(target.latents, z.flatten(1, 3)))
    return ScoredNodes(rule, z, joint.reshape(log_guide.shape), log_guide, inside)


def guide_nodes(fit: Fit, theta: Tensor, rule: NoiseRules) -> GuideNodes:
    """Where the rules' nodes take members `theta` `(B, R, D)` of a fit's family; the model is not run."""

    def one(point: Tensor, row: tuple[Tensor, ...], draws: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (numbers_of(fit.target.latents, fit.program.latents(point, row, draws)),)

    return GuideNodes(rule, *_over_nodes(fit, theta, rule, one))


def _over_nodes(
    fit: Fit, theta: Tensor, rule: NoiseRules, one: Callable[..., tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """What `one` gives for each member and node, `(B, R, S, P, ...)`."""
    target = fit.target

    def over_nodes(point: Tensor, row: tuple[Tensor, ...], noise: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not noise:  # nothing is random
            return tuple(part.expand(*rule.weight.shape, *part.shape) for part in one(point, row, ()))
        return vmap(vmap(lambda draws: one(point, row, draws)))(noise)

    over_members = vmap(vmap(over_nodes, in_dims=(0, None, None)), in_dims=(0, 0, None))
    size = max(1, drawn_at_once(target) // (theta.shape[0] * theta.shape[1] * len(rule.weight)))
    found = []
    with torch.no_grad():
        for first in range(0, rule.weight.shape[1], size):
            noise = tuple(part[:, first : first + size] for part in rule.noise)
            found.append(over_members(theta, target.args, noise))
    return tuple(torch.cat(parts, 3) for parts in zip(*found, strict=True))
