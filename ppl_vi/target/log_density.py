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
from ppl_vi.target.factorising import Factorising
from ppl_vi.target.inspection import SiteReached
from ppl_vi.target.isolation import isolated
from ppl_vi.target.target import Target

# At most MAX_POINTS points are evaluated together, and so few that the largest temporary of all of them has at most
# MAX_NUMBERS numbers: 2 MiB in double precision, which stay in the processor's cache.
MAX_POINTS = 4096
MAX_NUMBERS = 2**18
# Fewer points than this are filled up to this number, so that one trace serves them all, unless their largest
# temporary would then have more than MAX_NUMBERS numbers.
MIN_POINTS = 64
DECIDES_BY_VALUE = (
    "the model, or a distribution, decides by a drawn value what to do ('if', 'while', bool(), item()): choose by "
    "torch.where"
)


class Density:
    """log p(x, z(u)) + log |dz/du| of one problem, nats.

    Where a latent has overflowed, or has been rounded onto or past the edge of its support, the density is 0, even if
    its formula gives nan. A nan anywhere else is left as it is.
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
            of_one: the log density of one point `(D,)`, a scalar. It is called with the point and then with `numbers`,
                as `inside` and `culprit` are.
            dim: `D`.
            dtype: of every computation.
            inside: whether the latents at points `(S, D)` are finite and inside their support, `(S,)`.
            name: shown in messages.
            width: how many numbers the largest temporary at one point has.
            culprit: a text that names the site without a density at a point `(D,)`.
            numbers: tensors that the density depends on besides the point.

        Attributes:
            kernels: machine code that moves chains on this density, by the number of chains that it moves together;
                None where there can be none. Densities that differ in their numbers alone share it.
        """
        self.culprit, self.width = culprit, width
        self.of_one, self.dim, self.dtype, self.inside, self.name = of_one, dim, dtype, inside, name
        self.numbers = numbers
        self.kernels: dict[int, Kernel | None] = {}
        self._block, gate = max(1, min(MAX_POINTS, MAX_NUMBERS // width)), self.isolated
        sizes = (min(MIN_POINTS, self._block), self._block)
        self._values = AtPoints(of_one, width, self._block, gate=gate, sizes=sizes)
        self._slopes: dict[int, AtPoints] = {}
        self._new_slopes = partial(AtPoints, grad_and_value(of_one), width, self._block, gate=gate, compiles=False)

    def isolated(self) -> AbstractContextManager[None]:
        """The gate through which the model behind the density is run, see `ppl_vi.target.isolation.isolated`."""
        return isolated(self.dtype)

    def with_numbers(self, numbers: tuple[Tensor, ...]) -> Density:
        """The same density with other numbers of the same shapes; it shares what was traced and compiled."""
        other = copy.copy(self)
        other.numbers = numbers
        return other

    @staticmethod
    def of(target: Target, problem: int) -> Density:
        """The density of one of a target's problems.

        Raises:
            ValueError: the density can't be computed at many points at once; the message says why, and where.
        """
        error = target.many_at_once()
        if error is not None:
            why = DECIDES_BY_VALUE if decides_by_value(error) else str(error).strip().splitlines()[0]
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
            with target.isolated(seed=0), Factorising():
                trace = poutine.trace(poutine.condition(target.model, data=latents)).get_trace(*row)
                trace.compute_log_prob()
            sites = (
                n for n, node in trace.nodes.items() if "log_prob" in node and not (node["log_prob"] < torch.inf).all()
            )
            values = ", ".join(f"{name} = {value.tolist()}" for name, value in latents.items())
            return f"site '{next(sites, '')}' where {values}"

        return Density(of_one, target.dim, target.dtype, inside, target.name, target.width, culprit)

    def __call__(self, u: Tensor) -> Tensor:
        """The log density at points `(S, D)`, `(S,)`."""
        if not len(u):
            return u.new_zeros(0)
        value = self._values((u[None],), self._rows)[0][0]
        lost = value.isnan()
        if bool(lost.any()):
            value[lost] = torch.where(self.inside(u[lost], *self.numbers), value[lost], -torch.inf)
        return value

    def digest(self) -> str | None:
        """A digest of the density's operations with all numbers that they use; None where it can't be traced."""
        num = min(MIN_POINTS, self._block)
        points = torch.zeros(1, num, self.dim, dtype=self.dtype)
        return self._values.digest((points,), self._rows)

    def slope(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Value `(S,)` and gradient `(S, D)` at points `(S, D)`; the first call with as many points traces it."""
        size = min(len(u), self._block)
        if size not in self._slopes:
            self._slopes[size] = self._new_slopes(sizes=(size,))
        derivative, value = self._slopes[size]((u[None],), self._rows)
        return value[0], derivative[0]

    @property
    def _rows(self) -> list[Tensor]:
        """The numbers with a leading axis of length 1, as the data of one problem."""
        return [number[None] for number in self.numbers]


def _where(target: Target) -> str:
    """The site at or after which a density can't be computed at many points at once, in words."""
    reached = SiteReached()

    def of_one(u: Tensor) -> None:
        latents, _ = target.constrain(u)
        with poutine.block(), reached, Factorising():
            trace = poutine.trace(poutine.condition(target.model, data=latents)).get_trace(*target.row(0))
        for reached.site, node in trace.nodes.items():
            if node["type"] == "sample":
                node["fn"].log_prob(node["value"])

    try:
        with target.isolated(seed=0):
            vmap(of_one)(torch.zeros(2, target.dim, dtype=target.dtype, device=target.device))
    except Exception:  # the error that `Density.of` reports
        pass
    return f"at or after site '{reached.site}'"
