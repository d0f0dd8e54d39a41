"""One function for many inputs: all at once, or one by one where the function can't be run for many.

A function that decides by a value what to do (`if`, `while`, `bool()`, `item()`) takes one branch for each input, so
that `torch.func.vmap` refuses it, and so it does where a function calls an operation that it has no rule for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map

# Words in the errors of `torch.func.vmap`, by what it refuses: a function that draws random numbers, one that indexes a
# tensor by a boolean mask, and one that decides by a value what to do.
RANDOMNESS_REFUSED = "randomness error mode"
MASKS_REFUSED = "boolean mask"
BRANCHES_REFUSED = ("data-dependent control flow", "calling .item() on a Tensor")
# And one that calls an operation of torch that `vmap` has no rule for, such as a recurrent network.
RULE_MISSING = re.compile(r"Batching rule not implemented for (?:aten::)?(\w+)")
# Why a function can't be run for many draws at once.
DECIDES_BY_VALUE = "decides by a drawn value what to do ('if', 'while', bool(), item())"

Axes = int | tuple[int | None, ...]


def decides_by_value(error: BaseException) -> bool:
    """Whether this is the error of `vmap` for a function that decides by a value what to do."""
    return isinstance(error, RuntimeError) and any(said in str(error) for said in BRANCHES_REFUSED)


def needs_a_loop(error: BaseException) -> str:
    """Why the function whose error of `vmap` this is runs one by one only, in words; "" where that isn't its error."""
    missing = RULE_MISSING.search(str(error)) if isinstance(error, RuntimeError) else None
    if missing:
        return f"calls '{missing[1]}' of torch"
    return DECIDES_BY_VALUE if decides_by_value(error) else ""


def draws_outside_sites(error: BaseException) -> bool:
    """Whether this is the error of `vmap` for a function that draws random numbers of its own."""
    return isinstance(error, RuntimeError) and RANDOMNESS_REFUSED in str(error)


def indexes_by_mask(error: BaseException) -> bool:
    """Whether this is the error of `vmap` for a function that indexes by a mask."""
    return isinstance(error, RuntimeError) and "vmap" in str(error) and MASKS_REFUSED in str(error)


def loop_over(function: Callable[..., Any], in_dims: Axes = 0) -> Callable[..., Any]:
    """What `vmap` gives, by a loop over the leading axis; arguments whose axis is None are the same for all."""

    def mapped(*args: Any) -> Any:
        dims = (in_dims,) * len(args) if isinstance(in_dims, int) else in_dims
        split = [arg for arg, dim in zip(args, dims, strict=True) if dim is not None]
        found = []
        for i in range(len(tree_leaves(split)[0])):
            found.append(
                function(
                    *(
                        arg if dim is None else tree_map(lambda leaf, i=i: leaf[i], arg)
                        for arg, dim in zip(args, dims, strict=True)
                    )
                )
            )
        return tree_map(lambda *leaves: torch.stack(leaves), *found)

    return mapped


def vmap_or_loop(function: Callable[..., Any], in_dims: Axes = 0, chunk_size: int | None = None) -> Callable[..., Any]:
    """`vmap`, of so many at once, or `loop_over` where the function can't be run so."""

    def mapped(*args: Any) -> Any:
        try:
            return vmap(function, in_dims=in_dims, chunk_size=chunk_size)(*args)
        except RuntimeError as error:
            if not needs_a_loop(error):
                raise
        return loop_over(function, in_dims)(*args)

    return mapped
