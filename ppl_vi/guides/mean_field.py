"""A guide that gives each latent site its own independent density of one parametric form."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.transforms import biject_to
from pyro.infer.autoguide import AutoGuide, init_to_feasible
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.nn.module import PyroModule, PyroParam
from torch import Tensor
from torch.distributions.constraints import Constraint

ScaleFn = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True)
class Form:
    """A parametric family of densities on one number; called with a model, it gives every latent site such a density.

    Attributes:
        summary: one line for `--list-guides`.
        constraints: the constraint of each parameter, by name.
        distribution: makes a distribution of the parameters by name; each has the site's shape, or one axis more.
        initial: makes initial parameters of a location and a scale in unconstrained space, each of the site's shape.
    """

    summary: str
    constraints: dict[str, Constraint]
    distribution: Callable[..., TorchDistribution]
    initial: Callable[[Tensor, Tensor], dict[str, Tensor]]

    def __call__(
        self,
        model: Callable[..., Any],
        init_loc_fn: Callable[..., Any] = init_to_feasible,
        init_scale_fn: ScaleFn | None = None,
    ) -> MeanField:
        """A guide for `model`.

        Args:
            model: a Pyro model.
            init_loc_fn: initial location of each site, as in Pyro's autoguides.
            init_scale_fn: initial scale of a site in unconstrained space, from its name and its location there.
        """
        return MeanField(model, self, init_loc_fn, init_scale_fn or _default_scale)


def _default_scale(name: str, location: Tensor) -> Tensor:
    return torch.full_like(location, 0.1)


class MeanField(AutoGuide):
    """Independent densities of one `Form`, one for each element of each latent site.

    A site's parameters are read as `guide.<parameter>.<site>`, as in Pyro's `AutoNormal`.

    Args:
        model: a Pyro model; its sites are found by tracing it at the first call.
        form: of the densities.
        init_loc_fn: initial location of each site, as in Pyro's autoguides.
        init_scale_fn: initial scale of a site in unconstrained space, from its name and unconstrained location.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        form: Form,
        init_loc_fn: Callable[..., Any],
        init_scale_fn: ScaleFn,
    ) -> None:
        self._form = form
        self._init_scale_fn = init_scale_fn
        super().__init__(InitMessenger(init_loc_fn)(model))

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        for parameter in self._form.constraints:
            setattr(self, parameter, PyroModule())
        for name, site in self.prototype_trace.iter_stochastic_nodes():
            location = biject_to(site["fn"].support).inv(site["value"].detach())
            if location.shape != site["value"].shape:
                raise ValueError(
                    f"site '{name}': a mean-field form needs a support that has no constraint across elements"
                )
            initial = self._form.initial(location, self._init_scale_fn(name, location))
            batch_dim = site["value"].dim() - site["fn"].event_dim
            for parameter, value in initial.items():
                constraint = self._form.constraints[parameter]
                wrapped = PyroParam(value, constraint, event_dim=value.dim() - batch_dim)
                _deep_setattr(getattr(self, parameter), name, wrapped)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Samples every latent site; a Pyro guide."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        result = {}
        for name, site in self.prototype_trace.iter_stochastic_nodes():
            with ExitStack() as stack:
                for frame in site["cond_indep_stack"]:
                    if frame.vectorized:
                        stack.enter_context(plates[frame.name])
                result[name] = pyro.sample(name, self.distribution(name).to_event(site["fn"].event_dim))
        return result

    def distribution(self, name: str) -> TorchDistribution:
        """The density of site `name` at the present parameters, elements independent."""
        values = {parameter: _deep_getattr(getattr(self, parameter), name) for parameter in self._form.constraints}
        return self._form.distribution(**values)


def _deep_setattr(module: PyroModule, name: str, value: Any) -> None:
    *path, last = name.split(".")
    for part in path:
        if not hasattr(module, part):
            setattr(module, part, PyroModule())
        module = getattr(module, part)
    setattr(module, last, value)


def _deep_getattr(module: PyroModule, name: str) -> Any:
    for part in name.split("."):
        module = getattr(module, part)
    return module
