"""The one gate through which a user's code, a Pyro model or guide, is run.

Pyro and torch keep settings for the whole process: the default dtype, whether values are validated, the parameter
store, and the state of the random generators. `isolated` gives a user's code settings of its own and puts the caller's
back afterwards. `Target` and `Program` enter it in each of their methods that run a model or a guide, so that nobody
else has to. Entering it is cheap where the thread is inside already.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np
import pyro
import torch
from pyro.poutine.subsample_messenger import SubsampleMessenger

from ppl_vi.target.vmap_rules import known_to_vmap

P = ParamSpec("P")
T = TypeVar("T")


class _Gate(threading.local):
    """Where a thread stands.

    Attributes:
        dtype: the dtype of the gate that the thread is inside of, or None outside.
    """

    dtype: torch.dtype | None = None


_gate = _Gate()


@contextmanager
def isolated(dtype: torch.dtype = torch.float64, seed: int | None = None) -> Iterator[None]:
    """Isolates model and guide code from the caller, and the caller from it.

    Inside: an empty parameter store, parameters local to their modules (so that two `AutoNormal` never share names),
    validation off (supports are checked beforehand; a traced graph can't branch on data), `dtype` as the default, a
    random state of its own, and functions that `vmap` knows (`ppl_vi.target.vmap_rules`). Outside: everything as
    before, also after an exception, the generators of Python and NumPy included, which `pyro.set_rng_seed` seeds, too.

    Entered again with the same dtype, it does nothing without a seed; with one, the random state alone is seeded, and
    put back afterwards.

    Args:
        dtype: the default dtype inside.
        seed: seeds the inner random state; None goes on from the outer one.
    """
    if _gate.dtype != dtype:
        with _entered(dtype, seed):
            yield
    elif seed is not None:
        with own_randomness(seed):
            yield
    else:
        yield


@contextmanager
def _entered(dtype: torch.dtype, seed: int | None) -> Iterator[None]:
    """The gate as it is entered from outside, or from inside of one with another dtype."""
    outer_dtype, outer_gate = torch.get_default_dtype(), _gate.dtype
    with ExitStack() as stack:
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.enter_context(own_randomness(seed))
        stack.enter_context(pyro.validation_enabled(False))
        stack.enter_context(pyro.settings.context(module_local_params=True))
        stack.enter_context(pyro.get_param_store().scope())
        stack.callback(torch.set_default_dtype, outer_dtype)
        torch.set_default_dtype(dtype)
        stack.enter_context(known_to_vmap())
        stack.callback(setattr, _gate, "dtype", outer_gate)
        _gate.dtype = dtype
        yield


class _Isolating(Protocol):
    """Whatever runs a user's code and knows in which dtype: `Target` and `Program`."""

    def isolated(self, seed: int | None = None) -> AbstractContextManager[None]: ...


Owner = TypeVar("Owner", bound=_Isolating)


def runs_isolated(method: Callable[Concatenate[Owner, P], T]) -> Callable[Concatenate[Owner, P], T]:
    """A method that runs inside of its owner's gate, `owner.isolated()`."""

    @wraps(method)
    def run(self: Owner, *args: P.args, **kwargs: P.kwargs) -> T:
        with self.isolated():
            return method(self, *args, **kwargs)

    return run


@contextmanager
def own_randomness(seed: int | None) -> Iterator[None]:
    """Torch's generators as after `torch.manual_seed`, a copy of the outer ones where `seed` is None; as before
    afterwards.

    `torch.manual_seed` itself writes down for every kind of accelerator that is not in use who called, which takes
    longer than what is done here.
    """
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=cuda):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            if cuda:
                torch.cuda.manual_seed_all(seed)
        yield


@contextmanager
def whole_plates() -> Iterator[None]:
    """Lets every `pyro.plate` take all of its data, in order, instead of a random part or the part given to it."""
    original = SubsampleMessenger._subsample

    def whole(name: str, size: int | None = None, subsample_size: Any = None, subsample: Any = None, *rest: Any) -> Any:
        if size is None:
            return original(name, size, subsample_size, subsample, *rest)
        return original(name, size, None, None, *rest)

    SubsampleMessenger._subsample = staticmethod(whole)
    try:
        yield
    finally:
        SubsampleMessenger._subsample = staticmethod(original)
