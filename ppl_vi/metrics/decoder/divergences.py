"""Divergences of an amortized guide from the posterior on lattices that cover both: a second route to the gap.

The trapezoidal rule converges exponentially for smooth densities. The mass of the posterior p, whose log evidence was
computed elsewhere, and that of the guide q are known to be 1: what the lattice finds instead is its error.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vi.guides.amortized import Head
from ppl_vi.numerics.mixtures import GaussianMixtures
from ppl_vi.target.decoder import log_prior
from ppl_vi.target.evaluation import decoded_at_once, decoded_of, log_likelihood_at
from ppl_vi.target.target import Target

# Nodes along an axis of the first lattice, by the number of latents.
NUM_AXIS_NODES = {1: 2048, 2: 256, 3: 64}
# Where the masses of p and q on a lattice differ from 1 by more than this, both together, the next, finer lattice is
# taken.
MAX_MISSING_MASS = 2e-8
# A finer lattice covers the box of the nodes at which a density is no more than this many nats below its peak. What
# lies beyond, e^-40 of the peak, is less than rounding.
MAX_DEPTH = 40.0
# The first lattice reaches this many standard deviations of the guide and of the prior from their means. With a larger
# number its nodes lie farther apart.
BOX_REACH = 7.5
# The most log likelihoods, and the most densities, that are held at once, which bounds memory. The decoder runs anew
# for each block of problems, so the first number is the larger one.
NUM_LIKELIHOODS_AT_ONCE = 1 << 25
NUM_DENSITIES_AT_ONCE = 1 << 17


class LatticeRound(NamedTuple):
    """A round of lattices, for the problems that the rounds before left.

    Attributes:
        refinement: times as many nodes along an axis as `NUM_AXIS_NODES`.
        shared: whether one lattice serves all problems; otherwise each has one on its own box, and the decoder runs for
            that problem alone.
    """

    refinement: float
    shared: bool


LATTICE_ROUNDS = (
    LatticeRound(1, True),
    LatticeRound(2, True),
    LatticeRound(0.1875, False),
    LatticeRound(0.375, False),
    LatticeRound(0.75, False),
    LatticeRound(2, False),
)


@dataclass
class Divergences:
    """Distances between guide and posterior, `(B,)` each.

    Attributes:
        reverse_kl: KL(q || p), nats.
        forward_kl: KL(p || q), nats.
        total_variation: half the integral of |p - q|.
        missing: how far the masses of p and q on the lattice are from 1, together.
        total_variation_error: difference from the rule on every second node, since the kinks of |p - q| converge
            slowly.
    """

    reverse_kl: Tensor
    forward_kl: Tensor
    total_variation: Tensor
    missing: Tensor
    total_variation_error: Tensor

    @classmethod
    def joined(cls, parts: list[Divergences]) -> Divergences:
        """Those of the problems of several parts, one after another."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def put(self, rows: Tensor, other: Divergences, chosen: Tensor) -> None:
        """Overwrites some rows by the chosen ones of others."""
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(other, field.name)[chosen]

    def error(self, divergence: Tensor) -> Tensor:
        """The numerical error of one of the two KL divergences, `(B,)`, nats.

        A lattice of spacing h misses d = 2 exp(-2 pi^2 s^2 / h^2) of the mass of a Gaussian of standard deviation s,
        and 4 pi^2 s^2 / h^2 = 2 log(2 / d) times that of its second moment. A log ratio has such moments, and grows
        with the divergence.
        """
        log = torch.log(2 / self.missing.clamp(min=torch.finfo(self.missing.dtype).tiny)).clamp(min=0)
        return self.missing * (2 * log + divergence.abs().clamp(min=1))


@torch.no_grad()
def divergences(target: Target, log_evidence: Tensor, head: Head, local: Tensor) -> Divergences:
    """Integrates over one lattice for all problems; those too narrow for it get finer and finer lattices of their own.

    Args:
        target: with a decoder.
        log_evidence: log p(x), nats, `(B,)`.
        head: the guide's family.
        local: its parameters, `(B, num_outputs)`.
    """
    decoded_of(target)
    mixture = GaussianMixtures(*head.components(local))
    reach = BOX_REACH * mixture.trils.square().sum(-1).sqrt()
    low, high = (mixture.locs - reach).amin(1), (mixture.locs + reach).amax(1)
    box = torch.stack([low.clamp(max=-BOX_REACH), high.clamp(min=BOX_REACH)])
    result = Divergences(*(local.new_full((len(local),), torch.inf) for _ in fields(Divergences)))
    pending = torch.arange(len(local), device=local.device)
    for refinement, shared in LATTICE_ROUNDS:
        num, wanted = round(refinement * NUM_AXIS_NODES[target.dim]), box[:, pending]
        if shared:
            wanted = torch.stack([wanted[0].amin(0), wanted[1].amax(0)])[:, None].expand_as(wanted)
        found, tight = _on_boxes(target, log_evidence, mixture, wanted, pending, num, shared)
        before = result.missing[pending]
        better = found.missing < before
        result.put(pending[better], found, better)
        box = box.index_copy(1, pending, tight)
        # a mass that stays as it was on a finer lattice over the problem's own box is not the lattice's fault
        improved = (found.missing < before / 2) | (refinement < 1) | shared
        pending = pending[(found.missing > MAX_MISSING_MASS) & improved]
        if not len(pending):
            break
    return result


