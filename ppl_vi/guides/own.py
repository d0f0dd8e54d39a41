"""Makes families of what users give as a guide, and modules of what a family returns.

A user may give the name of a family, a family (a function from a model to a guide), or a guide of their own, written as
a function or as a module. `family_of` makes a family of each. What a family returns may again be a function or any
module; `as_module` wraps it, so that the rest of the package deals with one kind of guide: a module that is called with
a row of the target and whose parameters are all that SVI learns. All wrappers of a user's guide are in this file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.distributions import TransformModule
from pyro.infer.autoguide import AutoGuide, AutoMessenger, AutoStructured
from pyro.nn.module import PyroModule
from torch import Tensor, nn

from ppl_vi.guides import REFUSED, Family, RefusedFamilyError, find_family
from ppl_vi.guides.copies import private_copy_of
from ppl_vi.guides.function_guide import FunctionGuide
from ppl_vi.guides.given import GivenGuide, fitted, taken
from ppl_vi.guides.own_autoguide import OwnAutoguide, parts_by_hand
from ppl_vi.runtime.names import guide_and_file
from ppl_vi.target.arguments import BoundModel, positional, private_copy
from ppl_vi.target.inspection import SiteReached, raised_by
from ppl_vi.target.precision import DtypeConversion
from ppl_vi.target.statements import first_run
from ppl_vi.target.target import Target

UNUSED = "unused"  # the parameter of a guide that has none of its own

# ---- what users give


@dataclass(frozen=True, eq=False)
class OwnGuide:
    """The family of a guide that was written as a function or a module: all values of its parameters.

    The family of a module returns a new copy at each call, so that no two fits share parameters.

    Attributes:
        guide: the user's function, or a copy of the user's module.
        target: the target whose model the guide is for.
        name: the guide as `package.module:attribute`, or what stands for that where it has no such name.
        given: the guide with the values that it was given with; None for a function that begins where it says itself.
    """

    guide: Callable[..., Any]
    target: Target
    name: str
    given: GivenGuide | None = None

    def __call__(self, model: Any) -> Any:
        """The guide, whose sites are in the target's dtype and which is called with the target's arguments."""
        if isinstance(self.guide, nn.Module):
            return ConvertedGuide(private_copy_of(self.guide), self.target.dtype)
        return self.target.bind(self.guide)


def family_of(target: Target, given: Any, name: str = "", *, as_it_is: bool = False) -> Family:
    """The family that a user means by what they give as a guide.

    - A text is the name of a family, or `package.module:attribute` of what is treated as if it were given itself.
    - A class is a family.
    - An autoguide is a member of the family of its class with its settings.
    - Another module is a guide, of which every replica gets a copy.
    - Any other function is a guide or a family by the rule of `is_guide`.

    Args:
        target: the target whose model the guide is for.
        given: what the user gave. The family of a guide that was made for another target is made anew for this one.
        name: how the user named it.
        as_it_is: whether a guide is to be measured with the values that it has, a function with those in Pyro's
            parameter store.

    Raises:
        RefusedFamilyError: an autoguide of Pyro's that can't be compared, with the reason.
        ValueError: there is no such name, or a function is neither a guide nor a family.
        TypeError: what was given can't be called.
    """
    if isinstance(given, str):
        if guide_and_file(given)[1]:
            return family_of(target, fitted(given))
        found = find_family(given)
        return family_of(target, found, given, as_it_is=as_it_is) if ":" in given else found
    if isinstance(given, OwnAutoguide):
        return OwnAutoguide.of(target, given.given)
    if isinstance(given, OwnGuide):
        return replace(given, target=target)
    if isinstance(given, GivenGuide):
        return _family_of_given(target, given)
    kind = getattr(given, "__name__", "")
    if getattr(given, "__module__", "").startswith("pyro.infer.autoguide") and kind in REFUSED:
        raise RefusedFamilyError(f"{kind}: {REFUSED[kind]}")
    if isinstance(given, nn.Module):
        return _family_of_given(target, taken(given, name, is_fitted=as_it_is))
    if not callable(given):
        raise TypeError(f"a guide must be a family, its name, a function or a module; got {type(given).__name__}")
    if isinstance(given, type):
        return given
    name = name or name_of(given)
    if not is_guide(target, given, name):
        return given
    return OwnGuide(given, target, name, taken(given, name, is_fitted=True) if as_it_is else None)


def _family_of_given(target: Target, given: GivenGuide) -> Family:
    """The family of a guide that was given with its values; what is raised is as of `family_of`."""
    if isinstance(given.guide, AutoGuide | AutoMessenger):
        return OwnAutoguide.of(target, given)
    if not isinstance(given.guide, nn.Module) and not is_guide(target, given.guide, given.name):
        raise ValueError(
            f"'{given.name}' is a family, which has no values to be measured as they are: leave out fitted()"
        )
    return OwnGuide(given.guide, target, given.name, given)


def is_fitted(family: Any) -> bool:
    """Whether a family is that of a guide which is to be measured as it is."""
    given = family.given if isinstance(family, OwnGuide | OwnAutoguide) else None
    return given is not None and given.is_fitted


def is_guide(target: Target, function: Callable[..., Any], name: str) -> bool:
    """Whether a function is a guide, rather than a family of guides.

    A function that can't be called with a model alone is a guide, and so is one whose parameters have the names of the
    model's. Any other is called as the model is called. It is a guide if it reaches a sample site or a plate: if it
    raises an error after that, the error is the guide's own, and is raised again when the guide is built. It is a
    family if it returns without having reached one. If it raises an error before its first site, it may be a family
    that can do nothing with data in place of a model, so it is called with the model: it is a family if that returns
    something callable.

    Raises:
        ValueError: the function is neither; the message holds both of its errors.
    """
    try:
        inspect.signature(function).bind(target.model)
    except TypeError:
        return True
    names = _required(function)
    if names and names == _required(_users_own(target.model)) and names[0] != "model":
        return True
    with target.isolated(seed=0):
        with SiteReached() as reached:
            try:
                first_run(target.bind(function), target.row(0), target.dtype)
            except Exception as error:  # a user's function may raise anything
                raised = error
            else:
                return bool(reached.site)
        if reached.site:
            return True
        called_as_model = raised_by("it", raised, reached.site, target.dtype)
        neither = f"'{name}' is neither a guide nor a family of guides: called as the model is, {called_as_model}"
        try:
            made = function(target.model)
        except Exception as error:
            said = " ".join(str(error).split())
            raise ValueError(f"{neither}; called with the model, it raised {type(error).__name__}: {said}") from raised
    if not callable(made):
        raise ValueError(f"{neither}; called with the model, it returned no guide but {made!r:.40}") from raised
    return False


def _required(function: Any) -> list[str]:
    """The names of the positional parameters that a function must be given; [] where they are not known."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [one.name for one in parameters if one.kind in kinds and one.default is one.empty]


