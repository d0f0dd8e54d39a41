"""Finds and answers the `pyro.param` and `pyro.module` statements of a guide.

A guide that was written as a function names its parameters while it runs, and may compute with networks that belong to
the user. `first_run` finds the statements. `StatedValues` answers them with the parameters of a fit in every later run,
and `ReplacedParameters` lets the networks compute with these, so that nothing of the user's is ever written to.
`ppl_vi.guides.own.FunctionGuide` makes a module of such a guide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from ppl_vi.guides import RefusedFamilyError

# The function that torch passes to `__torch_function__` where `tensor.requires_grad` is read.
REQUIRES_GRAD = torch.Tensor.requires_grad.__get__  # type: ignore[attr-defined]


class ReplacedParameters(TorchFunctionMode):
    """While it is active, every operation of torch gets other values in place of the parameters of a user's network.

    The network itself is never written to, wherever the guide has it from. Only the question whether a parameter
    requires a gradient still goes to the parameter itself, because `pyro.module` leaves out those that don't.

    Attributes:
        values: the value that stands for a parameter, by the parameter's `id`.
        parameters: these parameters, kept so that no other tensor can get the `id` of one of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parameters: list[Tensor] = []
        self.values: dict[int, Tensor] = {}

    def replace(self, parameter: Tensor, value: Tensor) -> None:
        """Lets the value stand for the parameter from now on."""
        self.parameters.append(parameter)
        self.values[id(parameter)] = value

    def has(self, parameter: Tensor) -> bool:
        """Whether a value stands for the parameter."""
        return id(parameter) in self.values

    def answer(self, parameter: Tensor, msg: Any) -> bool:
        """Answers a statement of the parameter with the value that stands for it; returns whether there is one."""
        if self.has(parameter):
            msg["value"], msg["done"] = self.values[id(parameter)], True
        return self.has(parameter)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == REQUIRES_GRAD:
            return func(*args)
        return func(*self._replaced(args), **{name: self._replaced(value) for name, value in (kwargs or {}).items()})

    def _replaced(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.values.get(id(value), value)
        return type(value)(map(self._replaced, value)) if type(value) in (list, tuple) else value


class FirstStatements(Messenger):
    """Answers each statement of a first run with a copy of its initial value, so that no tensor of the user's is used.

    Args:
        dtype: the dtype of the copies.
        own: where the guide is a module, the `id` of each of its own parameters, which are no statements.

    Attributes:
        leaves: the stated parameters of networks, by the names of the statements.
        replaced: lets the networks compute with the copies; it must be active during the run.
    """

    def __init__(self, dtype: torch.dtype, own: set[int]) -> None:
        super().__init__()
        self.dtype, self.own = dtype, own
        self.leaves: dict[str, Tensor] = {}
        self.replaced = ReplacedParameters()

    def _pyro_param(self, msg: Any) -> None:
        initial = stated_tensor(msg)
        if initial is None or id(initial) in self.own or self.replaced.answer(initial, msg):
            return
        if is_held(initial):
            self.leaves.setdefault(msg["name"], initial)
        copied = initial.detach().clone()
        msg["args"] = (msg["name"], copied.to(self.dtype) if copied.is_floating_point() else copied)

    def _pyro_post_param(self, msg: Any) -> None:
        leaf = self.leaves.get(msg["name"])
        if leaf is not None and not self.replaced.has(leaf):
            self.replaced.replace(leaf, msg["value"])


def stated_tensor(msg: Any) -> Tensor | None:
    """The initial value of a `pyro.param` statement, where it is given as a tensor."""
    initial = msg["args"][1] if len(msg["args"]) > 1 else None
    return initial if isinstance(initial, Tensor) else None


def is_held(tensor: Tensor) -> bool:
    """Whether a tensor is a parameter, such as a network holds and may compute with before it is stated."""
    return tensor.is_leaf and bool(REQUIRES_GRAD(tensor))


def first_run(
    function: Callable[..., Any], row: tuple[Tensor, ...], dtype: torch.dtype
) -> tuple[Trace, FirstStatements]:
    """Runs a guide to find what it states and draws.

    Args:
        function: the guide, a function or a module.
        row: the arguments that it is called with.
        dtype: the dtype of the parameters that it states.

    Returns:
        The trace of the run and the handler that answered its statements.
    """
    own = {id(parameter) for parameter in function.parameters()} if isinstance(function, nn.Module) else set()
    stating = FirstStatements(dtype, own)
    with pyro.get_param_store().scope(), networks_prepared(function, dtype), stating, stating.replaced:
        return poutine.trace(function).get_trace(*row), stating


@contextmanager
def networks_prepared(function: Callable[..., Any], dtype: torch.dtype) -> Iterator[None]:
    """Prepares the user's networks that a function calls; the networks of a guide that is a module need nothing.

    Parameters are made global while the function runs, because Pyro modules that were made while they were global have
    no place for local ones. Buffers, such as the running means of a batch normalisation, are replaced by copies in
    `dtype` while the function runs, so that the networks' own are not written to.
    """
    if isinstance(function, nn.Module):
        yield
        return
    lent: list[tuple[nn.Module, dict[str, Tensor | None]]] = []

    def lend(module: nn.Module, _: Any) -> None:
        if module._buffers and not any(module is other for other, _ in lent):
            lent.append((module, dict(module._buffers)))
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(dtype if buffer.is_floating_point() else buffer.dtype, copy=True)

    try:
        with pyro.settings.context(module_local_params=False), register_module_forward_pre_hook(lend):
            yield
    finally:
        for module, buffers in lent:
            module._buffers.update(buffers)


def unconstrained_parameter(value: Any) -> Any:
    """The unconstrained parameter from which Pyro computed a constrained value, or the value itself."""
    return value.unconstrained() if hasattr(value, "unconstrained") else value


class StatedValues(Messenger):
    """Answers each statement with the value of its name.

    A network that the guide makes anew in each run has other parameters each time; they are replaced when stated.

    Args:
        values: the values, by the names of the statements.
        replaced: lets the networks compute with the values; it must be active during the run.
    """

    def __init__(self, values: dict[str, Tensor], replaced: ReplacedParameters) -> None:
        super().__init__()
        self.values, self.replaced = values, replaced

    def _pyro_param(self, msg: Any) -> None:
        initial = stated_tensor(msg)
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True
            msg["stop"] = True
            if initial is not None and is_held(initial) and not self.replaced.has(initial):
                self.replaced.replace(initial, msg["value"])
        elif initial is not None:
            msg["stop"] = self.replaced.answer(initial, msg)


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
