"""The arguments of a user's model: converted to tensors of one dtype, moved to a device, and kept by the model.

A module that is a model or a guide is copied, so that the user's own is never changed.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
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
        keywords: the names under which a user's function gets the last of them, see `positional`.
        learnable: where the model has parameters that are still to be learned, these.
        learned: where they have been learned and frozen, what was learned.
    """

    function: Callable[..., Any]
    given: tuple[Any, ...]
    learnable: Learnable | None = None
    learned: Learned | None = None
    keywords: tuple[str, ...] = ()

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self.function(*self.given)


@dataclass(frozen=True, eq=False)
class Positional:
    """A function of positional arguments alone, the last of which a user's function gets by name.

    Attributes:
        function: the user's.
        keywords: the names of the last arguments.
    """

    function: Callable[..., Any]
    keywords: tuple[str, ...]

    def __call__(self, *args: Any) -> Any:
        """Calls the user's function."""
        first = len(args) - len(self.keywords)
        return self.function(*args[:first], **dict(zip(self.keywords, args[first:], strict=True)))

    @property
    def __signature__(self) -> inspect.Signature:
        """The arguments by name, as far as the user's function names them."""
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        named = [one for one in inspect.signature(self.function).parameters.values() if one.kind in kinds]
        names = [*(one.name for one in named if one.name not in self.keywords), *self.keywords]
        return inspect.Signature([inspect.Parameter(name, kinds[1]) for name in names])


def positional(function: Any, keywords: tuple[str, ...]) -> Any:
    """A function, or a module that may be written to, which takes its keyword arguments as its last positional ones."""
    if not keywords:
        return function
    if isinstance(function, nn.Module):
        vars(function)["forward"] = Positional(function.forward, keywords)
        return function
    return Positional(function, keywords)


def checked_arguments(args: Any, kwargs: Mapping[str, Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A model's positional and keyword arguments as users write them.

    A tensor, an array or a table of pandas stands for the one positional argument.

    Raises:
        TypeError: they are none.
    """
    kind = type(args).__name__
    if isinstance(args, Tensor | np.ndarray) or type(args).__module__.partition(".")[0] in ("pandas", "xarray"):
        args = (args,)
    if not isinstance(args, tuple):
        meant = (
            "kwargs=... takes arguments by name" if isinstance(args, dict) else "write args=(data,) for one argument"
        )
        raise TypeError(f"args must be a tuple of the model's positional arguments, got {kind}: {meant}")
    if kwargs is not None and not (isinstance(kwargs, Mapping) and all(isinstance(name, str) for name in kwargs)):
        raise TypeError(f"kwargs must be a dict of the model's arguments by name, got {type(kwargs).__name__}")
    return args, dict(kwargs or {})


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
