"""The log joint at many points, as many at once as keep its temporaries in the cache: each point meets all data."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ppl_vi.target import Bound, Latents, Target, tensors_of

NUMBERS = 2**19  # of a temporary as large as the data
MOST_NUMBERS = 2**21  # of any: from 2^22 on each is fetched from the system anew


def points_at_once(target: Target) -> int:
    """How many points to evaluate together."""
    given = tensors_of(target.model.given) if isinstance(target.model, Bound) else []
    data = sum(arg[0].numel() for arg in target.args) + sum(tensor.numel() for tensor in given)
    latents = sum(site.shape.numel() for site in target.latents)
    return max(64, min(NUMBERS // max(1, data, latents), MOST_NUMBERS // target.width))


def blocks(num: int, size: int) -> Iterator[slice]:
    """`range(num)` in slices of that size, 1 at least."""
    size = max(1, size)
    return (slice(first, first + size) for first in range(0, num, size))


def log_joint(target: Target, latents: Latents, index: Tensor | None = None) -> Tensor:
    """`Target.log_joint` of latents `(B, S, *site.shape)`, block after block, `(B, S)`."""
    num_rows, num_points = next(iter(latents.values())).shape[:2]
    index = torch.arange(num_rows, device=target.device) if index is None else index
    most = points_at_once(target)
    rows = []
    for few in blocks(num_rows, most // num_points):
        parts = [
            target.log_joint({name: value[few, some] for name, value in latents.items()}, index[few])
            for some in blocks(num_points, most)
        ]
        rows.append(torch.cat(parts, 1))
    return torch.cat(rows)
