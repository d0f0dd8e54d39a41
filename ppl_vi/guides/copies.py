"""Copies of users' guides that share nothing with them, and that leave them as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pyro.infer.autoguide import AutoGuide, AutoMessenger
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.nn.module import PyroModule
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# What copies of autoguides are made without: their models, which may be large, and what they have traced.
LEFT_OUT = ("prototype_trace", "_model", "_original_model")


@dataclass(frozen=True, eq=False)
class SeenModel:
    """The model of an autoguide, as the autoguide sees it.

    Attributes:
        model: the user's model.
        handlers: those by which the autoguide initialises sites and hides some, the inner ones first.
    """

    model: Any
    handlers: tuple[Messenger, ...]

    @staticmethod
    def of(wrapped: Any) -> SeenModel:
        """A model out of the handlers of Pyro's around it."""
        inner = getattr(wrapped, "func", None)
        if not (isinstance(inner, partial) and len(inner.args) == 2 and isinstance(inner.args[0], Messenger)):
            return SeenModel(wrapped, ())
        handler, below = inner.args[0], SeenModel.of(inner.args[1])
        own = (handler,) if isinstance(handler, InitMessenger | BlockMessenger) else ()
        return SeenModel(below.model, below.handlers + own)

    def alike(self, model: Any, init_loc_fn: Any = None) -> Any:
        """Another model under the same handlers, whose sites are initialised by `init_loc_fn` where that is given."""
        for handler in self.handlers:
            is_placed = isinstance(handler, InitMessenger) and init_loc_fn is not None
            model = (InitMessenger(init_loc_fn) if is_placed else handler)(model)
        return model


class _Detaching(TorchFunctionMode):
    """Copies tensors that were computed, such as a flow keeps, which `deepcopy` refuses: without their history."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == Tensor.__deepcopy__ and not args[0].is_leaf:
            copied = args[0].detach().clone()
            args[1][id(args[0])] = copied
            return copied
        return func(*args, **(kwargs or {}))


def autoguides_of(guide: nn.Module) -> Iterator[tuple[str, Any]]:
    """The autoguides in a guide, itself included, with their paths."""
    for path, part in guide.named_modules():
        if isinstance(part, AutoGuide | AutoMessenger):
            yield path, part


@contextmanager
def _kept(guide: nn.Module) -> Iterator[dict[int, Any]]:
    """What `deepcopy` is to put into the copies of autoguides in place of their models and of what they have traced.

    Pyro's autoguides drop their models when they are copied; the guide itself gets them back afterwards.
    """
    instead: dict[int, Any] = {}
    before = []
    for _, part in autoguides_of(guide):
        own = vars(part)
        instead |= {id(own[name]): () for name in LEFT_OUT if own.get(name) is not None}
        before.append((own, {name: own[name] for name in ("_model", "master") if name in own}))
    try:
        yield instead
    finally:
        for own, values in before:
            own.update(values)


def private_copy_of(guide: nn.Module) -> nn.Module:
    """A copy of a guide that shares nothing with it, and has neither the models nor the traces of autoguides."""
    with _kept(guide) as instead, _Detaching(), torch.no_grad():
        copied = deepcopy(guide, instead)
    for part in copied.modules():
        if isinstance(part, AutoGuide):
            part.prototype_trace = None
        if isinstance(part, AutoMessenger):
            part.trace = Trace()  # which Pyro leaves out of copies, and misses in copies of these
        if isinstance(part, PyroModule):
            part._pyro_context.used = False  # it has run on its own, and may become a part of another module
            part._pyro_context.cache.clear()
            if not hasattr(part._pyro_context, "param_state"):  # where parameters were global when it was made
                part._pyro_context.param_state = {"params": {}, "constraints": {}}
    return copied
