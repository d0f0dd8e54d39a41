"""Coordinates in which the posterior of a hierarchy is nearly round, for chains to move in.

Where a latent z has a prior whose location a and scale b move with other latents, and b may be small, the posterior is
a funnel. There z is written as

    z = m + s u,    1 / s^2 = 1 / b^2 + sum_k w_k,    m = a + s^2 sum_k w_k (c_k - a),

site after site while the model runs; the numbers of a vector with a scale matrix follow one another like sites, each
given those before. If the prior is normal and what else the model says of z has the log density
-sum_k w_k (z - c_k)^2 / 2, then u is Normal(0, 1) whatever the others are. Without any w this is the non-centred form
z = a + b u; with w far above 1 / b^2 it is the centred one. Each element has centers c_k of its own and

    w_k = exp(r_k) prod_f sigma_f^p_kf >= 0

of the scales sigma that were drawn before: data y ~ Normal(z, sigma) pull by 1 / sigma^2. A second term stands for what
later latents say, as in a random walk. Whatever the numbers are, it is a bijection, its Jacobian is part of the
density, and log p(x) stays the same. They are those with which, over draws, the gradient in u is nearest to -u in the
mean of squares.

Sources: Papaspiliopoulos, Roberts and Sköld (2007), A general framework for the parametrization of hierarchical models;
Kleppe (2019), Dynamically rescaled Hamiltonian Monte Carlo for Bayesian hierarchical models; Gorinova, Moore and
Hoffman (2020), Automatic reparameterisation of probabilistic programs; Hyvärinen (2005), Estimation of non-normalized
statistical models by score matching; Marquardt (1963), An algorithm for least-squares estimation of nonlinear
parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.distributions.transforms import biject_to
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints
from torch.func import vmap

from ppl_vi.target.inspection import SEEDS, run_model
from ppl_vi.target.isolation import whole_plates
from ppl_vi.target.log_density import Density
from ppl_vi.target.sites import split
from ppl_vi.target.target import Target

Frame = tuple[Tensor, Tensor, Tensor, Tensor]  # the prior's location and scale, s, and the scales' logarithms
LINES = (constraints.real, constraints.positive)
SCALES = (constraints.positive, constraints.nonnegative)
MOST_SCALES = 6  # that a pull may depend on
MOST_POWER = 3.0  # of each: a precision goes with -2, and far out larger ones would overflow
ITERATIONS = 20  # of Marquardt's method
DAMPED, FACTOR = 1e-2, 4.0  # how it begins, and how much more or less it is damped after each step


def prior_frame(fn: Any, shape: torch.Size) -> tuple[Tensor, Tensor] | None:
    """Location and scale of a prior on the line, or of a latent's logarithm under LogNormal, of the latent's shape.

    Of a vector with a location and a triangular scale matrix these: the scale has one axis more. Only how well chains
    move depends on whether they are what their names say.
    """
    while type(fn).__name__ in ("Independent", "ExpandedDistribution"):
        fn = fn.base_dist
    loc, matrix, scale = (getattr(fn, name, None) for name in ("loc", "scale_tril", "scale"))
    if loc is not None and matrix is not None and fn.support == constraints.real_vector:
        return loc.expand(shape), matrix.expand(shape + shape[-1:])
    if loc is None or scale is None or fn.event_shape or fn.support not in LINES:
        return None
    return loc.expand(shape), scale.expand(shape)


@dataclass(frozen=True, eq=False)
class GaussianSiteTerm:
    """What the model says of a latent beside its prior, as if that were a sum of `K` terms -w (z - center)^2 / 2.

    Attributes:
        center: `(*shape, K)`.
        precision: w where all scales drawn before are 1, `(*shape, K)`.
        powers: of these `F` scales in w, `(*shape, K, F)`.
    """

    center: Tensor
    precision: Tensor
    powers: Tensor

    @staticmethod
    def none(like: Tensor, num_scales: int) -> GaussianSiteTerm:
        """No pull at all on a latent like that; of two terms where there are scales that it may depend on."""
        nothing = like.new_zeros(*like.shape, 2 if num_scales else 1)
        return GaussianSiteTerm(nothing, nothing, like.new_zeros(*nothing.shape, num_scales))

    @property
    def numbers(self) -> tuple[Tensor, ...]:
        """All of it but what is empty."""
        return (self.center, self.precision, self.powers) if self.powers.numel() else (self.center, self.precision)

    def of(self, numbers: Iterable[Tensor]) -> GaussianSiteTerm:
        """One of the same shapes from its numbers."""
        return replace(self, **dict(zip(("center", "precision", "powers"), numbers, strict=False)))

    def frame(self, loc: Tensor, scale: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
        """m and s for a prior of that location and scale where the scales before have these logarithms, `(F,)`."""
        w = self.precision * (self.powers * log_scales).sum(-1).exp() if len(log_scales) else self.precision
        s = scale * (1 + w.sum(-1) * scale.square()).rsqrt()
        return loc + s.square() * (w * (self.center - loc[..., None])).sum(-1), s

    def element(self, place: int) -> GaussianSiteTerm:
        """That of one of a vector's numbers."""
        return GaussianSiteTerm(
            self.center[..., place, :], self.precision[..., place, :], self.powers[..., place, :, :]
        )


