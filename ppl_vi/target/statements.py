"""Finds and answers the `pyro.param` and `pyro.module` statements of a model or a guide.

A model or guide that was written as a function names its parameters while it runs, and may compute with networks that
belong to the user. `first_run` finds the statements. `StatedValues` answers them with the parameters of a fit in every
later run, and `ReplacedParameters` lets the networks compute with these, so that nothing of the user's is ever written
to. `StatedFunction` makes a module of such a function, and `FrozenFunction` one whose parameters no longer change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from pyro.nn.module import PyroModule, PyroParam
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.distributions import constraints, transform_to
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from ppl_vi.target.factorising import Factorising

# The function that torch passes to `__torch_function__` where `tensor.requires_grad` is read.
REQUIRES_GRAD = torch.Tensor.requires_grad.__get__  # type: ignore[attr-defined]

NOTHING: Mapping[str, Any] = MappingProxyType({})


class ReplacedParameters(TorchFunctionMode):
    """While it is active, every operation of torch gets other values in place of the parameters of a user's network.

    The network itself is never written to, wherever the model or guide has it from. Only the question whether a
    parameter requires a gradient still goes to the parameter itself, because `pyro.module` leaves out those that don't.

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


@dataclass(frozen=True)
class Stored:
    """A parameter as Pyro's parameter store holds it.

    Attributes:
        unconstrained: the value in unconstrained space.
        constraint: of the parameter.
    """

    unconstrained: Tensor
    constraint: constraints.Constraint

    def value(self, dtype: torch.dtype) -> Tensor:
        """The parameter itself, computed in a dtype."""
        return transform_to(self.constraint)(_converted(self.unconstrained, dtype))


def _converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


class FirstStatements(Messenger):
    """Answers each statement of a first run with a copy of its initial value, so that no tensor of the user's is used.

    Args:
        dtype: the dtype of the copies.
        own: where the function is a module, the `id` of each of its own parameters, which are no statements.
        stored: values that take the place of initial ones, by the names of the statements.

    Attributes:
        leaves: the stated parameters of networks, by the names of the statements.
        replaced: lets the networks compute with the copies; it must be active during the run.
    """

    def __init__(self, dtype: torch.dtype, own: set[int], stored: Mapping[str, Stored]) -> None:
        super().__init__()
        self.dtype, self.own, self.stored = dtype, own, stored
        self.leaves: dict[str, Tensor] = {}
        self.replaced = ReplacedParameters()

    def _pyro_param(self, msg: Any) -> None:
        initial, stored = stated_tensor(msg), self.stored.get(msg["name"])
        if initial is not None and (id(initial) in self.own or self.replaced.answer(initial, msg)):
            return
        if initial is not None and is_held(initial):
            self.leaves.setdefault(msg["name"], initial)
        if stored is not None:
            msg["args"] = (msg["name"], stored.value(self.dtype))
            msg["kwargs"] = {"constraint": stored.constraint} | msg["kwargs"]
        elif initial is not None:
            msg["args"] = (msg["name"], _converted(initial.detach().clone(), self.dtype))

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
    function: Callable[..., Any],
    row: tuple[Tensor, ...],
    dtype: torch.dtype,
    stored: Mapping[str, Stored] = NOTHING,
) -> tuple[Trace, FirstStatements]:
    """Runs a model or guide to find what it states and draws.

    Args:
        function: the model or guide, a function or a module.
        row: the arguments that it is called with.
        dtype: the dtype of the parameters that it states.
        stored: values that take the place of initial ones, by the names of the statements.

    Returns:
        The trace of the run and the handler that answered its statements.
    """
    own = {id(parameter) for parameter in function.parameters()} if isinstance(function, nn.Module) else set()
    stating = FirstStatements(dtype, own, stored)
    with pyro.get_param_store().scope(), networks_prepared(function, dtype), stating, stating.replaced, Factorising():
        return poutine.trace(function).get_trace(*row), stating


@contextmanager
def networks_prepared(function: Callable[..., Any], dtype: torch.dtype) -> Iterator[None]:
    """Prepares the user's networks that a model or guide calls; where that is a module, its own need no preparation.

    Parameters are made global while the function runs, because Pyro modules that were made while they were global have
    no place for local ones. Those of a module stay local to it. Buffers, such as the running means of a batch
    normalisation, are replaced by copies in `dtype` while the function runs, so that the networks' own are not written
    to.
    """
    if isinstance(function, nn.Module):
        with pyro.settings.context(module_local_params=True):
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

    A network that the function makes anew in each run has other parameters each time; they are replaced when stated.

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


