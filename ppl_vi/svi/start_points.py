"""Where the replicas of a fit start in unconstrained space: around which mode each, and how far from it.

Replicas start around a mode, spread out by one standard deviation of the posterior there, so that those of one problem
show whether the fit depends on the start. Of several modes, the heavier ones get more replicas.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vi.target.target import Target
from ppl_vi.truth.modes import Modes

# The standard deviation of the replicas' initial locations around the mode, in standard deviations of the posterior.
LOC_SPREAD = 1.0
# The initial scales are about this share of the posterior's: a wide guide reaches into the tails of the posterior,
# where gradients are large and noisy.
SCALE_SHARE = 0.5
# The standard deviation of the logarithm of the replicas' initial scales.
LOG_SCALE_SPREAD = 0.3


class Centres(NamedTuple):
    """The modes around which members of a family are placed.

    Attributes:
        loc: `(B, R, D)`.
        scale: the posterior's standard deviation there, of each number given the others, `(B, R, D)`.
        factor: the Cholesky factor of its covariance there, `(B, R, D, D)`.
    """

    loc: Tensor
    scale: Tensor
    factor: Tensor


def allotted(share: Tensor, num_replicas: int) -> list[int]:
    """Which of the modes with these shares of the mass `(M,)`, the heaviest first, each replica starts around.

    More than half of the replicas are allotted in proportion to the mass, so that the median replica shows what most
    starts lead to. Each of the others goes to the heaviest mode that has none yet, and all go by mass where none is
    left.
    """
    counts = [0] * len(share)
    for replica in range(num_replicas):
        bare = [mode for mode, count in enumerate(counts) if not count]
        if replica > num_replicas // 2 and bare:
            counts[bare[0]] += 1
            continue
        owed = [float(s) * (replica + 1) - count for s, count in zip(share, counts, strict=True)]
        counts[owed.index(max(owed))] += 1
    return [mode for mode, count in enumerate(counts) for _ in range(count)]


def centres(target: Target, num_replicas: int, modes: tuple[Modes, ...]) -> Centres:
    """The mode around which each replica starts: where a problem has one alone, that of `Target.start`.

    Args:
        target: whose problems are fitted.
        num_replicas: `R`.
        modes: of each problem; () where they are not known.
    """
    start, rows = target.start, []
    for problem in range(target.num_problems):
        if not modes or len(modes[problem]) == 1:
            one = Centres(start.loc[problem], start.scale[problem], start.cholesky[problem])
            rows.append(Centres(*(part.expand(num_replicas, *part.shape) for part in one)))
            continue
        found = modes[problem]
        of = torch.tensor(allotted(found.share, num_replicas), device=target.device)
        rows.append(Centres(found.peak[of], conditional_scale(found.factor[of]), found.factor[of]))
    return Centres(*(torch.stack(parts) for parts in zip(*rows, strict=True)))


def conditional_scale(factor: Tensor) -> Tensor:
    """The standard deviation of each number given the others, `(..., D)`, by Cholesky factors of covariances."""
    return torch.diagonal(torch.cholesky_inverse(factor), dim1=-2, dim2=-1).rsqrt()


def start_points(target: Target, num_replicas: int, seed: int, modes: tuple[Modes, ...] = ()) -> tuple[Tensor, Tensor]:
    """Initial locations and scales of all replicas in unconstrained space, each `(B, R, D)`."""
    around = centres(target, num_replicas, modes)
    generator = torch.Generator(device=target.device).manual_seed(seed)
    noise = torch.randn((2, *around.loc.shape), dtype=target.dtype, device=target.device, generator=generator)
    loc = around.loc + LOC_SPREAD * around.scale * noise[0]
    scale = SCALE_SHARE * around.scale * torch.exp(LOG_SCALE_SPREAD * noise[1])
    return loc, scale
