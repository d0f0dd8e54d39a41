"""The log density of one problem in unconstrained space, at many points at once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import pyro.poutine as poutine
import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from ppl_vi.compiler.kernel import Kernel
from ppl_vi.compiler.many_points import AtPoints
from ppl_vi.numerics.vmapping import decides_by_value
from ppl_vi.target.inspection import SiteReached
from ppl_vi.target.isolation import isolated
from ppl_vi.target.target import Target

# Points at once: at most so many, and no more than keep the largest temporary of all together within so many numbers,
# 2 MiB in double precision, which stay in the processor's cache. Fewer points than the least are filled up to it, so
# that one trace serves them all.
MAX_POINTS = 4096
MAX_NUMBERS = 2**18
FEW_POINTS = 64
BRANCHING = (
    "the model, or a distribution, decides by a drawn value what to do ('if', 'while', bool(), item()): choose by "
    "torch.where"
)


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

        Attributes:
            kernels: machine code that moves chains on this density, by the number of lanes; None where there can be
                none. Densities of other numbers share it.
        """
        self.culprit, self.width = culprit, width
        self.of_one, self.dim, self.dtype, self.inside, self.name = of_one, dim, dtype, inside, name
        self.numbers = numbers
        self.kernels: dict[int, Kernel | None] = {}
        block, gate = min(MAX_POINTS, max(FEW_POINTS, MAX_NUMBERS // width)), self.isolated
        self._values = AtPoints(of_one, width, block, gate=gate, sizes=(FEW_POINTS, block))
        self._slopes: dict[int, AtPoints] = {}
        self._new_slopes = partial(AtPoints, grad_and_value(of_one), width, block, gate=gate, compiles=False)

    def isolated(self) -> AbstractContextManager[None]:
        """The gate through which the model behind the density is run, see `ppl_vi.target.isolation.isolated`."""
        return isolated(self.dtype)

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
            why = BRANCHING if decides_by_value(error) else str(error).strip().splitlines()[0]
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
            with target.isolated(seed=0):
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
        value = self._values((u[None],), self._rows)[0][0]
        lost = value.isnan()
        if bool(lost.any()):
            value[lost] = torch.where(self.inside(u[lost], *self.numbers), value[lost], -torch.inf)
        return value

    def slope(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Value `(S,)` and derivative `(S, D)` at points `(S, D)`; one trace for each number of points."""
        if len(u) not in self._slopes:
            self._slopes[len(u)] = self._new_slopes(sizes=(len(u),))
        derivative, value = self._slopes[len(u)]((u[None],), self._rows)
        return value[0], derivative[0]

    @property
    def _rows(self) -> list[Tensor]:
        """The numbers as the data of one problem."""
        return [number[None] for number in self.numbers]


def _where(target: Target) -> str:
    """The site at or after which a density can't be computed at many points at once."""
    reached = SiteReached()

    def of_one(u: Tensor) -> None:
        latents, _ = target.constrain(u)
        with poutine.block(), reached:
            trace = poutine.trace(poutine.condition(target.model, data=latents)).get_trace(*target.row(0))
        for reached.site, node in trace.nodes.items():
            if node["type"] == "sample":
                node["fn"].log_prob(node["value"])

    try:
        with target.isolated(seed=0):
            vmap(of_one)(torch.zeros(2, target.dim, dtype=target.dtype, device=target.device))
    except Exception:  # the one that is to be told of
        pass
    return f"at or after site '{reached.site}'"
