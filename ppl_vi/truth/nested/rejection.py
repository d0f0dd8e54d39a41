"""Exact draws of inner latents in independent blocks, by rejection sampling of each block by itself.

In standard deviations t from its mode a block has the density p(t). Its proposals have a Student t density q(t) with
the mean and the covariance of p(t), which the nodes of the block's rule tell. A draw is accepted with the probability
p(t) / (M q(t)), where M is the largest p(t) / q(t) at the nodes, and a margin. Where p(t) is even larger than M q(t),
the draw is accepted and gets the weight p(t) / (M q(t)), so that weighted draws are exact all the same.

Source: von Neumann (1951), Various techniques used in connection with random digits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vi.truth.nested.blocks import Blocks
from ppl_vi.truth.nested.modes import Places, places

DEGREES = 4.0  # of freedom of the proposals: their tails are heavier than those of nearly any block
# By how many nats the largest ratio at the nodes is exceeded between them, at most, for densities as smooth as a rule
# integrates well.
MARGIN = 0.1
MAX_ROUNDS = 200  # of proposals; if one in four is accepted, a million blocks need fifty
# Outer points at whose nodes blocks are evaluated together: the numbers that are kept of them.
MAX_KEPT_NUMBERS = 2**22
LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class Rejection:
    """What is known of the blocks at several outer points.

    Attributes:
        blocks: the blocks.
        outer: the outer points, `(S, d)`.
        places: modes and curvatures.
        log_bound: log M of each block, without the block's normalising constant, `(S, B)`.
        mean: of t, `(S, n)`.
        factor: of the covariance of t, rows of each block's factor, `(S, n, k)`.
    """

    blocks: Blocks
    outer: Tensor
    places: Places
    log_bound: Tensor
    mean: Tensor
    factor: Tensor

    @staticmethod
    def of(blocks: Blocks, outer: Tensor) -> Rejection:
        """Evaluates the blocks at the nodes of their rules."""
        at = places(blocks, outer)
        step = max(1, MAX_KEPT_NUMBERS // (blocks.num_nodes * max(1, blocks.structure.num_blocks)))
        parts = [_at_nodes(blocks, outer[rows], at[rows]) for rows in torch.arange(len(outer)).split(step)]
        bound, mean, factor = (torch.cat(each) for each in zip(*parts, strict=True))
        return Rejection(blocks, outer, at, bound, mean, factor)

    def drawn(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inner numbers `(S, n)` and the logarithms of their weights `(S,)`.

        A point at which a block's draws were all refused gets the weight 0.
        """
        owner = self.blocks.block_of_number
        inner, excess = self.places.mode.clone(), torch.zeros_like(self.log_bound)
        waiting = torch.ones_like(self.log_bound, dtype=torch.bool)
        for _ in range(MAX_ROUNDS):
            rows = waiting.any(1).nonzero()[:, 0]
            if not len(rows):
                break
            t, log_q = self._student(rows, generator)
            trial = self._at(rows, t)
            sums, _ = self.blocks.at_points("sums", self.outer[rows], trial)
            log_ratio = sums + self._log_det(rows) - log_q - self.log_bound[rows]
            uniform = torch.rand(log_ratio.shape, generator=generator, dtype=log_ratio.dtype)
            accepted = waiting[rows] & (uniform.log() < log_ratio)
            inner[rows] = torch.where(accepted[:, owner], trial, inner[rows])
            excess[rows] = torch.where(accepted, log_ratio.clamp(min=0.0), excess[rows])
            waiting[rows] &= ~accepted
        return inner, torch.where(waiting.any(1), -torch.inf, excess.sum(1))

    def normal_draws(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Other inner numbers `(S, n)`, normal with each block's mean and covariance; their log density `(S,)`."""
        rows = torch.arange(len(self.outer))
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype)
        t = self.mean + _products(self.blocks, self.factor, noise)
        log_det = sum(_log_dets(own).sum(1) for own in self.blocks.by_group(self.factor))
        log_prob = -(noise.square() + LOG_2PI).sum(1) / 2 - log_det - self._log_det(rows).sum(1)
        return self._at(rows, t), log_prob

    def _student(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws of t `(R, n)` and the log density of each block's `(R, B)`."""
        noise, log_probs, factor = [], [], self.factor[rows]
        for own in self.blocks.by_group(factor):
            size = own.shape[2]
            normal = torch.randn(own.shape[:3], generator=generator, dtype=own.dtype)
            squares = torch.randn((*own.shape[:2], int(DEGREES)), generator=generator, dtype=own.dtype).square().sum(2)
            student = normal * (DEGREES / squares).sqrt()[..., None]
            noise.append(student.flatten(1))
            log_probs.append(log_student(student.square().sum(2), size) - _log_dets(own))
        return self.mean[rows] + _products(self.blocks, factor, torch.cat(noise, 1)), torch.cat(log_probs, 1)

    def _at(self, rows: Tensor, t: Tensor) -> Tensor:
        """The inner numbers that lie t standard deviations from the modes, `(R, n)`."""
        return self.places.mode[rows] + _products(self.blocks, self.places.factor[rows], t)

    def _log_det(self, rows: Tensor) -> Tensor:
        """log |det L| of each block, `(R, B)`."""
        return torch.cat([_log_dets(own) for own in self.blocks.by_group(self.places.factor[rows])], 1)


def log_student(square: Tensor, size: int) -> Tensor:
    """The log density of a standard Student t vector of so many numbers, from its squared length, nats."""
    constant = math.lgamma((DEGREES + size) / 2) - math.lgamma(DEGREES / 2) - size / 2 * math.log(DEGREES * math.pi)
    return constant - (DEGREES + size) / 2 * torch.log1p(square / DEGREES)


def _products(blocks: Blocks, factor: Tensor, t: Tensor) -> Tensor:
    """Each block's factor, in rows `(S, n, k)`, times its numbers of t `(S, n)`."""
    pairs = zip(blocks.by_group(factor), blocks.by_group(t), strict=True)
    return torch.cat([(own[..., : own.shape[2]] @ part[..., None]).flatten(1) for own, part in pairs], 1)


def _log_dets(own: Tensor) -> Tensor:
    return torch.diagonal(own[..., : own.shape[2]], dim1=-2, dim2=-1).abs().log().sum(-1)


def _at_nodes(blocks: Blocks, outer: Tensor, at: Places) -> tuple[Tensor, Tensor, Tensor]:
    """The log bounds, and mean and factor of the covariance of t, from the values at the nodes."""
    *values, _ = blocks.at_points("at_nodes", outer, at.mode, at.factor)
    bounds, means, factors = [], [], []
    for rule, value in zip(blocks.rules, values, strict=True):  # value (S, J, B)
        size = rule.t.shape[1]
        weight = (value + rule.log_weight[:, None]).softmax(1)
        mean = torch.einsum("sjb,jk->sbk", weight, rule.t)
        away = rule.t[:, None] - mean[:, None]  # (S, J, B, k)
        factor, _ = torch.linalg.cholesky_ex(torch.einsum("sjb,sjbk,sjbl->sbkl", weight, away, away))
        white = torch.linalg.solve_triangular(factor, away.permute(0, 2, 3, 1), upper=False)  # (S, B, k, J)
        log_q = log_student(white.square().sum(2), size).mT - _log_dets(factor)[:, None]
        bounds.append((value - log_q).amax(1) + MARGIN)
        means.append(mean.flatten(1))
        factors.append(torch.nn.functional.pad(factor, (0, at.factor.shape[-1] - size)).flatten(1, 2))
    return torch.cat(bounds, 1), torch.cat(means, 1), torch.cat(factors, 1)
