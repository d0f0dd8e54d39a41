"""Functions of torch's that `torch.func.vmap` knows by a loop over the points alone, themselves or their derivatives.

Here they are made of others that it knows: the same values, derivatives of any order, and the same under any `vmap`.
`cumprod` stands in every Cholesky factor of correlations and every broken stick.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

LOG_SQRT_2PI = math.log(2 * math.pi) / 2
ORIGINAL = SimpleNamespace(
    cumprod=torch.cumprod, cummax=torch.cummax, cummin=torch.cummin, take=torch.take, log_ndtr=torch.special.log_ndtr
)


def cumprod(x: Tensor, dim: int) -> Tensor:
    """Running products along an axis: products of 1 factor, then of up to 2, of up to 4, each of two that are known."""
    out, reach = x.movedim(dim, -1), 1
    while reach < x.shape[dim]:
        out = torch.cat([out[..., :reach], out[..., reach:] * out[..., :-reach]], -1)
        reach *= 2
    return out.movedim(-1, dim)


def _extreme(which: Callable[..., Any], x: Tensor, dim: int) -> Any:
    found = which(x.detach(), dim)
    return type(found)((x.gather(dim, found.indices), found.indices))


def take(x: Tensor, index: Tensor) -> Tensor:
    """Elements by their number in the flattened tensor."""
    return x.reshape(-1)[index]


class _LogNdtr(torch.autograd.Function):
    """d/dx log Phi(x) = phi(x) / Phi(x)."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return ORIGINAL.log_ndtr(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        x, log_mass = ctx.saved_tensors
        return upstream * (-x.square() / 2 - LOG_SQRT_2PI - log_mass).exp()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], x: Tensor) -> tuple[Tensor, int]:
        return _LogNdtr.apply(x), in_dims[0]


MADE_OF_OTHERS: dict[str, tuple[tuple[Any, ...], Callable[..., Any]]] = {  # where it is found, what takes its place
    "cumprod": ((torch, Tensor), cumprod),
    "cummax": ((torch, Tensor), partial(_extreme, ORIGINAL.cummax)),
    "cummin": ((torch, Tensor), partial(_extreme, ORIGINAL.cummin)),
    "take": ((torch, Tensor), take),
    "log_ndtr": ((torch.special,), _LogNdtr.apply),
}


def _instead(function: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """The function, or the original for what it was not made for: whole numbers, options."""

    def called(*args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else None
        usual = isinstance(x, Tensor) and x.is_floating_point() and x.dim() > 0 and kwargs.keys() <= {"dim", "index"}
        return (function if usual else original)(*args, **kwargs)

    return called


REPLACED = [
    (owner, name, _instead(function, getattr(ORIGINAL, name)))
    for name, (owners, function) in MADE_OF_OTHERS.items()
    for owner in owners
]


@contextmanager
def known_to_vmap() -> Iterator[None]:
    """Puts these in torch's place for a while, for tensors of floating-point numbers."""
    before = [getattr(owner, name) for owner, name, _ in REPLACED]
    try:
        for owner, name, function in REPLACED:
            setattr(owner, name, function)
        yield
    finally:
        for (owner, name, _), function in zip(REPLACED, before, strict=True):
            setattr(owner, name, function)
