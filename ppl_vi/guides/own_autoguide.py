"""The family of an autoguide that is given as an object: its class with its settings, and the values that it has.

The members of the family are copies of the object that are set up anew for the target's model, as Pyro sets up an
autoguide in its first call, so that what they keep of the model (supports, plates, shapes) is the target's, in its
dtype. What the object has of its own stays, such as the order of the latents in a flow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.infer.autoguide import (
    AutoCallable,
    AutoDiagonalNormal,
    AutoMessenger,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import Tensor, nn
from torch.distributions import biject_to, transform_to

from ppl_vi.guides.copies import SeenModel, autoguides_of, private_copy_of
from ppl_vi.guides.given import (
    UNCONSTRAINED,
    GivenGuide,
    check_shape,
    in_short,
    sites_of,
    store_names,
)
from ppl_vi.target.arguments import BoundModel, positional, private_copy
from ppl_vi.target.inspection import raised_by
from ppl_vi.target.isolation import whole_plates
from ppl_vi.target.precision import DtypeConversion
from ppl_vi.target.target import Target

# Points of unconstrained space, for each number, at which two supports are compared by the maps to them.
COMPARED_POINTS = (-1.3, 0.2, 0.9)
# Autoguides whose members are known by their class and their parameters; others have settings, as a flow its layers.
KNOWN_BY_CLASS = (AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal)
# Where Pyro's messenger guides keep the parameters that they make when they first meet a site.
MADE_AT_SITES = ("locs", "scales", "weights")


@dataclass(frozen=True, eq=False)
class OwnAutoguide:
    """The family of an autoguide that a user has given as an object.

    Attributes:
        given: the autoguide, as it was given.
        target: the target whose model its members are for.
        template: a copy that has been set up for this target once, without its model.
        values: the parameters that it was given with, unconstrained, in the target's dtype.
    """

    given: GivenGuide
    target: Target
    template: nn.Module
    values: dict[str, Tensor]

    @property
    def name(self) -> str:
        """The autoguide's name, from which saved fits make the family again where the class alone says what it is."""
        kind = type(self.template)
        is_class = self.given.name == f"{kind.__module__}:{kind.__qualname__}"
        return f"{self.given.name} (an object)" if is_class and kind not in KNOWN_BY_CLASS else self.given.name

    @staticmethod
    def of(target: Target, given: GivenGuide) -> OwnAutoguide:
        """The family of a given autoguide for a target.

        Raises:
            ValueError: the autoguide was made for another model or other data, or its file has not all of its values.
        """
        _check_sites(target, given)
        guide = _seated(given.guide, given.models, target.model)
        with target.isolated(seed=0), whole_plates(), torch.no_grad(), _autoguides_alone(guide):
            poutine.trace(guide).get_trace(*target.row(0))
        guide = guide.to(target.device, target.dtype)
        _put(given, guide)
        values = {name: value.detach().clone() for name, value in guide.named_parameters()}
        return OwnAutoguide(given, target, private_copy_of(guide), values)

    def __call__(self, model: Any, init_loc_fn: Callable[..., Any] | None = None) -> nn.Module:
        """A member for a model, whose first call sets it up where `init_loc_fn` says."""
        return _seated(self.template, self.given.models, model, init_loc_fn)

    @torch.no_grad()
    def put_values(self, guide: nn.Module) -> None:
        """Gives a member that has been set up the values of the user's guide; functions within it have theirs."""
        parameters = dict(guide.named_parameters())
        for name, value in self.values.items():
            parameters[name].copy_(value)


def parts_by_hand(guide: nn.Module) -> list[Any]:
    """What holds the user's functions and modules within a list of autoguides."""
    parts = [part for _, part in autoguides_of(guide) if isinstance(part, AutoCallable)]
    return [part for part in parts if not isinstance(part._guide, AutoMessenger)]


@contextmanager
def _autoguides_alone(guide: nn.Module) -> Iterator[None]:
    """Leaves out, for this block, the user's functions and modules within a list: they need no setting up."""
    held = [(part, part._guide) for part in parts_by_hand(guide)]
    for part, own in held:
        part._guide = _Idle() if isinstance(own, nn.Module) else _Idle().forward
    try:
        yield
    finally:
        for part, own in held:
            part._guide = own


class _Idle(nn.Module):
    """Draws nothing."""

    def forward(self, *_: Any) -> None:
        """Does nothing."""


def _seated(
    guide: nn.Module, models: dict[str, SeenModel], model: Any, init_loc_fn: Callable[..., Any] | None = None
) -> nn.Module:
    """A copy of an autoguide that is for another model; the parts of a list see what they saw of theirs."""
    copied = private_copy_of(guide)
    for path, part in autoguides_of(copied):
        part._model = (models[path].alike(model, init_loc_fn),)
        if "_original_model" in vars(part):
            part._original_model = (model,)
        if isinstance(part, AutoMessenger) and init_loc_fn is not None:
            part.init_loc_fn = init_loc_fn
            for name in MADE_AT_SITES:
                part._modules.pop(name, None)
    return copied


