"""The models and guides of a plan: what users may give for them, and how they are found."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ppl_vi.guides import RefusedFamilyError, find_family
from ppl_vi.guides.given import taken
from ppl_vi.runtime.names import check_family
from ppl_vi.sweeps.keys import guide_key, model_key, source_digest
from ppl_vi.target.target import Target

MODEL_ENTRIES = ("model", "target", "args", "name")
GUIDE_ENTRIES = ("guide", "name")


@dataclass(frozen=True, eq=False)
class Model:
    """A model with its data.

    Attributes:
        label: what results call it.
        target: its problems.
    """

    label: str
    target: Target

    @cached_property
    def key(self) -> str:
        """Tells it from any other model or data."""
        return model_key(self.target)

    @cached_property
    def source(self) -> str:
        """The digest of its code."""
        return source_digest(self.target)

    @property
    def x(self) -> list[float] | None:
        """The one number in which its problems differ; None where they differ in more, or where there is one."""
        args = self.target.args
        if len(args) != 1 or args[0].dim() != 1 or self.target.num_problems == 1:
            return None
        return [float(value) for value in args[0]]


@dataclass(frozen=True, eq=False)
class Guide:
    """A guide.

    Attributes:
        label: what results call it.
        family: the name of a family, or whatever else the user gave.
    """

    label: str
    family: Any

    @cached_property
    def key(self) -> str:
        """Tells it from any other guide."""
        named = isinstance(self.family, str) and ":" in self.family
        return guide_key(imported(self.family) if named else self.family)


def model_of(given: Any) -> Model:
    """A model from what a plan says of it.

    - `"module:attribute"` names a `Target` or a Pyro model without arguments, which may also be given as they are.
    - A table (dict) names a Pyro model as `model`, or as `target` a function that makes a target; `args` are its
      arguments, a list of them or `"module:attribute"`; `name` is what results call it.
    - A pair is a Pyro model and the tuple of its arguments.

    Raises:
        ValueError: it can't be imported or used.
        TypeError: it is nothing of these.
    """
    name, args, makes = None, (), False
    if isinstance(given, Mapping) and "given" in given:
        name, given = given["label"], given["given"]
    if isinstance(given, Mapping):
        _check_entries(given, MODEL_ENTRIES, ("model", "target"))
        name, args, makes = given.get("name"), _arguments(given.get("args", ())), "target" in given
        given = given["target"] if makes else given["model"]
    elif isinstance(given, tuple) and len(given) == 2:
        given, args = given[0], _arguments(given[1])
    found = imported(given) if isinstance(given, str) else given
    target = _target(found, args, makes, str(given))
    if target.learnable is not None:
        raise ValueError(
            f"'{target.name}' has parameters of its own that are to be learned, so that each fit would have another "
            "posterior: learn them first, and give the target of that fit: ppl_vi.fit(...).target"
        )
    return Model(str(name or target.name), target)


def _target(found: Any, args: tuple[Any, ...], makes: bool, what: str) -> Target:
    try:
        made = found(*args) if makes else found
        if isinstance(made, Target):
            if args and not makes:
                raise ValueError("args go with a model; a target has its own")
            _ = made.latents
            return made
        if makes:
            raise TypeError(f"expected a function that returns a ppl_vi.Target, which returned {type(made).__name__}")
        return Target.of(made, args)
    except (ValueError, TypeError):
        raise
    except Exception as error:  # a model may raise anything
        raise ValueError(f"'{what}' can't be used: {type(error).__name__}: {error}") from error


def guide_of(given: Any) -> Guide:
    """A guide from what a plan says of it: a name, `"module:attribute"`, a table with these, or a guide as it is.

    Raises:
        ValueError: there is no such guide.
        TypeError: it is no guide.
    """
    name = None
    if isinstance(given, Mapping) and "given" in given:
        name, given = given["label"], given["given"]
    if isinstance(given, Mapping):
        _check_entries(given, GUIDE_ENTRIES, ("guide",))
        name, given = given.get("name"), given["guide"]
    if isinstance(given, str):
        check_family(given)
        with suppress(RefusedFamilyError):  # its fits are skipped, with the reason
            find_family(given)
        return Guide(str(name or given), given)
    if not callable(given):
        raise TypeError(f"a guide must be a family, its name, a function or a module; got {type(given).__name__}")
    return Guide(str(name or getattr(given, "__name__", type(given).__name__)), given)


def _check_entries(given: Mapping[str, Any], known: tuple[str, ...], needed: tuple[str, ...]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"unknown entry '{unknown[0]}'; there are {', '.join(known)}")
    if sum(name in given for name in needed) != 1:
        raise ValueError(f"expected {' or '.join(needed)}, got {', '.join(given) or 'nothing'}")


def _arguments(given: Any) -> tuple[Any, ...]:
    """The positional arguments: one value, or a tuple, which "module:attribute" may name; a list holds them."""
    if isinstance(given, str):
        found = imported(given)
        return found if isinstance(found, tuple) else (found,)
    if isinstance(given, list):
        return tuple(torch.tensor(part, dtype=torch.float64) if isinstance(part, list) else part for part in given)
    return given if isinstance(given, tuple) else (given,)


def imported(path: str) -> Any:
    """The object at `module:attribute`.

    Raises:
        ValueError: it can't be imported.
    """
    module, colon, attribute = path.partition(":")
    if not (module and colon and attribute):
        raise ValueError(f"expected module:attribute, got '{path}'")
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # a module may raise anything when it is imported
        raise ValueError(f"'{path}' can't be imported: {type(error).__name__}: {error}") from error
    return found


def sendable(family: Any) -> Any:
    """What a user gave as a guide, as it can be pickled: Pyro's autoguides leave their model behind."""
    try:
        return taken(family) if isinstance(family, nn.Module) else family
    except RefusedFamilyError:  # its fits are skipped, with the reason
        return family
