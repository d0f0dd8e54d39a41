"""What users may give as a guide: a family, a family's name, or a guide of their own, written as function or module."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.distributions import TransformModule
from pyro.infer.autoguide import (
    AutoMessenger,
    AutoStructured,
)
from pyro.nn.module import PyroModule
from torch import Tensor, nn

from ppl_vi.guides import REFUSED, Family, RefusedFamilyError, find_family
from ppl_vi.guides.statements import FunctionGuide, first_run
from ppl_vi.target.target import Target


class HeldGuide(PyroModule):
    """A module guide with the arguments that its target's model keeps."""

    def __init__(self, guide: nn.Module, target: Target) -> None:
        super().__init__()
        self.held = guide
        self.call = target.bind(guide)

    def forward(self, *args: Any) -> Any:
        """The guide."""
        return self.call(*args)


@dataclass(frozen=True, eq=False)
class OwnGuide:
    """The family of a guide that was written as a function or a module: of a module every fit gets a copy.

    Attributes:
        guide: the guide.
        target: whose model it is for.
        name: `package.module:attribute`, as far as that is known.
    """

    guide: Callable[..., Any]
    target: Target
    name: str

    def __call__(self, model: Any) -> Any:
        """The guide, bound to the arguments that the target's model keeps."""
        if isinstance(self.guide, nn.Module):
            return HeldGuide(deepcopy(self.guide), self.target)
        return self.target.bind(self.guide)


def family_of(target: Target, given: Any, name: str = "") -> Family:
    """The family that a user means.

    A name is looked up and a class is a family. A module is a guide, of which every replica gets a copy, and so is a
    function that draws sample sites when it is called as the model is. Any other function is a family.

    Args:
        target: whose model the guide is for.
        given: what the user gave; a family of another target's `OwnGuide` is one of this target's.
        name: how the user named it.

    Raises:
        RefusedFamilyError: an autoguide of Pyro's that can't be compared, with the reason.
        ValueError: no such name.
        TypeError: it can't be called.
    """
    if isinstance(given, str):
        found = find_family(given)
        return family_of(target, found, given) if ":" in given else found
    if isinstance(given, OwnGuide):
        return replace(given, target=target)
    kind = getattr(given, "__name__", "")
    if getattr(given, "__module__", "").startswith("pyro.infer.autoguide") and kind in REFUSED:
        raise RefusedFamilyError(f"{kind}: {REFUSED[kind]}")
    if isinstance(given, nn.Module):
        return OwnGuide(given, target, name or name_of(type(given)))
    if not callable(given):
        raise TypeError(f"a guide must be a family, its name, a function or a module; got {type(given).__name__}")
    own = not isinstance(given, type) and draws_sites(target, given)
    return OwnGuide(given, target, name or name_of(given)) if own else given


def name_of(family: Any) -> str:
    """A family as `package.module:attribute`, as far as that can be told."""
    if isinstance(family, OwnGuide):
        return family.name
    module, name = getattr(family, "__module__", ""), getattr(family, "__qualname__", "")
    return f"{module}:{name}" if name else repr(family)


def has_network(guide: nn.Module) -> bool:
    """Whether a guide has a neural network or a flow, whose parameters have many local optima.

    The linear maps of `AutoStructured` are no network: its members are Gaussian.
    """
    parts = list(guide.modules())
    if any(isinstance(part, FunctionGuide) and part.has_network for part in parts):
        return True
    linear = not any(isinstance(part, AutoStructured) for part in parts)
    return any(isinstance(part, TransformModule) or (linear and isinstance(part, nn.Linear)) for part in parts)


def draws_sites(target: Target, function: Callable[..., Any]) -> bool:
    """Whether a function is a guide: called as the model is, it draws; or it takes more than a model."""
    try:
        inspect.signature(function).bind(target.model)
    except TypeError:
        return True
    with target.isolated(seed=0):
        try:
            trace, _ = first_run(target.bind(function), target.row(0), target.dtype)
        except (
            Exception
        ):  # a family, given the data for a model, or a guide that will say what is wrong when it is built
            return False
    return any(node["type"] == "sample" for node in trace.nodes.values())


class ModuleGuide(PyroModule):
    """A hand-written module that is called with arguments of its own, whatever it is called with."""

    def __init__(self, guide: nn.Module, given: tuple[Any, ...]) -> None:
        super().__init__()
        self.guide = guide
        self.given = given

    def forward(self, *_: Any) -> Any:
        """The module, with its arguments."""
        return self.guide(*self.given)


def with_statements(guide: nn.Module, row: tuple[Tensor, ...], dtype: torch.dtype) -> nn.Module:
    """A module with the parameters that it states by `pyro.param`; the same one where it has none but its own."""
    if any(isinstance(part, AutoMessenger) for part in guide.modules()):  # which makes its own in a run of all data
        return guide
    stated = FunctionGuide(guide, row, dtype)
    return stated if stated.has_statements else guide
