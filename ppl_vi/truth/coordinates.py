"""Coordinates in which the posterior of a hierarchy is nearly round, for chains to move in.

Where a latent z has a prior whose location a and scale b move with other latents, and b may be small, the posterior is
a funnel. There z is written as

    z = m + s u,    1 / s^2 = 1 / b^2 + w,    m = a + s^2 (h - w a),

with fixed numbers w >= 0 and h for each element, site after site while the model runs. If the prior is normal and what
else the model says of z has the log density h z - w z^2 / 2, then u is Normal(0, 1) whatever the others are. With
w = h = 0 this is the non-centred form z = a + b u; with w far above 1 / b^2 it is the centred one. Whatever they are,
it is a bijection, its Jacobian is part of the density, and log p(x) stays the same.

w and h are those with which, over draws, the gradient in u is nearest to -u in the mean of squares.

Sources: Papaspiliopoulos, Roberts and Sköld (2007), A general framework for the parametrization of hierarchical models;
Kleppe (2019), Dynamically rescaled Hamiltonian Monte Carlo for Bayesian hierarchical models; Gorinova, Moore and
Hoffman (2020), Automatic reparameterisation of probabilistic programs; Hyvärinen (2005), Estimation of non-normalized
statistical models by score matching.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.distributions.transforms import biject_to
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints
from torch.func import vmap

from ppl_vi.inspection import SEEDS, run
from ppl_vi.mapping import whole_plates
from ppl_vi.state import isolated
from ppl_vi.target import Target, split
from ppl_vi.truth.density import Density

LINES = (constraints.real, constraints.positive)


def prior_frame(fn: Any, shape: torch.Size) -> tuple[Tensor, Tensor] | None:
    """Location and scale of a prior on the line, or of a latent's logarithm under LogNormal, of the latent's shape.

    Only how well chains move depends on whether they are what their names say.
    """
    while type(fn).__name__ in ("Independent", "ExpandedDistribution"):
        fn = fn.base_dist
    loc, scale = getattr(fn, "loc", None), getattr(fn, "scale", None)
    if loc is None or scale is None or fn.event_shape or fn.support not in LINES:
        return None
    return loc.expand(shape), scale.expand(shape)


@dataclass(frozen=True, eq=False)
class Pull:
    """What the model says of a latent beside its prior, as if its log density were h z - w z^2 / 2.

    Attributes:
        slope: h, of the latent's shape.
        precision: w, of the same.
    """

    slope: Tensor
    precision: Tensor

    def frame(self, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """m and s for a prior of that location and scale."""
        s = scale * (1 + self.precision * scale.square()).rsqrt()
        return loc + s.square() * (self.slope - self.precision * loc), s


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Those of one problem.

    Attributes:
        target: whose latents.
        problem: which of its problems.
        pulls: by name, of the latents that are written relative to others; without any, the coordinates are those of
            `Target.constrain`.
        plain: the density in the coordinates of `Target.constrain`.
        density: the density in these.
    """

    target: Target
    problem: int
    pulls: dict[str, Pull]
    plain: Density
    density: Density

    @staticmethod
    def of(target: Target, problem: int) -> Coordinates:
        """The non-centred ones, of all latents whose prior's location or scale moves with other latents."""
        with whole_plates():
            traces = [run(target.model, target.row(problem), target.dtype, target.name, seed) for seed in SEEDS]
        pulls, plain = {}, Density.of(target, problem)
        for site in target.latents:
            shape = site.unconstrained_shape
            frames = [prior_frame(trace.nodes[site.name]["fn"], shape) for trace in traces]
            pairs = [torch.stack(frame) for frame in frames if frame is not None]
            if any(not torch.equal(pairs[0], pair) for pair in pairs):
                pulls[site.name] = Pull(torch.zeros_like(pairs[0][0]), torch.zeros_like(pairs[0][0]))
        return Coordinates(target, problem, pulls, plain, _density(target, problem, pulls, plain))

    def pulled(self, pulls: dict[str, Pull]) -> Coordinates:
        """Those in which the same latents are pulled otherwise."""
        return replace(self, pulls=pulls, density=self.density.with_numbers(_numbers(pulls)))

    def outward(self, u: Tensor) -> Tensor:
        """Points `(S, D)` in the coordinates of `Target.constrain`, `(S, D)`."""
        return _walked(self.target, self.problem, self.pulls, u)[0] if self.pulls else u

    def inward(self, v: Tensor) -> Tensor:
        """The inverse of `outward`."""
        return _walked(self.target, self.problem, self.pulls, v, inward=True)[0] if self.pulls else v

    def fitted(self, u: Tensor, slope: Tensor) -> Coordinates:
        """Those in which the gradient of the log density comes nearest to -u.

        Args:
            u: points in these coordinates, `(S, D)`.
            slope: the gradient in these coordinates there, `(S, D)`.
        """
        if not self.pulls:
            return self
        v, frames = _walked(self.target, self.problem, self.pulls, u)
        at, gradient = split(self.target.latents, v), split(self.target.latents, slope)
        pulls = {}
        for name, pull in self.pulls.items():
            loc, scale = frames[name]
            _, s = pull.frame(loc, scale)
            pulls[name] = _regressed(at[name], s, gradient[name] + s * (at[name] - loc) / scale.square())
        return self.pulled(pulls)


