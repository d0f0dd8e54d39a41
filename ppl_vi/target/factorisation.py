"""Which latents fall apart into small independent blocks once a few others, the outer ones, are held.

In a hierarchy the effects of groups are independent of each other given the scales they share. The structure is found
from the model itself: the log density is a sum of terms, and each term depends on some latent numbers only
(`ppl_vi.target.terms`). Of all small sets of sites the smallest is taken that leaves one of two kinds of inner latents:

- blocks of one or two numbers that share no term, whose integrals are one- or two-dimensional, or
- numbers in which the log density is quadratic, so that they are normal given the outer ones. Numbers that all blocks
  share, as the mean of the effects or the coefficients of a regression, are then the middle: given them, too, the
  others fall apart into blocks.

Quadratic means that all third derivatives are 0: those along sites, taken at several points by automatic
differentiation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, combinations_with_replacement

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.func import grad, vmap

from ppl_vi.target.evaluation import prior_draws
from ppl_vi.target.supports import LatentSite
from ppl_vi.target.target import Target
from ppl_vi.target.terms import Terms

# More outer numbers make their marginal posterior too hard for what is fitted to it; with more middle numbers, which
# take a product with the second derivatives each, the inner integral costs more than it saves.
MAX_OUTER, MAX_MIDDLE = 8, 24
# A block has at most so many numbers: its integral takes a rule's nodes to that power.
MAX_BLOCK = 2
# More latent numbers would take too long to be changed one by one, more sites too long to be tried in all subsets.
MAX_DIM, MAX_SITES = 1000, 20
# The structure is looked for at so many points: half of them prior draws, the others within 2 of 0.
NUM_POINTS = 6
# A third derivative of at most this share of the second ones, along differences of points, is 0 but for rounding.
QUADRATIC_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class Factorisation:
    """How one problem's latent numbers are integrated out, by their places in unconstrained space.

    Attributes:
        outer_sites: the sites that are held.
        outer: their numbers, `(d,)`.
        middle: numbers that all blocks may depend on, normal given the outer ones, `(m,)`; none unless `is_normal`.
        blocks: for one or two block sizes k, the numbers of each block, `(B, k)`.
        is_normal: whether all inner numbers are jointly normal given the outer ones.
        terms: of the log density.
        block_of_term: the block on which each term depends, counted through all of `blocks`; -1 where it depends on
            none, `(T,)`. Of no use where `is_normal`.
    """

    outer_sites: tuple[LatentSite, ...]
    outer: Tensor
    middle: Tensor
    blocks: tuple[Tensor, ...]
    is_normal: bool
    terms: Terms
    block_of_term: Tensor

    @property
    def num_blocks(self) -> int:
        """How many blocks there are."""
        return sum(len(some) for some in self.blocks)

    @cached_property
    def inner(self) -> Tensor:
        """All numbers that are integrated out: the middle and the blocks, `(n,)`."""
        return torch.cat([self.middle, *(some.flatten() for some in self.blocks)])

    @cached_property
    def order(self) -> Tensor:
        """Where each number of a point stands among its outer and inner numbers, `(D,)`."""
        return torch.cat([self.outer, self.inner]).argsort()

    def joined(self, outer: Tensor, inner: Tensor) -> Tensor:
        """The point `(D,)` of outer numbers `(d,)` and inner ones `(n,)`, in the order of `inner`."""
        return torch.cat([outer, inner])[self.order]

    @property
    def summary(self) -> str:
        """The structure in words, as a table's title shows it."""
        parts = [f"{len(self.outer)} outer latent number{'' if len(self.outer) == 1 else 's'}"]
        if len(self.middle):
            parts.append(f"{len(self.middle)} normal given {'it' if len(self.outer) == 1 else 'them'}")
        parts += [f"{len(some)} block{'' if len(some) == 1 else 's'} of {some.shape[1]}" for some in self.blocks]
        return ", ".join(parts)


def factorisation(target: Target, problem: int, seed: int = 0) -> Factorisation | None:
    """The structure of one problem; None where there is none that helps.

    Args:
        target: whose latents are looked at.
        problem: one of its problems.
        seed: of the points where it is looked for.
    """
    if not 2 <= len(target.latents) <= MAX_SITES or target.dim > MAX_DIM or target.dtype != torch.float64:
        return None
    try:
        terms = Terms.of(target, problem)
    except Exception:  # a model may do anything that tracing does not know; it is then treated as one without structure
        return None
    with target.isolated(seed), torch.no_grad():
        return _Search.of(target, terms, problem, seed).found()


