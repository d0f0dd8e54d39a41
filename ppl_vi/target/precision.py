"""Distributions in the target's dtype, in whatever dtype the tensors of a model or a guide were made.

A model may hold tensors that were made while torch's default dtype was single precision, such as a prior's scale. Its
latents would be drawn in single precision, and all that is computed with them, by machine code that expects doubles,
would be wrong.
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
from torch.distributions.transforms import _InverseTransform


def in_dtype(held: Any, dtype: torch.dtype) -> Any:
    """A distribution whose floating-point tensors, and those of its parts, are in `dtype`.

    It does not validate values: `expand` gives a distribution a flag of its own to do so, whatever the default is.

    Args:
        held: a distribution or any part of one, which is left as it is.
        dtype: of the copy.

    Returns:
        The converted copy, or `held` itself where it needs no change.
    """
    if isinstance(held, Tensor):
        return held.to(dtype) if held.is_floating_point() and held.dtype != dtype else held
    if type(held) in (list, tuple):
        parts = [in_dtype(part, dtype) for part in held]
        return held if all(map(_is, parts, held)) else type(held)(parts)
    if not isinstance(held, Distribution | Transform) or isinstance(held, nn.Module):
        return held
    if isinstance(held, _InverseTransform):
        forward = in_dtype(held.inv, dtype)
        return held if forward is held.inv else forward.inv
    # A transform also holds its inverse, which holds the transform; a copy makes its own.
    parts_of = {name: value for name, value in vars(held).items() if name != "_inv"}
    changed = {name: in_dtype(value, dtype) for name, value in parts_of.items()}
    validates = changed.get("_validate_args", False)
    if not validates and all(map(_is, changed.values(), parts_of.values())):
        return held
    copied = copy.copy(held)
    vars(copied).update(changed)
    if isinstance(copied, Transform):
        copied._inv = None
    if validates:
        del vars(copied)["_validate_args"]
    return copied


def _is(one: Any, other: Any) -> bool:
    return one is other


class DtypeConversion(Messenger):
    """Converts the distributions and the data of a run's sample sites to one dtype.

    A distribution that is made in this run is made of converted arguments, so that what it computes from these, such as
    the Cholesky factor of its covariance, has the precision of the dtype. One that was made before is converted itself.

    Attributes:
        changed: whether anything had to be converted.
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
        """For Pyro's `COERCIONS`: the distribution to make in place of `kind(*args, **kwargs)`, or None."""
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
