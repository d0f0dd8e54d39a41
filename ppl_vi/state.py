"""Run Pyro code and leave the caller's process as it was found."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from pyro.nn.module import PyroModule
from torch import nn


@contextmanager
def isolated(dtype: torch.dtype = torch.float64, seed: int | None = None) -> Iterator[None]:
    """Isolates model and guide code from the caller, and the caller from it.

    Inside: an empty parameter store, parameters local to their modules (so that two `AutoNormal` never share names),
    validation off (supports are checked beforehand; a traced graph can't branch on data), `dtype` as the default, and
    a random state of its own. Outside: everything as before, also after an exception.

    Args:
        dtype: the default dtype inside.
        seed: seeds the inner random state; None keeps a copy of the outer one.
    """
    outer_dtype = torch.get_default_dtype()
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        stack.enter_context(pyro.validation_enabled(False))
        stack.enter_context(pyro.settings.context(module_local_params=True))
        stack.enter_context(pyro.get_param_store().scope())
        stack.callback(torch.set_default_dtype, outer_dtype)
        torch.set_default_dtype(dtype)
        if seed is not None:
            _seed(seed, cuda)
        yield


def _seed(seed: int, cuda: list[int]) -> None:
    """As `torch.manual_seed`, which writes down for every kind of accelerator that is not in use who called."""
    torch.default_generator.manual_seed(seed)
    if cuda:
        torch.cuda.manual_seed_all(seed)


def private(function: Any, dtype: torch.dtype) -> Any:
    """A module, or a method of one, as a copy in `dtype` that can be run inside `isolated`; anything else as it is.

    A `PyroModule` made while its parameters were global has no place for local ones.
    """
    owner = getattr(function, "__self__", function)
    if not isinstance(owner, nn.Module):
        return function
    copied = copy.deepcopy(owner).to(dtype)
    for part in copied.modules():
        if isinstance(part, PyroModule) and not hasattr(part._pyro_context, "param_state"):
            part._pyro_context.param_state = {"params": {}, "constraints": {}}
    return copied if owner is function else getattr(copied, function.__name__)