def _numbers(pulls: dict[str, Pull]) -> tuple[Tensor, ...]:
    return tuple(number for pull in pulls.values() for number in (pull.slope, pull.precision))


def _density(target: Target, problem: int, pulls: dict[str, Pull], plain: Density) -> Density:
    """That of the coordinates with these pulls, a density with the pulls' numbers."""
    if not pulls:
        return plain
    row, names = target.row(problem), list(pulls)

    def of(numbers: tuple[Tensor, ...]) -> dict[str, Pull]:
        return dict(zip(names, map(Pull, numbers[::2], numbers[1::2]), strict=True))

    def of_one(u: Tensor, *numbers: Tensor) -> Tensor:
        walk = _Walk(target, of(numbers), u)
        with poutine.block(), whole_plates():
            trace = poutine.trace(walk(target.model)).get_trace(*row)
            return trace.log_prob_sum() + walk.log_jacobian

    def inside(u: Tensor, *numbers: Tensor) -> Tensor:
        v, _ = _walked(target, problem, of(numbers), u)
        return v.isfinite().all(1) & plain.inside(v)

    def culprit(u: Tensor, *numbers: Tensor) -> str:
        return plain.culprit(_walked(target, problem, of(numbers), u[None])[0][0])

    return Density(of_one, plain.dim, plain.dtype, inside, plain.name, target.width, culprit, _numbers(pulls))


def _walked(
    target: Target, problem: int, pulls: dict[str, Pull], points: Tensor, inward: bool = False
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Points `(S, D)` in the other coordinates, and the priors' locations and scales there."""
    row = target.row(problem)

    def of_one(point: Tensor) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        walk = _Walk(target, pulls, point, inward)
        with poutine.block(), whole_plates():
            walk(target.model)(*row)
        return torch.cat([walk.found[site.name].flatten() for site in target.latents]), walk.frames

    with isolated(target.dtype, seed=0):
        return vmap(of_one)(points)


def _regressed(z: Tensor, s: Tensor, force: Tensor) -> Pull:
    """The h and w >= 0 with the least mean square of force - s (h - w z), over the leading axis."""
    weight = s.square()
    mean = (weight * z).sum(0) / weight.sum(0)
    height = (s * force).sum(0) / weight.sum(0)
    away = z - mean
    w = -(s * away * force).sum(0) / (weight * away.square()).sum(0)
    told = w.isfinite() & (w > 0)
    return Pull(torch.where(told, height + w * mean, 0.0), torch.where(told, w, 0.0))


class _Walk(Messenger):
    """Gives each latent its value while the model runs.

    Attributes:
        found: each latent's numbers in the other coordinates.
        frames: location and scale of the priors that move, as they are at this point.
        log_jacobian: of the map from the coordinates to the latents, nats.
    """

    def __init__(self, target: Target, pulls: dict[str, Pull], point: Tensor, inward: bool = False) -> None:
        super().__init__()
        self.pulls, self.inward = pulls, inward
        self.given = split(target.latents, point)
        self.found: dict[str, Tensor] = {}
        self.frames: dict[str, tuple[Tensor, Tensor]] = {}
        self.log_jacobian = point.new_zeros(())

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if name not in self.given:
            return
        own = self.given[name]
        self.found[name] = own
        if name in self.pulls:
            frame = prior_frame(fn, own.shape)
            assert frame is not None
            self.frames[name] = frame
            m, s = self.pulls[name].frame(*frame)
            self.found[name] = (own - m) / s if self.inward else m + s * own
            self.log_jacobian = self.log_jacobian + s.log().sum()
        unconstrained = own if self.inward else self.found[name]
        bijector = biject_to(fn.support)
        msg["value"], msg["is_observed"] = bijector(unconstrained), True
        self.log_jacobian = self.log_jacobian + bijector.log_abs_det_jacobian(unconstrained, msg["value"]).sum()
