"""Models that write into tensors of their own, made fit for many draws at once.

`mean = torch.zeros(3); mean[0] = z` has no place for many z under `torch.func.vmap`: what was made there is one tensor,
for all draws. So do Pyro's `OrderedLogistic` and torch's `Multinomial`. Here what such a model makes is made for each
draw.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.overrides import TorchFunctionMode

WRITES = ("inplace arithmetic", "index_put_", "copy_", "indexing with a boolean mask")  # in vmap's complaints of these
MAKERS = {
    "clone", "empty", "empty_like", "full", "full_like", "new_empty", "new_full", "new_ones", "new_tensor", "new_zeros",
    "ones", "ones_like", "tensor", "zeros", "zeros_like",
}  # fmt: skip


def writes_in_place(error: BaseException) -> bool:
    """Whether this is vmap's complaint about a function that writes into a tensor."""
    said = str(error)
    return isinstance(error, RuntimeError) and "vmap" in said and any(words in said for words in WRITES)


class _Draws(Messenger):
    """A 0 that is, under `vmap`, one for each draw."""

    zero: Tensor | None = None

    def _pyro_sample(self, msg: Any) -> None:
        msg["fn"] = fn = copy(msg["fn"])  # whose density is asked for once the model has run
        fn.__class__, fn.draws = _scoring(fn.__class__), self

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if isinstance(value, Tensor) and value.is_floating_point():
            self.zero = torch.zeros_like(value).sum() + (0.0 if self.zero is None else self.zero)


class _Made(TorchFunctionMode):
    """Adds that 0 to every tensor of floating-point numbers that is made."""

    def __init__(self, draws: _Draws) -> None:
        super().__init__()
        self.draws = draws

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__setitem__" and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            tensor, mask, value = args
            if not isinstance(value, Tensor) or value.dim() == 0:
                trailing = mask.reshape(mask.shape + (1,) * (tensor.dim() - mask.dim()))
                return tensor.copy_(torch.where(trailing, value, tensor))
        made = func(*args, **(kwargs or {}))
        zero = self.draws.zero
        return made + zero.to(made.dtype) if name in MAKERS and zero is not None and made.is_floating_point() else made


@cache
def _scoring(kind: Any) -> Any:
    def log_prob(self: Any, *args: Any) -> Tensor:
        with _Made(self.draws):
            return kind.log_prob(self, *args)

    return type(kind)(kind.__name__, (kind,), {"log_prob": log_prob, "draws": _Draws()})


@dataclass(frozen=True, eq=False)
class InPlaceModel:
    """A Pyro model that may write into the tensors that it makes, under `vmap` too."""

    model: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model."""
        with _Draws() as draws, _Made(draws):
            return self.model(*args, **kwargs)
