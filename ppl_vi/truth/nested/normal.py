"""Inner latents that are jointly normal given the outer ones: their integral and their draws in closed form.

The log density is quadratic in the inner numbers z. With g its gradient and -P its second derivatives at z = 0, the
inner latents are normal with mean m = P^-1 g and precision P, and

    log p(x, outer) = log p(x, outer, z = m) + n/2 log(2 pi) - 1/2 log det P.

P has the shape of an arrow: blocks of one or two numbers that know of each other only through the middle. Products of
the second derivatives with a few vectors give all of it, and eliminating the blocks first leaves a matrix as large as
the middle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.func import grad, vmap

from ppl_vi.target.factorisation import Factorisation

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class NormalGivenOuter:
    """The normal distribution of the inner numbers at one outer point.

    Attributes:
        mean: of the middle, `(m,)`, nats.
        factor: L of the middle's precision L L', `(m, m)`.
        slopes: of the log density along each group of blocks at 0, `(B, k)`.
        to_middle: P between each block and the middle, `(B, k, m)`.
        factors: L of each block's precision given the middle, `(B, k, k)`.
    """

    mean: Tensor
    factor: Tensor
    slopes: list[Tensor]
    to_middle: list[Tensor]
    factors: list[Tensor]

    @property
    def half_log_det(self) -> Tensor:
        """1/2 log det P, a scalar."""
        diagonals = [torch.diagonal(f, dim1=-2, dim2=-1).log().sum() for f in (self.factor, *self.factors)]
        return torch.stack(diagonals).sum()

    def inner(self, noise: Tensor) -> Tensor:
        """The inner numbers `(n,)` from standard normal noise `(n,)`; from noise 0 their mean."""
        num = len(self.mean)
        middle = self.mean + _solved_upper(self.factor, noise[:num, None])[:, 0]
        parts = [middle]
        for slope, to_middle, factor in zip(self.slopes, self.to_middle, self.factors, strict=True):
            own = noise[num : num + slope.numel()].reshape(slope.shape)
            num += slope.numel()
            force = (slope - to_middle @ middle)[..., None]
            parts.append(_solved_upper(factor, _solved_lower(factor, force) + own[..., None]).flatten())
        return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class NormalInner:
    """The inner numbers of a factorisation that are normal given the outer ones."""

    structure: Factorisation

    @property
    def passes(self) -> int:
        """About how many times as much as the log density its integral over the inner numbers costs."""
        structure = self.structure
        return 2 + 4 * (len(structure.middle) + max((some.shape[1] for some in structure.blocks), default=0))

    def log_marginal(self, outer: Tensor) -> Tensor:
        """The log density of one outer point `(d,)`, the inner numbers integrated out, a scalar, nats.

        It is -inf where rounding leaves a precision that is not positive definite, as where a scale is 1e-8 of another.
        """
        given = self.given(outer)
        mode = given.inner(outer.new_zeros(len(self.structure.inner)))
        value = self.log_joint(outer, mode) + len(mode) / 2 * LOG_2PI - given.half_log_det
        return torch.where(value.isnan() & outer.isfinite().all(), -torch.inf, value)

    def log_joint(self, outer: Tensor, inner: Tensor) -> Tensor:
        """The log density of outer and inner numbers, `(d,)` and `(n,)`, a scalar."""
        return self.structure.terms(self.structure.joined(outer, inner)).sum()

    def given(self, outer: Tensor) -> NormalGivenOuter:
        """The distribution of the inner numbers at one outer point `(d,)`."""
        structure, origin = self.structure, outer.new_zeros(len(self.structure.inner))
        m = len(structure.middle)
        slope = grad(self.log_joint, argnums=1)

        def product(direction: Tensor) -> Tensor:
            return grad(lambda z: (slope(outer, z) * direction).sum())(origin)

        g, precision = slope(outer, origin), -vmap(product)(self.directions)
        place, by_group = m, []
        for some in structure.blocks:
            num, size = some.shape
            rows = precision[:, place : place + num * size].reshape(-1, num, size)
            factor = _factored(rows[m : m + size].permute(1, 2, 0))
            by_group.append((g[place : place + num * size].reshape(num, size), rows[:m].permute(1, 2, 0), factor))
            place += num * size
        schur, force = precision[:m, :m], g[:m]
        for own, to_middle, factor in by_group:
            half = _solved_lower(factor, torch.cat([to_middle, own[..., None]], -1))
            schur = schur - (half[..., :m].mT @ half[..., :m]).sum(0)
            force = force - (half[..., :m].mT @ half[..., m:]).sum(0)[:, 0]
        factor = _factored(schur)
        mean = _solved_upper(factor, _solved_lower(factor, force[:, None]))[:, 0]
        return NormalGivenOuter(mean, factor, *([part[i] for part in by_group] for i in range(3)))

    @cached_property
    def directions(self) -> Tensor:
        """The unit vectors of the middle, and for each place in a block the sum of those of all blocks, `(m + k, n)`.

        As blocks share no second derivative, a product with such a sum gives a column of every block at once.
        """
        structure = self.structure
        m, num = len(structure.middle), len(structure.inner)
        in_block = [torch.arange(some.shape[1]).repeat(len(some)) for some in structure.blocks]
        column = torch.cat([torch.arange(m), *(m + places for places in in_block)])
        return torch.nn.functional.one_hot(column, int(column.max()) + 1).mT.to(torch.float64).reshape(-1, num)


def _factored(matrix: Tensor) -> Tensor:
    """L of matrices L L' `(..., k, k)`, with nan where a matrix is not positive definite.

    One and two numbers, of which there are many, are factored by hand.
    """
    size = matrix.shape[-1]
    if size == 0:
        return matrix
    if size == 1:
        return matrix.sqrt()
    if size == 2:
        first = matrix[..., 0, 0].sqrt()
        below = matrix[..., 1, 0] / first
        last = (matrix[..., 1, 1] - below.square()).sqrt()
        rows = [torch.stack([first, torch.zeros_like(first)], -1), torch.stack([below, last], -1)]
        return torch.stack(rows, -2)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return torch.where((failed > 0)[..., None, None], torch.nan, factor)


def _solved_lower(factor: Tensor, right: Tensor) -> Tensor:
    """L^-1 times `right` `(..., k, c)`."""
    size = factor.shape[-1]
    if size > 2:
        return torch.linalg.solve_triangular(factor, right, upper=False)
    rows: list[Tensor] = []
    for i in range(size):
        left = right[..., i, :]
        for j in range(i):
            left = left - factor[..., i, j, None] * rows[j]
        rows.append(left / factor[..., i, i, None])
    return torch.stack(rows, -2) if rows else right


def _solved_upper(factor: Tensor, right: Tensor) -> Tensor:
    """L'^-1 times `right` `(..., k, c)`."""
    size = factor.shape[-1]
    if size > 2:
        return torch.linalg.solve_triangular(factor.mT, right, upper=True)
    rows: list[Tensor] = []
    for i in reversed(range(size)):
        left = right[..., i, :]
        for j, row in zip(range(size - 1, i, -1), rows, strict=False):
            left = left - factor[..., j, i, None] * row
        rows.append(left / factor[..., i, i, None])
    return torch.stack(rows[::-1], -2) if rows else right
