"""The log density of one problem in unconstrained space, traced once: Pyro's handlers cost milliseconds a call."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pyro.poutine as poutine
import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from ppl_vi.compiler.many_points import AtMany, at_many, pays
from ppl_vi.compiler.trace import written_down
from ppl_vi.numerics.vmapping import branches
from ppl_vi.target.inspection import Reached
from ppl_vi.target.isolation import isolated
from ppl_vi.target.target import Target
from ppl_vi.truth.chains.leapfrog import AGREEMENT, Leapfrog, Phase, compiled, lanes

BLOCK = 4096  # points at once
NUMBERS = 2**18  # of their largest temporary, which stays in the cache
BRANCHING = (
    "the model, or a distribution, decides by a drawn value what to do ('if', 'while', bool(), item()): choose by "
    "torch.where"
)
SMALL = 64  # or so many, where fewer are asked for


class Density:
    """log p(x, z(u)) + log |dz/du| of one problem, nats.

    A nan where a latent has overflowed, or has been rounded onto or past the edge of its support, is taken for a
    density of 0. Any other is left as it is.
    """

    def __init__(
        self,
        of_one: Callable[..., Tensor],
        dim: int,
        dtype: torch.dtype,
        inside: Callable[..., Tensor],
        name: str = "target",
        width: int = 1,
        culprit: Callable[..., str] = str,
        numbers: tuple[Tensor, ...] = (),
    ) -> None:
        """A density given as a function.

        Args:
            of_one: the log density of one point `(D,)`, scalar. The numbers come after the point, here and below.
            dim: `D`.
            dtype: of every computation.
            inside: whether the latents at points `(S, D)` are finite and inside their support, `(S,)`.
            name: shown in messages.
            width: numbers of the largest temporary at one point.
            culprit: which site has no density at a point `(D,)`, in words.
            numbers: that it depends on.
        """
        self.culprit, self.width = culprit, width
        self.of_one, self.dim, self.dtype, self.inside, self.name = of_one, dim, dtype, inside, name
        self.numbers = numbers
        self.block = min(BLOCK, max(SMALL, NUMBERS // width))
        self._values: dict[int, Callable[..., Tensor]] = {}
        self._many: list[AtMany | None] = []  # one, once it is asked for
        self._slopes: dict[int, Callable[..., tuple[Tensor, Tensor]]] = {}
        self._leapfrogs: dict[int, Leapfrog | None] = {}

    def with_numbers(self, numbers: tuple[Tensor, ...]) -> Density:
        """The same of other numbers, of the same shapes: what was traced and compiled serves both."""
        other = copy.copy(self)
        other.numbers = numbers
        return other

    @staticmethod
    def of(target: Target, problem: int) -> Density:
        """That of one of a target's problems.

        Raises:
            ValueError: it can't be computed at many points at once.
        """
        error = target.many_at_once()
        if error is not None:
            why = BRANCHING if branches(error) else str(error).strip().splitlines()[0]
            raise ValueError(
                f"{target.name}: the density can't be computed at many points at once, {_where(target)}: {why}"
            )
        row = target.row(problem)

        def of_one(u: Tensor) -> Tensor:
            return target.log_density_of_row(u, *row)

        def inside(u: Tensor) -> Tensor:
            return target.inside(target.constrain(u)[0])

        def culprit(u: Tensor) -> str:
            latents = {name: value[0] for name, value in target.constrain(u[None])[0].items()}
            with isolated(target.dtype, seed=0):
                trace = poutine.trace(poutine.condition(target.model, data=latents)).get_trace(*row)
                trace.compute_log_prob()
            sites = (
                n for n, node in trace.nodes.items() if "log_prob" in node and not (node["log_prob"] < torch.inf).all()
            )
            values = ", ".join(f"{name} = {value.tolist()}" for name, value in latents.items())
            return f"site '{next(sites, '')}' where {values}"

        return Density(of_one, target.dim, target.dtype, inside, target.name, target.width, culprit)

    def __call__(self, u: Tensor) -> Tensor:
        """At points `(S, D)`, `(S,)`."""
        if not len(u):
            return u.new_zeros(0)
        many = self._machine_code(u) if pays(len(u), self.width) else None
        if many is not None:
            value = many(u[None], [number[None] for number in self.numbers])[0]
        else:
            size = SMALL if len(u) <= SMALL else self.block
            value = torch.cat([self._block(part, size) for part in u.split(size)])
        lost = value.isnan()
        if bool(lost.any()):
            value[lost] = torch.where(self.inside(u[lost], *self.numbers), value[lost], -torch.inf)
        return value

    def _block(self, u: Tensor, size: int) -> Tensor:
        if size not in self._values:
            self._values[size] = self._traced(self.of_one, u.new_zeros(size, self.dim))
        padded = torch.cat([u, u[:1].expand(size - len(u), -1)]) if len(u) < size else u
        return self._values[size](padded, *self.numbers)[: len(u)]

    def _machine_code(self, u: Tensor) -> AtMany | None:
        if not self._many:
            self._many.append(at_many(self.of_one, u, self.numbers))
        return self._many[0]

    def slope(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Value `(S,)` and derivative `(S, D)` at points `(S, D)`; one trace for each number of points."""
        if len(u) not in self._slopes:
            self._slopes[len(u)] = self._traced(grad_and_value(self.of_one), torch.zeros_like(u))
        derivative, value = self._slopes[len(u)](u, *self.numbers)
        return value, derivative

    def advanced(self, begin: Phase, step: Tensor, factor: Tensor, num_steps: int) -> Phase:
        """Chains after `num_steps` leapfrog steps, see `Leapfrog.advance`; compiled once, where that can be done and
        gives what the density does where the first steps end."""
        key = lanes(len(begin.u), self.dtype)
        if key not in self._leapfrogs:
            found = compiled(self.of_one, self.dim, self.dtype, self.numbers, len(begin.u))
            right = found is not None and self._agrees(found.advance(begin, step, factor, self.numbers, num_steps))
            self._leapfrogs[key] = found if right else None
        leapfrog = self._leapfrogs[key]
        if leapfrog is not None:
            return leapfrog.advance(begin, step, factor, self.numbers, num_steps)
        at = begin
        for _ in range(num_steps):
            half = at.momentum + step / 2 * (at.slope @ factor)
            u = at.u + (step * half) @ factor.mT
            value, slope = self.slope(u)
            at = Phase(u, half + step / 2 * (slope @ factor), value, slope)
        return at

    def _agrees(self, end: Phase) -> bool:
        """Whether value and gradient are the density's, of the chains where all is finite."""
        value, slope = self.slope(end.u)
        found, expected = (torch.cat([v[:, None], g], 1) for v, g in ((end.value, end.slope), (value, slope)))
        finite = expected.isfinite().all(1)
        off, size = (found - expected)[finite].abs().amax(1), expected[finite].abs().amax(1)
        return bool((off <= AGREEMENT * (1 + size)).all())

    def _traced(self, of_one: Callable, example: Tensor) -> Callable:
        """A function of one point for many as a flat graph; itself where it can't be traced, as when it branches on its
        values."""
        function = vmap(of_one, in_dims=(0, *(None for _ in self.numbers)))
        with isolated(self.dtype, seed=0):
            try:
                return written_down(function, [example, *self.numbers])
            except Exception:  # whatever a model does that tracing does not know
                pass

        def plain(*given: Tensor) -> Tensor:
            with isolated(self.dtype, seed=0):
                return function(*given)

        return plain


def _where(target: Target) -> str:
    """The site at or after which a density can't be computed at many points at once."""
    reached = Reached()

    def of_one(u: Tensor) -> None:
        latents, _ = target.constrain(u)
        with poutine.block(), reached:
            trace = poutine.trace(poutine.condition(target.model, data=latents)).get_trace(*target.row(0))
        for reached.site, node in trace.nodes.items():
            if node["type"] == "sample":
                node["fn"].log_prob(node["value"])

    try:
        with isolated(target.dtype, seed=0):
            vmap(of_one)(torch.zeros(2, target.dim, dtype=target.dtype, device=target.device))
    except Exception:  # the one that is to be told of
        pass
    return f"at or after site '{reached.site}'"