@dataclass(frozen=True, eq=False)
class Reparametrisation:
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
    pulls: dict[str, GaussianSiteTerm]
    plain: Density
    density: Density

    @staticmethod
    def of(target: Target, problem: int) -> Reparametrisation:
        """The non-centred ones, of all latents whose prior's location or scale moves with other latents."""
        with whole_plates():
            traces = [run_model(target.model, target.row(problem), target.dtype, target.name, seed) for seed in SEEDS]
        pulls, plain, num_scales = {}, Density.of(target, problem), 0
        for site in target.latents:
            shape = site.unconstrained_shape
            frames = [prior_frame(trace.nodes[site.name]["fn"], shape) for trace in traces]
            pairs = [frame for frame in frames if frame is not None]
            if any(not all(map(torch.equal, pairs[0], pair)) for pair in pairs):
                pulls[site.name] = GaussianSiteTerm.none(pairs[0][0], min(num_scales, MOST_SCALES))
            else:
                num_scales += _is_scale(site.support, shape)
        return Reparametrisation(target, problem, pulls, plain, _density(target, problem, pulls, plain))

    def pulled(self, pulls: dict[str, GaussianSiteTerm]) -> Reparametrisation:
        """Those in which the same latents are pulled otherwise."""
        return replace(self, pulls=pulls, density=self.density.with_numbers(_numbers(pulls)))

    def outward(self, u: Tensor) -> Tensor:
        """Points `(S, D)` in the coordinates of `Target.constrain`, `(S, D)`."""
        return _walked(self.target, self.problem, self.pulls, u)[0] if self.pulls else u

    def inward(self, v: Tensor) -> Tensor:
        """The inverse of `outward`."""
        return _walked(self.target, self.problem, self.pulls, v, inward=True)[0] if self.pulls else v

    def fitted(self, u: Tensor, slope: Tensor) -> Reparametrisation:
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
        for name in self.pulls:
            loc, scale, s, log_scales = frames[name]
            pulls[name] = _regressed(at[name], s, gradient[name] + s * (at[name] - loc) / scale.square(), log_scales)
        return self.pulled(pulls)


def _is_scale(support: Any, shape: torch.Size) -> bool:
    """A positive number, whose unconstrained coordinate is its logarithm."""
    return support in SCALES and shape.numel() == 1


def _numbers(pulls: dict[str, GaussianSiteTerm]) -> tuple[Tensor, ...]:
    return tuple(number for pull in pulls.values() for number in pull.numbers)


