"""Models that draw numbers which their density does not depend on, run for many draws at once.

`torch.nn.Linear(3, 1)` in a model, or a kernel of `pyro.contrib.gp`, draws initial values, which the values of sites
then replace. `torch.func.vmap` refuses every random number. Here those that are drawn beside the sample sites are drawn
once for all, and always the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.overrides import TorchFunctionMode

# Functions of torch that draw random numbers: into a tensor, as many as a tensor has, and in a given shape.
INTO = {"bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "normal_", "random_", "uniform_"}
LIKE = {"rand_like", "randint_like", "randn_like"}
SHAPED = {"normal", "rand", "randint", "randn", "randperm"}
INITIALISING = "torch.nn.init"  # whose functions draw into a tensor where no mode of torch's sees it


class _AtSites(Messenger):
    """Knows whether a sample site is drawing just now.

    Attributes:
        drawing: how many sites are, one within another.
    """

    drawing = 0

    def _pyro_sample(self, msg: Any) -> None:
        self.drawing += 1

    def _pyro_post_sample(self, msg: Any) -> None:
        self.drawing -= 1


class _AlwaysTheSame(TorchFunctionMode):
    """Draws what is drawn beside the sites with the same seed at each call, and outside of `vmap`."""

    def __init__(self, sites: _AtSites) -> None:
        super().__init__()
        self.sites = sites

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        into = name in INTO or getattr(func, "__module__", "") == INITIALISING
        if self.sites.drawing or not (into or name in LIKE or name in SHAPED):
            return func(*args, **kwargs)
        if not into and name not in LIKE:
            return _drawn(func, args, kwargs)
        given, *others = args or (kwargs.pop("tensor"),)
        with temporarily_clear_interpreter_stack():
            plain = torch.empty(given.shape, dtype=given.dtype, device=given.device)
        made = _drawn(func, (plain, *others), kwargs)
        if not into:
            return made
        with torch.no_grad():  # a parameter may not be written into otherwise
            return given.copy_(made)


def _drawn(func: Any, args: Any, kwargs: Any) -> Any:
    """What a function draws with the seed 0, whatever else would see to its draws."""
    with torch.random.fork_rng(devices=()), temporarily_clear_interpreter_stack(), torch.no_grad():
        torch.manual_seed(0)
        with torch._C.DisableTorchFunction():
            return func(*args, **kwargs)


@dataclass(frozen=True, eq=False)
class IdleDrawsModel:
    """A Pyro model that may draw numbers that change nothing, under `vmap` too."""

    model: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model."""
        with _AtSites() as sites, _AlwaysTheSame(sites):
            return self.model(*args, **kwargs)
