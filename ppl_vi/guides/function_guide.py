"""A guide that was written as a function, as a module whose parameters are what the function states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ppl_vi.guides import RefusedFamilyError
from ppl_vi.guides.given import GivenGuide, in_short
from ppl_vi.target.inspection import SiteReached, raised_by
from ppl_vi.target.statements import StatedFunction, Stored, first_run


class FunctionGuide(StatedFunction):
    """A guide as a module whose parameters are what the guide states by `pyro.param` and `pyro.module`.

    Args:
        function: the guide, a function or a module. A module's own parameters are no statements.
        row: the arguments that the guide is called with.
        dtype: the dtype of the parameters.
        name: the guide's name, for messages.
        given: the guide with the values that take the place of those that it states, or None.

    Raises:
        ValueError: the guide raised an error, and the message names the guide and the site; or it is to be measured as
            it is, and there is no value of a parameter.
        RefusedFamilyError: the guide uses a network that it doesn't register.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        row: tuple[Tensor, ...],
        dtype: torch.dtype,
        name: str,
        given: GivenGuide | None = None,
    ) -> None:
        called: list[nn.Module] = []
        hook = register_module_forward_pre_hook(lambda module, _: called.append(module))
        with errors_naming(name, dtype), torch.enable_grad():
            stored = {} if given is None else _stored_values(function, row, dtype, given)
            with hook:
                trace, stating = first_run(function, row, dtype, stored)
            trace.compute_log_prob()
        super().__init__(function, dtype, trace, stating)
        refuse_unregistered(trace, self._known, called)
        if given is not None and given.needs_values:
            _refuse_missing(given, [one for one in self.values if one not in {**stored, **self._leaves}])


def _stored_values(
    function: Callable[..., Any], row: tuple[Tensor, ...], dtype: torch.dtype, given: GivenGuide
) -> dict[str, Stored]:
    """The values that a guide's statements have in the parameter store, or in the file in its place.

    A network that outlives a run of the guide computes with its own parameters, whatever the store has under its name.
    """
    if given.file is not None:
        return given.stored
    first, second = (first_run(function, row, dtype, given.stored)[1].leaves for _ in range(2))
    own = {name for name, leaf in first.items() if second.get(name) is leaf}
    return {name: one for name, one in given.stored.items() if name not in own}


def _refuse_missing(given: GivenGuide, names: list[str]) -> None:
    """Refuses a guide that states parameters of which there is no value.

    Raises:
        ValueError: there are such parameters.
    """
    if names:
        where = f"the file {given.file}" if given.file else "Pyro's parameter store"
        raise ValueError(
            f"the guide '{given.name}' is to be measured as it is, and {where} has no value of its parameter "
            f"'{names[0]}'; it has {in_short(given.stored)}"
        )


@contextmanager
def errors_naming(name: str, dtype: torch.dtype) -> Iterator[None]:
    """Raises what a guide raises as a `ValueError` of one line that names the guide and the site it had reached."""
    with SiteReached() as reached:
        try:
            yield
        except Exception as error:  # a user's guide may raise anything
            raise ValueError(raised_by(f"the guide '{name}'", error, reached.site, dtype)) from error


def refuse_unregistered(trace: Trace, known: set[int], called: list[nn.Module]) -> None:
    """Refuses a guide whose draws or densities depend on a parameter that no fit would learn.

    Args:
        trace: a run of the guide, with the log density of each site.
        known: the `id` of each tensor that is a parameter of the fit, or stands for one.
        called: the networks that the guide called in this run.

    Raises:
        RefusedFamilyError: there is such a parameter; the message says how to register it.
    """
    sites = [node for node in trace.nodes.values() if node["type"] == "sample"]
    stray = next((leaf for leaf in _leaves_of(sites) if id(leaf) not in known), None)
    if stray is None:
        return
    owner = next((module for module in called if any(stray is held for held in module.parameters())), None)
    if owner is None:
        raise RefusedFamilyError(
            f"the guide uses a tensor of shape {tuple(stray.shape)} that requires a gradient but is no parameter of "
            "the guide, so it would never be learned: state it by pyro.param(...), or .detach() it to keep it as it is"
        )
    name = next(name for name, held in owner.named_parameters() if stray is held)
    raise RefusedFamilyError(
        f"the guide calls a network, a {type(owner).__name__}, without registering it, so its '{name}' would never be "
        "learned: write pyro.module('net', net) in the guide before net(...), or call net.requires_grad_(False) "
        "beforehand to keep the network as it is"
    )


def _leaves_of(sites: list[Any]) -> Iterator[Tensor]:
    """The tensors that require a gradient and from which the sites' values and log densities are computed."""
    tensors = [tensor for node in sites for tensor in (node["value"], node["log_prob"]) if isinstance(tensor, Tensor)]
    yield from (tensor for tensor in tensors if tensor.requires_grad and tensor.is_leaf)
    waiting = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        step = waiting.pop()
        if hasattr(step, "variable"):
            yield step.variable
        found = {before for before, _ in step.next_functions if before is not None} - seen
        seen |= found
        waiting.extend(found)
