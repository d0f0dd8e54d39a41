"""Guides at their initial values, which are taken from the posterior's modes and curvature in unconstrained space.

`ppl_vi.svi.start_points` says where each replica starts.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import reduce
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.distributions.transforms import AffineAutoregressive, ComposeTransform, biject_to
from pyro.infer.autoguide import (
    AutoContinuous,
    AutoDiagonalNormal,
    AutoGaussian,
    AutoGuide,
    AutoHierarchicalNormalMessenger,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalizingFlow,
    AutoNormalMessenger,
    AutoStructured,
)
from pyro.infer.autoguide.initialization import init_to_uniform
from pyro.nn.module import PyroModule
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from ppl_vi.guides import Family
from ppl_vi.guides.mean_field import Form, MeanField
from ppl_vi.guides.own import BoundGuide, as_module
from ppl_vi.guides.own_autoguide import OwnAutoguide
from ppl_vi.svi.program import Layout, flat_parameters
from ppl_vi.svi.start_points import Centres, centres, start_points
from ppl_vi.target.isolation import whole_plates
from ppl_vi.target.sites import split
from ppl_vi.target.target import Target
from ppl_vi.truth.modes import Modes

# Pyro's Gaussian guides that keep one scale for each latent number in the vector `guide.scale`, and those that keep the
# scales of each site in `guide.scales`.
SCALE_VECTOR = (AutoDiagonalNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal)
SCALE_BY_SITE = (AutoNormal, AutoStructured, AutoGaussian, AutoNormalMessenger, AutoHierarchicalNormalMessenger)
# Guides whose parameters are plain functions of where they are.
PLACED = (AutoLaplaceApproximation, AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal)


def _first_run(guide: nn.Module, target: Target, row: tuple[Tensor, ...]) -> None:
    """Runs a guide once, since Pyro's autoguides make their parameters in a first call.

    This call takes all of each plate's data; later calls take subsamples again.
    """
    parts = target.parts
    with whole_plates() if parts else nullcontext():
        poutine.trace(guide).get_trace(*row)
    for module in guide.modules():
        frames = getattr(module, "_prototype_frames", {})
        frames.update({name: frames[name]._replace(size=size) for name, size in parts.items() if name in frames})


def build_guide(
    family: Family,
    target: Target,
    problem: int = 0,
    loc: Tensor | None = None,
    scale: Tensor | None = None,
    seed: int = 0,
    factor: Tensor | None = None,
) -> nn.Module:
    """A guide of a family, at a given initial location and scale as far as the family takes them.

    A family takes them by the arguments `init_loc_fn` and `init_scale` of Pyro's autoguides, or by our own
    `init_scale_fn`, a function of a site's name and location that gives the site's scale. Pyro's Gaussian guides and
    autoregressive flows are moved there after they have been made.

    Args:
        family: the family.
        target: the target that the guide is for.
        problem: the problem on whose data the guide is run for the first time.
        loc, scale: the location and the scale of each latent number in unconstrained space, `(D,)`; by default those of
            the problem's mode.
        seed: of what the guide itself draws for its initial values.
        factor: the Cholesky factor of the covariance with which a guide of full covariance begins, `(D, D)`, instead of
            the scale; by default, where no scale is given, that of the inverse Hessian at the problem's mode.

    Raises:
        TypeError: the family doesn't return something callable.
        ValueError: the guide can't keep its parameters under the name of a site.
    """
    loc = target.start.loc[problem] if loc is None else loc
    factor = target.start.cholesky[problem] if scale is None else factor
    scale = target.start.scale[problem] if scale is None else scale
    names = _arguments(family)
    given: dict[str, Any] = {}
    if "init_loc_fn" in names:
        given["init_loc_fn"] = _located(target, loc)
    if "init_scale_fn" in names:
        scales = split(target.latents, scale)
        given["init_scale_fn"] = lambda name, location: scales[name].reshape(location.shape)
    elif "init_scale" in names and family is not AutoGaussian:  # AutoGaussian would scale its random factors as well
        given["init_scale"] = float(scale.log().mean().exp())
    with target.isolated(seed), warnings.catch_warnings():
        # Pyro warns of an autoregressive flow over one number, which is a fine guide
        warnings.filterwarnings("ignore", message=".*AutoRegressiveNN input_dim = 1.*")
        warnings.filterwarnings("ignore", message="The `init_loc_fn` argument to AutoIAFNormal is not used")
        guide = family(target.model, **given)
        if not callable(guide):
            raise TypeError(
                f"a guide family must return a guide, something callable; got {type(guide).__name__} (a guide written "
                "as a function must draw each latent site by pyro.sample)"
            )
        if isinstance(guide, AutoGuide) and not isinstance(guide, AutoContinuous):
            _refuse_clash(guide, target)
        row = target.row(problem)
        guide = as_module(guide, target, row, family)
        _first_run(guide, target, row)
        guide = guide.to(target.device, target.dtype)
        own = guide.guide if isinstance(guide, BoundGuide) else guide
        if isinstance(own, AutoNormalizingFlow):
            _place_flow(own, loc, scale)
        elif isinstance(own, SCALE_VECTOR + SCALE_BY_SITE):
            _widen(own, target, scale, factor)
    return guide


def _arguments(family: Family) -> set[str]:
    """The names of the arguments that a family takes."""
    return set(inspect.signature(family.__init__ if inspect.isclass(family) else family).parameters)


def _located(target: Target, loc: Tensor) -> Callable[..., Any]:
    """Pyro's `init_loc_fn` that puts each site at `loc` `(D,)`, mapped to the support that the site has in this run."""
    parts = split(target.latents, loc)

    def initial(site: Any) -> Tensor:
        part = parts.get(site["name"])
        return init_to_uniform(site) if part is None else biject_to(site["fn"].support)(part)

    return initial