def _users_own(model: Any) -> Any:
    """The model as its user gave it, out of what prepares it."""
    while not isinstance(model, nn.Module) and not inspect.isroutine(model):
        inner = getattr(model, "function", getattr(model, "model", None))
        if inner is None:
            break
        model = inner
    return model


def name_of(family: Any) -> str:
    """A family as `package.module:attribute`, or its `repr` where it has no such name."""
    if isinstance(family, OwnGuide | OwnAutoguide):
        return family.name
    module, name = getattr(family, "__module__", ""), getattr(family, "__qualname__", "")
    return f"{module}:{name}" if name else repr(family)


# ---- guides as modules


def as_module(guide: Callable[..., Any], target: Target, row: tuple[Tensor, ...], family: Family) -> nn.Module:
    """What a family returned, as a module that is called with a row of the target; an autoguide stays as it is.

    Args:
        guide: what the family returned.
        target: the target whose model the guide is for.
        row: the arguments of one of the target's problems, with which the guide is run to find its parameters.
        family: the family, for its name and for the values that a guide was given with.

    Raises:
        ValueError: the guide raised an error; the message names the guide and the site.
        RefusedFamilyError: the guide uses a network that it doesn't register.
    """
    name, given = name_of(family), family.given if isinstance(family, OwnGuide | OwnAutoguide) else None
    if isinstance(guide, AutoGuide):
        for part in parts_by_hand(guide):
            part._guide = _part(part._guide, target, row, name, given)
        return guide
    if not isinstance(guide, nn.Module):
        return _with_a_parameter(FunctionGuide(target.bind(guide), row, target.dtype, name, given), target)
    module = private_copy(guide, target.dtype)
    if isinstance(target.model, BoundModel):
        module = BoundGuide(positional(module, target.model.keywords), target.model.given)
    if any(isinstance(part, AutoMessenger) for part in module.modules()):
        return module  # such a guide makes its parameters in a run of its own, with all of the data
    stated = FunctionGuide(module, row, target.dtype, name, given)
    return stated if stated.has_statements else _with_a_parameter(module, target)


