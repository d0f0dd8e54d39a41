"""The values of a model's latent sites: as tensors by name, as one unconstrained vector, and as one vector of numbers.

Each site's support has a bijection from unconstrained space, `biject_to(support)`. The unconstrained numbers of all
sites, one after another in the order of the sites, are the `D` coordinates in which posteriors are integrated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions.transforms import biject_to
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions.constraints import Constraint

from ppl_vi.numerics.vmapping import vmap_or_loop
from ppl_vi.target.supports import LatentSite, ends

Latents = dict[str, Tensor]


def constrain(sites: Sequence[LatentSite], unconstrained: Tensor) -> tuple[Latents, Tensor]:
    """Maps `(..., D)` to the values of sites in their order and the log absolute determinant of the Jacobian, `(...)`.

    Each is mapped by `biject_to(site.support)`.
    """
    batch = unconstrained.shape[:-1]
    values: Latents = {}
    log_jacobian = torch.zeros(batch, dtype=unconstrained.dtype, device=unconstrained.device)
    for site, u in zip(sites, split(sites, unconstrained).values(), strict=True):
        values[site.name], log_det = _mapped(site.support, u)
        log_jacobian = log_jacobian + log_det.reshape((*batch, -1)).sum(-1)
    return values, log_jacobian


def batch_of(sites: Sequence[LatentSite], latents: Latents) -> torch.Size:
    """The leading axes of latents `(..., *site.shape)`, those before the shapes of the sites."""
    shape = latents[sites[0].name].shape
    return shape[: len(shape) - len(sites[0].shape)]


def point_by_point(function: Callable[[Latents], Tensor], sites: Sequence[LatentSite], latents: Latents) -> Tensor:
    """A function of the latents of one point, at each of the points in latents `(..., *site.shape)`."""
    batch = batch_of(sites, latents)
    if not batch:
        return function(latents)
    found = vmap_or_loop(function)({site.name: latents[site.name].reshape((-1, *site.shape)) for site in sites})
    return found.reshape(batch + found.shape[1:])


def unconstrain(sites: Sequence[LatentSite], latents: Latents) -> Tensor:
    """The inverse of `constrain`: latents of shape `(..., *site.shape)` to `(..., D)`."""
    flat = []
    for site in sites:
        u = biject_to(site.support).inv(latents[site.name])
        flat.append(u.reshape((*u.shape[: u.dim() - len(site.unconstrained_shape)], -1)))
    return torch.cat(flat, -1) if flat else torch.empty(0)


def inside(sites: Sequence[LatentSite], latents: Latents) -> Tensor:
    """Whether latents of shape `(..., *site.shape)` are finite and in their supports, `(...)`."""
    batch, found = batch_of(sites, latents), []
    for site in sites:
        value = latents[site.name]
        checked = (value.isfinite(), site.support.check(value))
        found += [part.reshape((*batch, -1)).all(-1) for part in checked]
    return torch.stack(found).all(0)


def off_edge(sites: Sequence[LatentSite], latents: Latents) -> Latents:
    """Latents in which each number on an end of its interval is moved to the next one inside.

    Only rounding puts a draw there.
    """
    moved = dict(latents)
    for site in sites:
        value, limits = latents[site.name], ends(site.support)
        for end, other in (limits, limits[::-1]) if limits else ():
            end, other = end.to(value), other.to(value)
            moved[site.name] = torch.where(value == end, torch.nextafter(end, other), moved[site.name])
    return moved


def split(sites: Sequence[LatentSite], unconstrained: Tensor) -> dict[str, Tensor]:
    """The unconstrained numbers `(..., D)` site by site, by name, `(..., *site.unconstrained_shape)`."""
    shapes = [site.unconstrained_shape for site in sites]
    parts = unconstrained.split([shape.numel() for shape in shapes], -1)
    shaped = (part.reshape(unconstrained.shape[:-1] + shape) for part, shape in zip(parts, shapes, strict=True))
    return dict(zip((site.name for site in sites), shaped, strict=True))


def numbers_of(sites: Sequence[LatentSite], latents: Latents) -> Tensor:
    """The numbers of all sites, constrained as they are, one after another: `(..., *site.shape)` to `(..., K)`."""
    batch = batch_of(sites, latents)
    return torch.cat([latents[site.name].reshape((*batch, -1)) for site in sites], -1)


def latents_of(sites: Sequence[LatentSite], numbers: Tensor) -> Latents:
    """The inverse of `numbers_of`."""
    parts = numbers.split([site.shape.numel() for site in sites], -1)
    return {s.name: part.reshape(numbers.shape[:-1] + s.shape) for s, part in zip(sites, parts, strict=True)}


def _mapped(support: Constraint, u: Tensor) -> tuple[Tensor, Tensor]:
    bijector = biject_to(support)
    value = bijector(u)
    return value, bijector.log_abs_det_jacobian(u, value)


class Constrained(Messenger):
    """Gives a run of a model its latents from one unconstrained point `(D,)`, each in the support it has in this run.

    Attributes:
        parts: the unconstrained numbers of each site, by name.
        values: the latents so far, by name.
        log_jacobian: the log absolute determinant of the Jacobian of the map to these, a scalar.
    """

    def __init__(self, sites: Sequence[LatentSite], u: Tensor) -> None:
        super().__init__()
        self.parts = split(sites, u)
        self.values: Latents = {}
        self.log_jacobian = u.new_zeros(())

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.parts:
            msg["value"], log_det = _mapped(msg["fn"].support, self.parts[msg["name"]])
            self.values[msg["name"]] = msg["value"]
            self.log_jacobian = self.log_jacobian + log_det.sum()
