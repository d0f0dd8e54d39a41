"""The arguments of a user's model: converted to tensors of one dtype, moved to a device, and kept by the model.

A module that is a model or a guide is copied, so that the user's own is never changed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.nn.module import PyroModule
from torch import Tensor, nn

from ppl_vi.target.learned import Learnable, Learned
from ppl_vi.target.precision import in_dtype


def private_copy(function: Any, dtype: torch.dtype) -> Any:
    """A module, or a method of one, as a copy in `dtype` that can be run inside `isolated`; anything else as it is.

    `isolated` makes parameters local to their modules. A `PyroModule` that was made while they were global has no place
    for local ones, so its copy gets it. The priors of its `PyroSample`s hold tensors that are neither parameters nor
    buffers, which `Module.to` would leave as they are, so they are converted, too.
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


@dataclass(frozen=True, eq=False)
class BoundModel:
    """A function that is always called with arguments of its own, whatever it is given.

    So a guide may hand on its own arguments to the model, whatever they are.

    Attributes:
        function: a Pyro model or guide.
        given: its positional arguments.
        learnable: where the model has parameters that are still to be learned, these.
        learned: where they have been learned and frozen, what was learned.
    """

    function: Callable[..., Any]
    given: tuple[Any, ...]
    learnable: Learnable | None = None
    learned: Learned | None = None

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self.function(*self.given)


def converted_arguments(value: Any, dtype: torch.dtype) -> Any:
    """A value with its arrays as tensors, and floating-point ones in `dtype`; anything else in it stays as it is.

    Arrays and tensors are found in dicts, lists and tuples, too, nested to any depth.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        value = torch.from_numpy(value.copy())
    if isinstance(value, Tensor):
        return value.detach().to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: converted_arguments(part, dtype) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(converted_arguments(part, dtype) for part in value)
    return value


def to_device(value: Any, device: torch.device | str) -> Any:
    """A value with its tensors on a device, those in dicts, lists and tuples included."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: to_device(part, device) for key, part in value.items()}
    return type(value)(to_device(part, device) for part in value) if type(value) in (list, tuple) else value


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in a value, those in dicts, lists and tuples included."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if type(value) in (list, tuple) else ()
    return [tensor for part in parts for tensor in tensors_of(part)]