def _density(target: Target, problem: int, pulls: dict[str, GaussianSiteTerm], plain: Density) -> Density:
    """That of the coordinates with these pulls, a density with the pulls' numbers."""
    if not pulls:
        return plain
    row = target.row(problem)

    def of(numbers: tuple[Tensor, ...]) -> dict[str, GaussianSiteTerm]:
        left = iter(numbers)
        return {name: pull.of(next(left) for _ in pull.numbers) for name, pull in pulls.items()}

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
    target: Target, problem: int, pulls: dict[str, GaussianSiteTerm], points: Tensor, inward: bool = False
) -> tuple[Tensor, dict[str, Frame]]:
    """Points `(S, D)` in the other coordinates, and the latents' frames there."""
    row = target.row(problem)

    def of_one(point: Tensor) -> tuple[Tensor, dict[str, Frame]]:
        walk = _Walk(target, pulls, point, inward)
        with poutine.block(), whole_plates():
            walk(target.model)(*row)
        return torch.cat([walk.found[site.name].flatten() for site in target.latents]), walk.frames

    with target.isolated(seed=0):
        return vmap(of_one)(points)


def _regressed(z: Tensor, s: Tensor, force: Tensor, log_scales: Tensor) -> GaussianSiteTerm:
    """The centers and w >= 0 with the least mean square of force - s sum_k w_k (c_k - z), over the leading axis.

    First one w for all, by linear regression; then powers of the scales `(S, F)` in it; then two terms, the second of
    which begins without powers. Where the first w is negative there is no pull. Draws count the more the farther out
    their scales lie: they are few, and a neck is where an error of w or c is most of what chains feel.
    """
    if log_scales.shape[1]:
        far = ((log_scales - log_scales.mean(0)) / log_scales.std(0)).square().sum(1)
        emphasis = (1 + far).sqrt().reshape(-1, *(1 for _ in s.shape[1:]))
        s, force = emphasis * s, emphasis * force
    weight = s.square()
    mean = (weight * z).sum(0) / weight.sum(0)
    height = (s * force).sum(0) / weight.sum(0)
    w = -(s * (z - mean) * force).sum(0) / (weight * (z - mean).square()).sum(0)
    told = w.isfinite() & (w > 0)
    w = torch.where(told, w, 1.0)
    terms = torch.stack([torch.where(told, mean + height / w, 0.0), w.log()], -1)[..., None, :]
    if log_scales.shape[1]:
        middle = log_scales.mean(0)
        constant = terms.new_zeros(*terms.shape[:-1], len(middle))
        x = log_scales - middle
        one, loss = _least_squares(z, s, force, x, torch.cat([terms, constant], -1))
        halved = one[..., :2] - one.new_tensor([0.0, math.log(2)])
        start = torch.cat([torch.cat([halved, one[..., 2:]], -1), torch.cat([halved, constant], -1)], -2)
        both, less = _least_squares(z, s, force, x, start)
        nothing = torch.cat([one[..., :1], torch.full_like(one[..., :1], -math.inf), constant], -1)
        terms = torch.where((less < loss)[..., None, None], both, torch.cat([one, nothing], -2))
        terms[..., 1] -= terms[..., 2:] @ middle
    center, log_w, powers = terms[..., 0], terms[..., 1], terms[..., 2:]
    there = told[..., None]
    return GaussianSiteTerm(center * there, torch.where(there, log_w.exp(), 0.0), powers * there[..., None])