def run_with(
    function: Callable[..., Any],
    dtype: torch.dtype,
    values: dict[str, Tensor],
    leaves: dict[str, Tensor],
    args: tuple[Any, ...],
) -> Any:
    """Runs a model or guide with given values of what it states.

    Args:
        function: the model or guide.
        dtype: of its networks' buffers.
        values: the values, by the names of the statements.
        leaves: those parameters of networks that are stated, by the names of the statements.
        args: what the function is called with.
    """
    replaced = ReplacedParameters()
    for name, leaf in leaves.items():
        replaced.replace(leaf, values[name])
    networks = replaced if leaves else nullcontext()
    with networks_prepared(function, dtype), StatedValues(values, replaced), networks:
        return function(*args)


class StatedFunction(PyroModule):
    """A model or guide as a module whose parameters are what it states by `pyro.param` and `pyro.module`.

    `pyro.module` states each parameter of a network; when the function then calls the network, the network computes
    with the parameters of this module in place of its own, which are left as they are.

    Args:
        function: the model or guide, a function or a module. A module's own parameters are no statements.
        dtype: the dtype of the parameters.
        trace, stating: what `first_run` gave for this function.
    """

    def __init__(
        self, function: Callable[..., Any], dtype: torch.dtype, trace: Trace, stating: FirstStatements
    ) -> None:
        super().__init__()
        for part in function.modules() if isinstance(function, nn.Module) else ():
            if isinstance(part, PyroModule):  # has run on its own, and may become a part of this module all the same
                part._pyro_context.used = False
        self.function, self._dtype = function, dtype
        self._attributes: dict[str, str] = {}
        self._leaves = stating.leaves
        known = stating.own | {id(leaf) for leaf in stating.leaves.values()}
        statements = [(key, node) for key, node in trace.nodes.items() if node["type"] == "param"]
        for number, (statement, node) in enumerate(statements):
            stated = id(unconstrained_parameter(node["value"]))
            if stated not in known:
                known.add(stated)
                # saved fits name the parameters by these attributes
                self._attributes[statement] = f"param_{number}_{''.join(c if c.isalnum() else '_' for c in statement)}"
                constraint = node["kwargs"].get("constraint", constraints.real)
                event_dim = node["kwargs"].get("event_dim")
                value = PyroParam(node["value"].detach().clone(), constraint, event_dim)
                setattr(self, self._attributes[statement], value)
                self._set_exactly(self._attributes[statement], constraint, stating.stored.get(statement))
        self._known = known

    def _set_exactly(self, attribute: str, constraint: constraints.Constraint, stored: Stored | None) -> None:
        """Sets a parameter to the very digits of a stored one, where both have the same constraint."""
        if stored is not None and repr(stored.constraint) == repr(constraint):
            with torch.no_grad():
                self.get_parameter(f"{attribute}_unconstrained").copy_(stored.unconstrained)

    @property
    def has_statements(self) -> bool:
        """Whether the function stated a parameter that is not one of its own as a module."""
        return bool(self._attributes)

    @property
    def leaves(self) -> dict[str, Tensor]:
        """Those parameters of networks that it states, by the names of the statements."""
        return self._leaves

    @property
    def has_network(self) -> bool:
        """Whether the function registers a network by `pyro.module`."""
        return any(isinstance(leaf, nn.Parameter) for leaf in self._leaves.values())

    @property
    def values(self) -> dict[str, Tensor]:
        """What it states, by the names of the statements."""
        return {name: getattr(self, attribute) for name, attribute in self._attributes.items()}

    def forward(self, *args: Any) -> Any:
        """Runs the function with this module's parameters."""
        return run_with(self.function, self._dtype, self.values, self._leaves, args)

    def frozen(self, parameters: dict[str, Tensor] | None = None) -> FrozenFunction:
        """The function with given values of its parameters, by default those that they have now.

        Args:
            parameters: the values, as `parameters_of` gives them.
        """
        parameters = parameters_of(self) if parameters is None else parameters
        function: Any = self.function
        if isinstance(function, nn.Module):
            function = deepcopy(function).requires_grad_(False)
            for name, value in function.named_parameters():
                value.copy_(parameters[name])
        values = {name: parameters[name].clone() for name in self.values}
        return FrozenFunction(function, values, self._leaves, self._dtype)


@dataclass(frozen=True, eq=False)
class FrozenFunction:
    """A model whose parameters have values that no longer change, so that it states none.

    Attributes:
        function: the model.
        values: what it states, by the names of the statements.
        leaves: those parameters of networks that it states, by the names of the statements.
        dtype: of the values.
    """

    function: Callable[..., Any]
    values: dict[str, Tensor]
    leaves: dict[str, Tensor]
    dtype: torch.dtype

    def __call__(self, *args: Any) -> Any:
        """The model."""
        with poutine.block(hide_types=["param"]):
            return run_with(self.function, self.dtype, self.values, self.leaves, args)


def parameters_of(model: StatedFunction | FrozenFunction) -> dict[str, Tensor]:
    """A model's parameters by name: what it states, and, where it is a module, its own, in unconstrained space."""
    own = dict(model.function.named_parameters()) if isinstance(model.function, nn.Module) else {}
    return {name: value.detach().clone() for name, value in (model.values | own).items()}
