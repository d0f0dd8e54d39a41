"""Normals in unconstrained space: what Pyro's normal autoguides stand for.

A draw of such a guide is `u = loc + factor e` with a standard normal `e` `(D,)`. The methods of this folder work with
the locations and the factors themselves, and put what they found into the guide's own parameters at the end.
"""

from __future__ import annotations

import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from torch import Tensor
from torch.distributions import transform_to

from ppl_vi.svi.program import Program
from ppl_vi.svi.start import placed_parameters
from ppl_vi.svi.start_points import Centres, conditional_scale
from ppl_vi.target.target import Target

MEAN_FIELD = (AutoNormal, AutoDiagonalNormal)
KNOWN = "AutoNormal, AutoDiagonalNormal and AutoMultivariateNormal"


def is_mean_field(program: Program) -> bool:
    """Whether the guide is a normal whose numbers are independent in unconstrained space."""
    return type(program.guide) in MEAN_FIELD


def no_normal(program: Program) -> str | None:
    """Says why a guide is no normal whose location and factor are known, or gives None where it is."""
    if type(program.guide) not in (*MEAN_FIELD, AutoMultivariateNormal):
        return f"it is for normals in unconstrained space ({KNOWN}), and the guide is none of these"
    if program.draws != program.latent_draws:
        return "a plate takes a part of its data in each step, so that there is no fixed objective"
    return None


def normals_of(program: Program, theta: Tensor) -> Centres:
    """Location, scale given the other numbers, and factor of the normals with parameters `theta` `(B, R, P)`."""
    own, values = program.guide, program.layout.unflatten(theta)
    to_scale = transform_to(own.scale_constraint)
    if type(own) is AutoNormal:
        names = [site.name for site in program.target.latents]
        loc = _joined([values[f"locs.{name}_unconstrained"] for name in names], theta)
        scale = to_scale(_joined([values[f"scales.{name}_unconstrained"] for name in names], theta))
        return Centres(loc, scale, torch.diag_embed(scale))
    loc = values["loc" if "loc" in values else "loc_unconstrained"]
    scale = to_scale(values["scale_unconstrained"])
    if type(own) is AutoDiagonalNormal:
        return Centres(loc, scale, torch.diag_embed(scale))
    factor = scale[..., None] * transform_to(own.scale_tril_constraint)(values["scale_tril_unconstrained"])
    return Centres(loc, conditional_scale(factor), factor)


def _joined(parts: list[Tensor], theta: Tensor) -> Tensor:
    """Tensors `(B, R, *shape)` as one `(B, R, D)`."""
    return torch.cat([part.reshape(*theta.shape[:2], -1) for part in parts], -1)


def theta_of(program: Program, normals: Centres) -> Tensor:
    """The guide's parameters of normals, `(B, R, P)`."""
    return placed_parameters(type(program.guide), program.target, program.guide, program.layout, normals, 0)


def fixed_draws(target: Target, num: int, num_replicas: int, seed: int) -> Tensor:
    """The fixed draws of every problem and replica, the same for every normal guide, `(B, R, num, D)`."""
    generator = torch.Generator(device=target.device).manual_seed(seed)
    shape = target.num_problems, num_replicas, num, target.dim
    return torch.randn(shape, generator=generator, dtype=target.dtype, device=target.device)


def as_noise(program: Program, e: Tensor) -> tuple[Tensor, ...]:
    """Draws `(B, R, M, D)` as the noise of each draw of the guide, `(B, R, M, *shape)`."""
    shapes = [draw.shape for draw in program.latent_draws]
    parts = e.split([shape.numel() for shape in shapes], -1)
    return tuple(part.reshape(*e.shape[:3], *shape) for part, shape in zip(parts, shapes, strict=True))