def _least_squares(z: Tensor, s: Tensor, force: Tensor, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Centers, logarithms of w and their powers `(*shape, K, 2 + F)` like `theta` and better, by Marquardt's method;
    and the sum of squares that is left, `shape`."""
    x = x.reshape(len(x), *(1 for _ in z.shape[1:]), 1, -1)

    def off(theta: Tensor) -> tuple[Tensor, Tensor]:
        pulls = s[..., None] * (theta[..., 1] + (theta[..., 2:] * x).sum(-1)).exp()
        return force - (pulls * (theta[..., 0] - z[..., None])).sum(-1), pulls

    damping, (residual, pulls) = torch.full_like(theta[..., 0, 0], DAMPED), off(theta)
    loss = residual.square().sum(0)
    for _ in range(ITERATIONS):
        by_log = pulls * (theta[..., 0] - z[..., None])
        jacobian = torch.cat([pulls[..., None], by_log[..., None], by_log[..., None] * x], -1).flatten(-2)
        gram = torch.einsum("s...i,s...j->...ij", jacobian, jacobian)
        toward = torch.einsum("s...i,s...->...i", jacobian, residual)
        ridge = damping[..., None] * torch.diagonal(gram, dim1=-2, dim2=-1) + torch.finfo(gram.dtype).tiny
        step = torch.linalg.solve_ex(gram + torch.diag_embed(ridge), toward[..., None])[0].reshape(theta.shape)
        tried, tried_pulls = off(theta + step)
        better = (tried.square().sum(0) < loss) & ((theta + step)[..., 2:].abs() <= MOST_POWER).flatten(-2).all(-1)
        theta = torch.where(better[..., None, None], theta + step, theta)
        residual, pulls = torch.where(better, tried, residual), torch.where(better[..., None], tried_pulls, pulls)
        loss, damping = residual.square().sum(0), damping * torch.where(better, 1 / FACTOR, FACTOR)
    return theta, loss


class _Walk(Messenger):
    """Gives each latent its value while the model runs.

    Attributes:
        found: each latent's numbers in the other coordinates.
        frames: of the latents whose priors move, as they are at this point.
        log_scales: of the scales so far.
        log_jacobian: of the map from the coordinates to the latents, nats.
    """

    def __init__(self, target: Target, pulls: dict[str, GaussianSiteTerm], point: Tensor, inward: bool = False) -> None:
        super().__init__()
        self.pulls, self.inward = pulls, inward
        self.given = split(target.latents, point)
        self.found: dict[str, Tensor] = {}
        self.frames: dict[str, Frame] = {}
        self.log_scales: list[Tensor] = []
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
            self.found[name], self.frames[name] = self._placed(self.pulls[name], own, *frame)
            self.log_jacobian = self.log_jacobian + self.frames[name][2].log().sum()
        unconstrained = own if self.inward else self.found[name]
        if name not in self.pulls and _is_scale(fn.support, own.shape):
            self.log_scales.append(unconstrained.reshape(()))
        bijector = biject_to(fn.support)
        msg["value"], msg["is_observed"] = bijector(unconstrained), True
        self.log_jacobian = self.log_jacobian + bijector.log_abs_det_jacobian(unconstrained, msg["value"]).sum()

    def _placed(self, pull: GaussianSiteTerm, own: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Frame]:
        """A latent's numbers in the other coordinates; those of a vector one after another, as a chain of latents."""
        num = pull.powers.shape[-1]
        log_scales = torch.stack(self.log_scales[:num]) if num else own.new_zeros(0)
        if scale.dim() == loc.dim():
            m, s = pull.frame(loc, scale, log_scales)
            return (own - m) / s if self.inward else m + s * own, (loc, scale, s, log_scales)
        moved, frames = [], []
        past: list[Tensor] = []
        for place in range(loc.shape[-1]):
            at = loc[..., place]
            for before, standard in enumerate(past):
                at = at + scale[..., place, before] * standard
            width = scale[..., place, place]
            m, s = pull.element(place).frame(at, width, log_scales)
            u = own[..., place]
            moved.append((u - m) / s if self.inward else m + s * u)
            past.append(((u if self.inward else moved[-1]) - at) / width)
            frames.append((at, width, s))
        locs, widths, s = (torch.stack(part, -1) for part in zip(*frames, strict=True))
        return torch.stack(moved, -1), (locs, widths, s, log_scales)
