"""Patterns in the places of a value's elements, by which C++ computes a place instead of looking it up in a table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def affine(index: Tensor) -> tuple[int, list[int]] | None:
    """The offset and the strides of places that are evenly spaced along each axis; None where they are not."""
    offset = int(index.reshape(-1)[0]) if index.numel() else 0
    strides, expected = [], torch.full((), offset)
    for dim in range(index.dim()):
        num = index.shape[dim]
        stride = int(index.select(dim, 1).reshape(-1)[0]) - offset if num > 1 else 0
        strides.append(stride)
        along = torch.arange(num) * stride
        expected = expected + along.reshape([-1 if d == dim else 1 for d in range(index.dim())])
    return (offset, strides) if torch.equal(expected.expand(index.shape), index) else None


def period(index: Tensor) -> tuple[int, int] | None:
    """The shortest pattern that a row of places repeats, each time moved on by the same step.

    Returns:
        How many places the pattern has, and the step; None where there is no such pattern.
    """
    size = index.numel()
    for num in (n for n in range(1, size // 2 + 1) if size % n == 0):
        steps = index[num:] - index[:-num]
        if bool((steps == steps[0]).all()):
            return num, int(steps[0])
    return None


def affine_text(element: str, shape: torch.Size, offset: int, strides: Sequence[int]) -> str:
    """C++ for the place of an element of evenly spaced places.

    Args:
        element: C++ for the element's number, in the order of `shape`.
        shape: of the value.
        offset, strides: as from `affine`.
    """
    terms, inner = [str(offset)] if offset else [], shape.numel()
    for dim, (num, stride) in enumerate(zip(shape, strides, strict=True)):
        inner //= num
        if stride:
            along = f"{element} / {inner}" if inner > 1 else element
            terms.append(f"{stride} * ({along}{f' % {num}' if dim and inner * num < shape.numel() else ''})")
    return " + ".join(terms) or "0"


def runs(where: Sequence[int]) -> list[tuple[int, int]]:
    """Rising integers as runs of neighbours: the first of each and how many there are."""
    found: list[tuple[int, int]] = []
    for place in where:
        if found and place == sum(found[-1]):
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((place, 1))
    return found