def _part(
    guide: Callable[..., Any], target: Target, row: tuple[Tensor, ...], name: str, given: GivenGuide | None
) -> nn.Module:
    """A user's function or module within a list of autoguides, which is called with the model's arguments as in Pyro.

    The parameters of a module keep their names, by which a list that was given as an object has its values.
    """
    if not isinstance(guide, nn.Module):
        return FunctionGuide(target.bind(guide), row, target.dtype, name, given)
    module = private_copy(guide, target.dtype)
    vars(module)["forward"] = target.bind(module.forward)
    stated = FunctionGuide(module, row, target.dtype, name, given)
    return stated if stated.has_statements else module


def _with_a_parameter(guide: nn.Module, target: Target) -> nn.Module:
    """A guide, with a parameter that it doesn't use where it has none: it is the one member of its family."""
    if not any(value.requires_grad for value in guide.parameters()):
        guide.register_parameter(UNUSED, nn.Parameter(torch.zeros(1, dtype=target.dtype)))
    return guide


def has_nothing_to_fit(guide: nn.Module) -> bool:
    """Whether a guide has no parameters, so that it is measured as it is."""
    return [name for name, value in guide.named_parameters() if value.requires_grad] == [UNUSED]


class BoundGuide(PyroModule):
    """A guide that is a module, with arguments of its own: it ignores what it is called with, as `BoundModel` does.

    Args:
        guide: the guide.
        given: its positional arguments.
    """

    def __init__(self, guide: nn.Module, given: tuple[Any, ...]) -> None:
        super().__init__()
        self.guide = guide
        self.given = given

    def forward(self, *_: Any) -> Any:
        """Runs the guide with its own arguments."""
        return self.guide(*self.given)


class ConvertedGuide(PyroModule):
    """A guide that is a module, whose sites are all in one dtype, as `ConvertedModel` makes those of a function.

    Args:
        guide: the guide. Saved fits name its parameters by the attribute `held`.
        dtype: the dtype of its sites.
    """

    def __init__(self, guide: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.held = guide
        self.dtype = dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the guide."""
        with DtypeConversion(self.dtype):
            return self.held(*args, **kwargs)


def has_network(guide: nn.Module) -> bool:
    """Whether a guide has a neural network or a flow, whose parameters have many local optima.

    The linear maps of `AutoStructured` are no network: the members of its family are Gaussian.
    """
    parts = list(guide.modules())
    if any(isinstance(part, FunctionGuide) and part.has_network for part in parts):
        return True
    linear = not any(isinstance(part, AutoStructured) for part in parts)
    return any(isinstance(part, TransformModule) or (linear and isinstance(part, nn.Linear)) for part in parts)
