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

from ppl_vi.target.precision import in_dtype
from ppl_vi.target.vmap_rules import known_to_vmap


@contextmanager
def isolated(dtype: torch.dtype = torch.float64, seed: int | None = None) -> Iterator[None]:
    """Isolates model and guide code from the caller, and the caller from it.

    Inside: an empty parameter store, parameters local to their modules (so that two `AutoNormal` never share names),
    validation off (supports are checked beforehand; a traced graph can't branch on data), `dtype` as the default, a
    random state of its own, and functions that `vmap` knows (`ppl_vi.target.vmap_rules`). Outside: everything as before, also
    after an exception.

    Args:
        dtype: the default dtype inside.
        seed: seeds the inner random state; None keeps a copy of the outer one.
    """
    outer_dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(own_randomness(seed))
        stack.enter_context(pyro.validation_enabled(False))
        stack.enter_context(pyro.settings.context(module_local_params=True))
        stack.enter_context(pyro.get_param_store().scope())
        stack.callback(torch.set_default_dtype, outer_dtype)
        torch.set_default_dtype(dtype)
        stack.enter_context(known_to_vmap())
        yield


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


def private(function: Any, dtype: torch.dtype) -> Any:
    """A module, or a method of one, as a copy in `dtype` that can be run inside `isolated`; anything else as it is.

    A `PyroModule` made while its parameters were global has no place for local ones. The priors of its `PyroSample`s
    hold tensors that are no parameters or buffers.
    """
    owner = getattr(function, "__self__", function)
    if not isinstance(owner, nn.Module):
        return function
    copied = copy.deepcopy(owner).to(dtype)
    for part in copied.modules():
        if isinstance(part, PyroModule) and not hasattr(part._pyro_context, "param_state"):
            part._pyro_context.param_state = {"params": {}, "constraints": {}}
        priors = getattr(part, "_pyro_samples", {})
        priors.update({name: in_dtype(prior, dtype) for name, prior in priors.items()})
    return copied if owner is function else getattr(copied, function.__name__)
