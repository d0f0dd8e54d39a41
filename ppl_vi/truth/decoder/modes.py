"""Modes of a decoded target's posteriors by ascent: a look at the same density that owes nothing to a tree of cells."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vi.numerics.newton import minimize
from ppl_vi.target.decoder import log_prior
from ppl_vi.truth.decoder.cells import Cells, Joint, Seen
from ppl_vi.truth.decoder.tree import Branch

NUM_STARTS = 3  # of each problem
PEAKED = 12.0  # nats that the mean density of a cell may lie below that at a mode in it; 5 for a normal one, 14 sd wide
MATTERS = math.log(1e-8)  # nats from the evidence, above which a mode has to have been seen


@dataclass(frozen=True, eq=False)
class Ascents:
    """Where ascents of the log joint of `P` problems ended.

    Attributes:
        z: `(P, K, D)`.
        log_joint: there, nats, `(P, K)`; -inf where an ascent could not start.
        log_mass: of the normal density with the same peak and curvature, nats, `(P, K)`.
    """

    z: Tensor
    log_joint: Tensor
    log_mass: Tensor

    def rows(self, index: Tensor) -> Ascents:
        """Those of some of the problems."""
        return Ascents(self.z[index], self.log_joint[index], self.log_mass[index])

    @property
    def best(self) -> tuple[Tensor, Tensor]:
        """Each problem's highest end, `(P, D)`, and the log joint there, `(P,)`."""
        top = self.log_joint.argmax(1)
        everyone = torch.arange(len(top), device=top.device)
        return self.z[everyone, top], self.log_joint[everyone, top]

    def missed(self, branch: Branch) -> Tensor:
        """Whether a mode that matters lies where the tree of the same problems did not look, `(P,)`.

        It looked where a leaf holds the point and has a mean density not far below that of the point.
        """
        missed = torch.zeros_like(branch.lost)
        density = branch.leaf_mass - branch.leaves.log_volume
        reach = branch.leaves.half * (1 + 1e-9)
        for z, log_joint, log_mass in zip(self.z.unbind(1), self.log_joint.T, self.log_mass.T, strict=True):
            near = density > log_joint[:, None] - PEAKED
            for of, center in zip(z.T, branch.leaves.center.T, strict=True):
                near &= (of[:, None] - center).abs() <= reach
            missed |= (log_mass - branch.log_mass > MATTERS) & ~near.any(1)
        return missed


def separate_tops(cells: Cells, seen: Seen) -> Tensor:
    """Centers of each problem's best cells that are no neighbours, `(P, K, D)`."""
    top = seen.top.clone()
    starts = []
    for _ in range(NUM_STARTS):
        best = top.argmax(1)
        starts.append(cells.center[best])
        near = (cells.center - cells.center[best][:, None]).abs().amax(-1) < 1.5 * (
            cells.half + cells.half[best][:, None]
        )
        top[near] = -torch.inf
    return torch.stack(starts, 1)


def ascend(joint: Joint, starts: Tensor) -> Ascents:
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
        # a flat or rising direction at an end counts as no wider than the prior
        curvature = torch.linalg.eigvalsh(found.hessian).clamp(min=1.0)
        z[usable], log_joint[usable] = found.x, -found.value
        log_mass[usable] = (dim * math.log(2 * math.pi) - curvature.log().sum(-1)) / 2 - found.value
    return Ascents(z.reshape(starts.shape), log_joint.reshape(num, -1), log_mass.reshape(num, -1))
