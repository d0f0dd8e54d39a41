"""Guides that have values already: what is taken of them, and what is put into their copies.

A user may give a guide that is an object or has its values in Pyro's parameter store: an autoguide, a `PyroModule`, a
function. `taken` makes a private copy of it, with the values that it has at that moment, so that nothing of the user's
is ever written to, and `fitted` says that the copy is to be measured as it is.

The values of a module are its own parameters. Only of a module that has never been called, and so has not met the
store yet, those in the store count, as they would in its first call. What a guide states by `pyro.param` has the value
of that name in the store, or, where the module keeps its parameters to itself (Pyro's setting `module_local_params`),
in the module.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoGuide, AutoMessenger
from pyro.nn.module import PyroModule
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vi.guides import REFUSED, RefusedFamilyError, find_family
from ppl_vi.guides.copies import SeenModel, autoguides_of, private_copy_of
from ppl_vi.guides.parameter_files import parameters_in
from ppl_vi.runtime.names import guide_and_file
from ppl_vi.target.statements import Stored

UNCONSTRAINED = "_unconstrained"  # what Pyro appends to the name of a parameter with a constraint
# Autoguides that are refused as classes, because a model alone does not say what they are; an object does.
REFUSED_AS_CLASSES = ("AutoNormalizingFlow", "AutoGuideList")
MAX_NAMES = 6  # of parameters that a message names


@dataclass(frozen=True, eq=False)
class GivenGuide:
    """A guide with the values that it had when it was given.

    Attributes:
        guide: a function, or a private copy of a module, without the models of autoguides.
        name: what messages and saved fits call it.
        is_fitted: whether it is measured as it is; else it is fitted from these values on.
        needs_values: whether every parameter that it states must have a value already.
        stored: what Pyro's parameter store had, by the names of the statements.
        file: where the values come from, or None.
        models: the model of each autoguide in it, by the autoguide's path; "" is the guide itself.
        is_set_up: whether an autoguide has been called, and so has its parameters.
        sites: of an autoguide that has been called, its latent sites and their supports, as far as it keeps them.
        values: of an autoguide, its unconstrained parameters and its buffers by name, as far as it has them already.
    """

    guide: Any
    name: str
    is_fitted: bool
    needs_values: bool
    stored: dict[str, Stored]
    file: Path | None = None
    models: dict[str, SeenModel] = field(default_factory=dict)
    is_set_up: bool = False
    sites: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"{'fitted' if self.is_fitted else 'given'} guide {self.name}"


def fitted(guide: Any, file: str | Path | None = None) -> GivenGuide:
    """Marks a guide that is already fitted: `compare` and `fit` measure it as it is.

    It is taken as it is now, with the values that it has now; training it further changes nothing of what this returns,
    and nothing of the guide or of Pyro's parameter store is changed.

    Args:
        guide: an autoguide, a `PyroModule` or another module that is a guide, a function with its values in Pyro's
            parameter store, or any of these as `"package.module:attribute"`, which a file may follow after `=`.
        file: where the guide's values come from instead: a file that `pyro.get_param_store().save(file)` or
            `torch.save(guide.state_dict(), file)` has written. No code is run that it may hold.

    Raises:
        TypeError: no guide, but a class or something that can't be called.
        RefusedFamilyError: (a ValueError) an autoguide of Pyro's that can't be compared, with the reason.
        ValueError: the file can't be read, or is of another guide.
    """
    name = ""
    if isinstance(guide, str):
        (name, after), guide = guide_and_file(guide), find_family(guide)
        if ":" not in name:
            raise TypeError(f"fitted: '{name}' names a family, which has no values; give a guide that has")
        file = file or after or None
    if isinstance(guide, GivenGuide):
        name, guide = guide.name, guide.guide
    return taken(guide, name, is_fitted=True, needs_values=True, file=None if file is None else Path(file))


def taken(
    guide: Any, name: str = "", *, is_fitted: bool = False, needs_values: bool = False, file: Path | None = None
) -> GivenGuide:
    """A guide as it is now; see `GivenGuide` for the arguments, and `fitted` for what is raised."""
    if isinstance(guide, type):
        arguments = "model" if issubclass(guide, AutoGuide | AutoMessenger) else ""
        made = f"{guide.__name__}({arguments})" if issubclass(guide, nn.Module) else "a guide"
        raise TypeError(f"fitted takes a guide that has values, such as {made} after training, got the class itself")
    if not callable(guide):
        raise TypeError(f"fitted takes a guide, a function or a module; got {type(guide).__name__}")
    kind = type(guide).__name__
    if isinstance(guide, AutoGuide | AutoMessenger) and kind in REFUSED and kind not in REFUSED_AS_CLASSES:
        raise RefusedFamilyError(f"{kind}: {REFUSED[kind]}")
    from_file = None if file is None else parameters_in(file)
    stored = _store() if from_file is None else from_file.stored
    if not isinstance(guide, nn.Module):
        if from_file is not None and not stored:
            raise ValueError(f"{file} holds the state of a module, and the guide is a function")
        return GivenGuide(guide, name or _name_of(guide), is_fitted, needs_values, stored, file)
    given = GivenGuide(
        private_copy_of(guide),
        name or _name_of(type(guide)),
        is_fitted,
        needs_values,
        stored | ({} if from_file else _local(guide)),
        file,
        {path: SeenModel.of(part._model[0]) for path, part in autoguides_of(guide)},
        _is_set_up(guide),
        _sites(guide),
    )
    values = _values(given, guide, from_file.state if from_file else {})
    if isinstance(guide, AutoGuide | AutoMessenger):
        return replace(given, values=values)
    _put_all(given, values)
    if is_fitted and not any(value.requires_grad for value in given.guide.parameters()):
        given.guide.requires_grad_()  # a guide may be frozen once it is trained; its family is all values all the same
    return given


# ---- what a guide was set up for, and its values


def _is_set_up(guide: Any) -> bool:
    if isinstance(guide, AutoGuide):
        return guide.prototype_trace is not None
    return isinstance(guide, AutoMessenger) and any(True for _ in guide.parameters())


def _sites(guide: nn.Module) -> dict[str, Any]:
    """The latent sites for which an autoguide was set up; those that it has forgotten, as some do, are left out."""
    trace = getattr(guide, "prototype_trace", None) if isinstance(guide, AutoGuide) else None
    return {} if trace is None else sites_of(trace)


def sites_of(trace: Trace) -> dict[str, Any]:
    """The latent sites of a trace of a model, and their supports."""
    nodes = {name: node for name, node in trace.nodes.items() if node.get("type") == "sample"}
    return {n: node["fn"].support for n, node in nodes.items() if not (node["is_observed"] or site_is_subsample(node))}


def _store() -> dict[str, Stored]:
    """What Pyro's parameter store has, copied."""
    store = pyro.get_param_store()
    return _copied(dict(store.named_parameters()), store._constraints)


