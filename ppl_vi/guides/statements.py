"""A guide written as a function as a module: what it states by `pyro.param` and `pyro.module` becomes parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from pyro.nn.module import PyroModule, PyroParam
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from ppl_vi.guides import RefusedFamilyError

REQUIRES_GRAD = torch.Tensor.requires_grad.__get__  # type: ignore[attr-defined]


class _Replaced(TorchFunctionMode):
    """Gives each operation of torch the fit's value in place of a parameter that a network holds.

    So the network itself is never written to, wherever the guide has it from. Whether a parameter requires a gradient
    is still asked of the parameter: `pyro.module` leaves out those that don't.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Tensor] = []  # so that no other tensor gets the `id` of one of them
        self.values: dict[int, Tensor] = {}

    def replace(self, parameter: Tensor, value: Tensor) -> None:
        """From now on the value stands for the parameter."""
        self.held.append(parameter)
        self.values[id(parameter)] = value

    def has(self, parameter: Tensor) -> bool:
        """Whether a value stands for the parameter."""
        return id(parameter) in self.values

    def answer(self, parameter: Tensor, msg: Any) -> bool:
        """Answers a statement of a parameter by the value that stands for it, and tells whether there is one."""
        if self.has(parameter):
            msg["value"], msg["done"] = self.values[id(parameter)], True
        return self.has(parameter)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == REQUIRES_GRAD:
            return func(*args)
        return func(*self._given(args), **{name: self._given(value) for name, value in (kwargs or {}).items()})

    def _given(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.values.get(id(value), value)
        return type(value)(map(self._given, value)) if type(value) in (list, tuple) else value


class _Stating(Messenger):
    """A first run: each statement gets a copy in `dtype` of its initial value, the user's own tensors stay apart.

    Args:
        dtype: of the parameters.
        own: parameters of the guide itself, where it is a module, by `id`: they are no statements.

    Attributes:
        leaves: by the statement's name, the parameter of a network that was stated.
    """

    def __init__(self, dtype: torch.dtype, own: set[int]) -> None:
        super().__init__()
        self.dtype, self.own = dtype, own
        self.leaves: dict[str, Tensor] = {}
        self.replaced = _Replaced()

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
    """Whether a tensor is a parameter, such as a network holds: one that others may use without stating it."""
    return tensor.is_leaf and bool(REQUIRES_GRAD(tensor))


def first_run(function: Callable[..., Any], row: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Trace, _Stating]:
    """The trace of a guide that is run to see what it states and draws, and what networks it registers."""
    own = {id(parameter) for parameter in function.parameters()} if isinstance(function, nn.Module) else set()
    stating = _Stating(dtype, own)
    with pyro.get_param_store().scope(), _around(function, dtype), stating, stating.replaced:
        return poutine.trace(function).get_trace(*row), stating


@contextmanager
def _around(function: Callable[..., Any], dtype: torch.dtype) -> Iterator[None]:
    """What the networks of a function need while it runs; a guide that is a module has all of it itself.

    Pyro's modules may have been made while their parameters were global. Buffers, such as the running means of a batch
    normalisation, are copies in `dtype` for the time of the run, so that the networks' own are not written to.
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


class FunctionGuide(PyroModule):
    """A guide as a module: the `pyro.param` statements of a function, or of a module, become parameters.

    `pyro.module` states each parameter of a network. When the guide then calls the network, the network is given the
    module's parameters in place of its own, which are left as they are.

    Args:
        function: the guide.
        row: what it is called with.
        dtype: of the parameters.

    Raises:
        RefusedFamilyError: the guide uses a network that it doesn't register.
    """

    def __init__(self, function: Callable[..., Any], row: tuple[Tensor, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.function, self._dtype = function, dtype
        called: list[nn.Module] = []
        hook = register_module_forward_pre_hook(lambda module, _: called.append(module))
        with torch.enable_grad(), hook:
            trace, stating = first_run(function, row, dtype)
        self._attributes: dict[str, str] = {}
        self._leaves = stating.leaves
        known = stating.own | {id(leaf) for leaf in stating.leaves.values()}
        statements = [(name, node) for name, node in trace.nodes.items() if node["type"] == "param"]
        for number, (name, node) in enumerate(statements):
            if id(_unconstrained(node["value"])) not in known:
                known.add(id(_unconstrained(node["value"])))
                self._attributes[name] = f"param_{number}_{''.join(c if c.isalnum() else '_' for c in name)}"
                constraint = node["kwargs"].get("constraint", constraints.real)
                event_dim = node["kwargs"].get("event_dim")
                value = PyroParam(node["value"].detach().clone(), constraint, event_dim)
                setattr(self, self._attributes[name], value)
        _refuse_unregistered(trace, known, called)

    @property
    def has_statements(self) -> bool:
        """Whether there was a `pyro.param` of another's than a module's own parameter."""
        return bool(self._attributes)

    @property
    def has_network(self) -> bool:
        """Whether the function registers a network."""
        return any(isinstance(leaf, nn.Parameter) for leaf in self._leaves.values())

    def forward(self, *args: Any) -> Any:
        """The function, its parameters taken from the module."""
        values = {name: getattr(self, attribute) for name, attribute in self._attributes.items()}
        replaced = _Replaced()
        for name, leaf in self._leaves.items():
            replaced.replace(leaf, values[name])
        networks = replaced if self._leaves else nullcontext()
        with _around(self.function, self._dtype), _Substitute(values, replaced), networks:
            return self.function(*args)


def _unconstrained(value: Any) -> Any:
    """The parameter of which Pyro makes a constrained value."""
    return value.unconstrained() if hasattr(value, "unconstrained") else value


class _Substitute(Messenger):
    """Answers each statement from `values`; a network that is made anew in each run gets them too."""

    def __init__(self, values: dict[str, Tensor], replaced: _Replaced) -> None:
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


def _refuse_unregistered(trace: Trace, known: set[int], called: list[nn.Module]) -> None:
    """Refuses a guide whose draws or densities depend on a parameter that nobody would learn.

    Args:
        trace: of the guide.
        known: the parameters of the fit, by `id`.
        called: the networks that the guide called.

    Raises:
        RefusedFamilyError: it does.
    """
    trace.compute_log_prob()
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
    """The tensors that require a gradient on which the values and log densities of sites depend."""
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
