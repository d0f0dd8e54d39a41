"""Normals in unconstrained space: what Pyro's normal autoguides stand for, and their ELBO on fixed draws.

A draw of such a guide is `u = loc + factor e` with a standard normal `e` `(D,)`. The methods of this folder work with
the locations and the factors themselves, and put what they found into the guide's own parameters at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from torch import Tensor
from torch.distributions import transform_to
from torch.func import vmap

from ppl_vi.numerics.vmapping import loop_over
from ppl_vi.svi.program import Program
from ppl_vi.svi.randomness import pseudo_random
from ppl_vi.svi.start import placed_parameters
from ppl_vi.svi.start_points import Centres, conditional_scale
from ppl_vi.target.target import Target

MEAN_FIELD = (AutoNormal, AutoDiagonalNormal)
KNOWN = "AutoNormal, AutoDiagonalNormal and AutoMultivariateNormal"
LossOf = Callable[..., Tensor]


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


def fixed_noise(program: Program, num: int, num_replicas: int, seed: int) -> tuple[Tensor, ...]:
    """The fixed draws of every problem and replica, for each draw of the guide `(B, R, num, *shape)`."""
    generator = torch.Generator(device=program.initial.device).manual_seed(seed)
    return pseudo_random(program.latent_draws, (program.target.num_problems, num_replicas, num), generator)


def as_vectors(noise: tuple[Tensor, ...]) -> Tensor:
    """Noise of each draw, `(B, R, M, *shape)`, as one vector for all numbers, `(B, R, M, D)`."""
    return torch.cat([part.flatten(3) if part.dim() > 3 else part[..., None] for part in noise], -1)


def log_density_at(target: Target) -> Callable[..., Tensor]:
    """log p(x, z(u)) + log |dz/du| at points `(M, D)` of one problem, `(M,)`, nats: of `(points, *row)`."""
    over = loop_over if target.many_at_once() is not None else vmap

    def at(points: Tensor, *row: Tensor) -> Tensor:
        return over(lambda u: target.log_density_of_row(u, *row))(points)

    return at


# ---- the numbers over which the ELBO on fixed draws is maximised


def packed(normals: Centres, mean_field: bool) -> Tensor:
    """`(loc, log scale)` or `(loc, log of the factor's diagonal, the factor's rows below it)`, `(B, R, P)`."""
    diagonal = torch.diagonal(normals.factor, dim1=-2, dim2=-1).log()
    if mean_field:
        return torch.cat([normals.loc, diagonal], -1)
    dim = normals.loc.shape[-1]
    below = torch.tril_indices(dim, dim, offset=-1)
    return torch.cat([normals.loc, diagonal, normals.factor[..., below[0], below[1]]], -1)


def unpacked(x: Tensor, dim: int, mean_field: bool) -> Centres:
    """The inverse of `packed`, for `D = dim`."""
    loc, log_diagonal, rest = x[..., :dim], x[..., dim : 2 * dim], x[..., 2 * dim :]
    factor = torch.diag_embed(log_diagonal.exp())
    if mean_field:
        return Centres(loc, log_diagonal.exp(), factor)
    factor = factor + _below(rest, dim)
    return Centres(loc, conditional_scale(factor), factor)


def _below(rest: Tensor, dim: int) -> Tensor:
    """The numbers below the diagonal `(..., D (D - 1) / 2)` as matrices `(..., D, D)`."""
    row, column = torch.tril_indices(dim, dim, offset=-1)
    place = torch.zeros(dim * dim, len(row), dtype=rest.dtype, device=rest.device)
    place[row * dim + column, torch.arange(len(row))] = 1.0
    return (rest @ place.mT).unflatten(-1, (dim, dim))


def sampled_loss(target: Target, mean_field: bool) -> LossOf:
    """Minus the ELBO of one normal on fixed draws, nats, as a function of `(x, e, *row)`.

        - 1/M sum_m log p(x, u_m) - log det factor - D/2 log(2 pi e),   u_m = loc + factor e_m,

    with the density in unconstrained space and the entropy in closed form; `x` is what `packed` gives, `e` `(M, D)`.
    """
    at, dim = log_density_at(target), target.dim
    constant = dim / 2 * math.log(2 * math.pi * math.e)

    def loss(x: Tensor, e: Tensor, *row: Tensor) -> Tensor:
        loc, log_diagonal = x[:dim], x[dim : 2 * dim]
        moved = e * log_diagonal.exp()
        if not mean_field:
            moved = moved + e @ _below(x[2 * dim :], dim).mT
        return -at(loc + moved, *row).mean() - log_diagonal.sum() - constant

    return loss