def _refuse_clash(guide: AutoGuide, target: Target) -> None:
    """Refuses a site's name that is also an attribute of torch's modules, for guides that keep parameters under it.

    Raises:
        ValueError: there is such a site.
    """
    for site in target.latents:
        taken = next((part for part in site.name.split(".") if hasattr(PyroModule, part)), None)
        if taken is not None:
            raise ValueError(
                f"site '{site.name}': torch's modules have an attribute '{taken}', under which "
                f"{type(guide).__name__} would keep its parameters: give the site another name"
            )


@torch.no_grad()
def _widen(guide: Any, target: Target, scale: Tensor, factor: Tensor | None) -> None:
    """Gives each latent number its own initial scale, where Pyro's Gaussian guides take one number for all.

    A guide of full covariance gets that of the factor, where there is one.
    """
    if isinstance(guide, AutoMultivariateNormal) and factor is not None:
        guide.scale = torch.diagonal(factor)
        guide.scale_tril = factor / torch.diagonal(factor)[:, None]
        return
    if isinstance(guide, SCALE_VECTOR):
        guide.scale = scale * guide.scale / guide._init_scale
        return
    for name, part in split(target.latents, scale).items():
        *path, last = name.split(".")
        module = reduce(getattr, path, guide.scales)
        setattr(module, last, part.reshape(getattr(module, last).shape))


@torch.no_grad()
def _place_flow(guide: AutoNormalizingFlow, loc: Tensor, scale: Tensor) -> None:
    """Lets an autoregressive flow start at `loc` and `scale` `(D,)`, since it takes no initial values.

    The biases of the last transform are set so that the centre of the flow's base is mapped to `loc`, with the slope
    `scale`, as far as Pyro does not clip it to between exp(-5) and exp(3).
    """
    transform = guide.transform
    parts = list(transform.parts) if isinstance(transform, ComposeTransform) else [transform]
    last = parts.pop()
    if not isinstance(last, AffineAutoregressive) or last.stable:
        return
    centre = torch.zeros_like(loc)
    for part in parts:
        centre = part(centre)
    mean, log_scale = last.arn(centre)
    bias = last.arn.layers[-1].bias
    slope = scale.log().clamp(last.log_scale_min_clip, last.log_scale_max_clip).exp()
    bias += torch.cat([loc - slope * centre - mean, slope.log() - log_scale])


def structure_seed(seed: int) -> int:
    """The seed of the first guide of a fit with a seed.

    Some guides draw a part of their structure when they are made, as flows draw the order of the latents. All fits have
    the structure of the first guide, so whoever makes it anew has to give this seed.
    """
    return seed * 1_000_003


def start_guide(
    family: Family, target: Target, num_replicas: int, seed: int, modes: tuple[Modes, ...] = ()
) -> nn.Module:
    """The guide of the first problem's first replica at its initial values; see `start_parameters`."""
    loc, scale = start_points(target, num_replicas, seed, modes)
    factor = centres(target, num_replicas, modes).factor
    guide = build_guide(family, target, 0, loc[0, 0], scale[0, 0], structure_seed(seed), factor[0, 0])
    if isinstance(family, OwnAutoguide):
        family.put_values(guide.guide if isinstance(guide, BoundGuide) else guide)
    return guide


def start_parameters(
    family: Family,
    target: Target,
    guide: nn.Module,
    layout: Layout,
    num_replicas: int,
    seed: int,
    modes: tuple[Modes, ...] = (),
) -> Tensor:
    """The initial parameters of all problems and replicas, `(B, R, D)`.

    Guides of full covariance begin with the inverse Hessian at the mode in all replicas: Pyro writes the covariance as
    scales times a triangle of ratios, and scales of their own would undo the correlations. Of an autoguide that a user
    gave as an object, the first replica begins at the values that it has, and the others where those of its class do.

    Args:
        family, target: of which guide, and for what.
        guide: as `start_guide` gives it.
        layout: of its parameters.
        num_replicas, seed, modes: as of `start_guide`.
    """
    loc, scale = start_points(target, num_replicas, seed, modes)
    factor = centres(target, num_replicas, modes).factor
    theta = _flat_at(family, target, guide, layout, Centres(loc, scale, factor), structure_seed(seed), guide)
    if isinstance(family, OwnAutoguide):
        theta[:, 0] = flat_parameters(layout, guide)
    return theta


