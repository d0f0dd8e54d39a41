"""The integral of a density of four or five numbers, slice by slice along one of them.

The posterior of a regression's coefficients is nearly normal given the scale of the effects beside them, while that of
the scale itself is not. So one number, the most skewed one, is integrated over by lattices. At each of its nodes the
others are integrated out by a product Gauss-Hermite rule about their mode, with the curvature there. A rule of another
order tells the error of these.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ppl_vi.numerics.newton import minimize_by
from ppl_vi.target.log_density import Density
from ppl_vi.truth.importance.proposal import Derivatives
from ppl_vi.truth.nested.lattice import (
    MAX_DIFFERENCE,
    LatticeIntegral,
    Standardized,
    lattice_integral,
    rough_lattice,
)

# Nodes of the Gauss-Hermite rule along each axis, and those of the rule that it is compared with.
ORDER, OTHER_ORDER = 6, 7
# Nats by which a mode may fall short of the highest value nearby: the rule lies about it, and need not be exact.
MODE_TOLERANCE, MAX_STEPS = 1e-6, 40


class SliceDensity(Density):
    """The density of one number, the others integrated out."""

    def __init__(self, density: Density, axis: int, u: Tensor, log_weight: Tensor, order: int) -> None:
        """The density along one axis of another density.

        Args:
            density: of all numbers.
            axis: which number is left.
            u: weighted draws of the density, `(S, d)`: they tell about where the others are, given the one.
            log_weight: of the draws, `(S,)`.
            order: of the Gauss-Hermite rule.
        """

        def of_one(x: Tensor) -> Tensor:
            raise NotImplementedError("modes are searched for at many points at once")

        num_nodes = order ** (density.dim - 1)
        super().__init__(
            of_one, 1, density.dtype, lambda x: x.isfinite().all(1), density.name, density.width * num_nodes
        )
        self.density, self.axis = density, axis
        self.others = torch.tensor([i for i in range(density.dim) if i != axis])
        weight = log_weight.softmax(0)
        self.mean = weight @ u
        away = u - self.mean
        self.slope_of_mean = (weight * away[:, axis]) @ away / (weight @ away[:, axis].square())
        nodes, weights = np.polynomial.hermite_e.hermegauss(order)
        num = density.dim - 1
        self.nodes = torch.cartesian_prod(*[torch.from_numpy(nodes)] * num).reshape(-1, num)
        log_weights = torch.from_numpy(np.log(weights) + nodes**2 / 2)
        self.log_weights = torch.cartesian_prod(*[log_weights] * num).reshape(-1, num).sum(1)

    def __call__(self, x: Tensor) -> Tensor:
        """The log density at points `(S, 1)`, `(S,)`; nan where the others have no mode."""
        start = self.mean + (x - self.mean[self.axis]) * self.slope_of_mean
        mode, factor = self._modes(start)
        moves = self.nodes @ factor.mT
        u = start[:, None].repeat(1, len(self.nodes), 1)
        u[..., self.others] = mode[:, None] + moves
        value = self.density(u.flatten(0, 1)).reshape(len(x), -1)
        log_det = torch.diagonal(factor, dim1=-2, dim2=-1).log().sum(-1)
        return (value + self.log_weights).logsumexp(1) + log_det

    def _modes(self, start: Tensor) -> tuple[Tensor, Tensor]:
        """Modes of the other numbers `(S, d - 1)`, and L with L L' their covariance by the curvature there."""
        others, derivatives = self.others, Derivatives(self.density, len(start))

        def of_others(part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            u = start.clone()
            u[:, others] = part
            value, slope, hessian = derivatives(u)
            return value, slope[:, others], hessian[:, others][:, :, others]

        found = minimize_by(of_others, start[:, others], tolerance=MODE_TOLERANCE, max_steps=MAX_STEPS)
        lower, failed = torch.linalg.cholesky_ex(found.hessian)
        inverse = torch.linalg.solve_triangular(lower, torch.eye(len(others)).to(lower).expand_as(lower), upper=False)
        return found.x, torch.where((failed > 0)[:, None, None], torch.nan, inverse.mT)


def sliced_integral(standardized: Standardized, u: Tensor, log_weight: Tensor) -> LatticeIntegral | str:
    """The integral of a density, or why there is none, in words.

    Args:
        standardized: the density of four or five numbers.
        u: weighted draws of it, `(S, d)`.
        log_weight: of the draws, `(S,)`.
    """
    weight = log_weight.softmax(0)
    away = u - weight @ u
    skewness = (weight @ away**3) / (weight @ away.square()) ** 1.5
    axis = int(skewness.abs().argmax())
    sliced, other = (SliceDensity(standardized.density, axis, u, log_weight, order) for order in (ORDER, OTHER_ORDER))
    column = slice(axis, axis + 1)
    rough = rough_lattice(sliced, u[:, column], log_weight, standardized.tops[:, column])
    if isinstance(rough, str):
        return rough
    along, lattice = rough
    found = lattice_integral(along, lattice)
    if isinstance(found, str):
        return found
    first = found.lattices[0]
    again = replace(along, density=other)(first.nodes(1)).numpy() + math.log(first.spacing)
    by_order = abs(float(np.logaddexp.reduce(again)) - first.log_total)
    if not by_order <= MAX_DIFFERENCE:
        return f"two Gauss-Hermite rules differ by {by_order:.1e} nats"
    return replace(found, rule_difference=by_order)
