"""The evidence by the trapezoid rule on a lattice, which estimates its own error from its sub-lattices.

A lattice of spacing h in D dimensions consists of 2^D interleaved sub-lattices of spacing 2 h, each of which gives an
estimate of its own. For a smooth integrand the error falls faster than any power of the spacing, as
exp(-2 (pi s / h)^2) for a normal density of standard deviation s, so the sub-lattices differ by far more than the
whole lattice errs.

Source: Trefethen and Weideman (2014), The exponentially convergent trapezoidal rule.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vi.truth.decoder.cells import Cells, LogJoint, max_points

# Where the lattice lies, in spacings along each axis: the fractions of the square roots of 5, 2 and 3. With irrational
# ones no node falls on a plane of symmetry of the decoder.
OFFSETS = (0.2360679775, 0.4142135624, 0.7320508076)
MAX_NODES = 2**22  # of one lattice, which bounds time and memory: a lattice that needs more counts as failed


@dataclass(frozen=True, eq=False)
class LatticeSum:
    """The evidence of `P` problems by a lattice.

    Attributes:
        log_ratio: log of the ratio of the evidence to `exp(log_guess)`, `(P,)`, nats.
        spread: the largest difference of a sub-lattice from their mean, `(P,)`, nats.
    """

    log_ratio: Tensor
    spread: Tensor


def lattice_points(cells: Cells, spacing: float) -> tuple[Tensor, Tensor] | None:
    """The nodes of one infinite lattice that lie in the cells.

    Returns:
        The points `(S, D)`, and to which of the 2^D sub-lattices each belongs, `(S,)`; None if there are too many.
    """
    shift = torch.tensor(OFFSETS[: cells.dim]).to(cells.center)
    # Cells that share a face compute its place alike, to the last bit, so that no node is lost or counted twice.
    first = ((cells.center - cells.half[:, None]) / spacing - shift).ceil()
    count = ((cells.center + cells.half[:, None]) / spacing - shift).ceil() - first
    if float(count.prod(-1).sum()) > MAX_NODES:
        return None
    parity = 2 ** torch.arange(cells.dim, device=first.device)
    parts = [first[:0]]
    longest = count.amin(-1).sign() * count.amax(-1)  # nodes along a cell's longest axis; 0 if it holds none at all
    for num in longest[longest > 0].unique().tolist():
        alike = longest == num
        steps = torch.tensor(list(itertools.product(range(int(num)), repeat=cells.dim))).to(first)
        inside = (steps < count[alike, None]).all(-1)
        parts.append((first[alike, None] + steps)[inside])
    index = torch.cat(parts)
    return (index + shift) * spacing, (index.remainder(2).long() * parity).sum(-1)


def lattice_sum(joint: LogJoint, cells: Cells, spacing: float, log_guess: Tensor) -> LatticeSum | None:
    """Sums `spacing^D p(x, z)` over the lattice nodes in the cells.

    Args:
        joint: of `P` problems.
        cells: outside of which the integrand is negligible.
        spacing: between neighbouring nodes.
        log_guess: a guess at the log evidence, `(P,)`, nats; sums relative to it neither overflow nor underflow.

    Returns:
        The sums; None if there would be too many nodes.
    """
    found = lattice_points(cells, spacing)
    if found is None:
        return None
    points, sub = found
    member = torch.nn.functional.one_hot(sub, 2**cells.dim).to(log_guess)
    size = max_points(len(log_guess))
    sums = log_guess.new_zeros(len(log_guess), 2**cells.dim)
    for z, of in zip(points.split(size), member.split(size), strict=True):
        sums += (joint(z) - log_guess[:, None]).exp_() @ of
    sums *= (2 * spacing) ** cells.dim
    mean = sums.mean(1)
    return LatticeSum(mean.log(), (sums.log() - mean.log()[:, None]).abs().amax(1))