@dataclass(frozen=True, eq=False)
class _Search:
    """What is known of the sites of a problem.

    Attributes:
        sites: the latents.
        places: of each site's numbers in unconstrained space.
        terms: of the log density.
        depends: whether each term depends on a number, `(D, T)`.
        is_cubic: for three sites in order, whether the log density has a third derivative along them.
    """

    sites: tuple[LatentSite, ...]
    places: tuple[np.ndarray, ...]
    terms: Terms
    depends: np.ndarray
    is_cubic: dict[tuple[int, ...], bool]

    @staticmethod
    def of(target: Target, terms: Terms, problem: int, seed: int) -> _Search:
        """Looks at the terms at several points."""
        generator = torch.Generator().manual_seed(seed)
        drawn = prior_draws(target, problem, NUM_POINTS // 2, seed)
        uniform = 4 * torch.rand(NUM_POINTS, target.dim, generator=generator, dtype=target.dtype) - 2
        points = torch.cat([drawn, uniform])[:NUM_POINTS]
        ends = np.cumsum([site.unconstrained_shape.numel() for site in target.latents])
        places = tuple(np.split(np.arange(target.dim), ends[:-1]))
        depends = terms.dependencies(points).numpy()
        return _Search(target.latents, places, terms, depends, _third_derivatives(terms, points, places))

    def found(self) -> Factorisation | None:
        """The structure with the fewest outer numbers; of several, one whose inner numbers are normal."""
        for outer in self._few_numbers(range(len(self.sites)), MAX_OUTER):
            inner = [s for s in range(len(self.sites)) if s not in outer]
            if self._num(inner) <= self._num(outer):
                continue
            structure = self._normal(outer, inner) or self._in_blocks(outer, inner)
            if structure is not None:
                return structure
        return None

    def _few_numbers(self, among: range | list[int], most: int) -> Iterator[tuple[int, ...]]:
        """Sets of sites of at most so many numbers, those of fewest numbers first."""
        small = [s for s in among if len(self.places[s]) <= most]
        sets = (some for size in range(len(small) + 1) if size <= most for some in combinations(small, size))
        return iter(
            sorted((some for some in sets if self._num(some) <= most), key=lambda some: (self._num(some), some))
        )

    def _num(self, sites: tuple[int, ...] | list[int]) -> int:
        return sum(len(self.places[s]) for s in sites)

    def _normal(self, outer: tuple[int, ...], inner: list[int]) -> Factorisation | None:
        """The structure if the log density is quadratic in the inner sites, with the smallest middle."""
        if any(self.is_cubic[three] for three in combinations_with_replacement(inner, 3)):
            return None
        for middle in self._few_numbers(inner, MAX_MIDDLE):
            blocks = self._blocks([s for s in inner if s not in middle])
            if blocks is not None:
                return self._structure(outer, middle, blocks, is_normal=True)
        return None

    def _in_blocks(self, outer: tuple[int, ...], inner: list[int]) -> Factorisation | None:
        blocks = self._blocks(inner)
        if blocks is None or len(blocks) < 2:
            return None
        return self._structure(outer, (), blocks, is_normal=False)

    def _blocks(self, inner: list[int]) -> list[np.ndarray] | None:
        """The sets of numbers that share terms; None where one of them is too large."""
        if not inner:
            return []
        numbers = np.concatenate([self.places[s] for s in inner])
        depends = self.depends[numbers].astype(np.float64)
        _, label = connected_components(depends @ depends.T > 0, directed=False)
        if np.bincount(label).max() > MAX_BLOCK:
            return None
        order = np.argsort(label, kind="stable")
        return np.split(numbers[order], np.flatnonzero(np.diff(label[order])) + 1)

    def _structure(
        self, outer: tuple[int, ...], middle: tuple[int, ...], blocks: list[np.ndarray], is_normal: bool
    ) -> Factorisation:
        sizes = [size for size in range(1, MAX_BLOCK + 1) if any(len(block) == size for block in blocks)]
        by_size = [np.stack([block for block in blocks if len(block) == size]) for size in sizes]
        block_of_term = np.full(self.depends.shape[1], -1)
        for number, block in enumerate(block for some in by_size for block in some):
            block_of_term[self.depends[block].any(0)] = number
        return Factorisation(
            tuple(self.sites[s] for s in outer),
            _places([self.places[s] for s in outer]),
            _places([self.places[s] for s in middle]),
            tuple(torch.from_numpy(some) for some in by_size),
            is_normal,
            self.terms,
            torch.from_numpy(block_of_term),
        )


def _places(parts: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64))


def _third_derivatives(terms: Terms, points: Tensor, places: tuple[np.ndarray, ...]) -> dict[tuple[int, ...], bool]:
    """For three sites in order, whether the log density has a third derivative along them that is not 0.

    The direction along a site is the difference of two points in its numbers alone. Points where a derivative is not
    finite say nothing, and where all are such, it counts as not 0.
    """

    def total(u: Tensor) -> Tensor:
        return terms(u).sum()

    def along(u: Tensor, *directions: Tensor) -> Tensor:
        function: Callable[[Tensor], Tensor] = total
        for direction in directions:
            function = _derivative(function, direction)
        return function(u)

    num = len(places)
    mask = torch.zeros(num, points.shape[1], dtype=points.dtype)
    for site, where in enumerate(places):
        mask[site, torch.from_numpy(where)] = 1.0
    threes = torch.tensor(list(combinations_with_replacement(range(num), 3)))
    largest, known = torch.zeros(len(threes)), torch.zeros(len(threes), dtype=torch.bool)
    for point, other in zip(points, points.roll(1, 0), strict=True):
        step = mask * (other - point)
        try:
            second = vmap(along, in_dims=(None, 0, 0))(point, step, step).abs()
            third = vmap(along, in_dims=(None, 0, 0, 0))(point, *step[threes].unbind(1)).abs()
        except Exception:  # an operation without a third derivative: nothing is known to be quadratic
            break
        relative = third / second[threes].amax(1)
        finite = relative.isfinite() | (third == 0)
        largest = torch.where(finite & (third > 0), torch.maximum(largest, relative.to(largest)), largest)
        known |= finite
    cubic = ~known | (largest > QUADRATIC_TOLERANCE)
    return {tuple(three): bool(yes) for three, yes in zip(threes.tolist(), cubic, strict=True)}


def _derivative(function: Callable[[Tensor], Tensor], direction: Tensor) -> Callable[[Tensor], Tensor]:
    """The derivative of a function along a direction."""
    slope = grad(function)
    return lambda u: (slope(u) * direction).sum()
