"""How much of a posterior's mass lies where latents are rounded onto an end of their support.

A number in double precision comes no nearer to an end of its support than the end's own rounding, 1e-16 below 1, unless
the end is 0. Where a density grows towards such an end, as that of Beta(1, 0.05) does, much of its mass is nearer
still: no evaluation of the model can see it, and log p(x) lacks it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vi.numerics.vmapping import vmap_or_loop
from ppl_vi.target.target import Target
from ppl_vi.truth.result import Check, Truth

# Sigmoids are rounded onto 1 at 36.7. An end that is not reached by here is at 0 or at infinity.
FARTHEST = 60
# The slope of the log density towards an end is taken between these shares of the way from 0 to it. Nearer to it, the
# latent's own rounding shows; farther off, the density has not taken the form that it has at the end.
SLOPE_BETWEEN = (1 / 3, 2 / 3)
# Posterior points around which the mass is found, and nodes along a coordinate for its mass around each of them.
NUM_POINTS, NUM_NODES = 16, 64
# Nodes lie on both sides of each point, from the first distance to the second.
NODE_DISTANCES = (1e-3, 100.0)
# An end is left out where the mass beyond it is no more than this share of that within the unit around each point.
NEGLIGIBLE = 1e-18
# The largest share of the mass that may be missing. It is added to the error of log p(x), twice.
MAX_MISSING = 1e-6


class End(NamedTuple):
    """An end of the support of one number, onto which it is rounded.

    Attributes:
        site: whose number it is.
        coordinate: its place in unconstrained space.
        sign: the direction of the end there, 1 or -1.
        distance: how far from 0 it is rounded onto the end.
    """

    site: str
    coordinate: int
    sign: int
    distance: float


def rounded_ends(target: Target) -> list[End]:
    """The ends onto which latents are rounded, before they are `FARTHEST` away from 0 in unconstrained space."""
    found, first = [], 0
    for site in target.latents:
        size = math.prod(site.unconstrained_shape)
        for sign in (1, -1):
            distance = _rounded_at(target, first, first + size, sign)
            if distance is not None:
                found += [End(site.name, first + i, sign, distance) for i in range(size)]
        first += size
    return found


def _rounded_at(target: Target, first: int, last: int, sign: int) -> float | None:
    """From where on latents stay as they are if the coordinates from `first` to `last` go on; None if they do not."""
    u = torch.zeros((FARTHEST + 1, target.dim), dtype=target.dtype, device=target.device)
    u[:, first:last] = sign * torch.arange(FARTHEST + 1, dtype=u.dtype, device=u.device)[:, None]
    latents = torch.cat([value.reshape(len(u), -1) for value in target.constrain(u)[0].values()], 1)
    is_moved = (latents[1:] != latents[:-1]).any(1).nonzero()[:, 0]
    last_moved = int(is_moved[-1]) + 1 if len(is_moved) else 0
    return float(last_moved) if last_moved < FARTHEST else None


def missing_mass(target: Target, problem: int, u: Tensor) -> dict[str, float]:
    """The share of one problem's mass that lies beyond each site's rounded ends, where it is not negligible.

    Along one coordinate, with the others as they are at a point of the posterior, the density in unconstrained space
    falls as exp(-b u) towards an end. The mass beyond the end's rounding at distance r follows from its height and its
    slope b before it, f(r) / b. The mean over the points of its share of the mass along the coordinate is the share of
    all mass. It is 1 where the density does not fall.

    Args:
        target, problem: whose posterior it is.
        u: points of the posterior, `(S, D)`.
    """
    found: dict[str, float] = {}
    for end in rounded_ends(target):
        log_mass = _log_mass_beyond(target, problem, u, end)
        if bool((log_mass - _log_density(target, problem, u) < math.log(NEGLIGIBLE)).all()):
            continue
        share = (log_mass - _log_mass_along(target, problem, u, end.coordinate)).sigmoid().mean()
        found[end.site] = found.get(end.site, 0.0) + float(share)
    return found


def _log_density(target: Target, problem: int, u: Tensor) -> Tensor:
    rows = target.row(problem)
    with target.isolated(seed=0), torch.no_grad():
        return vmap_or_loop(lambda point: target.log_density_of_row(point, *rows))(u)


def _moved(u: Tensor, coordinate: int, places: Tensor) -> Tensor:
    """The points `(S, D)` with one coordinate at `places` `(S, N)`, `(S, N, D)`."""
    moved = u[:, None].repeat(1, places.shape[1], 1)
    moved[:, :, coordinate] = places
    return moved


def _log_mass_beyond(target: Target, problem: int, u: Tensor, end: End) -> Tensor:
    """The logarithm of the mass beyond an end's rounding along its coordinate at each point, `(S,)`."""
    distances = end.distance * torch.tensor(SLOPE_BETWEEN, dtype=u.dtype, device=u.device)
    moved = _moved(u, end.coordinate, (end.sign * distances).expand(len(u), -1))
    far, near = _log_density(target, problem, moved.flatten(0, 1)).reshape(len(u), -1).unbind(1)
    fall = (far - near) / (distances[1] - distances[0])
    beyond = near - fall * (end.distance - distances[1]) - torch.where(fall > 0, fall, 1.0).log()
    seen = torch.where(fall > 0, beyond, torch.inf)
    return torch.where(near == -torch.inf, -torch.inf, seen)


