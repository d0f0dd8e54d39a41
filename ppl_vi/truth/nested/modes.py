"""The modes of independent blocks of one or two numbers at many outer points, by Newton's method for each by itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vi.truth.nested.blocks import Blocks

# A mode is near enough to its block's nodes if a step of Newton's method would gain no more nats than this.
MODE_TOLERANCE = 1e-4
MAX_NEWTON_STEPS = 60
# A step that gains nothing is tried again, this much shorter.
SHORTER = 0.25
# A block is left where it is if no more than this share of its step would gain anything: rounding hides what is left.
LEAST_STEP = 1e-6
# Second derivatives below this share of a block's largest one count as 0.
LEAST_SHARE = 1e-10


@dataclass(frozen=True, eq=False)
class Places:
    """Where blocks have their modes, at several outer points.

    Attributes:
        mode: `(S, n)`, in the order of `Factorisation.inner`.
        factor: L of each block, filled up with 0 to k numbers: row i of a block stands at its number i, `(S, n, k)`.
    """

    mode: Tensor
    factor: Tensor

    def __getitem__(self, index: Tensor) -> Places:
        return Places(self.mode[index], self.factor[index])


def places(blocks: Blocks, outer: Tensor) -> Places:
    """Modes and curvatures of all blocks at outer points `(S, d)`."""
    search = _Search.of(blocks, outer)
    for _ in range(MAX_NEWTON_STEPS):
        active = search.active.any(1).nonzero()[:, 0]
        if not len(active):
            break
        search.advance(active)
    return Places(search.mode, _factors(blocks, search.precision))


@dataclass(eq=False)
class _Search:
    """Newton's method for the modes of all blocks at many outer points.

    Attributes:
        blocks: whose modes they are.
        outer: the outer points, `(S, d)`.
        mode: the best points so far, `(S, n)`.
        value: of each block there, `(S, B)`.
        step: from there, `(S, n)`.
        share: how much of the step is tried next, `(S, B)`.
        precision: rows of minus the second derivatives, made positive definite, `(S, n, k)`.
        active: which blocks have not arrived yet, `(S, B)`.
    """

    blocks: Blocks
    outer: Tensor
    mode: Tensor
    value: Tensor
    step: Tensor
    share: Tensor
    precision: Tensor
    active: Tensor

    @staticmethod
    def of(blocks: Blocks, outer: Tensor) -> _Search:
        """Each block begins at the best of the starts."""
        owner = blocks.block_of_number
        best = torch.full((len(outer), blocks.structure.num_blocks), -torch.inf, dtype=outer.dtype)
        mode = blocks.starts[:1].repeat(len(outer), 1)
        for start in blocks.starts:
            start = start.expand(len(outer), -1)
            value, _ = blocks.at_points("sums", outer, start)
            better = value > best
            best = torch.where(better, value, best)
            mode = torch.where(better[:, owner], start, mode)
        nothing, active = torch.full_like(best, -torch.inf), best > -torch.inf
        precision = mode.new_ones((*mode.shape, len(blocks.directions)))
        search = _Search(blocks, outer, mode, nothing, torch.zeros_like(mode), torch.ones_like(best), precision, active)
        search._turn(torch.arange(len(outer)), torch.ones_like(search.active), mode)
        return search

    def advance(self, rows: Tensor) -> None:
        """Tries one step of the blocks at some of the outer points."""
        owner = self.blocks.block_of_number
        trial = self.mode[rows] + (self.share[rows] * self.active[rows])[:, owner] * self.step[rows]
        self._turn(rows, self.active[rows], trial)

    def _turn(self, rows: Tensor, tried: Tensor, trial: Tensor) -> None:
        """Moves the blocks that have gained to their trial points, and finds the next step of each."""
        owner = self.blocks.block_of_number
        value, slope, hessian = self.blocks.at_points("derivatives", self.outer[rows], trial)
        noise = 8 * torch.finfo(value.dtype).eps * value.abs()
        gained = tried & (value >= self.value[rows] - noise)
        usable = gained & self._all(slope.isfinite()) & self._all(hessian.isfinite().all(-1))
        precision = _positive(self.blocks, -hessian)
        step = _newton(self.blocks, precision, slope)
        gain = self._sum(step * slope) / 2
        moved = usable[:, owner]
        self.mode[rows] = torch.where(moved, trial, self.mode[rows])
        self.step[rows] = torch.where(moved, step, self.step[rows])
        self.precision[rows] = torch.where(moved[..., None], precision, self.precision[rows])
        self.value[rows] = torch.where(usable, value, self.value[rows])
        arrived = usable & (gain <= MODE_TOLERANCE)
        self.share[rows] = torch.where(usable, 1.0, SHORTER * self.share[rows])
        self.active[rows] &= ~arrived & (self.share[rows] > LEAST_STEP)

    def _all(self, numbers: Tensor) -> Tensor:
        return torch.cat([own.all(2) for own in self.blocks.by_group(numbers)], 1)

    def _sum(self, numbers: Tensor) -> Tensor:
        return torch.cat([own.sum(2) for own in self.blocks.by_group(numbers)], 1)


def _positive(blocks: Blocks, precision: Tensor) -> Tensor:
    """Rows of matrices `(S, n, k)` to whose diagonals what makes each block's lowest eigenvalue positive is added.

    An eigenvalue below 0 becomes its size, so that a step along it leads away from a saddle.
    """
    found = []
    for own in blocks.by_group(precision):
        size = own.shape[2]
        diagonal = torch.diagonal(own[..., :size], dim1=-2, dim2=-1)
        lowest = diagonal[..., 0]
        if size == 2:
            half, off = (diagonal[..., 0] - diagonal[..., 1]) / 2, own[..., 0, 1]
            lowest = diagonal.mean(-1) - torch.hypot(half, off)
        floor = LEAST_SHARE * diagonal.abs().amax(-1) + torch.finfo(own.dtype).tiny
        shift = torch.where(lowest > floor, 0.0, lowest.abs() + floor - lowest)
        eye = torch.eye(size, own.shape[-1], dtype=own.dtype)
        found.append((own + shift[..., None, None] * eye).flatten(1, 2))
    return torch.cat(found, 1)


def _newton(blocks: Blocks, precision: Tensor, slope: Tensor) -> Tensor:
    """Each block's precision to the power -1, times its slope, `(S, n)`."""
    found = []
    for own, force in zip(blocks.by_group(precision), blocks.by_group(slope), strict=True):
        if own.shape[2] == 1:
            step = force / own[..., 0]
        else:
            a, b, c = own[..., 0, 0], own[..., 0, 1], own[..., 1, 1]
            x, y = force[..., 0], force[..., 1]
            step = torch.stack([c * x - b * y, a * y - b * x], -1) / (a * c - b * b)[..., None]
        found.append(step.flatten(1))
    return torch.cat(found, 1)


def _factors(blocks: Blocks, precision: Tensor) -> Tensor:
    """L of each block with L L' the inverse of its precision, from the rows of precisions `(S, n, k)`."""
    found = []
    for own in blocks.by_group(precision):
        size = own.shape[2]
        if size == 1:
            lower = own[..., :1].rsqrt()
        else:
            a, b, c = own[..., 0, 0], own[..., 0, 1], own[..., 1, 1]
            det = a * c - b * b
            first = (c / det).sqrt()
            rows = [torch.stack([first, torch.zeros_like(b)], -1), torch.stack([-b / det / first, c.rsqrt()], -1)]
            lower = torch.stack(rows, -2)
        found.append(torch.nn.functional.pad(lower, (0, precision.shape[-1] - size)).flatten(1, 2))
    return torch.cat(found, 1)
