"""The density of the outer latents, the inner ones integrated out, and exact draws of all given the outer ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ppl_vi.compiler.many_points import AtPoints
from ppl_vi.target.factorisation import Factorisation
from ppl_vi.target.log_density import Density
from ppl_vi.target.target import Target
from ppl_vi.truth.nested.blocks import RULES, Blocks
from ppl_vi.truth.nested.modes import places
from ppl_vi.truth.nested.normal import LOG_2PI, NormalInner
from ppl_vi.truth.nested.rejection import Rejection

# Searches for the modes of blocks begin at the best of so many points, block by block.
NUM_STARTS = 3
# Points of which the temporaries hold about so many numbers are computed together.
MAX_NUMBERS = 2**18
# A rule is not refined where an integral at one outer point would take more numbers: there is no machine code for it.
MAX_RULE_NUMBERS = 10_000
# At a larger error of the inner integrals, in nats, a finer rule is taken.
GOOD_INNER_ERROR = 1e-7
# Outer points whose modes are searched for together.
MAX_POINTS = 2**13


@dataclass(frozen=True, eq=False)
class Drawn:
    """All latent numbers, drawn given the outer ones.

    Attributes:
        u: the draws, `(S, D)`.
        log_correction: logarithms of the weights that make them exact, `(S,)`; nearly all are 0.
        trial: other draws of the inner numbers, from a density that is known, with the same outer ones, `(S, D)`.
        log_ratio: for the trials, log p(x, z) less the log marginal and the log of that density, `(S,)`, nats. The mean
            of its exponential is 1 if the marginal is that of the model.
    """

    u: Tensor
    log_correction: Tensor
    trial: Tensor
    log_ratio: Tensor


def inner_of(target: Target, structure: Factorisation, starts: Tensor) -> NormalInnerLatents | BlockInnerLatents | None:
    """The inner latents of a structure; None where blocks have no machine code, without which they take minutes.

    Args:
        target: whose latents they are.
        structure: of one of its problems.
        starts: points of all latents at some of which searches for modes begin, `(N, D)`.
    """

    def inside(outer: Tensor) -> Tensor:
        whole = torch.cat([outer, outer.new_zeros(len(outer), len(structure.inner))], 1)[:, structure.order]
        return whole.isfinite().all(1) & target.inside(target.constrain(whole)[0])

    if structure.is_normal:
        return NormalInnerLatents.of(target, NormalInner(structure), inside)
    first = BlockInnerLatents(target, Blocks(structure, starts[:NUM_STARTS, structure.inner], target.width), inside)
    outer = starts[:, structure.outer]
    value = first.density(outer)
    if not first.blocks.has_machine_code:
        return None
    best = torch.where(value.isfinite(), value, -torch.inf).argsort(descending=True)[: NUM_STARTS - 1]
    with target.isolated():
        modes = places(first.blocks, outer[best]).mode
    near = torch.cat([starts[:1, structure.inner], modes[modes.isfinite().all(1)]])
    inner = BlockInnerLatents(target, Blocks(structure, near, target.width), inside)
    while (finer := inner.refined()) is not None and float(inner.error_at(outer[best]).abs().min()) > GOOD_INNER_ERROR:
        inner = finer
    return inner


@dataclass(frozen=True, eq=False)
class NormalInnerLatents:
    """Inner latents that are jointly normal."""

    inner: NormalInner
    density: Density
    draws: AtPoints

    @staticmethod
    def of(target: Target, inner: NormalInner, inside: Callable[[Tensor], Tensor]) -> NormalInnerLatents:
        _ = inner.directions, inner.structure.order  # made before anything is traced
        width = target.width * inner.passes
        density = Density(inner.log_marginal, len(inner.structure.outer), target.dtype, inside, target.name, width)

        def draw(outer: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            given = inner.given(outer)
            return inner.structure.joined(outer, given.inner(noise)), given.half_log_det

        return NormalInnerLatents(
            inner, density, AtPoints(draw, width, max(1, MAX_NUMBERS // width), gate=density.isolated)
        )

    @property
    def structure(self) -> Factorisation:
        return self.inner.structure

    def error_at(self, outer: Tensor) -> Tensor:
        """0: it is in closed form. `drawn` compares it with the model."""
        return outer.new_zeros(len(outer))

    def refined(self) -> None:
        """There is nothing finer than a closed form."""

    def drawn(self, outer: Tensor, joint: Density, generator: torch.Generator) -> Drawn:
        noise = torch.randn(len(outer), len(self.structure.inner), generator=generator, dtype=outer.dtype)
        u, half_log_det = (part[0] for part in self.draws((outer[None], noise[None])))
        log_prob = half_log_det - noise.square().sum(1) / 2 - noise.shape[1] / 2 * LOG_2PI
        return Drawn(u, torch.zeros_like(log_prob), u, joint(u) - self.density(outer) - log_prob)


class _BlockDensity(Density):
    """The density of outer numbers whose integral over the others takes modes, which no function of one point finds."""

    def __init__(self, blocks: Blocks, target: Target, inside: Callable[[Tensor], Tensor]) -> None:
        def of_one(u: Tensor) -> Tensor:
            raise NotImplementedError("the modes of inner latents are searched for at many points at once")

        structure = blocks.structure
        width = target.width * blocks.num_nodes
        super().__init__(of_one, len(structure.outer), target.dtype, inside, target.name, width)
        self.blocks = blocks

    def __call__(self, u: Tensor) -> Tensor:
        if not len(u):
            return u.new_zeros(0)
        return torch.cat([self._without_outside(some, self._integrals(some)) for some in u.split(MAX_POINTS)])

    def _integrals(self, u: Tensor) -> Tensor:
        with self.isolated():
            at = places(self.blocks, u)
            return self.blocks.at_points("integral", u, at.mode, at.factor)[0]

    def slope(self, u: Tensor) -> tuple[Tensor, Tensor]:
        with self.isolated():
            at = places(self.blocks, u)
            slope, value = self.blocks.at_points("slope", u, at.mode, at.factor)
        if not self.blocks.has_machine_code:
            raise ValueError("there is no machine code for the gradient of the inner integrals")
        return value, slope

    def _without_outside(self, u: Tensor, value: Tensor) -> Tensor:
        lost = value.isnan()
        if bool(lost.any()):
            value = value.clone()
            value[lost] = torch.where(self.inside(u[lost]), value[lost], -torch.inf)
        return value


@dataclass(frozen=True, eq=False)
class BlockInnerLatents:
    """Inner latents in independent blocks."""

    target: Target
    blocks: Blocks
    inside: Callable[[Tensor], Tensor]

    @property
    def structure(self) -> Factorisation:
        return self.blocks.structure

    @cached_property
    def density(self) -> Density:
        return _BlockDensity(self.blocks, self.target, self.inside)

    def error_at(self, outer: Tensor) -> Tensor:
        """The difference from the next finer rule, nan where there is none."""
        finer = self.refined()
        if finer is None:
            return torch.full_like(outer[:, 0] if outer.shape[1] else outer.new_zeros(len(outer)), math.nan)
        return finer.density(outer) - self.density(outer)

    def refined(self) -> BlockInnerLatents | None:
        level = self.blocks.level + 1
        if level == len(RULES):
            return None
        blocks = Blocks(self.structure, self.blocks.starts, self.target.width, level)
        if blocks.num_nodes * self.target.width > MAX_RULE_NUMBERS:
            return None
        return BlockInnerLatents(self.target, blocks, self.inside)

    def drawn(self, outer: Tensor, joint: Density, generator: torch.Generator) -> Drawn:
        with self.density.isolated():
            sampler = Rejection.of(self.blocks, outer)
            inner, log_correction = sampler.drawn(generator)
            trial, log_prob = sampler.normal_draws(generator)
        u, other = (torch.cat([outer, part], 1)[:, self.structure.order] for part in (inner, trial))
        return Drawn(u, log_correction, other, joint(other) - self.density(outer) - log_prob)


Inner = NormalInnerLatents | BlockInnerLatents
