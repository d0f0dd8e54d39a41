"""Coordinates in which the posterior of a hierarchy is nearly round, for chains to move in.

Where a latent z has a prior whose location a and scale b depend on other latents, and b may be small, the posterior is
a funnel, through whose neck chains hardly pass. There z is replaced by its relative coordinate u,

    z = m + s u,

with the mean m and the standard deviation s of the normal density that is the prior Normal(a, b^2) times a Gaussian
site term (`site_terms`). This is done site after site while the model runs; the elements of a vector with a scale
matrix follow one another like sites, each given those before. If the prior is normal and the term is exactly what else
the model says of z, then u is Normal(0, 1) whatever the other latents are. With a term of precision 0 this is the
non-centred form z = a + b u; with a precision far above 1 / b^2 it is the centred form.

Whatever the term is, the map is a bijection. Its Jacobian is part of the density, so log p(x) stays the same. The terms
are fitted to draws, such that the gradient of the log density in u is as near to -u as possible.

Sources: Papaspiliopoulos, Roberts and Sköld (2007), A general framework for the parametrization of hierarchical models;
Kleppe (2019), Dynamically rescaled Hamiltonian Monte Carlo for Bayesian hierarchical models; Gorinova, Moore and
Hoffman (2020), Automatic reparameterisation of probabilistic programs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

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
from ppl_vi.truth.chains.site_terms import GaussianSiteTerm, fit_site_term

# The number of scales, the first ones that the model draws, on whose powers a precision may depend. Each adds two
# unknowns to every element's least squares.
MAX_SCALES = 6
LINE_SUPPORTS = (constraints.real, constraints.positive)
SCALE_SUPPORTS = (constraints.positive, constraints.nonnegative)


class Frame(NamedTuple):
    """Where a latent's relative coordinate has its origin and its unit, at one point.

    Attributes:
        loc: a, the prior's location, of the latent's shape.
        scale: b, the prior's scale, of the latent's shape.
        conditional_sd: s, of the latent's shape.
        log_scales: logarithms of the scales drawn before on which s depends, `(F,)`.
    """

    loc: Tensor
    scale: Tensor
    conditional_sd: Tensor
    log_scales: Tensor


def prior_loc_and_scale(fn: Any, shape: torch.Size) -> tuple[Tensor, Tensor] | None:
    """Location and scale of a prior on the line, or of a latent's logarithm under LogNormal; None for other priors.

    Both have the latent's shape in unconstrained space. For a vector with a location and a triangular scale matrix, the
    second one is that matrix, with one more axis. A prior whose `loc` and `scale` mean something else makes chains move
    badly, but the draws stay right.
    """
    while type(fn).__name__ in ("Independent", "ExpandedDistribution"):
        fn = fn.base_dist
    loc, matrix, scale = (getattr(fn, name, None) for name in ("loc", "scale_tril", "scale"))
    if loc is not None and matrix is not None and fn.support == constraints.real_vector:
        return loc.expand(shape), matrix.expand(shape + shape[-1:])
    if loc is None or scale is None or fn.event_shape or fn.support not in LINE_SUPPORTS:
        return None
    return loc.expand(shape), scale.expand(shape)


@dataclass(frozen=True, eq=False)
class Reparametrisation:
    """The coordinates of one problem: relative ones for some latents, those of `Target.constrain` for the others.

    Attributes:
        target: whose latents they are coordinates of.
        problem: which of the target's problems.
        site_terms: by name, of the latents that have relative coordinates.
        unconstrained_density: the density in the coordinates of `Target.constrain`.
        density: the density in these coordinates.
    """

    target: Target
    problem: int
    site_terms: dict[str, GaussianSiteTerm]
    unconstrained_density: Density
    density: Density

    @staticmethod
    def of(target: Target, problem: int) -> Reparametrisation:
        """The non-centred form of every latent whose prior's location or scale depends on other latents.

        Whether they depend is seen by comparing a few runs of the model.
        """
        with whole_plates():
            traces = [run_model(target.model, target.row(problem), target.dtype, target.name, seed) for seed in SEEDS]
        site_terms, unconstrained, num_scales = {}, Density.of(target, problem), 0
        for site in target.latents:
            shape = site.unconstrained_shape
            priors = [prior_loc_and_scale(trace.nodes[site.name]["fn"], shape) for trace in traces]
            known = [prior for prior in priors if prior is not None]
            if any(not all(map(torch.equal, known[0], prior)) for prior in known):
                site_terms[site.name] = GaussianSiteTerm.zero(known[0][0], min(num_scales, MAX_SCALES))
            else:
                num_scales += is_scale(site.support, shape)
        density = _density(target, problem, site_terms, unconstrained)
        return Reparametrisation(target, problem, site_terms, unconstrained, density)

    def with_site_terms(self, site_terms: dict[str, GaussianSiteTerm]) -> Reparametrisation:
        """The coordinates of the same latents with other terms of the same shapes."""
        return replace(self, site_terms=site_terms, density=self.density.with_numbers(_numbers(site_terms)))

    def to_unconstrained(self, u: Tensor) -> Tensor:
        """Maps points `(S, D)` in these coordinates to those of `Target.constrain`, `(S, D)`."""
        return _mapped(self.target, self.problem, self.site_terms, u)[0] if self.site_terms else u

    def from_unconstrained(self, v: Tensor) -> Tensor:
        """The inverse of `to_unconstrained`."""
        return _mapped(self.target, self.problem, self.site_terms, v, inverse=True)[0] if self.site_terms else v

    def relative(self, v: Tensor) -> tuple[Tensor, dict[str, Frame]]:
        """What `from_unconstrained` gives, and the frames at these points of the latents with relative coordinates."""
        return _mapped(self.target, self.problem, self.site_terms, v, inverse=True)

    def fitted(self, u: Tensor, slope: Tensor) -> Reparametrisation:
        """The coordinates in which the gradient of the log density comes nearest to minus the point.

        Args:
            u: points in these coordinates, `(S, D)`.
            slope: the gradient in these coordinates there, `(S, D)`.
        """
        if not self.site_terms:
            return self
        v, frames = _mapped(self.target, self.problem, self.site_terms, u)
        z, gradient = split(self.target.latents, v), split(self.target.latents, slope)
        site_terms = {}
        for name in self.site_terms:
            loc, scale, s, log_scales = frames[name]
            force = gradient[name] + s * (z[name] - loc) / scale.square()  # without the prior's part
            site_terms[name] = fit_site_term(z[name], s, force, log_scales)
        return self.with_site_terms(site_terms)


def is_scale(support: Any, shape: torch.Size) -> bool:
    """Whether a latent is one positive number, whose unconstrained coordinate is its logarithm."""
    return support in SCALE_SUPPORTS and shape.numel() == 1


def _numbers(site_terms: dict[str, GaussianSiteTerm]) -> tuple[Tensor, ...]:
    """The tensors of all terms, on which the density depends."""
    return tuple(number for term in site_terms.values() for number in term.numbers)


def _density(target: Target, problem: int, site_terms: dict[str, GaussianSiteTerm], unconstrained: Density) -> Density:
    """The density in relative coordinates, as one that depends on the terms' tensors: what is compiled serves all."""
    if not site_terms:
        return unconstrained
    row = target.row(problem)

    def terms_of(numbers: tuple[Tensor, ...]) -> dict[str, GaussianSiteTerm]:
        left = iter(numbers)
        return {name: term.with_numbers(next(left) for _ in term.numbers) for name, term in site_terms.items()}

    def of_one(u: Tensor, *numbers: Tensor) -> Tensor:
        change = _CoordinateChange(target, terms_of(numbers), u)
        with poutine.block(), whole_plates():
            trace = poutine.trace(change(target.model)).get_trace(*row)
            return trace.log_prob_sum() + change.log_jacobian

    def inside(u: Tensor, *numbers: Tensor) -> Tensor:
        v, _ = _mapped(target, problem, terms_of(numbers), u)
        return v.isfinite().all(1) & unconstrained.inside(v)

    def culprit(u: Tensor, *numbers: Tensor) -> str:
        return unconstrained.culprit(_mapped(target, problem, terms_of(numbers), u[None])[0][0])

    dim, dtype, name = unconstrained.dim, unconstrained.dtype, unconstrained.name
    return Density(of_one, dim, dtype, inside, name, target.width, culprit, _numbers(site_terms))