# ---- whether a guide was made for this model


def _check_sites(target: Target, given: GivenGuide) -> None:
    """Refuses an autoguide that was set up for other latents, or that would be.

    Raises:
        ValueError: it was made for another model.
    """
    sites = given.sites if given.is_set_up or given.file else _sites_of_own_model(target, given)
    if not sites:
        return
    here = {site.name: site for site in target.latents}
    if set(sites) != set(here):
        raise ValueError(
            f"the guide '{given.name}' was made for another model, of the latents {', '.join(sorted(sites))}; those of "
            f"'{target.name}' are {', '.join(sorted(here))}"
        )
    for name, support in sites.items():
        if support is not None and name not in target.moving and not _is_same(support, here[name], target.dtype):
            raise ValueError(
                f"the guide '{given.name}' was made for another model: its site '{name}' has the support {support}, "
                f"that of '{target.name}' has {here[name].support}"
            )


def _is_same(support: Any, site: Any, dtype: torch.dtype) -> bool:
    """Whether a support is mapped from unconstrained space as that of a site."""
    try:
        for value in COMPARED_POINTS:
            point = torch.full(site.unconstrained_shape, value, dtype=dtype)
            one, other = biject_to(support)(point), biject_to(site.support)(point)
            if one.shape != other.shape or not torch.allclose(one.to(dtype), other.to(dtype), rtol=1e-5, atol=1e-6):
                return False
    except (NotImplementedError, RuntimeError, ValueError):  # one has no such map, or maps points of other shapes
        return False
    return True


def _sites_of_own_model(target: Target, given: GivenGuide) -> dict[str, Any]:
    """The latent sites, with their supports, of the model that an autoguide was made for which has never been called.

    Those that the target's model has not are left out where all of the target's are there: they may be summed out.

    Raises:
        ValueError: that model can't be run with the target's arguments.
    """
    bound = target.model
    if not isinstance(bound, BoundModel):
        return {}
    own = positional(private_copy(given.models[""].model, target.dtype), bound.keywords)
    with target.isolated(seed=0), DtypeConversion(target.dtype), torch.no_grad():
        try:
            trace = poutine.trace(own).get_trace(*bound.given)
        except Exception as error:  # a user's model may raise anything
            raise ValueError(
                f"the guide '{given.name}' was made for another model than '{target.name}': "
                f"{raised_by('that model', error, '', target.dtype)}"
            ) from error
    sites = sites_of(trace)
    here = {site.name for site in target.latents}
    return {name: sites[name] for name in here} if here <= set(sites) else sites


# ---- values


@torch.no_grad()
def _put(given: GivenGuide, guide: nn.Module) -> None:
    """Puts the values of the user's autoguide into a copy that was set up for a target, in place.

    A guide that has none yet keeps its initial ones, unless it is to be measured as it is and the parameter store has
    them.

    Raises:
        ValueError: the guide was made for another model or other data, or its file lacks a parameter.
    """
    values = given.values | _unfrozen(guide, given.values)
    if given.is_fitted and not given.is_set_up:
        names = store_names(guide)
        values |= {path: given.stored[n].unconstrained for path, n in names.items() if n in given.stored}
    for name, parameter in guide.named_parameters():
        if name in values:
            check_shape(given.name, name, values[name], parameter)
            parameter.copy_(values[name])
        elif given.is_set_up or given.file:
            has = in_short(values or given.stored)
            where = f"the file {given.file} has no parameter" if given.file else "was made for another model: it has no"
            raise ValueError(f"the guide '{given.name}': {where} '{name}'; there are {has}")


def _unfrozen(guide: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of a normal whose location and covariance are plain tensors, as Pyro's Laplace approximation has.

    Pyro's `scale_tril` is the Cholesky factor of a correlation there, while a guide's has ones on its diagonal: its
    rows are rescaled.
    """
    if not {"loc", "scale", "scale_tril"} <= set(values) or not hasattr(guide, "scale_tril_constraint"):
        return {}
    loc, scale, factor = (values[name].double() for name in ("loc", "scale", "scale_tril"))
    diagonal = torch.diagonal(factor)
    free = transform_to(guide.scale_constraint).inv(scale * diagonal)
    ratios = transform_to(guide.scale_tril_constraint).inv(factor / diagonal[:, None])
    return {"loc": loc, f"scale{UNCONSTRAINED}": free, f"scale_tril{UNCONSTRAINED}": ratios}
