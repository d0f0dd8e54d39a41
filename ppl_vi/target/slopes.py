"""Values and gradients of the log density of much data, by machine code: what the search for a mode takes them from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import grad_and_value

from ppl_vi.compiler.many_points import MIN_KERNEL_POINTS, AtPoints
from ppl_vi.numerics.laplace import Slopes
from ppl_vi.numerics.vmapping import vmap_or_loop

if TYPE_CHECKING:
    from ppl_vi.target.target import Target

# Code is made where the widest temporary of a point, times the numbers of a point, is larger than this: below it
# torch's operations have found a mode before the code is compiled.
MIN_NUMBERS = 2**21
# Machine code is compared with torch's operations at this many points, each of which has all of the data in it.
NUM_CHECKED = 2


def slopes_on_much_data(target: Target, start: Tensor) -> Slopes | None:
    """Values and gradients by machine code, checked at points near `start` `(B, D)`.

    Returns:
        None where the data are not much, or where there is no such code.
    """
    if target.width * target.dim < MIN_NUMBERS or target.decoded is not None or start.device.type != "cpu":
        return None
    evaluator = AtPoints(
        grad_and_value(target.log_density_of_row),
        target.width,
        chunk_size=1,
        vectorise=vmap_or_loop,
        gate=target.isolated,
        is_search=True,
        num_checked=NUM_CHECKED,
    )

    def slopes(points: Tensor) -> tuple[Tensor, Tensor]:
        num = points.shape[1]
        short = max(0, MIN_KERNEL_POINTS - num)
        gradient, value = evaluator((torch.cat([points, *[points[:, -1:]] * short], 1),), target.args)
        return value[:, :num], gradient[:, :num]

    slopes(start[:, None] * torch.linspace(1.0, 1.001, NUM_CHECKED, dtype=start.dtype)[:, None])
    return slopes if evaluator.kernel is not None else None
