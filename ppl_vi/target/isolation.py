"""Run Pyro code and leave the caller's process as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from pyro.poutine.subsample_messenger import SubsampleMessenger

from ppl_vi.target.vmap_rules import known_to_vmap


@contextmanager
def isolated(dtype: torch.dtype = torch.float64, seed: int | None = None) -> Iterator[None]:
    """Isolates model and guide code from the caller, and the caller from it.

    Inside: an empty parameter store, parameters local to their modules (so that two `AutoNormal` never share names),
    validation off (supports are checked beforehand; a traced graph can't branch on data), `dtype` as the default, a
    random state of its own, and functions that `vmap` knows (`ppl_vi.target.vmap_rules`). Outside: everything as
    before, also after an exception.

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


@contextmanager
def whole_plates() -> Iterator[None]:
    """Lets every `pyro.plate` with a `subsample_size` take all of its data, in order, instead of a random part."""
    original = SubsampleMessenger._subsample

    def whole(name: str, size: int | None = None, subsample_size: Any = None, subsample: Any = None, *rest: Any) -> Any:
        if size is not None and subsample is None:
            subsample_size = None
        return original(name, size, subsample_size, subsample, *rest)

    SubsampleMessenger._subsample = staticmethod(whole)
    try:
        yield
    finally:
        SubsampleMessenger._subsample = staticmethod(original)
