"""TODO."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _affine(index: Tensor) -> tuple[int, list[int]] | None:
    """Offset and strides, where the elements lie evenly, or None."""
    offset = int(index.reshape(-1)[0]) if index.numel() else 0
    steps, expected = [], torch.full((), offset)
    for dim in range(index.dim()):
        num = index.shape[dim]
        step = int(index.select(dim, 1).reshape(-1)[0]) - offset if num > 1 else 0
        steps.append(step)
        along = torch.arange(num) * step
        expected = expected + along.reshape([-1 if d == dim else 1 for d in range(index.dim())])
    return (offset, steps) if torch.equal(expected.expand(index.shape), index) else None


def _period(index: Tensor) -> tuple[int, int]:
    """The least number of elements after which all places are as before but for one step, and that step, or (0, 0)."""
    size = index.numel()
    for num in (n for n in range(1, size // 2 + 1) if size % n == 0):
        steps = index[num:] - index[:-num]
        if bool((steps == steps[0]).all()):
            return num, int(steps[0])
    return 0, 0


def _counted_off(axis: str, shape: torch.Size, offset: int, steps: Sequence[int]) -> str:
    """C++ for the place of element number `axis` of a shape, whose elements lie evenly along each of its axes."""
    terms, inner = [str(offset)] if offset else [], shape.numel()
    for dim, (num, step) in enumerate(zip(shape, steps, strict=True)):
        inner //= num
        if step:
            along = f"{axis} / {inner}" if inner > 1 else axis
            terms.append(f"{step} * ({along}{f' % {num}' if dim and inner * num < shape.numel() else ''})")
    return " + ".join(terms) or "0"


def _runs(where: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbours among rising numbers, as first and how many."""
    runs: list[tuple[int, int]] = []
    for place in where:
        if runs and place == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((place, 1))
    return runs
