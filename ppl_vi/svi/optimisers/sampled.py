"""The ELBO of normals on fixed draws, and its optimum by Newton's method.

    1/M sum_m log p(x, u_m) + log det factor + D/2 log(2 pi e),   u_m = loc + factor e_m,

with the density in unconstrained space and the entropy in closed form. Locations and factors are taken in units of the
target's own start, so that all numbers over which it is maximised are about as large.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.func import vmap

from ppl_vi.numerics.newton import minimize_by
from ppl_vi.numerics.vmapping import loop_over, vmap_or_loop
from ppl_vi.svi.optimisers.derivatives import derivatives_of, minimized_by_products
from ppl_vi.svi.start_points import Centres, conditional_scale
from ppl_vi.target.target import Target

# A search has arrived where Newton's method promises to gain no more than this, nats, beside what rounding hides. It is
# far below every tolerance that is of use: the last iterations double the number of right digits.
GAIN_TOLERANCE = 1e-14
# Where the draws of a start meet a point without density, the normal is made this much narrower, so many times at most.
NARROWER, MAX_NARROWINGS = 0.25, 12
# With more numbers than this, Hessians take longer than the conjugate gradients that do without them.
MAX_HESSIAN_NUMBERS = 400


@dataclass(frozen=True, eq=False)
class Optima:
    """Where the searches for `B` problems and `R` replicas ended.

    Attributes:
        normals: the optima.
        values: the highest ELBO on the draws so far, after every evaluation, `(T, B, R)`, nats.
        gain: what Newton's method still promises to gain, `(B, R)`, nats.
        converged: whether that is no more than `GAIN_TOLERANCE` and rounding, `(B, R)`.
        usable: whether a start was found whose draws all have a density, `(B, R)`.
    """

    normals: Centres
    values: Tensor
    gain: Tensor
    converged: Tensor
    usable: Tensor


@dataclass(frozen=True, eq=False)
class SampledElbo:
    """The ELBO of a normal for each of `B` problems and `R` replicas, on draws of its own.

    Attributes:
        target: whose problems.
        mean_field: whether the factors are diagonal.
        e: the draws, standard normal, `(B, R, M, D)`.
    """

    target: Target
    mean_field: bool
    e: Tensor

    @cached_property
    def args(self) -> tuple[Tensor, ...]:
        """What `loss` takes beside `x`, for `N = B R` fits, with leading axis `N`."""
        start, num = self.target.start, self.e.shape[1]
        of_problems = (start.loc, start.scale, *self.target.args)
        return (self.e.flatten(0, 1), *(arg.repeat_interleave(num, 0) for arg in of_problems))

    @cached_property
    def _over(self) -> Callable[..., Callable[..., Tensor]]:
        """What maps the log density over draws."""
        return vmap if self.target.many_at_once() is None else loop_over

    def loss(self, x: Tensor, e: Tensor, loc: Tensor, scale: Tensor, *row: Tensor) -> Tensor:
        """Minus the ELBO of one normal `x`, as `packed` gives it, on draws `e` `(M, D)`, nats."""
        dim = self.target.dim
        moved = e * x[dim : 2 * dim].exp()
        if not self.mean_field:
            moved = moved + e @ _below(x[2 * dim :], dim).mT
        points = loc + scale * (x[:dim] + moved)
        log_density = self._over(lambda u: self.target.log_density_of_row(u, *row))(points)
        entropy = (x[dim : 2 * dim] + scale.log()).sum() + dim / 2 * math.log(2 * math.pi * math.e)
        return -log_density.mean() - entropy

    def packed(self, normals: Centres) -> Tensor:
        """`(loc, log of the factor's diagonal, the factor's numbers below it)` in units of the start, `(N, P)`."""
        start, dim = self.target.start, self.target.dim
        loc = (normals.loc - start.loc[:, None]) / start.scale[:, None]
        factor = normals.factor / start.scale[:, None, :, None]
        x = torch.cat([loc, torch.diagonal(factor, dim1=-2, dim2=-1).log()], -1)
        if not self.mean_field:
            row, column = torch.tril_indices(dim, dim, offset=-1)
            x = torch.cat([x, factor[..., row, column]], -1)
        return x.flatten(0, 1)

    def unpacked(self, x: Tensor) -> Centres:
        """The inverse of `packed`."""
        start, dim = self.target.start, self.target.dim
        x = x.unflatten(0, self.e.shape[:2])
        factor = torch.diag_embed(x[..., dim : 2 * dim].exp())
        if not self.mean_field:
            factor = factor + _below(x[..., 2 * dim :], dim)
        factor = start.scale[:, None, :, None] * factor
        loc = start.loc[:, None] + start.scale[:, None] * x[..., :dim]
        scale = torch.diagonal(factor, dim1=-2, dim2=-1) if self.mean_field else conditional_scale(factor)
        return Centres(loc, scale, factor)

    def hessians(self, normals: Centres) -> Tensor:
        """The second derivatives of minus the ELBO in `packed` numbers, `(N, P, P)`."""
        return derivatives_of(self.loss, self.args, self._width)(self.packed(normals))[2]

    def optima(self, start: Centres, max_steps: int) -> Optima:
        """The optimum near each start, by at most so many iterations of Newton's method in a trust region."""
        _ = self._over  # found here, since it can't be told within a `vmap`
        x, usable = self._finite(self.packed(start))
        shape = self.e.shape[:2]
        gain, converged = torch.full_like(x[:, 0], torch.inf), torch.zeros_like(usable)
        values = x.new_full((1, len(x)), torch.nan)
        if bool(usable.any()):
            found = self._minimized(x[usable], tuple(arg[usable] for arg in self.args), max_steps)
            x[usable], gain[usable], converged[usable] = found.x, found.gain, found.converged
            values = x.new_full((len(found.values), len(x)), torch.nan)
            values[:, usable] = found.values
        parts = (part.reshape(shape) for part in (gain, converged, usable))
        return Optima(self.unpacked(x), -values.unflatten(1, shape), *parts)

    def _minimized(self, start: Tensor, args: tuple[Tensor, ...], max_steps: int) -> _Found:
        if start.shape[-1] > MAX_HESSIAN_NUMBERS:
            return _Found(*minimized_by_products(self.loss, start, args, GAIN_TOLERANCE, max_steps))
        derivatives = derivatives_of(self.loss, args, self._width)
        seen: list[Tensor] = []

        def noted(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            value, gradient, hessian = derivatives(x)
            finite = torch.where(value.isfinite(), value, torch.inf)
            seen.append(finite if not seen else torch.minimum(seen[-1], finite))
            return value, gradient, hessian

        found = minimize_by(noted, start, tolerance=GAIN_TOLERANCE, max_steps=max_steps)
        return _Found(found.x, torch.stack(seen), found.gain, found.converged)

    @property
    def _width(self) -> int:
        return self.target.width * self.e.shape[2]

    def _finite(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Starts `(N, P)`, narrower where their draws met no density, and which of them have a finite ELBO, `(N,)`."""
        dim = self.target.dim

        def finite(x: Tensor) -> Tensor:
            with torch.no_grad():
                return vmap_or_loop(self.loss)(x, *self.args).isfinite()

        usable = finite(x)
        for _ in range(MAX_NARROWINGS):
            if bool(usable.all()):
                break
            narrower = x.clone()
            narrower[:, dim : 2 * dim] += math.log(NARROWER)
            narrower[:, 2 * dim :] *= NARROWER
            x = torch.where(usable[:, None], x, narrower)
            usable = finite(x)
        return x.clone(), usable


@dataclass(frozen=True, eq=False)
class _Found:
    """The optima of `N` fits: `(N, P)`, the lowest minus ELBO so far `(T, N)`, and the rest `(N,)`."""

    x: Tensor
    values: Tensor
    gain: Tensor
    converged: Tensor


def _below(rest: Tensor, dim: int) -> Tensor:
    """The numbers below the diagonal `(..., D (D - 1) / 2)` as matrices `(..., D, D)`."""
    row, column = torch.tril_indices(dim, dim, offset=-1)
    place = torch.zeros(dim * dim, len(row), dtype=rest.dtype, device=rest.device)
    place[row * dim + column, torch.arange(len(row))] = 1.0
    return (rest @ place.mT).unflatten(-1, (dim, dim))