def _mapped(
    target: Target, problem: int, site_terms: dict[str, GaussianSiteTerm], points: Tensor, inverse: bool = False
) -> tuple[Tensor, dict[str, Frame]]:
    """Points `(S, D)` in the other coordinates `(S, D)`, and at each the frames of the latents with site terms."""
    row = target.row(problem)

    def of_one(point: Tensor) -> tuple[Tensor, dict[str, Frame]]:
        change = _CoordinateChange(target, site_terms, point, inverse)
        with poutine.block(), whole_plates():
            change(target.model)(*row)
        return torch.cat([change.mapped[site.name].flatten() for site in target.latents]), change.frames

    with target.isolated(seed=0):
        return vmap(of_one)(points)


class _CoordinateChange(Messenger):
    """Runs a model at a point given in one kind of coordinates, and works out the other kind on the way.

    Attributes:
        site_terms: of the latents with relative coordinates.
        inverse: whether the point is given in the coordinates of `Target.constrain`, to be mapped to relative ones;
            else the other way round.
        given: each latent's coordinates as given.
        mapped: each latent's coordinates of the other kind.
        frames: of the latents with site terms at this point.
        log_scales: logarithms of the scales drawn so far.
        log_jacobian: log determinant of the map from relative coordinates to the latents, nats.
    """

    def __init__(
        self, target: Target, site_terms: dict[str, GaussianSiteTerm], point: Tensor, inverse: bool = False
    ) -> None:
        super().__init__()
        self.site_terms, self.inverse = site_terms, inverse
        self.given = split(target.latents, point)
        self.mapped: dict[str, Tensor] = {}
        self.frames: dict[str, Frame] = {}
        self.log_scales: list[Tensor] = []
        self.log_jacobian = point.new_zeros(())

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if name not in self.given:
            return
        given = self.given[name]
        self.mapped[name] = given
        if name in self.site_terms:
            prior = prior_loc_and_scale(fn, given.shape)
            assert prior is not None  # it was not when the term was made
            self.mapped[name], self.frames[name] = self._other(self.site_terms[name], given, *prior)
            self.log_jacobian = self.log_jacobian + self.frames[name].conditional_sd.log().sum()
        unconstrained = given if self.inverse else self.mapped[name]
        if name not in self.site_terms and is_scale(fn.support, given.shape):
            self.log_scales.append(unconstrained.reshape(()))
        bijector = biject_to(fn.support)
        msg["value"], msg["is_observed"] = bijector(unconstrained), True
        self.log_jacobian = self.log_jacobian + bijector.log_abs_det_jacobian(unconstrained, msg["value"]).sum()

    def _other(self, term: GaussianSiteTerm, given: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Frame]:
        """A latent's coordinates of the other kind, and its frame."""
        num_scales = term.powers.shape[-1]
        log_scales = torch.stack(self.log_scales[:num_scales]) if num_scales else given.new_zeros(0)
        if scale.dim() > loc.dim():
            return self._other_of_vector(term, given, loc, scale, log_scales)
        m, s = term.conditional(loc, scale, log_scales)
        return (given - m) / s if self.inverse else m + s * given, Frame(loc, scale, s, log_scales)

    def _other_of_vector(
        self, term: GaussianSiteTerm, given: Tensor, loc: Tensor, matrix: Tensor, log_scales: Tensor
    ) -> tuple[Tensor, Frame]:
        """The same for a vector with a scale matrix, one element after another, each given those before."""
        elements: list[Tensor] = []
        frames: list[Frame] = []
        standardized: list[Tensor] = []  # matrix^-1 (z - loc) of the elements before
        for place in range(loc.shape[-1]):
            a, b = loc[..., place], matrix[..., place, place]
            for before, standard in enumerate(standardized):
                a = a + matrix[..., place, before] * standard
            m, s = term.element(place).conditional(a, b, log_scales)
            one = given[..., place]
            other = (one - m) / s if self.inverse else m + s * one
            standardized.append(((one if self.inverse else other) - a) / b)
            elements.append(other)
            frames.append(Frame(a, b, s, log_scales))
        locs, scales, sds, _ = zip(*frames, strict=True)
        frame = Frame(torch.stack(locs, -1), torch.stack(scales, -1), torch.stack(sds, -1), log_scales)
        return torch.stack(elements, -1), frame
