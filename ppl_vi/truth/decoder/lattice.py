"""The evidence by a trapezoid lattice, which estimates its own error from its interleaved sub-lattices."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vi.truth.decoder.cells import Cells, Joint, nodes_at_once

OFFSET = (0.2360679775, 0.4142135624, 0.7320508076)  # of the lattice, in spacings: no node on a plane of symmetry
MOST_NODES = 2**22


@dataclass(frozen=True, eq=False)
class Summed:
    """The lattice sums of `P` problems.

    Attributes:
        log_ratio: of the evidence to `scale`, `(P,)`, nats.
        spread: of the 2^D sub-lattices about their mean, `(P,)`, nats; they have twice the spacing.
    """

    log_ratio: Tensor
    spread: Tensor


def lattice_points(cells: Cells, spacing: float) -> tuple[Tensor, Tensor] | None:
    """The nodes of one infinite lattice that lie in the cells.

    Returns:
        Points `(S, D)` and which of the 2^D sub-lattices each belongs to `(S,)`; None if they are too many.
    """
    shift = torch.tensor(OFFSET[: cells.dim]).to(cells.center)
    # neighbours compute their common face alike, so that no node is lost or counted twice
    first = ((cells.center - cells.half[:, None]) / spacing - shift).ceil()
    count = ((cells.center + cells.half[:, None]) / spacing - shift).ceil() - first
    if float(count.prod(-1).sum()) > MOST_NODES:
        return None
    parity = 2 ** torch.arange(cells.dim, device=first.device)
    parts = [first[:0]]
    most_along = count.amin(-1).sign() * count.amax(-1)  # 0 where a small cell holds no node
    for most in most_along[most_along > 0].unique().tolist():
        alike = most_along == most
        steps = torch.tensor(list(itertools.product(range(int(most)), repeat=cells.dim))).to(first)
        inside = (steps < count[alike, None]).all(-1)
        parts.append((first[alike, None] + steps)[inside])
    index = torch.cat(parts)
    return (index + shift) * spacing, (index.remainder(2).long() * parity).sum(-1)


def lattice_sum(joint: Joint, cells: Cells, spacing: float, scale: Tensor) -> Summed | None:
    """Sums `spacing^D p(x, z)` over the lattice nodes in the cells.

    For a smooth integrand the error falls faster than any power of the spacing (as exp(-2 (pi s / spacing)^2) for a
    normal density of standard deviation s), so that the spread of the sub-lattices is far above that of the whole.

    Args:
        joint: of `P` problems.
        cells: outside of which the integrand is negligible.
        spacing: between nodes.
        scale: a guess at the log evidence, `(P,)`, nats.

    Returns:
        The sums; None if there would be too many nodes.

    Source: Trefethen and Weideman (2014), The exponentially convergent trapezoidal rule.
    """
    found = lattice_points(cells, spacing)
    if found is None:
        return None
    points, sub = found
    member = torch.nn.functional.one_hot(sub, 2**cells.dim).to(scale)
    step = nodes_at_once(len(scale))
    sums = scale.new_zeros(len(scale), 2**cells.dim)
    for z, of in zip(points.split(step), member.split(step), strict=True):
        sums += (joint(z) - scale[:, None]).exp_() @ of
    sums *= (2 * spacing) ** cells.dim
    mean = sums.mean(1)
    return Summed(mean.log(), (sums.log() - mean.log()[:, None]).abs().amax(1))
