"""Models that write into tensors of their own, run for many draws at once.

Under `torch.func.vmap` the lines `mean = torch.zeros(3); mean[0] = z` fail: `torch.zeros` makes one tensor for all
draws, which has no room for the many values of z. Pyro's `OrderedLogistic` and torch's `Multinomial` write in this way,
too. Here 0 times the latents drawn so far is added to each tensor that such a model makes, so that `vmap` makes one
for each draw.
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

# Words in the errors of `torch.func.vmap` for functions that write into a tensor.
WRITES_REFUSED = ("inplace arithmetic", "index_put_", "copy_", "indexing with a boolean mask")
# Functions of torch that make a tensor.
TENSOR_MAKERS = {
    "clone", "empty", "empty_like", "full", "full_like", "new_empty", "new_full", "new_ones", "new_tensor", "new_zeros",
    "ones", "ones_like", "tensor", "zeros", "zeros_like",
}  # fmt: skip


def writes_in_place(error: BaseException) -> bool:
    """Whether this is the error of `vmap` for a function that writes into a tensor."""
    said = str(error)
    return isinstance(error, RuntimeError) and "vmap" in said and any(words in said for words in WRITES_REFUSED)


class _PerDraw(Messenger):
    """Keeps a 0 of which, under `vmap`, there is one for each draw: 0 times the latents drawn so far.

    Attributes:
        zero: that scalar; None before the first latent is drawn.
    """

    zero: Tensor | None = None

    def _pyro_sample(self, msg: Any) -> None:
        msg["fn"] = fn = copy(msg["fn"])  # its density is computed after the model has run, and may write, too
        fn.__class__, fn.draws = _scored_per_draw(fn.__class__), self

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if isinstance(value, Tensor) and value.is_floating_point():
            self.zero = torch.zeros_like(value).sum() + (0.0 if self.zero is None else self.zero)


class _MadePerDraw(TorchFunctionMode):
    """Adds the 0 of each draw to every tensor of floating-point numbers that is made."""

    def __init__(self, draws: _PerDraw) -> None:
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
        return (
            made + zero.to(made.dtype)
            if name in TENSOR_MAKERS and zero is not None and made.is_floating_point()
            else made
        )


@cache
def _scored_per_draw(kind: Any) -> Any:
    """A class of distributions like `kind`, whose `log_prob` may write into the tensors that it makes."""

    def log_prob(self: Any, *args: Any) -> Tensor:
        with _MadePerDraw(self.draws):
            return kind.log_prob(self, *args)

    return type(kind)(kind.__name__, (kind,), {"log_prob": log_prob, "draws": _PerDraw()})


@dataclass(frozen=True, eq=False)
class InPlaceModel:
    """A Pyro model that may write into the tensors that it makes, under `vmap` too."""

    model: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model."""
        with _PerDraw() as draws, _MadePerDraw(draws):
            return self.model(*args, **kwargs)
