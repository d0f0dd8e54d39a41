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
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ppl_vi.compiler.many_points import chunks
from ppl_vi.numerics.control_variates import controlled_means, hermite_products
from ppl_vi.numerics.mixtures import LOG_2PI
from ppl_vi.runtime.memory import at_once
from ppl_vi.svi import members
from ppl_vi.svi.randomness import Draw, quasi_random
from ppl_vi.svi.result import Fit
from ppl_vi.target.evaluation import log_joint
from ppl_vi.target.sites import latents_of

# The number of independently randomised rules. The standard error over 8 of them is itself known to about a quarter.
NUM_RULES = 8
# A lattice of noise reaches this many standard deviations from 0: 2e-17 of the mass lies beyond, which is below
# rounding.
LATTICE_REACH = 8.5
# The most normal numbers that a lattice spans: in more dimensions it would have too few nodes along each axis.
MAX_LATTICE_DIM = 3
# The latents of the nodes that are scored together have at most this many numbers, 32 MiB in double precision. More of
# them would take more memory, not less time.
MAX_NODE_NUMBERS = 2**22
# Bytes that are taken at once for each of these numbers, with the copies of them that are made on the way.
BYTES_PER_NODE_NUMBER = 60


@dataclass(frozen=True)
class NoiseRules:
    """`S` independently randomised rules of `P` nodes each for the noise of a guide.

    Attributes:
        noise: of each draw `(S, P, *shape)`.
        weight: `(S, P)`, summing to 1 over the nodes.
        is_normal: whether each rule's nodes have the same weight, and the noise is standard normal.
    """

    noise: tuple[Tensor, ...]
    weight: Tensor
    is_normal: bool = False

    def part(self, some: slice) -> NoiseRules:
        """Some of the nodes of each rule, whose weights then sum to less than 1."""
        return replace(self, noise=tuple(part[:, some] for part in self.noise), weight=self.weight[:, some])

    def mean(self, values: Tensor) -> Tensor:
        """Expectations by each rule, values at the nodes `(..., S, P)` to `(..., S)`.

        An expectation is infinite where a value at one of its nodes is.
        """
        infinite = torch.isinf(values)
        sums = (torch.where(infinite, 0.0, values) * self.weight).sum(-1)
        return torch.where(infinite.any(-1), torch.where(infinite, values, 0.0).sum(-1), sums)

    def smooth_mean(self, values: Tensor) -> Tensor:
        """The same with a smaller error, for values that are nearly polynomials in normal noise, `(..., S)`."""
        if not self.is_normal or len(self.weight) == 1:
            return self.mean(values)
        controls = hermite_products(torch.cat([part.reshape(*self.weight.shape, -1) for part in self.noise], -1))
        if controls is None:
            return self.mean(values)
        usual = values.isfinite().all(-1).all(-1, keepdim=True)
        return torch.where(usual, controlled_means(values, controls), self.mean(values))


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
    weight = torch.full((num_rules, num_points), 1.0 / num_points, dtype=torch.float64)
    return NoiseRules(noise, weight, all(draw.kind == "normal" for draw in draws))


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
class ScoredNodes:
    """Members of a family at the nodes of common rules.

    Attributes:
        rules: the nodes.
        log_joint: log p(x, z), the formula continued where z is outside the support, `(B, R, S, P)`, nats.
        log_guide: log q(z), likewise.
        inside: whether z is inside the model's support, likewise.
    """

    rules: NoiseRules
    log_joint: Tensor
    log_guide: Tensor
    inside: Tensor

    @property
    def log_weight(self) -> Tensor:
        """log p(x, z) - log q(z), -inf outside the support."""
        return torch.where(self.inside, self.log_joint - self.log_guide, -torch.inf)


def scored_nodes(fit: Fit, theta: Tensor, rule: NoiseRules) -> ScoredNodes:
    """Log joint and guide density where the rules' nodes take members `theta` `(B, R, D)` of a fit's family."""
    target, parts = fit.target, []
    per_node = theta.shape[0] * theta.shape[1] * len(rule.weight) * sum(site.shape.numel() for site in target.latents)
    size = at_once(max(1, MAX_NODE_NUMBERS // per_node), BYTES_PER_NODE_NUMBER * per_node)
    for some in chunks(rule.weight.shape[1], size):
        z, log_guide = _drawn(fit, theta, rule.part(some))
        latents = latents_of(target.latents, z.flatten(1, 3))
        found = log_joint(target, latents), target.inside(latents)
        parts.append((log_guide, *(values.reshape(log_guide.shape) for values in found)))
    log_guide, joint, inside = (torch.cat(part, -1) for part in zip(*parts, strict=True))
    return ScoredNodes(rule, joint, log_guide, inside)


def guide_nodes(fit: Fit, theta: Tensor, rule: NoiseRules) -> GuideNodes:
    """Where the rules' nodes take members `theta` `(B, R, D)` of a fit's family; the model is not run."""
    return GuideNodes(rule, _drawn(fit, theta, rule)[0])


def _drawn(fit: Fit, theta: Tensor, rule: NoiseRules) -> tuple[Tensor, Tensor]:
    """The latents' numbers `(B, R, S, P, K)` and log q `(B, R, S, P)` at each node of the rules."""
    shape = rule.weight.shape
    noise = tuple(part.flatten(0, 1).expand(*theta.shape[:2], shape.numel(), *part.shape[2:]) for part in rule.noise)
    z, log_guide = members.drawn(fit.program, theta, noise, shape.numel())
    return z.unflatten(2, shape), log_guide.unflatten(2, shape)