def _copied(values: Mapping[str, Tensor], kinds: Mapping[str, Any]) -> dict[str, Stored]:
    return {name: Stored(one.detach().clone(), kinds.get(name, constraints.real)) for name, one in values.items()}


def _local(guide: nn.Module) -> dict[str, Stored]:
    """What a module has stated by `pyro.param` while parameters were local to it."""
    state = getattr(getattr(guide, "_pyro_context", None), "param_state", None)
    return {} if state is None else _copied(state["params"], state["constraints"])


def _values(given: GivenGuide, guide: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The unconstrained parameters and the buffers of a user's guide, by name.

    Args:
        given: what is taken of the guide beside its values.
        guide: the user's own.
        state: of a file that holds the state of a module; empty otherwise.

    Raises:
        ValueError: the file is of another guide.
    """
    own = {name: value.detach().clone() for name, value in guide.state_dict().items()}
    if state:
        missing = sorted(set(own) - set(state))
        if missing:
            raise ValueError(f"{given.file} has no '{missing[0]}', which the guide has; it has {in_short(state)}")
        return {name: value.clone() for name, value in state.items()}
    return own | (_from_store(given, guide, own) if given.is_fitted else {})


def _from_store(given: GivenGuide, guide: nn.Module, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of a module's parameters whose values are those of the parameter store, or of the file in its place.

    Raises:
        ValueError: the file has none of them.
    """
    paths, context = store_names(guide), getattr(guide, "_pyro_context", None)
    found = {path: given.stored[name].unconstrained for path, name in paths.items() if name in given.stored}
    if given.file is not None:
        if paths and not found:
            raise ValueError(f"{given.file} has none of the guide's parameters; it has {in_short(given.stored)}")
        return found
    if context is None or hasattr(context, "param_state"):  # its parameters are its own
        return {}
    if not context.used:
        return found
    other = next((path for path, value in found.items() if path in own and not torch.equal(value, own[path])), None)
    if other is not None:
        warnings.warn(
            f"{type(guide).__name__} is measured with the values that it holds itself. Pyro's parameter store has "
            f"others, as of '{paths[other]}': another guide of this class was trained, or the store was loaded from a "
            "file after the guide had been called. To measure the store's values, give the file as well, as in "
            "ppl_vi.fitted(guide, 'params.pt'); pyro.get_param_store().save('params.pt') writes one",
            stacklevel=_users_level(),
        )
    return {}


def _users_level() -> int:
    """How many calls above `warnings.warn` the line of the user is that called this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("ppl_vi"):
        frame, level = frame.f_back, level + 1
    return level


def store_names(guide: nn.Module) -> dict[str, str]:
    """The names under which Pyro's parameter store has the parameters of a module, by their paths in the module."""
    names: dict[str, str] = {}
    networks: dict[str, tuple[str, str]] = {}  # for each plain network its root's name in Pyro, and the root's path
    parts = dict(guide.named_modules())
    for path, part in parts.items():
        above, _, last = path.rpartition(".")
        if not isinstance(part, PyroModule):
            parent: Any = parts[above] if path else part
            name = f"{parent._pyro_name}.{last}".strip(".") if isinstance(parent, PyroModule) else ""
            networks[path] = networks.get(above if path else "-", (name, path))
        for parameter in part._parameters:
            own = f"{path}.{parameter}".lstrip(".")
            if not isinstance(part, PyroModule):
                name, root = networks[path]
                names[own] = f"{name}$$${own.removeprefix(root).lstrip('.')}"
                continue
            short = parameter.removesuffix(UNCONSTRAINED)
            names[own] = f"{part._pyro_name}.{short if short in part._pyro_params else parameter}".lstrip(".")
    return names


@torch.no_grad()
def _put_all(given: GivenGuide, values: dict[str, Tensor]) -> None:
    """Puts values into the copy of a module.

    Raises:
        ValueError: a value has another shape than the guide's parameter.
    """
    for name, one in given.guide.state_dict(keep_vars=True).items():
        check_shape(given.name, name, values[name], one)
        one.copy_(values[name])


def in_short(names: Iterable[str]) -> str:
    """Names for a message: the first of them, or "none"."""
    first, more = list(islice(names := iter(names), MAX_NAMES)), sum(1 for _ in names)
    return (", ".join(first) or "none") + (f" and {more} more" if more else "")


def check_shape(guide: str, name: str, value: Tensor, expected: Tensor) -> None:
    """Refuses a value whose shape is not that of the parameter that it is for.

    Raises:
        ValueError: it is not; the message names the guide and the parameter.
    """
    if value.shape != expected.shape:
        raise ValueError(
            f"the guide '{guide}' was made for another model or other data: its parameter '{name}' has shape "
            f"{tuple(value.shape)} in place of {tuple(expected.shape)}"
        )


def _name_of(guide: Any) -> str:
    module, name = getattr(guide, "__module__", ""), getattr(guide, "__qualname__", "")
    return f"{module}:{name}" if name else repr(guide)
