"""The one gate through which a user's code, a Pyro model or guide, is run.

Pyro and torch keep settings for the whole process: the default dtype, whether values are validated, the parameter
store, and the state of the random generators. `isolated` gives a user's code settings of its own and puts the caller's
back afterwards. `Target` and `Program` enter it in each of their methods that run a model or a guide, so that nobody
else has to. Entering it is cheap where the thread is inside already.

Because these settings are the whole process's, one thread at a time may be inside; others wait. The public functions
wait once for all that they do, by `one_at_a_time`.
"""

from __future__ import annotations

import os
import random
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np
import pyro
import torch
from pyro.poutine.subsample_messenger import SubsampleMessenger

from ppl_vi.target.vmap_rules import PLACES, known_to_vmap

P = ParamSpec("P")
T = TypeVar("T")


# Pyro says so of the parameters of a network that registers itself, which are replaced by values of a fit here.
NOT_REGISTERED = ("ignore", re.compile(".*was not registered in the param store"), UserWarning, None, 0)


class ProgramExitError(Exception):
    """A model or guide has called `sys.exit`, or raised `SystemExit`, which would end the whole program."""


class _Gate(threading.local):
    """Where a thread stands.

    Attributes:
        dtype: the dtype of the gate that the thread is inside of, or None outside.
        is_kept: whether the caller's settings are put back by `one_at_a_time`.
    """

    dtype: torch.dtype | None = None
    is_kept: bool = False


_gate = _Gate()
# Held by the thread that is inside of the gate, or in a block that changes a function or setting for the whole process.
_lock = threading.RLock()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Waits until no other thread is in such a block or in the gate, and puts the caller's settings back at the end.

    They are put back whatever ends the block. The gate does the same for each of its calls; but an exception may come
    at any moment, as Ctrl-C does, and so in the middle of putting back. Here that is done once more.
    """
    with _lock:
        if _gate.is_kept or _gate.dtype is not None:
            yield
            return
        with ExitStack() as stack:
            stack.callback(setattr, SubsampleMessenger, "_subsample", staticmethod(SubsampleMessenger._subsample))
            for owner, name, _ in PLACES:
                stack.callback(setattr, owner, name, getattr(owner, name))
            stack.enter_context(callers_settings())
            stack.callback(vars(_gate).update, is_kept=False, dtype=None)
            _gate.is_kept = True
            yield


@contextmanager
def callers_settings() -> Iterator[None]:
    """Puts back, at the end of the block, all that user's code may change for the whole process.

    These are the settings of torch and Pyro, the parameter store, the random states of torch, NumPy and Python, the
    number of threads, whether gradients are taken, and the folder.
    """
    store = pyro.get_param_store()
    with ExitStack() as stack:
        stack.callback(_go_to, _folder())
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.enter_context(own_randomness(None))
        stack.callback(_compute_with, torch.get_num_threads(), torch.is_grad_enabled())
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        stack.callback(partial(pyro.settings.set, **pyro.settings.get()))
        stack.callback(store.set_state, store.get_state())
        stack.callback(store.clear)
        yield


@contextmanager
def isolated(dtype: torch.dtype = torch.float64, seed: int | None = None) -> Iterator[None]:
    """Isolates model and guide code from the caller, and the caller from it.

    Inside: an empty parameter store, parameters local to their modules (so that two `AutoNormal` never share names),
    validation off (supports are checked beforehand; a traced graph can't branch on data), `dtype` as the default, a
    random state of its own, and functions that `vmap` knows (`ppl_vi.target.vmap_rules`). Outside: everything as
    before, also after an exception, see `callers_settings`.

    Entered again with the same dtype, it does nothing without a seed; with one, the random state alone is seeded, and
    put back afterwards. While another thread is inside, it waits.

    Args:
        dtype: the default dtype inside.
        seed: seeds the inner random state; None goes on from the outer one.

    Raises:
        ProgramExitError: the code inside would end the program.
    """
    try:
        if _gate.dtype != dtype:
            with _lock, _entered(dtype, seed):
                yield
        elif seed is not None:
            with own_randomness(seed):
                yield
        else:
            yield
    except SystemExit as stop:
        raise ProgramExitError(
            f"the model or guide ends the program by sys.exit({stop.code!r}); raise an error instead"
        ) from stop


@contextmanager
def _entered(dtype: torch.dtype, seed: int | None) -> Iterator[None]:
    """The gate as it is entered from outside, or from inside of one with another dtype."""
    with callers_settings(), known_to_vmap(), _without_noise():
        outer = _gate.dtype
        try:
            _gate.dtype = dtype
            pyro.get_param_store().clear()
            pyro.enable_validation(False)
            pyro.settings.set(module_local_params=True)
            torch.set_default_dtype(dtype)
            if seed is not None:
                _seed(seed)
            yield
        finally:
            _gate.dtype = outer


@contextmanager
def _without_noise() -> Iterator[None]:
    """Silences `NOT_REGISTERED`. The caller's filters stay; `catch_warnings` would let every warning be repeated."""
    filters: Any = warnings.filters
    filters.insert(0, NOT_REGISTERED)
    try:
        yield
    finally:
        with suppress(ValueError):
            warnings.filters.remove(NOT_REGISTERED)  # type: ignore[attr-defined]


def _compute_with(num_threads: int, gradients: bool) -> None:
    """Sets what is not so already, because setting it is no matter of course while a function is traced."""
    if torch.get_num_threads() != num_threads:
        torch.set_num_threads(num_threads)
    if torch.is_grad_enabled() != gradients:
        torch.set_grad_enabled(gradients)


def _folder() -> str | None:
    """The current folder; None where it is gone."""
    with suppress(OSError):
        return os.getcwd()
    return None


def _go_to(folder: str | None) -> None:
    if folder is not None and _folder() != folder:
        with suppress(OSError):  # it was removed meanwhile
            os.chdir(folder)


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
    with torch.random.fork_rng(devices=_cuda()):
        if seed is not None:
            _seed(seed)
        yield


def _cuda() -> list[int]:
    """The CUDA devices that are in use."""
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def whole_plates() -> Iterator[None]:
    """Lets every `pyro.plate` take all of its data, in order, instead of a random part or the part given to it."""
    with _lock:
        original = SubsampleMessenger._subsample

        def whole(
            name: str, size: int | None = None, subsample_size: Any = None, subsample: Any = None, *rest: Any
        ) -> Any:
            if size is None:
                return original(name, size, subsample_size, subsample, *rest)
            return original(name, size, None, None, *rest)

        SubsampleMessenger._subsample = staticmethod(whole)
        try:
            yield
        finally:
            SubsampleMessenger._subsample = staticmethod(original)
