"""The log joint at many points: by machine code where that pays, else as many at once as keep their temporaries in the
cache, since each point meets all data."""

from __future__ import annotations

from collections.abc import Iterator
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ppl_vi.compiler.many_points import AtMany, at_many, pays
from ppl_vi.target.target import Bound, Latents, Target, latents_of, numbers_of, tensors_of

NUMBERS = 2**19  # of a temporary as large as the data
MOST_NUMBERS = 2**21  # of any: from 2^22 on each is fetched from the system anew

_made: WeakKeyDictionary[Target, AtMany | None] = WeakKeyDictionary()


def drawn_at_once(target: Target) -> int:
    """How many points to take together where a guide meets them, and no data."""
    return max(64, NUMBERS // sum(site.shape.numel() for site in target.latents))


def points_at_once(target: Target) -> int:
    """How many points to take together where each meets the data."""
    given = tensors_of(target.model.given) if isinstance(target.model, Bound) else []
    data = sum(arg[0].numel() for arg in target.args) + sum(tensor.numel() for tensor in given)
    return max(64, min(drawn_at_once(target), NUMBERS // max(1, data), MOST_NUMBERS // target.width))


def blocks(num: int, size: int) -> Iterator[slice]:
    """`range(num)` in slices of that size, 1 at least."""
    size = max(1, size)
    return (slice(first, first + size) for first in range(0, num, size))


def log_joint(target: Target, latents: Latents, index: Tensor | None = None) -> Tensor:
    """`Target.log_joint` of latents `(B, S, *site.shape)`, `(B, S)`."""
    num_rows, num_points = next(iter(latents.values())).shape[:2]
    index = torch.arange(num_rows, device=target.device) if index is None else index
    values = _machine_code(target, latents, index) if pays(num_rows * num_points, target.width) else None
    if values is not None:
        return values(numbers_of(target.latents, latents), [arg[index] for arg in target.args])
    return _in_blocks(target, latents, index)


def _in_blocks(target: Target, latents: Latents, index: Tensor) -> Tensor:
    num_rows, num_points = next(iter(latents.values())).shape[:2]
    most = points_at_once(target)
    rows = []
    for few in blocks(num_rows, most // num_points):
        parts = [
            target.log_joint({name: value[few, some] for name, value in latents.items()}, index[few])
            for some in blocks(num_points, most)
        ]
        rows.append(torch.cat(parts, 1))
    return torch.cat(rows)


def _machine_code(target: Target, latents: Latents, index: Tensor) -> AtMany | None:
    """The log joint of sites that follow one another; none for a decoder, whose large matrices have a library."""
    if target not in _made:

        def of_one(point: Tensor, *row: Tensor) -> Tensor:
            return target.log_joint_of_row(latents_of(target.latents, point), *row)

        some, row = numbers_of(target.latents, latents)[0], target.row(int(index[0]))
        _made[target] = at_many(of_one, some, row) if target.decoded is None else None
    return _made[target]
