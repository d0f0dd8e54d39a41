"""A function of one point at many points, as one call of machine code: points stand where a fit has its replicas.

In the frame of a fit's step (`ppl_vi.compiler.translate`) a point is what it calls the parameters, which stay where they are;
the function's value is the bound.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import vmap

from ppl_vi.compiler.kernel import LanesEngine
from ppl_vi.svi.engines.step import State
from ppl_vi.target.isolation import isolated

WORTH = 2**22  # numbers in the widest temporaries of all points: machine code takes as long to make as some such calls
OPERATIONS = 20  # on single numbers that a point takes beside its widest temporary
CHECKED = 64  # points at which machine code is held to the function, and the fewest that it is asked for
AGREEMENT = 1e-10  # relative, in double precision
MANY = 2**10  # replicas for which a step's vectors are full

AtMany = Callable[[Tensor, Sequence[Tensor]], Tensor]
_log = logging.getLogger(__name__)


def pays(num_points: int, width: int) -> bool:
    """Whether machine code is worth being made for a call at so many points, the widest temporary of `width` numbers.

    It is asked of each call alone, so that what a call gives does not depend on those before it.
    """
    return num_points >= CHECKED and num_points * (width + OPERATIONS) >= WORTH


def at_many(of_one: Callable[..., Tensor], points: Tensor, row: Sequence[Tensor]) -> AtMany | None:
    """The function as `(points (B, S, K), args (B, ...))` to values `(B, S)`, `S` at least `CHECKED`.

    Args:
        of_one: a point `(K,)` and a row of data to a scalar.
        points: some that it will be asked for, `(S, K)`.
        row: the data there.

    Returns:
        None where there is no compiler, where the function does something that can't be traced or has no translation,
        and where machine code gives other values than the function does at the first of the points.
    """

    def stay(alive: Tensor, theta: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        return (alive, theta, *rest[:3], of_one(theta, *rest[4:]))

    try:
        engine = LanesEngine.of_step(stay, points[0], row, MANY)
        some = points[:CHECKED]
        with isolated(points.dtype, seed=0), torch.no_grad():
            expected = vmap(lambda point: of_one(point, *row))(some)
        found = _values(engine, some[None], [arg[None] for arg in row])[0]
    except Exception as error:  # whatever a model does that tracing, translation or the compiler do not know
        _log.info("points run operation by operation: %s", error)
        return None
    tolerance = AGREEMENT * torch.finfo(points.dtype).eps / torch.finfo(torch.float64).eps
    if not torch.allclose(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True):
        _log.info("points run operation by operation: machine code differs by %s", (found - expected).abs().max())
        return None
    return lambda many, args: _values(engine, many, args)


def _values(engine: LanesEngine, points: Tensor, args: Sequence[Tensor]) -> Tensor:
    unused = torch.zeros_like(points.mT, memory_format=torch.contiguous_format).mT  # as the engine wants it
    state = State(points.new_ones(points.shape[:2], dtype=torch.bool), (points,), *(((unused,),) * 4))
    given = tuple(arg.contiguous() for arg in args)
    return replace(engine, args=given).advance(state, points.new_zeros(3, 1), ())[1][0]