def centre_parameters(
    family: Family, target: Target, guide: nn.Module, layout: Layout, seed: int, modes: tuple[Modes, ...] = ()
) -> Tensor:
    """The parameters of a guide at each problem's mode, the heaviest of several, `(B, 1, D)`.

    The arguments are those of `start_parameters`.
    """
    at = centres(target, 1, modes)
    values = _parameters_at(guide, target, *at)
    if values is not None:
        return layout.flatten(values)
    guides = [
        build_guide(family, target, problem, at.loc[problem, 0], at.scale[problem, 0], seed, at.factor[problem, 0])
        for problem in range(target.num_problems)
    ]
    return torch.stack([flat_parameters(layout, one) for one in guides])[:, None]


def is_placeable(family: Family, guide: nn.Module) -> bool:
    """Whether members of a family, one of which is this guide, can be placed where they are wanted."""
    own = guide.guide if isinstance(guide, BoundGuide) else guide
    known = type(own) in PLACED or isinstance(own, AutoNormalizingFlow)
    return known or "init_loc_fn" in _arguments(family)


def placed_parameters(
    family: Family, target: Target, guide: nn.Module, layout: Layout, at: Centres, seed: int
) -> Tensor:
    """The parameters of members of a family that lie at given places, as far as the family can be placed, `(B, R, D)`.

    Args:
        family, target, guide, layout: as of `start_parameters`.
        at: the places.
        seed: of the fit: members have the structure that its guides have.
    """
    return _flat_at(family, target, guide, layout, at, structure_seed(seed))


def _flat_at(
    family: Family,
    target: Target,
    guide: nn.Module,
    layout: Layout,
    at: Centres,
    seed: int,
    first: nn.Module | None = None,
) -> Tensor:
    """The flat parameters of guides at given places, `(B, R, D)`; `first` is the very first, where it is there."""
    values = _parameters_at(guide, target, *at)
    if values is not None:
        return layout.flatten(values)
    num_problems, num_replicas, _ = at.loc.shape
    rows = []
    for b in range(num_problems):
        for r in range(num_replicas):
            built = first if first is not None and (b, r) == (0, 0) else None
            built = built or build_guide(
                family, target, b, at.loc[b, r], at.scale[b, r], seed + b * num_replicas + r, at.factor[b, r]
            )
            rows.append(flat_parameters(layout, built))
    return torch.stack(rows).unflatten(0, (num_problems, num_replicas))


def _parameters_at(
    guide: nn.Module, target: Target, loc: Tensor, scale: Tensor, factor: Tensor
) -> dict[str, Tensor] | None:
    """The unconstrained parameters by name of many guides at once, where they are plain functions of where a guide is.

    Building a guide takes Pyro milliseconds.

    Args:
        guide: one of these guides.
        target: that it is for.
        loc, scale: of each, `(B, R, D)`.
        factor: the Cholesky factor of the covariance of each of the guides of full covariance, `(B, R, D, D)`.

    Returns:
        Tensors `(B, R, *shape)`; None where the family is none whose parameters are known.
    """
    own: Any = guide.guide if isinstance(guide, BoundGuide) else guide
    kind, free = type(own), transform_to(getattr(own, "scale_constraint", constraints.positive)).inv
    if kind is AutoLaplaceApproximation:
        return {"loc": loc}
    if kind is AutoDiagonalNormal:
        return {"loc": loc, "scale_unconstrained": free(scale)}
    if kind is AutoMultivariateNormal:
        diagonal = torch.diagonal(factor, dim1=-2, dim2=-1)
        ratios = transform_to(own.scale_tril_constraint).inv(factor / diagonal[..., None])
        name = "loc" if "loc" in dict(own.named_parameters()) else "loc_unconstrained"  # as `finished` calls it
        return {name: loc, "scale_unconstrained": free(diagonal), "scale_tril_unconstrained": ratios}
    if kind is MeanField:
        return _of_form(own._form, split(target.latents, loc), split(target.latents, scale))
    if kind is not AutoNormal:  # which is the last of PLACED
        return None
    locs = {f"locs.{name}_unconstrained": part for name, part in split(target.latents, loc).items()}
    scales = {f"scales.{name}_unconstrained": part for name, part in split(target.latents, free(scale)).items()}
    return locs | scales


def _of_form(form: Form, locs: dict[str, Tensor], scales: dict[str, Tensor]) -> dict[str, Tensor]:
    """The unconstrained parameters by name of guides of a form, from the location and scale of each site."""
    values = {}
    for name, loc in locs.items():
        for parameter, value in form.initial(loc, scales[name]).items():
            free = transform_to(form.constraints[parameter]).inv(value)
            values[f"{parameter}.{name}_unconstrained"] = free
    return values
