"""Modes of a decoded target's posteriors by Newton's method.

They check the tree of cells by a route of its own: a mode that holds mass must lie in a cell that the tree has made
small enough to resolve it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vi.numerics.newton import minimize
from ppl_vi.target.decoder import log_prior
from ppl_vi.truth.decoder.cells import CellIntegrals, Cells, LogJoint
from ppl_vi.truth.decoder.tree import Branch

NUM_STARTS = 3  # ascents of each problem
# Nats: how far the mean density of a leaf may lie below the density at a mode in it. It is 5 for a normal density of
# three dimensions in the middle of a cell 14 standard deviations wide; where it is much more, the rule in the leaf has
# stepped over the mode.
MAX_DENSITY_DROP = 12.0
MIN_LOG_SHARE = math.log(1e-8)  # nats: the smallest log share of a mode in the evidence that the tree must have seen


@dataclass(frozen=True, eq=False)
class Ascents:
    """Where ascents of the log joint of `P` problems ended.

    Attributes:
        z: the ends of `K` ascents, `(P, K, D)`.
        log_joint: the log joint there, nats, `(P, K)`; -inf where an ascent could not start.
        log_mass: log of the integral of the normal density with the same height and curvature, nats, `(P, K)`.
    """

    z: Tensor
    log_joint: Tensor
    log_mass: Tensor

    def rows(self, index: Tensor) -> Ascents:
        """The ascents of some of the problems."""
        return Ascents(self.z[index], self.log_joint[index], self.log_mass[index])

    @property
    def best(self) -> tuple[Tensor, Tensor]:
        """Each problem's highest end, `(P, D)`, and the log joint there, `(P,)`."""
        top = self.log_joint.argmax(1)
        everyone = torch.arange(len(top), device=top.device)
        return self.z[everyone, top], self.log_joint[everyone, top]

    def missed(self, branch: Branch) -> Tensor:
        """Whether a mode that holds mass lies where the tree of the same problems has not resolved it, `(P,)`.

        A mode is resolved if it lies in a leaf whose mean density is not far below the density at the mode.
        """
        missed = torch.zeros_like(branch.failed)
        density = branch.leaf_log_mass - branch.leaves.log_volume
        half = branch.leaves.half * (1 + 1e-9)  # a mode on a face lies in both cells, whatever rounding does
        for z, log_joint, log_mass in zip(self.z.unbind(1), self.log_joint.T, self.log_mass.T, strict=True):
            resolved = density > log_joint[:, None] - MAX_DENSITY_DROP
            for along, center in zip(z.T, branch.leaves.center.T, strict=True):
                resolved &= (along[:, None] - center).abs() <= half
            missed |= (log_mass - branch.log_mass > MIN_LOG_SHARE) & ~resolved.any(1)
        return missed


def separate_tops(cells: Cells, integrals: CellIntegrals) -> Tensor:
    """The centers of each problem's highest cells, no two of them neighbours, `(P, K, D)`."""
    top = integrals.top.clone()
    starts = []
    for _ in range(NUM_STARTS):
        best = top.argmax(1)
        starts.append(cells.center[best])
        near = (cells.center - cells.center[best][:, None]).abs().amax(-1) < 1.5 * (
            cells.half + cells.half[best][:, None]
        )
        top[near] = -torch.inf
    return torch.stack(starts, 1)


def ascend(joint: LogJoint, starts: Tensor) -> Ascents:
    """Newton's method from every start `(P, K, D)`, all at once; an end need not be a mode."""

    def energy(z: Tensor, *row: Tensor) -> Tensor:
        return -joint.log_likelihood(z[None], *(arg[None] for arg in row))[0, 0] - log_prior(z)

    num, num_starts, dim = starts.shape
    problem = torch.arange(num, device=starts.device).repeat_interleave(num_starts)
    z = starts.reshape(-1, dim).clone()
    log_joint = torch.full_like(z[:, 0], -torch.inf)
    log_mass = log_joint.clone()
    usable = torch.vmap(energy)(z, *(arg[problem] for arg in joint.target.args)).isfinite()
    if bool(usable.any()):
        args = tuple(arg[problem[usable]] for arg in joint.target.args)
        found = minimize(energy, z[usable], args=args, tolerance=1e-8, max_steps=40)
        # Along a direction in which the log joint is flat or convex, the mode counts as wide as the prior.
        curvature = torch.linalg.eigvalsh(found.hessian).clamp(min=1.0)
        z[usable], log_joint[usable] = found.x, -found.value
        log_mass[usable] = (dim * math.log(2 * math.pi) - curvature.log().sum(-1)) / 2 - found.value
    return Ascents(z.reshape(starts.shape), log_joint.reshape(num, -1), log_mass.reshape(num, -1))
