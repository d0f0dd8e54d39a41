"""Inner latents in independent blocks of one or two numbers: their integrals by quadrature.

Given the outer numbers, the log density is the sum of a term for each block. At one point of the model all blocks stand
at their own nodes, so that as many points as a rule has nodes serve all of them. The nodes of a block are those of the
trapezoid rule in s, with z = mode + L t and t = 4 sinh(s / 4), where L L' is the inverse of the curvature at the mode:
near the mode they are evenly spaced, and they reach far into heavy tails.

Source: Trefethen and Weideman (2014), The exponentially convergent trapezoidal rule; Schwartz (1969), Numerical
integration of analytic functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vmap

from ppl_vi.compiler.many_points import MIN_KERNEL_POINTS, AtPoints
from ppl_vi.target.factorisation import Factorisation

# Spacing and reach in s of rules, each finer and wider than the one before: from t = 7.6 to 800 standard deviations.
RULES = ((0.7, 5.6), (0.5, 8.0), (0.32, 12.0), (0.2, 16.0), (0.1, 20.0), (0.05, 24.0))
# Far from the mode, beyond s = STRETCH, nodes are spaced exponentially. With a smaller number a rule reaches farther
# with as many nodes, and is less exact for densities that are nearly normal.
STRETCH = 4.0
# Points of which the temporaries hold about so many numbers are computed together: 2 MiB, which stay in the cache.
MAX_NUMBERS = 2**18


@dataclass(frozen=True, eq=False)
class Rule:
    """Nodes for blocks of k numbers.

    Attributes:
        t: the nodes in standard deviations from the mode, `(J, k)`.
        log_weight: `(J,)`.
    """

    t: Tensor
    log_weight: Tensor

    @staticmethod
    def of(level: int, size: int) -> Rule:
        """The rule of a level, an index into `RULES`, for blocks of so many numbers."""
        spacing, reach = RULES[level]
        num = math.floor(reach / spacing)
        s = spacing * torch.arange(-num, num + 1, dtype=torch.float64)
        log_weight = (spacing * (s / STRETCH).cosh()).log()
        t = torch.cartesian_prod(*[STRETCH * (s / STRETCH).sinh()] * size).reshape(-1, size)
        return Rule(t, torch.cartesian_prod(*[log_weight] * size).reshape(-1, size).sum(1))


@dataclass(frozen=True, eq=False)
class Blocks:
    """The blocks of a factorisation, and a rule for their integrals.

    Attributes:
        structure: whose blocks they are.
        starts: where searches for modes may begin, `(N, n)`.
        width: how many numbers the largest temporary of the model has at one point.
        level: of the rule.
    """

    structure: Factorisation
    starts: Tensor
    width: int
    level: int = 0

    @cached_property
    def rules(self) -> list[Rule]:
        """A rule for each block size."""
        return [Rule.of(self.level, some.shape[1]) for some in self.structure.blocks]

    @cached_property
    def num_nodes(self) -> int:
        """How many points of the model an integral takes at one outer point."""
        return sum(len(rule.t) for rule in self.rules)

    @cached_property
    def term_index(self) -> Tensor:
        """The terms of each block, filled up with the place of a 0 that stands after all terms, `(B, w)`."""
        owner = self.structure.block_of_term
        own = [(owner == block).nonzero()[:, 0] for block in range(self.structure.num_blocks)]
        index = torch.full((len(own), max(len(some) for some in own)), len(owner))
        for row, some in zip(index, own, strict=True):
            row[: len(some)] = some
        return index

    @cached_property
    def rest_index(self) -> Tensor:
        """The terms that depend on no block."""
        return (self.structure.block_of_term < 0).nonzero()[:, 0]

    @cached_property
    def block_of_number(self) -> Tensor:
        """The block of each inner number, `(n,)`."""
        numbers = [torch.arange(block, block + num).repeat_interleave(size) for _, block, num, size in self.ranges]
        return torch.cat(numbers)

    @cached_property
    def ranges(self) -> list[tuple[int, int, int, int]]:
        """For each block size: where its numbers and its blocks begin, how many blocks there are, and their size."""
        found, number, block = [], 0, 0
        for some in self.structure.blocks:
            found.append((number, block, *some.shape))
            number, block = number + some.numel(), block + len(some)
        return found

    def sums(self, outer: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
        """The log density of each block `(B,)` and all the rest, a scalar, at one point, nats."""
        terms = self.structure.terms(self.structure.joined(outer, inner))
        padded = torch.cat([terms, terms.new_zeros(1)])
        return padded[self.term_index].sum(1), terms[self.rest_index].sum()

    def derivatives(self, outer: Tensor, inner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """At one point: the blocks' log densities `(B,)`, slopes `(n,)`, and rows of second derivatives `(n, k)`."""

        slope = grad(lambda z: self.sums(outer, z)[0].sum())

        def product(direction: Tensor) -> Tensor:
            return grad(lambda z: (slope(z) * direction).sum())(inner)

        return self.sums(outer, inner)[0], slope(inner), vmap(product)(self.directions).mT

    @cached_property
    def directions(self) -> Tensor:
        """For each place in a block, 1 at the numbers that stand there, `(k, n)`: a product gives a column of each."""
        column = torch.cat([torch.arange(size).repeat(num) for _, _, num, size in self.ranges])
        return torch.stack([(column == place).to(torch.float64) for place in range(int(column.max()) + 1)])

    def at_nodes(self, outer: Tensor, mode: Tensor, factor: Tensor) -> tuple[Tensor, ...]:
        """For each block size the log density of a block at its nodes in t `(J, B)`, then the rest, at one point."""
        found, rest = [], outer.new_zeros(())
        for rule, (number, block, num, size) in zip(self.rules, self.ranges, strict=True):
            own = factor[number : number + num * size, :size].reshape(num, size, size)
            moves = (own @ rule.t.mT).permute(2, 0, 1).reshape(len(rule.t), num * size)
            before, after = mode[:number], mode[number + num * size :]
            middle = mode[number : number + num * size] + moves
            inner = torch.cat([before.expand(len(moves), -1), middle, after.expand(len(moves), -1)], 1)
            sums, rests = vmap(self.sums, in_dims=(None, 0))(outer, inner)
            rest = rests[0]
            log_det = torch.diagonal(own, dim1=-2, dim2=-1).abs().log().sum(-1)
            found.append(sums[:, block : block + num] + log_det)
        return (*found, rest)

    def integral(self, outer: Tensor, mode: Tensor, factor: Tensor) -> Tensor:
        """The log density of one outer point, the blocks integrated out, a scalar, nats."""
        *values, total = self.at_nodes(outer, mode, factor)
        for rule, value in zip(self.rules, values, strict=True):
            total = total + (value + rule.log_weight[:, None]).logsumexp(0).sum()
        return total

    @cached_property
    def _evaluators(self) -> dict[str, AtPoints]:
        _ = self.term_index, self.rest_index, self.directions, self.rules, self.structure.order
        widths = {"derivatives": 4 * self.width, "integral": self.num_nodes * self.width}
        functions: dict[str, Callable[..., object]] = {
            "sums": self.sums,
            "derivatives": self.derivatives,
            "at_nodes": self.at_nodes,
            "integral": self.integral,
            "slope": grad_and_value(self.integral),
        }
        found = {}
        for name, function in functions.items():
            width = self.width if name == "sums" else widths.get(name, widths["integral"])
            found[name] = AtPoints(function, width, max(1, MAX_NUMBERS // width), is_search=True)
        return found

    @property
    def has_machine_code(self) -> bool:
        """Whether machine code was made for all that was evaluated so far."""
        return all(one.kernel is not None for one in self._evaluators.values() if one.is_tried)

    def at_points(self, name: str, *points: Tensor) -> tuple[Tensor, ...]:
        """A method of this class that takes one point, named by a text, at many points, each with a leading axis.

        Few points are filled up to as many as machine code takes.
        """
        num = len(points[0])
        if num < MIN_KERNEL_POINTS:
            points = tuple(torch.cat([p, p[:1].expand(MIN_KERNEL_POINTS - num, *p.shape[1:])]) for p in points)
        return tuple(part[0, :num] for part in self._evaluators[name]([point[None] for point in points]))

    def by_group(self, numbers: Tensor) -> list[Tensor]:
        """Numbers `(S, n, ...)` as those of the blocks of each size, `(S, B, k, ...)`."""
        return [numbers[:, start : start + num * size].unflatten(1, (num, size)) for start, _, num, size in self.ranges]