def _log_mass_along(target: Target, problem: int, u: Tensor, coordinate: int) -> Tensor:
    """The logarithm of all mass along one coordinate at each point, by the trapezoidal rule, `(S,)`."""
    least, most = (math.log10(distance) for distance in NODE_DISTANCES)
    steps = torch.logspace(least, most, NUM_NODES // 2, dtype=u.dtype, device=u.device)
    offsets = torch.cat([-steps.flip(0), torch.zeros_like(steps[:1]), steps])
    places = u[:, coordinate, None] + offsets
    values = _log_density(target, problem, _moved(u, coordinate, places).flatten(0, 1)).reshape(places.shape)
    widths = torch.zeros_like(offsets)
    widths[1:] += offsets.diff() / 2
    widths[:-1] += offsets.diff() / 2
    return (torch.where(values.isnan(), -torch.inf, values) + widths.log()).logsumexp(1)


def with_missing_mass(truth: Truth, seed: int) -> Truth:
    """The truth with what rounding at the ends of supports hides in its errors, and uncertified where that is much."""
    target = truth.target
    if not target.dim or target.decoded is not None or not rounded_ends(target) or not truth.points:
        return truth
    missing = []
    for problem in range(target.num_problems):
        weight = truth.points[0].log_weight[problem].exp().cpu().numpy()
        chosen = np.random.default_rng(seed).choice(len(weight), NUM_POINTS, p=weight / weight.sum())
        missing.append(missing_mass(target, problem, truth.points[0].u[problem][torch.from_numpy(chosen)]))
    total = np.array([sum(of_site.values()) for of_site in missing])
    check = Check("share of the mass where latents are rounded onto an end of their support", total.max(), MAX_MISSING)
    if not check.error:
        return truth
    reasons = truth.reasons or ("",) * len(total)
    with np.errstate(divide="ignore"):  # all of the mass may be missing
        hidden = -np.log1p(-total.clip(max=1.0))
    told = [_reason(of_site) if sum(of_site.values()) > MAX_MISSING else "" for of_site in missing]
    return replace(
        truth,
        log_evidence_error=truth.log_evidence_error + 2 * hidden,
        checks=(*truth.checks, check),
        grade=truth.grade if check.passed else "uncertified",
        reasons=tuple("; ".join(filter(None, pair)) for pair in zip(reasons, told, strict=True)),
    )


def _reason(missing: dict[str, float]) -> str:
    site, share = max(missing.items(), key=lambda pair: pair[1])
    return (
        f"site '{site}' has some {share:.1g} of the mass nearer to an end of its support than double precision can "
        "tell: let the support end at 0 there, as by 1 - z in place of z"
    )
