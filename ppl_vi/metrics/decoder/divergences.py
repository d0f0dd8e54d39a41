"""Divergences of an amortized guide from the posterior on lattices that cover both: a second route to the gap."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vi.guides.amortized import Head
from ppl_vi.numerics.mixtures import GaussianMixtures
from ppl_vi.target.decoder import log_prior
from ppl_vi.target.evaluation import decoded_at_once, decoded_of, log_likelihood_at
from ppl_vi.target.target import Target

NODES = {1: 2048, 2: 256, 3: 64}  # an axis
# times so many, and whether on one lattice for all or on each problem's own box, whose decoder runs for it alone
ROUNDS = ((1, True), (2, True), (0.1875, False), (0.375, False), (0.75, False), (2, False))
MASS = 2e-8  # that may be missing before a problem gets a lattice of its own
DEPTH = 40.0  # nats below the peak at which a density may be cut off
REACH = 7.5  # standard deviations of guide and prior inside the first lattice
DECODED = 1 << 25  # log likelihoods at once: the decoder runs anew for each block of problems
BLOCK = 1 << 17  # densities at once


@dataclass(frozen=True)
class Divergences:
    """Distances between guide and posterior, `(B,)` each.

    Attributes:
        reverse_kl: KL(q || p), nats.
        forward_kl: KL(p || q), nats.
        total_variation: half the integral of |p - q|.
        missing: what the masses of p and q on the lattice lack of 1.
        total_variation_error: difference from every second node, since the kinks of |p - q| converge slowly.
    """

    reverse_kl: Tensor
    forward_kl: Tensor
    total_variation: Tensor
    missing: Tensor
    total_variation_error: Tensor

    def error(self, divergence: Tensor) -> Tensor:
        """Of one of the two divergences, `(B,)`, nats.

        What a lattice of spacing h misses of a Gaussian's mass is d = 2 exp(-2 pi^2 s^2 / h^2); of its second moment,
        4 pi^2 s^2 / h^2 = 2 log(2 / d) times that; a log ratio has such moments and grows with the divergence.
        """
        log = torch.log(2 / self.missing.clamp(min=torch.finfo(self.missing.dtype).tiny)).clamp(min=0)
        return self.missing * (2 * log + divergence.abs().clamp(min=1))


@torch.no_grad()
def divergences(target: Target, log_evidence: Tensor, head: Head, local: Tensor) -> Divergences:
    """Integrates over one lattice for all problems; those too narrow for it get one of their own, closer and closer.

    The trapezoid rule converges exponentially for smooth densities. The mass of p, whose log evidence was computed
    elsewhere, and that of q are known to be 1: what the lattice finds instead is its error.

    Args:
        target: with a decoder.
        log_evidence: log p(x), nats, `(B,)`.
        head: the guide's family.
        local: its parameters, `(B, num_outputs)`.
    """
    decoded_of(target)
    mixture = GaussianMixtures(*head.components(local))
    reach = REACH * mixture.trils.square().sum(-1).sqrt()
    low, high = (mixture.locs - reach).amin(1), (mixture.locs + reach).amax(1)
    box = torch.stack([low.clamp(max=-REACH), high.clamp(min=REACH)])
    result = local.new_full((5, len(local)), torch.inf)
    pending = torch.arange(len(local), device=local.device)
    for finer, shared in ROUNDS:
        num, wanted = round(finer * NODES[target.dim]), box[:, pending]
        if shared:
            wanted = torch.stack([wanted[0].amin(0), wanted[1].amax(0)])[:, None].expand_as(wanted)
        found, tight = _on_boxes(target, log_evidence, mixture, wanted, pending, num, shared)
        before = result[3, pending]
        better = found[3] < before
        result[:, pending[better]] = found[:, better]
        box = box.index_copy(1, pending, tight)
        # a mass that a closer look at its own box leaves as it was is not the lattice's fault
        pending = pending[(found[3] > MASS) & ((found[3] < before / 2) | (finer < 1) | shared)]
        if not len(pending):
            break
    return Divergences(*result)


def _on_boxes(
    target: Target, log_evidence: Tensor, mixture: GaussianMixtures, box: Tensor, index: Tensor, num: int, shared: bool
) -> tuple[Tensor, Tensor]:
    """The five rows of `Divergences` `(5, N)` and the boxes `(2, N, D)` that hold what has mass."""
    dim = target.dim
    results, boxes = [], []
    for rows in torch.arange(len(index), device=index.device).split(max(1, DECODED // num**dim)):
        part, problems = box[:, rows], index[rows]
        steps = torch.linspace(0, 1, num, dtype=part.dtype, device=part.device)
        axes = part[0, ..., None] + (part[1] - part[0])[..., None] * steps
        z = _lattice(axes[:1] if shared else axes)
        if shared:
            data = tuple(arg[problems] for arg in target.args)
            nodes = z[0].split(decoded_at_once(target))
            log_likelihood = torch.cat([decoded_of(target).log_likelihood(some, *data) for some in nodes], 1)
        else:
            log_likelihood = log_likelihood_at(target, z, problems)
        for few in torch.arange(len(rows), device=index.device).split(max(1, BLOCK // num**dim)):
            points = z if shared else z[few]
            log_p = log_likelihood[few] + log_prior(points) - log_evidence[problems[few], None]
            log_q = mixture.rows(problems[few]).log_prob(points)
            cell = ((part[1] - part[0])[few] / (num - 1)).prod(-1)
            results.append(_integrals(log_p, log_q, cell, (num,) * dim))
            boxes.append(_tight(torch.maximum(log_p, log_q), axes[few]))
    return torch.cat(results, 1), torch.cat(boxes, 1)


def _lattice(axes: Tensor) -> Tensor:
    """Axes `(N, D, num)` to points `(N, num^D, D)`."""
    dim = axes.shape[1]
    spread = [axes[:, d].reshape(-1, *(axes.shape[2] if e == d else 1 for e in range(dim))) for d in range(dim)]
    return torch.stack(torch.broadcast_tensors(*spread), -1).flatten(1, -2)


def _integrals(log_p: Tensor, log_q: Tensor, cell: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The five rows of `Divergences`."""
    p, q, ratio = log_p.exp(), log_q.exp(), log_q - log_p
    difference = q - p
    # integrands that are nowhere negative: nothing cancels
    reverse, forward = (q * ratio - difference).sum(-1) * cell, (difference - p * ratio).sum(-1) * cell
    missing = (p.sum(-1) * cell - 1).abs() + (q.sum(-1) * cell - 1).abs()
    distance = difference.abs() / 2
    every = distance.unflatten(1, shape)[(slice(None), *[slice(0, None, 2)] * len(shape))].flatten(1)
    full, half = distance.sum(-1) * cell, every.sum(-1) * cell * 2 ** len(shape)
    return torch.stack([reverse, forward, full, missing, (full - half).abs() + missing])


def _tight(log_density: Tensor, axes: Tensor) -> Tensor:
    """The box of nodes at most `DEPTH` below the peak of p or q, with two nodes to spare, `(2, N, D)`."""
    dim, num = axes.shape[1:]
    inside = (log_density > log_density.amax(-1, keepdim=True) - DEPTH).unflatten(1, (num,) * dim)
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
