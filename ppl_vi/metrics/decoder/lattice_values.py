"""Expectations of log p(x | z) under Gaussians from values on nested lattices, which all problems and guides share.

A search for the best q asks for E_q[f], f = log p(x | z), and its derivatives, for thousands of Gaussians that overlap.
The trapezoid rule on a lattice no wider than q's smallest standard deviation is exact to many digits, so that f is
needed at the lattice's nodes alone, whatever q is: the decoder runs once a node, for every problem that wants it, and
never has to be differentiated. By Stein's identity, with z = m + L e and e ~ Normal(0, I),

    E[L' grad f(z) p(e)] = E[f(z) (e p(e) - grad p(e))],

the derivatives of E_q[f] in m and L are moments of f with polynomials of e.

Sources: Stein (1981), Estimation of the mean of a multivariate normal distribution; Trefethen and Weideman (2014), The
exponentially convergent trapezoidal rule.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vi.guides.amortized import Head
from ppl_vi.metrics.decoder.elbo import Elbo, elbo, elbo_by, settled_prior_kl
from ppl_vi.numerics.mixtures import GaussianMixtures
from ppl_vi.target.evaluation import decoded_at_once
from ppl_vi.target.target import Target

WIDEST = 1.25  # of the coarsest lattice's spacing, in smallest standard deviations of q
REACH = 7.5  # of a Gaussian, in Mahalanobis' distance
SIDE = {1: 32, 2: 8, 3: 4}  # nodes along a tile
MOST_TILES = 2**14  # in the box around one Gaussian
BITS = {1: 30, 2: 20, 3: 13}  # of a tile's place along an axis, in its key
LEVELS = 64  # spacings 2^31 to 2^-32
PAIRS = 2**17  # of Gaussians and tiles, considered at once
BLOCK = 2**17  # nodes summed at once
MOST_FINER = 4  # lattices an ELBO is sought on
MOST_KEPT = 2**25  # values: 256 MB; beyond that all but what is wanted now are forgotten

Polynomial = dict[tuple[int, ...], float]  # exponents of e_1, ..., e_D to coefficients


class Gaussians(NamedTuple):
    """`M` Gaussians, each of one problem."""

    loc: Tensor  # (M, D)
    tril: Tensor  # (M, D, D)
    problem: Tensor  # (M,)

    @classmethod
    def of(cls, mixture: GaussianMixtures, index: Tensor) -> Gaussians:
        """Every component of mixtures `(N, K)` of the problems `index` `(N,)`."""
        problem = index.repeat_interleave(mixture.locs.shape[1])
        return cls(mixture.locs.flatten(0, 1), mixture.trils.flatten(0, 1), problem)

    def rows(self, index: Tensor) -> Gaussians:
        """Some of them."""
        return Gaussians(*(part[index] for part in self))


class Cover(NamedTuple):
    """The tiles that hold what matters of some Gaussians: `P` pairs, those of one Gaussian following one another."""

    owner: Tensor  # (P,)
    corner: Tensor  # (P, D), the least node of each tile
    key: Tensor  # (P,), of the tile and the Gaussian's problem


class Total(NamedTuple):
    """Sums over the tiles of each of `num` Gaussians, by the owner of each `(P,)`."""

    owner: Tensor
    num: int

    def __call__(self, part: Tensor) -> Tensor:
        """`(P, ...)` to `(num, ...)`."""
        return part.new_zeros(self.num, *part.shape[1:]).index_add_(0, self.owner, part)


# of values f in the tiles of some Gaussians `(P, S)`, their nodes in each one's own units `(D, P, S)`, sums over tiles
Integrate = Callable[[Tensor, Tensor, Total], Tensor]


class CachedLattice:
    """log p(x | z) of a target's problems wherever it was asked for so far, in tiles of lattices of spacing 2^-level.

    Args:
        target: with a decoder.

    Raises:
        ValueError: it has none, too many latents, or too many problems to number their tiles.
    """

    def __init__(self, target: Target) -> None:
        if target.decoded is None or target.dim not in SIDE:
            raise ValueError(f"target '{target.name}' has no decoder of at most {max(SIDE)} latents")
        most = 2 ** (63 - target.dim * BITS[target.dim] - (LEVELS - 1).bit_length())
        if target.num_problems > most:
            raise ValueError(f"at most {most} problems at once, target '{target.name}' has {target.num_problems}")
        self.target, self.dim, self.side = target, target.dim, SIDE[target.dim]
        self._log_likelihood = target.decoded.log_likelihood
        axis = torch.arange(self.side, dtype=target.dtype, device=target.device)
        self._inner = torch.cartesian_prod(*[axis] * self.dim).reshape(-1, self.dim)
        parity = (self._inner.long() % 2 * 2 ** torch.arange(self.dim, device=target.device)).sum(-1)
        self._member = torch.nn.functional.one_hot(parity, 2**self.dim).to(self._inner)
        self._forget()

    def _forget(self) -> None:
        self._keys = torch.empty(0, dtype=torch.long, device=self._inner.device)  # sorted
        self._place = torch.empty_like(self._keys)  # of each key's tile in `_values`
        self._values = self._inner.new_empty(0, len(self._inner))

    @staticmethod
    def levels(gaussians: Gaussians, finer: int) -> Tensor:
        """The lattice of each: its spacing is 2^-level, `(M,)`; nan where the covariance is no such matrix."""
        covariance = gaussians.tril @ gaussians.tril.mT
        finite = covariance.isfinite().all(-1).all(-1)
        eye = torch.eye(covariance.shape[-1]).to(covariance)
        smallest = torch.linalg.eigvalsh(torch.where(finite[:, None, None], covariance, eye))[:, 0]
        known = finite & (smallest > 0)
        level = (-(WIDEST * torch.where(known, smallest, 1.0).sqrt()).log2()).ceil() + finer
        return torch.where(known, level, torch.nan)

    def moments(
        self, gaussians: Gaussians, level: Tensor, degree: int, most: int = MOST_TILES
    ) -> tuple[Tensor, Tensor]:
        """E[f] and E[(f - E[f]) e^a] for every monomial e^a of `monomials(D, degree)`.

        Args:
            gaussians: `M` of them.
            level: of each one's lattice, `levels`.
            degree: of the monomials.
            most: tiles in the box around a Gaussian.

        Returns:
            `(M,)` and `(M, A)`; nan where a Gaussian is too thin or too far out for the lattices.
        """
        size = 1 + len(monomials(self.dim, degree))
        found = self._over(gaussians, level, size, lambda f, noise, total: _moments(f, noise, total, degree), most)
        return found[:, 0], found[:, 1:]

    def expect(self, gaussians: Gaussians, level: Tensor) -> tuple[Tensor, Tensor]:
        """E[f] and how far the lattice's 2^D sub-lattices, of twice the spacing, lie from it, `(M,)` each.

        Args:
            gaussians: `M` of them.
            level: of each one's lattice, `levels`.
        """

        def means(f: Tensor, noise: Tensor, total: Total) -> Tensor:
            weight = torch.exp(-noise.square().sum(0) / 2)
            sums, masses = total(weight * f @ self._member), total(weight @ self._member)
            mean = sums.sum(-1) / masses.sum(-1)
            return torch.stack([mean, (sums / masses - mean[:, None]).abs().amax(-1)], -1)

        found = self._over(gaussians, level, 2, means)
        return found[:, 0], found[:, 1]

    @torch.no_grad()
    def _over(
        self, gaussians: Gaussians, level: Tensor, size: int, integrate: Integrate, most: int = MOST_TILES
    ) -> Tensor:
        """What `integrate` makes of each Gaussian, `(M, size)`; nan where there are no tiles."""
        spacing, first, count, usable = self._boxes(gaussians, level, most)
        out = gaussians.loc.new_full((len(usable), size), torch.nan)
        for rows in _groups(usable.nonzero()[:, 0], count.prod(-1), PAIRS):
            few, width = gaussians.rows(rows), spacing[rows]
            inverse = inverted(few.tril)
            cover = self._cover(few, inverse, width, first[rows], count[rows])
            place = self._places(cover.key)
            num = torch.bincount(cover.owner, minlength=len(rows))
            for part in _groups(torch.arange(len(rows), device=rows.device), num, BLOCK // len(self._inner)):
                pairs = slice(int(num[: part[0]].sum()), int(num[: part[-1] + 1].sum()))
                owner = cover.owner[pairs]
                start = inverse[owner] @ (cover.corner[pairs] - few.loc[owner])[..., None]
                inner = inverse[owner] * width[owner, None, None] @ self._inner.T
                noise = (start + inner).movedim(1, 0).contiguous()
                total = Total(owner - part[0], len(part))
                out[rows[part]] = integrate(self._values[place[pairs]], noise, total)
        return out

    def _boxes(self, gaussians: Gaussians, level: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Each Gaussian's spacing `(M,)`, the first tile and the number of tiles of its box `(M, D)`, and whether they
        can be had `(M,)`."""
        scale = torch.linalg.vector_norm(gaussians.tril, dim=-1)
        usable = (level >= -LEVELS // 2) & (level < LEVELS // 2)  # false of nan
        usable &= scale.isfinite().all(-1) & gaussians.loc.isfinite().all(-1)
        loc, scale = (torch.where(usable[:, None], part, 1.0) for part in (gaussians.loc, scale))
        spacing = torch.exp2(-torch.where(usable, level, 0.0))
        width = self.side * spacing[:, None]
        first, last = ((loc - REACH * scale) / width).floor(), ((loc + REACH * scale) / width).floor()
        count = last - first + 1
        usable &= count.prod(-1) <= most
        usable &= (torch.maximum(first.abs(), last.abs()) < 2.0 ** (BITS[self.dim] - 1)).all(-1)
        first, count = (torch.where(usable[:, None], part, 1.0).long() for part in (first, count))
        return spacing, first, count, usable

    def _cover(self, gaussians: Gaussians, inverse: Tensor, spacing: Tensor, first: Tensor, count: Tensor) -> Cover:
        """The tiles of each box within reach of its Gaussian."""
        num = count.prod(-1)
        owner = torch.arange(len(num), device=num.device).repeat_interleave(num)
        rest = torch.arange(len(owner), device=num.device) - (num.cumsum(0) - num)[owner]
        tile = torch.empty(len(owner), self.dim, dtype=torch.long, device=num.device)
        for d in reversed(range(self.dim)):
            tile[:, d] = first[owner, d] + rest % count[owner, d]
            rest = rest // count[owner, d]
        half = (self.side - 1) / 2 * spacing
        corner = tile * (self.side * spacing[owner])[:, None]
        away = corner + half[owner, None] - gaussians.loc[owner]
        signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=self.dim))).to(inverse)
        radius = half * torch.linalg.vector_norm(signs @ inverse.mT, dim=-1).amax(-1)
        distance = torch.linalg.vector_norm((inverse[owner] @ away[..., None]).squeeze(-1), dim=-1)
        near = distance <= REACH + radius[owner]
        owner, tile, corner = owner[near], tile[near], corner[near]
        key = gaussians.problem[owner] * LEVELS + (LEVELS // 2 - spacing[owner].log2()).long()
        for d in range(self.dim):
            key = (key << BITS[self.dim]) + tile[:, d] + (1 << BITS[self.dim] - 1)
        return Cover(owner, corner, key)

    def _places(self, key: Tensor) -> Tensor:
        """Where in `_values` each tile lies; those that are missing are computed."""
        place = self._find(key)
        if bool((place < 0).any()):
            missing = key[place < 0].unique()
            if (len(self._keys) + len(missing)) * len(self._inner) > MOST_KEPT:
                self._forget()
                missing = key.unique()
            self._fill(missing)
            place = self._find(key)
        return place

    def _find(self, key: Tensor) -> Tensor:
        """The place of each key's tile, -1 where there is none."""
        if not len(self._keys):
            return torch.full_like(key, -1)
        at = torch.searchsorted(self._keys, key).clamp(max=len(self._keys) - 1)
        return torch.where(self._keys[at] == key, self._place[at], -1)

    def _fill(self, missing: Tensor) -> None:
        """Decodes the nodes of the missing tiles, once for all problems that want them."""
        bits = self.dim * BITS[self.dim] + (LEVELS - 1).bit_length()
        where, member = (missing & ((1 << bits) - 1)).unique(return_inverse=True)
        problem, order = missing >> bits, member.argsort(stable=True)
        ends = torch.bincount(member).cumsum(0).tolist()
        filled, begin = self._values.new_empty(len(missing), len(self._inner)), 0
        most = decoded_at_once(self.target)
        for place, end in zip(where, ends, strict=True):
            z = self._nodes(place)
            for rows in order[begin:end].split(most):
                filled[rows] = self._log_likelihood(z, *(arg[problem[rows]] for arg in self.target.args))
            begin = end
        keys, order = torch.cat([self._keys, missing]).sort()
        places = len(self._values) + torch.arange(len(missing), device=missing.device)
        self._keys, self._place = keys, torch.cat([self._place, places])[order]
        self._values = torch.cat([self._values, filled])

    def _nodes(self, where: Tensor) -> Tensor:
        """The nodes of a tile, given by its key without the problem, a tensor of no dimensions: `(S, D)`."""
        axes = []
        for _ in range(self.dim):
            axes.append((where & ((1 << BITS[self.dim]) - 1)) - (1 << BITS[self.dim] - 1))
            where = where >> BITS[self.dim]
        spacing = torch.exp2((LEVELS // 2 - where).to(self._inner))
        tile = torch.stack(axes[::-1], -1)
        return (tile * self.side + self._inner) * spacing


def _groups(rows: Tensor, size: Tensor, most: int) -> Iterator[Tensor]:
    """Consecutive `rows` that have about `most` of `size` together."""
    group = (size[rows].cumsum(0) - 1).div(most, rounding_mode="floor")
    return (rows[group == number] for number in group.unique())


def _moments(f: Tensor, noise: Tensor, total: Total, degree: int) -> Tensor:
    """E[f], and E[(f - E[f]) e^a] of each monomial, `(num, 1 + A)`."""
    weight = torch.exp(-noise.square().sum(0) / 2)
    weight = weight / total(weight.sum(-1))[total.owner, None]
    mean = total((weight * f).sum(-1))
    wanted = monomials(len(noise), degree)
    first: dict[tuple[int, ...], Tensor] = {(): weight * (f - mean[total.owner, None])}
    for e in noise[:-1]:
        first = {
            (*exponents, k): power
            for exponents, part in first.items()
            for k, power in enumerate(_powers(part, e, degree - sum(exponents)))
        }
    last = torch.stack(_powers(torch.ones_like(f), noise[-1], degree), 1)
    products = torch.stack(list(first.values()), 1) @ last.mT
    place = {exponents: number for number, exponents in enumerate(first)}
    sums = total(products[:, [place[e[:-1]] for e in wanted], [e[-1] for e in wanted]])
    return torch.cat([mean[:, None], sums], -1)


def inverted(tril: Tensor) -> Tensor:
    """The inverse of triangular matrices; not finite where there is none."""
    return torch.linalg.solve_triangular(tril, torch.eye(tril.shape[-1]).to(tril).expand_as(tril), upper=False)


def _powers(part: Tensor, e: Tensor, degree: int) -> list[Tensor]:
    """`part` times e^0, ..., e^degree."""
    found = [part]
    for _ in range(degree):
        found.append(found[-1] * e)
    return found


@torch.no_grad()
def rough_elbo(tiles: CachedLattice, head: Head, local: Tensor, index: Tensor) -> Tensor:
    """The ELBO of each row by the coarsest lattice, `(N,)`, nats, to compare rows by; see `lattice_elbo`."""
    mixture = GaussianMixtures(*head.components(local))
    gaussians = Gaussians.of(mixture, index)
    value, _ = tiles.moments(gaussians, tiles.levels(gaussians, 0), 0)
    value = (mixture.log_weights.exp() * value.reshape(mixture.log_weights.shape)).sum(-1) - mixture.prior_kl(0)
    lost = value.isnan().nonzero()[:, 0]
    if len(lost):
        value[lost] = elbo_by(tiles.target, head, local[lost], index[lost], 0)
    return value


@torch.no_grad()
def lattice_elbo(tiles: CachedLattice, head: Head, local: Tensor, index: Tensor, tolerance: float = 1e-8) -> Elbo:
    """The ELBO of each row of local parameters by `tiles`; by `elbo`'s rules where no lattice serves.

    The lattices grow finer until their sub-lattices agree: for a function that is smooth on their scale, of twice the
    spacing, the error is far below what these differ by. They can't see what repeats with the spacing itself, about
    half of q's smallest standard deviation; the check on that are the divergences, on lattices of their own.

    Args:
        tiles: of the target.
        head: the guide's family.
        local: its parameters, `(N, num_outputs)`, float64.
        index: the problem of each row, `(N,)`.
        tolerance: relative to max(1, |E[log p(x | z)]|).
    """
    mixture = GaussianMixtures(*head.components(local))
    share, each = mixture.log_weights.exp(), Gaussians.of(mixture, index)
    value, spread = local.new_full((share.numel(),), torch.nan), local.new_full((share.numel(),), torch.inf)
    pending = torch.arange(share.numel(), device=local.device)
    for finer in range(1, MOST_FINER + 1):
        gaussians = each.rows(pending)
        value[pending], spread[pending] = tiles.expect(gaussians, tiles.levels(gaussians, finer))
        known = share.flatten() * spread <= tolerance * value.abs().clamp(min=1)
        pending = pending[~known[pending] & spread[pending].isfinite()]
        if not len(pending):
            break
    value, spread, known = (part.reshape(share.shape) for part in (value, spread, known))
    kl = settled_prior_kl(mixture, tolerance)
    out = Elbo((share * value).sum(-1) - kl.value, (share * spread).sum(-1) + kl.error)
    left = (~known.all(-1)).nonzero()[:, 0]
    if len(left):
        ruled = elbo(tiles.target, head, local[left], index=index[left], tolerance=tolerance)
        better = ~(out.error[left] <= ruled.error)
        out.value[left[better]], out.error[left[better]] = ruled.value[better], ruled.error[better]
    return out


@lru_cache
def monomials(dim: int, degree: int) -> tuple[tuple[int, ...], ...]:
    """Exponents of every monomial in `dim` variables of at most that degree."""
    return tuple(e for e in itertools.product(range(degree + 1), repeat=dim) if sum(e) <= degree)


def _times(exponents: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return tuple(e + (a == axis) for a, e in enumerate(exponents))


def _raised(polynomial: Polynomial, axis: int) -> Polynomial:
    """e_i p(e) - dp/de_i: what stands for a derivative of f along e_i."""
    out: Polynomial = {}
    for exponents, factor in polynomial.items():
        up = _times(exponents, axis)
        out[up] = out.get(up, 0.0) + factor
        if exponents[axis]:
            down = tuple(e - (a == axis) for a, e in enumerate(exponents))
            out[down] = out.get(down, 0.0) - factor * exponents[axis]
    return out


@lru_cache
def stein(dim: int, degree: int) -> tuple[Tensor, Tensor]:
    """What turns moments into expectations of derivatives in e: of the gradient times (1, e) and the Hessian times
    (1, e)(1, e)'.

    Args:
        dim: `D`.
        degree: of the moments; 2 has no Hessian.

    Returns:
        `(A, D, 1 + D)` and `(A, D, 1 + D, D, 1 + D)`; the second is 0 where the degree is below 4.
    """
    place = {exponents: number for number, exponents in enumerate(monomials(dim, degree))}
    one = (0,) * dim
    basis = [one, *(_times(one, axis) for axis in range(dim))]
    first = torch.zeros(len(place), dim, 1 + dim, dtype=torch.float64)
    second = torch.zeros(len(place), dim, 1 + dim, dim, 1 + dim, dtype=torch.float64)
    for i, (c, b) in itertools.product(range(dim), enumerate(basis)):
        for exponents, factor in _raised({b: 1.0}, i).items():
            first[place[exponents], i, c] = factor
        if degree < 4:
            continue
        for j, (d, other) in itertools.product(range(dim), enumerate(basis)):
            product = tuple(x + y for x, y in zip(b, other, strict=True))
            for exponents, factor in _raised(_raised({product: 1.0}, i), j).items():
                second[place[exponents], i, c, j, d] = factor
    return first, second