def _on_boxes(
    target: Target,
    log_evidence: Tensor,
    mixture: GaussianMixtures,
    box: Tensor,
    problem: Tensor,
    num: int,
    shared: bool,
) -> tuple[Divergences, Tensor]:
    """The divergences on lattices over boxes, and the tighter boxes `(2, N, D)` that hold what has mass.

    Args:
        target: with a decoder.
        log_evidence: of all problems, `(B,)`.
        mixture: the guides of all problems.
        box: the least and greatest corner of each box, `(2, N, D)`.
        problem: that of each box, `(N,)`.
        num: nodes along an axis.
        shared: whether all boxes are one.
    """
    dim = target.dim
    results, boxes = [], []
    everyone = torch.arange(len(problem), device=problem.device)
    for rows in everyone.split(max(1, NUM_LIKELIHOODS_AT_ONCE // num**dim)):
        low, high = box[:, rows]
        problems = problem[rows]
        steps = torch.linspace(0, 1, num, dtype=box.dtype, device=box.device)
        axes = low[..., None] + (high - low)[..., None] * steps
        z = _lattice(axes[:1] if shared else axes)
        if shared:
            data = tuple(arg[problems] for arg in target.args)
            nodes = z[0].split(decoded_at_once(target))
            log_likelihood = torch.cat([decoded_of(target).log_likelihood(some, *data) for some in nodes], 1)
        else:
            log_likelihood = log_likelihood_at(target, z, problems)
        for few in everyone[: len(rows)].split(max(1, NUM_DENSITIES_AT_ONCE // num**dim)):
            points = z if shared else z[few]
            log_p = log_likelihood[few] + log_prior(points) - log_evidence[problems[few], None]
            log_q = mixture.rows(problems[few]).log_prob(points)
            cell = ((high - low)[few] / (num - 1)).prod(-1)
            results.append(_integrals(log_p, log_q, cell, (num,) * dim))
            boxes.append(_tight(torch.maximum(log_p, log_q), axes[few]))
    return Divergences.joined(results), torch.cat(boxes, 1)


def _lattice(axes: Tensor) -> Tensor:
    """The nodes of lattices with these axes, `(N, D, num)`: `(N, num^D, D)`."""
    dim = axes.shape[1]
    spread = [axes[:, d].reshape(-1, *(axes.shape[2] if e == d else 1 for e in range(dim))) for d in range(dim)]
    return torch.stack(torch.broadcast_tensors(*spread), -1).flatten(1, -2)


def _integrals(log_p: Tensor, log_q: Tensor, cell: Tensor, shape: tuple[int, ...]) -> Divergences:
    """The divergences of densities at the nodes of lattices.

    Args:
        log_p: the posterior's, `(N, S)`.
        log_q: the guide's.
        cell: the volume of a lattice's cell, `(N,)`.
        shape: of the lattices: nodes along each axis.
    """
    p, q, ratio = log_p.exp(), log_q.exp(), log_q - log_p
    difference = q - p
    # these integrands are nowhere negative, so that nothing cancels
    reverse, forward = (q * ratio - difference).sum(-1) * cell, (difference - p * ratio).sum(-1) * cell
    missing = (p.sum(-1) * cell - 1).abs() + (q.sum(-1) * cell - 1).abs()
    distance = difference.abs() / 2
    every_second = distance.unflatten(1, shape)[(slice(None), *[slice(0, None, 2)] * len(shape))].flatten(1)
    full, half = distance.sum(-1) * cell, every_second.sum(-1) * cell * 2 ** len(shape)
    return Divergences(reverse, forward, full, missing, (full - half).abs() + missing)


def _tight(log_density: Tensor, axes: Tensor) -> Tensor:
    """The box of nodes at most `MAX_DEPTH` nats below the peak of p or q, with two nodes to spare, `(2, N, D)`."""
    dim, num = axes.shape[1:]
    inside = (log_density > log_density.amax(-1, keepdim=True) - MAX_DEPTH).unflatten(1, (num,) * dim)
    ends = []
    for d in range(dim):
        others = [e + 1 for e in range(dim) if e != d]
        present = (inside.sum(others) if others else inside) > 0
        first = present.int().argmax(-1)
        last = num - 1 - present.flip(-1).int().argmax(-1)
        spacing = axes[:, d, 1] - axes[:, d, 0]
        low, high = (axes[:, d].gather(1, place[:, None])[:, 0] for place in (first, last))
        ends.append(torch.stack([low - 2 * spacing, high + 2 * spacing]))
    return torch.stack(ends, -1)
