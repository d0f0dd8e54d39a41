"""Distributions in the target's dtype, whatever dtype the tensors that a model or a guide keeps were made in.

A prior whose scale is a tensor from outside of the model, made while torch's default was single precision, draws
latents in single precision. What is computed with them, and machine code that expects doubles, would be wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.distribution import COERCIONS
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import Distribution, Transform


def in_dtype(held: Any, dtype: torch.dtype) -> Any:
    """A distribution whose floating-point tensors, and those of what it is made of, are in `dtype`.

    It does not validate values, which `expand` makes a distribution do whatever the default is.

    Args:
        held: a distribution, which stays as it is, or any part of one.
        dtype: of the copy.

    Returns:
        `held` itself where nothing is to be changed.
    """
    if isinstance(held, Tensor):
        return held.to(dtype) if held.is_floating_point() and held.dtype != dtype else held
    if type(held) in (list, tuple):
        parts = [in_dtype(part, dtype) for part in held]
        return held if all(map(_is, parts, held)) else type(held)(parts)
    if not isinstance(held, Distribution | Transform) or isinstance(held, nn.Module):
        return held
    changed = {name: in_dtype(value, dtype) for name, value in vars(held).items()}
    validates = changed.get("_validate_args", False)
    if not validates and all(map(_is, changed.values(), vars(held).values())):
        return held
    copied = copy.copy(held)
    vars(copied).update(changed)
    if validates:
        del vars(copied)["_validate_args"]
    return copied


def _is(one: Any, other: Any) -> bool:
    return one is other


class DtypeConversion(Messenger):
    """Makes distributions of numbers in one dtype, and gives each sample site its distribution and its data in it.

    What a distribution computes from its arguments when it is made, as a factor of its covariance, is then as exact as
    all else. One that was made before is converted as it is.

    Attributes:
        changed: whether anything needed it.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.changed = False

    def __enter__(self) -> Any:
        COERCIONS.append(self._made)
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        COERCIONS.remove(self._made)
        super().__exit__(*raised)

    def _made(self, kind: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What Pyro's `COERCIONS` asks: a distribution in place of `kind(*args, **kwargs)`, or None for that itself."""
        given = in_dtype([*args, *kwargs.values()], self.dtype)
        if all(map(_is, given, [*args, *kwargs.values()])):
            return None
        self.changed = True
        return kind(*given[: len(args)], **dict(zip(kwargs, given[len(args) :], strict=True)))

    def _pyro_sample(self, msg: Any) -> None:
        fn, value = in_dtype((msg["fn"], msg["value"]), self.dtype)
        self.changed = self.changed or fn is not msg["fn"] or value is not msg["value"]
        msg["fn"], msg["value"] = fn, value


@dataclass(frozen=True, eq=False)
class ConvertedModel:
    """A Pyro model or guide whose sites are all in one dtype.

    Attributes:
        function: the model or guide.
        dtype: of its sites.
    """

    function: Callable[..., Any]
    dtype: torch.dtype

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model or guide."""
        with DtypeConversion(self.dtype):
            return self.function(*args, **kwargs)
