"""Expectations of log p(x | z) under Gaussians from values on nested lattices, which all problems and guides share.

A search for the best guide q asks for E_q[f], f = log p(x | z), and its derivatives, for thousands of Gaussians that
overlap. The trapezoidal rule on a lattice whose spacing is no larger than q's smallest standard deviation is exact to
many digits, so that f is needed at the lattice's nodes alone, whatever q is. The decoder runs once for each node and
every problem that wants it, and it never has to be differentiated: by Stein's identity, with z = m + L e and
e ~ Normal(0, I),

    E[L' grad f(z) p(e)] = E[f(z) (e p(e) - grad p(e))],

the derivatives of E_q[f] in m and L are moments of f with polynomials p of e.

The nodes of a lattice are decoded and cached in tiles, small cubes of them. Lattices have spacings 2^-level, so that
Gaussians of about one width share one lattice, and with it its tiles.

Sources: Stein (1981), Estimation of the mean of a multivariate normal distribution; Trefethen and Weideman (2014), The
exponentially convergent trapezoidal rule.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vi.guides.amortized import Head
from ppl_vi.metrics.decoder.elbo import Elbo, elbo, elbo_by, settled_prior_kl
from ppl_vi.numerics.mixtures import GaussianMixtures
from ppl_vi.target.evaluation import decoded_at_once
from ppl_vi.target.target import Target

# The largest spacing of a Gaussian's coarsest lattice, in units of its smallest standard deviation. There the
# trapezoidal rule's relative error in the mass is 2 exp(-2 pi^2 / 1.25^2), which is 7e-6; at half the spacing it is
# about the fourth power of that.
MAX_SPACING = 1.25
# Tiles farther from a Gaussian than this, in Mahalanobis' distance, are left out: its density there is 6e-13 of the
# peak.
GAUSSIAN_REACH = 7.5
# Nodes along each side of a tile, by the number of latents: larger tiles hold more nodes that no Gaussian needs, and of
# smaller ones more have to be looked up.
TILE_SIDE = {1: 32, 2: 8, 3: 4}
# The most tiles in the box around one Gaussian. One that needs more, because it is long and thin, has no lattice.
MAX_TILES = 2**14
# Bits of a tile's place along one axis within its key, by the number of latents; keys have 63 bits, shared with the
# level and the problem. More of them reach farther from 0, and leave fewer problems.
KEY_BITS = {1: 30, 2: 20, 3: 13}
# How many spacings there are, from 2^31 to 2^-32.
NUM_LEVELS = 64
# The most pairs of a Gaussian and a tile that are looked up at once, nodes that are summed at once, and values of f
# that are cached (256 MB), all of which bound memory. Where more values would be cached, all tiles are dropped from the
# cache but those that are being used.
MAX_PAIRS = 2**17
MAX_SUMMED_NODES = 2**17
MAX_CACHED_VALUES = 2**25
# The most lattices, each of half the spacing of the one before, on which an ELBO is summed before other rules take
# over.
MAX_REFINEMENTS = 4

# The exponents of e_1, ..., e_D in each monomial, and its coefficient.
Polynomial = dict[tuple[int, ...], float]


class Gaussians(NamedTuple):
    """`M` Gaussians, each a guide of one problem.

    Attributes:
        loc: means, `(M, D)`.
        tril: Cholesky factors of the covariances, `(M, D, D)`.
        problem: the problem of each, `(M,)`.
    """

    loc: Tensor
    tril: Tensor
    problem: Tensor

    @classmethod
    def of(cls, mixture: GaussianMixtures, problem: Tensor) -> Gaussians:
        """Every component of mixtures `(N, K)`, which are guides of the problems `(N,)`, one mixture after another."""
        problem = problem.repeat_interleave(mixture.locs.shape[1])
        return cls(mixture.locs.flatten(0, 1), mixture.trils.flatten(0, 1), problem)

    def rows(self, rows: Tensor) -> Gaussians:
        """Some of the Gaussians."""
        return Gaussians(*(part[rows] for part in self))


class Moments(NamedTuple):
    """Moments of f under `M` Gaussians; nan where no lattice serves.

    Attributes:
        mean: E[f], `(M,)`.
        central: E[(f - E[f]) e^a] for every monomial e^a of `monomials(D, degree)`, `(M, A)`.
    """

    mean: Tensor
    central: Tensor


class Boxes(NamedTuple):
    """The boxes of tiles around `M` Gaussians.

    Attributes:
        spacing: of each Gaussian's lattice, `(M,)`.
        first: the tile in the box's least corner, `(M, D)`.
        num_tiles: tiles along each axis, `(M, D)`.
        usable: whether the lattices reach the box and it is small enough, `(M,)`.
    """

    spacing: Tensor
    first: Tensor
    num_tiles: Tensor
    usable: Tensor

    def rows(self, rows: Tensor) -> Boxes:
        """Some of the boxes."""
        return Boxes(*(part[rows] for part in self))


class Cover(NamedTuple):
    """The tiles near some Gaussians: `P` pairs of a Gaussian and a tile, those of one Gaussian in a row.

    Attributes:
        owner: the Gaussian of each pair, `(P,)`.
        corner: the least node of each tile, `(P, D)`.
        key: the number of the tile and the Gaussian's problem, `(P,)`.
    """

    owner: Tensor
    corner: Tensor
    key: Tensor


class TiledPart(NamedTuple):
    """Some of the Gaussians with the values of f in their tiles, `P` pairs of a Gaussian and a tile of `S` nodes.

    Attributes:
        rows: which of the Gaussians, `(M',)`.
        f: values at the nodes, `(P, S)`.
        noise: the nodes in the units of each pair's Gaussian, e = L^-1 (z - m), `(D, P, S)`.
        owner: the place in `rows` of each pair's Gaussian, `(P,)`.
    """

    rows: Tensor
    f: Tensor
    noise: Tensor
    owner: Tensor

    def weight(self) -> Tensor:
        """The standard normal density at the nodes, but for its constant, `(P, S)`."""
        return torch.exp(-self.noise.square().sum(0) / 2)

    def total(self, each: Tensor) -> Tensor:
        """Sums over the tiles of each Gaussian, of values for each pair: `(P, ...)` to `(M', ...)`."""
        return each.new_zeros(len(self.rows), *each.shape[1:]).index_add_(0, self.owner, each)


class CachedLattice:
    """log p(x | z) of a target's problems wherever it was asked for so far, in tiles of lattices of spacing 2^-level.

    `_keys` are the sorted keys of the cached tiles, `_place` the row of each in `_values`, `_inner` the nodes of a tile
    in spacings from its corner, and `_sublattice` tells which of the 2^D lattices of twice the spacing each belongs to.

    Args:
        target: with a decoder.

    Raises:
        ValueError: it has none, too many latents, or too many problems to number their tiles.
    """

    def __init__(self, target: Target) -> None:
        if target.decoded is None or target.dim not in TILE_SIDE:
            raise ValueError(f"target '{target.name}' has no decoder of at most {max(TILE_SIDE)} latents")
        most = 2 ** (63 - target.dim * KEY_BITS[target.dim] - (NUM_LEVELS - 1).bit_length())
        if target.num_problems > most:
            raise ValueError(f"at most {most} problems at once, target '{target.name}' has {target.num_problems}")
        self.target, self.dim, self.side = target, target.dim, TILE_SIDE[target.dim]
        self._log_likelihood = target.decoded.log_likelihood
        axis = torch.arange(self.side, dtype=target.dtype, device=target.device)
        self._inner = torch.cartesian_prod(*[axis] * self.dim).reshape(-1, self.dim)
        parity = (self._inner.long() % 2 * 2 ** torch.arange(self.dim, device=target.device)).sum(-1)
        self._sublattice = torch.nn.functional.one_hot(parity, 2**self.dim).to(self._inner)
        self._forget()

    def _forget(self) -> None:
        self._keys = torch.empty(0, dtype=torch.long, device=self._inner.device)
        self._place = torch.empty_like(self._keys)
        self._values = self._inner.new_empty(0, len(self._inner))

    @staticmethod
    def levels(gaussians: Gaussians, finer: int) -> Tensor:
        """The level of each Gaussian's lattice, `(M,)`, nan where its covariance is not positive definite.

        Args:
            gaussians: `M` of them.
            finer: how many times the spacing of the coarsest lattice is halved.
        """
        covariance = gaussians.tril @ gaussians.tril.mT
        finite = covariance.isfinite().all(-1).all(-1)
        eye = torch.eye(covariance.shape[-1]).to(covariance)
        smallest = torch.linalg.eigvalsh(torch.where(finite[:, None, None], covariance, eye))[:, 0]
        known = finite & (smallest > 0)
        level = (-(MAX_SPACING * torch.where(known, smallest, 1.0).sqrt()).log2()).ceil() + finer
        return torch.where(known, level, torch.nan)

    @torch.no_grad()
    def moments(self, gaussians: Gaussians, level: Tensor, degree: int, max_tiles: int = MAX_TILES) -> Moments:
        """E[f] and E[(f - E[f]) e^a] for every monomial e^a of `monomials(D, degree)`.

        Args:
            gaussians: `M` of them.
            level: of each one's lattice, as `levels` gives it.
            degree: of the monomials.
            max_tiles: in the box around a Gaussian.

        Returns:
            The moments, nan where a Gaussian is too thin or too far from 0 for the lattices.
        """
        num = len(monomials(self.dim, degree))
        mean = gaussians.loc.new_full((len(level),), torch.nan)
        central = gaussians.loc.new_full((len(level), num), torch.nan)
        for part in self._tiled_parts(gaussians, level, max_tiles):
            mean[part.rows], central[part.rows] = _moments(part, degree)
        return Moments(mean, central)

    @torch.no_grad()
    def expect(self, gaussians: Gaussians, level: Tensor) -> tuple[Tensor, Tensor]:
        """E[f] and how far the lattice's 2^D sub-lattices, of twice the spacing, lie from it, `(M,)` each.

        Args:
            gaussians: `M` of them.
            level: of each one's lattice, as `levels` gives it.
        """
        mean, spread = (gaussians.loc.new_full((len(level),), torch.nan) for _ in range(2))
        for part in self._tiled_parts(gaussians, level):
            weight = part.weight()
            sums, masses = part.total(weight * part.f @ self._sublattice), part.total(weight @ self._sublattice)
            found = sums.sum(-1) / masses.sum(-1)
            mean[part.rows], spread[part.rows] = found, (sums / masses - found[:, None]).abs().amax(-1)
        return mean, spread

    def _tiled_parts(self, gaussians: Gaussians, level: Tensor, max_tiles: int = MAX_TILES) -> Iterator[TiledPart]:
        """The Gaussians that lattices serve, as many at a time as memory is meant to hold, with their tiles."""
        boxes = self._boxes(gaussians, level, max_tiles)
        for rows in _groups(boxes.usable.nonzero()[:, 0], boxes.num_tiles.prod(-1), MAX_PAIRS):
            few, own = gaussians.rows(rows), boxes.rows(rows)
            inverse = inverted(few.tril)
            cover = self._cover(few, inverse, own)
            place = self._places(cover.key)
            num = torch.bincount(cover.owner, minlength=len(rows))
            everyone = torch.arange(len(rows), device=rows.device)
            for part in _groups(everyone, num, MAX_SUMMED_NODES // len(self._inner)):
                pairs = slice(int(num[: part[0]].sum()), int(num[: part[-1] + 1].sum()))
                owner = cover.owner[pairs]
                start = inverse[owner] @ (cover.corner[pairs] - few.loc[owner])[..., None]
                inner = inverse[owner] * own.spacing[owner, None, None] @ self._inner.T
                noise = (start + inner).movedim(1, 0).contiguous()
                yield TiledPart(rows[part], self._values[place[pairs]], noise, owner - part[0])

    def _boxes(self, gaussians: Gaussians, level: Tensor, max_tiles: int) -> Boxes:
        """The box of tiles around each Gaussian that holds what is within its reach along every axis."""
        scale = torch.linalg.vector_norm(gaussians.tril, dim=-1)
        usable = (level >= -NUM_LEVELS // 2) & (level < NUM_LEVELS // 2)  # false where the level is nan
        usable &= scale.isfinite().all(-1) & gaussians.loc.isfinite().all(-1)
        loc, scale = (torch.where(usable[:, None], part, 1.0) for part in (gaussians.loc, scale))
        spacing = torch.exp2(-torch.where(usable, level, 0.0))
        width = self.side * spacing[:, None]
        first, last = ((loc - GAUSSIAN_REACH * scale) / width).floor(), ((loc + GAUSSIAN_REACH * scale) / width).floor()
        count = last - first + 1
        usable &= count.prod(-1) <= max_tiles
        usable &= (torch.maximum(first.abs(), last.abs()) < 2.0 ** (KEY_BITS[self.dim] - 1)).all(-1)
        first, count = (torch.where(usable[:, None], part, 1.0).long() for part in (first, count))
        return Boxes(spacing, first, count, usable)

    def _cover(self, gaussians: Gaussians, inverse: Tensor, boxes: Boxes) -> Cover:
        """The tiles of each box within reach of its Gaussian; `inverse` are the inverses of the Cholesky factors."""
        spacing, num = boxes.spacing, boxes.num_tiles.prod(-1)
        owner = torch.arange(len(num), device=num.device).repeat_interleave(num)
        rest = torch.arange(len(owner), device=num.device) - (num.cumsum(0) - num)[owner]
        tile = torch.empty(len(owner), self.dim, dtype=torch.long, device=num.device)
        for d in reversed(range(self.dim)):
            tile[:, d] = boxes.first[owner, d] + rest % boxes.num_tiles[owner, d]
            rest = rest // boxes.num_tiles[owner, d]
        half = (self.side - 1) / 2 * spacing
        corner = tile * (self.side * spacing[owner])[:, None]
        from_center = corner + half[owner, None] - gaussians.loc[owner]
        signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=self.dim))).to(inverse)
        radius = half * torch.linalg.vector_norm(signs @ inverse.mT, dim=-1).amax(-1)
        distance = torch.linalg.vector_norm((inverse[owner] @ from_center[..., None]).squeeze(-1), dim=-1)
        near = distance <= GAUSSIAN_REACH + radius[owner]
        owner, tile, corner = owner[near], tile[near], corner[near]
        key = gaussians.problem[owner] * NUM_LEVELS + (NUM_LEVELS // 2 - spacing[owner].log2()).long()
        for d in range(self.dim):
            key = (key << KEY_BITS[self.dim]) + tile[:, d] + (1 << KEY_BITS[self.dim] - 1)
        return Cover(owner, corner, key)

    def _places(self, key: Tensor) -> Tensor:
        """The row of `_values` that holds each tile; tiles that are missing are computed."""
        place = self._find(key)
        if bool((place < 0).any()):
            missing = key[place < 0].unique()
            if (len(self._keys) + len(missing)) * len(self._inner) > MAX_CACHED_VALUES:
                self._forget()
                missing = key.unique()
            self._fill(missing)
            place = self._find(key)
        return place

    def _find(self, key: Tensor) -> Tensor:
        """The row of `_values` that holds each key's tile, -1 where it is not cached."""
        if not len(self._keys):
            return torch.full_like(key, -1)
        at = torch.searchsorted(self._keys, key).clamp(max=len(self._keys) - 1)
        return torch.where(self._keys[at] == key, self._place[at], -1)

    def _fill(self, missing: Tensor) -> None:
        """Decodes the nodes of the missing tiles, each once for all problems that want it."""
        bits = self.dim * KEY_BITS[self.dim] + (NUM_LEVELS - 1).bit_length()
        tiles, which = (missing & ((1 << bits) - 1)).unique(return_inverse=True)
        problem, order = missing >> bits, which.argsort(stable=True)
        ends = torch.bincount(which).cumsum(0).tolist()
        filled, begin = self._values.new_empty(len(missing), len(self._inner)), 0
        at_once = decoded_at_once(self.target)
        for tile, end in zip(tiles, ends, strict=True):
            z = self._nodes(tile)
            for rows in order[begin:end].split(at_once):
                filled[rows] = self._log_likelihood(z, *(arg[problem[rows]] for arg in self.target.args))
            begin = end
        keys, order = torch.cat([self._keys, missing]).sort()
        places = len(self._values) + torch.arange(len(missing), device=missing.device)
        self._keys, self._place = keys, torch.cat([self._place, places])[order]
        self._values = torch.cat([self._values, filled])

    def _nodes(self, tile: Tensor) -> Tensor:
        """The nodes `(S, D)` of a tile, which is given by the part of its key that numbers tiles, a scalar tensor."""
        axes = []
        for _ in range(self.dim):
            axes.append((tile & ((1 << KEY_BITS[self.dim]) - 1)) - (1 << KEY_BITS[self.dim] - 1))
            tile = tile >> KEY_BITS[self.dim]
        spacing = torch.exp2((NUM_LEVELS // 2 - tile).to(self._inner))
        place = torch.stack(axes[::-1], -1)
        return (place * self.side + self._inner) * spacing


def _groups(rows: Tensor, size: Tensor, max_size: int) -> Iterator[Tensor]:
    """Splits `rows` into runs whose sizes, entries of `size`, sum to about `max_size`."""
    group = (size[rows].cumsum(0) - 1).div(max_size, rounding_mode="floor")
    return (rows[group == number] for number in group.unique())


def _moments(part: TiledPart, degree: int) -> Moments:
    """`Moments` of the Gaussians in `part`."""
    weight = part.weight()
    weight = weight / part.total(weight.sum(-1))[part.owner, None]
    mean = part.total((weight * part.f).sum(-1))
    wanted = monomials(len(part.noise), degree)
    # products of powers of all numbers but the last, by their exponents; then those of the last, by a matrix product
    first: dict[tuple[int, ...], Tensor] = {(): weight * (part.f - mean[part.owner, None])}
    for e in part.noise[:-1]:
        first = {
            (*exponents, k): power
            for exponents, product in first.items()
            for k, power in enumerate(_powers(product, e, degree - sum(exponents)))
        }
    last = torch.stack(_powers(torch.ones_like(part.f), part.noise[-1], degree), 1)
    products = torch.stack(list(first.values()), 1) @ last.mT
    place = {exponents: number for number, exponents in enumerate(first)}
    central = part.total(products[:, [place[e[:-1]] for e in wanted], [e[-1] for e in wanted]])
    return Moments(mean, central)


def inverted(tril: Tensor) -> Tensor:
    """The inverse of triangular matrices `(..., D, D)`; not finite where a matrix has none."""
    return torch.linalg.solve_triangular(tril, torch.eye(tril.shape[-1]).to(tril).expand_as(tril), upper=False)


def _powers(factor: Tensor, e: Tensor, degree: int) -> list[Tensor]:
    """`factor` times e^0, ..., e^degree."""
    found = [factor]
    for _ in range(degree):
        found.append(found[-1] * e)
    return found


@torch.no_grad()
def rough_elbo(lattice: CachedLattice, head: Head, local: Tensor, problem: Tensor) -> Tensor:
    """The ELBO of each row by the coarsest lattice, `(N,)`, nats, good enough to compare rows by.

    The arguments are those of `lattice_elbo`.
    """
    mixture = GaussianMixtures(*head.components(local))
    gaussians = Gaussians.of(mixture, problem)
    value = lattice.moments(gaussians, lattice.levels(gaussians, 0), 0).mean
    value = (mixture.log_weights.exp() * value.reshape(mixture.log_weights.shape)).sum(-1) - mixture.prior_kl(0)
    lost = value.isnan().nonzero()[:, 0]
    if len(lost):
        value[lost] = elbo_by(lattice.target, head, local[lost], problem[lost], 0)
    return value


@torch.no_grad()
def lattice_elbo(lattice: CachedLattice, head: Head, local: Tensor, problem: Tensor, tolerance: float = 1e-8) -> Elbo:
    """The ELBO of each row of local parameters by a lattice; by `elbo`'s rules where no lattice serves.

    The lattices grow finer until their sub-lattices, of twice the spacing, agree: for a function that is smooth on that
    scale the error is far below their differences. Sub-lattices can't see what repeats with the spacing itself, about
    half of q's smallest standard deviation; the divergences, on lattices of their own, are the check on that.

    Args:
        lattice: of the target.
        head: the guide's family.
        local: its parameters, `(N, num_outputs)`, float64.
        problem: that of each row, `(N,)`.
        tolerance: relative to max(1, |E[log p(x | z)]|).
    """
    mixture = GaussianMixtures(*head.components(local))
    share, each = mixture.log_weights.exp(), Gaussians.of(mixture, problem)
    value, spread = local.new_full((share.numel(),), torch.nan), local.new_full((share.numel(),), torch.inf)
    pending = torch.arange(share.numel(), device=local.device)
    for finer in range(1, MAX_REFINEMENTS + 1):
        gaussians = each.rows(pending)
        value[pending], spread[pending] = lattice.expect(gaussians, lattice.levels(gaussians, finer))
        known = share.flatten() * spread <= tolerance * value.abs().clamp(min=1)
        pending = pending[~known[pending] & spread[pending].isfinite()]
        if not len(pending):
            break
    value, spread, known = (part.reshape(share.shape) for part in (value, spread, known))
    kl = settled_prior_kl(mixture, tolerance)
    out = Elbo((share * value).sum(-1) - kl.value, (share * spread).sum(-1) + kl.error)
    left = (~known.all(-1)).nonzero()[:, 0]
    if len(left):
        ruled = elbo(lattice.target, head, local[left], problem=problem[left], tolerance=tolerance)
        better = ~(out.error[left] <= ruled.error)
        out.value[left[better]], out.error[left[better]] = ruled.value[better], ruled.error[better]
    return out


@lru_cache
def monomials(dim: int, degree: int) -> tuple[tuple[int, ...], ...]:
    """Exponents of every monomial in `dim` variables of at most that degree."""
    return tuple(e for e in itertools.product(range(degree + 1), repeat=dim) if sum(e) <= degree)


def _times(exponents: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The exponents of a monomial times e_axis."""
    return tuple(e + (a == axis) for a, e in enumerate(exponents))


def _raised(polynomial: Polynomial, axis: int) -> Polynomial:
    """e_i p(e) - dp/de_i, by which Stein's identity replaces a derivative of f along e_i times p(e)."""
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
    """Matrices that turn moments of f into expectations of its derivatives in e.

    The first gives the gradient times (1, e), the second the Hessian times (1, e)(1, e)'.

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
