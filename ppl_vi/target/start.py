"""Points where a model's log density is finite, from which a search for the mode can begin."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro.infer.autoguide.initialization import InitMessenger, init_to_feasible
from torch import Tensor

from ppl_vi.numerics.vmapping import vmap_or_loop

NUM_PRIOR_DRAWS = 200  # draws of the prior that are tried where Pyro's own choice has no finite log density


def feasible_points(
    draw: Callable[[], Tensor], log_density: Callable[..., Tensor], args: tuple[Tensor, ...], name: str
) -> Tensor:
    """A point for each problem where its log density is finite, `(B, D)`.

    That is Pyro's own choice, `init_to_feasible`; where that fails, the best of some draws from the prior.

    Args:
        draw: runs the model, and gives its latents in unconstrained space, `(1, D)`.
        log_density: of one point `(D,)` and one row of `args`.
        args: the problems' data, with leading axis `B`.
        name: the target's, for messages.

    Raises:
        ValueError: a problem's log density is finite at none of them.
    """
    num_problems = len(args[0])
    with InitMessenger(init_to_feasible):
        start = draw().expand(num_problems, -1)
    value = vmap_or_loop(log_density)(start, *args)
    for _ in range(NUM_PRIOR_DRAWS if not bool(value.isfinite().all()) else 0):
        trial = draw().expand(num_problems, -1)
        found = vmap_or_loop(log_density)(trial, *args)
        better = found.isfinite() & (~value.isfinite() | (found > value))
        start, value = torch.where(better[:, None], trial, start), torch.where(better, found, value)
    if not bool(value.isfinite().all()):
        lost = int((~value.isfinite()).nonzero()[0])
        raise ValueError(
            f"{name}: problem {lost} has log density {float(value[lost])} at each of {NUM_PRIOR_DRAWS} draws "
            "from the prior: do the data lie where the model can put them?"
        )
    return start
