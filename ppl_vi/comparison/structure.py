"""What makes a posterior hard for simple guides, measured from the truth's points: what a verdict's advice rests on.

Two normals with the posterior's own moments, before and after a change, tell what the change is worth. Let u be the
unconstrained latents, and v = T(u) the same latents written in another way. The normal with the moments of v, carried
back to u, is nearer to the posterior in KL(p || q) than the normal with the moments of u by

    1/2 log det cov(u) - 1/2 log det cov(v) + E log |det dv/du|    nats.

With T the non-centred form v = (u - a) / b of a site whose prior is Normal(a, b), the last term is -E log b. Against
independent normals a normal with full covariance wins -1/2 log det corr(u). Neither figure needs a fit, and neither is
a bound on what a fit wins in reverse KL: they say whether there is something to win, and where.

Source: Papaspiliopoulos, Roberts and Sköld (2007), A general framework for the parametrization of hierarchical models.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_vi.svi.result import Fit
from ppl_vi.truth import Truth
from ppl_vi.truth.chains.reparametrisation import Reparametrisation, is_scale

# Points of the posterior from which moments are taken. With more of them the figures have smaller errors, which are
# about the square root of D / NUM_POINTS nats for D latent numbers, and take longer.
NUM_POINTS = 2000
# Numbers of the largest tensor of all points together: a model of much data is run at fewer points.
MAX_NUMBERS = 2**24
# Fewer points for each latent number than this are too few for a covariance.
MIN_POINTS_PER_NUMBER = 10
# A part of the posterior around a mode counts where it has this share of the mass.
MIN_SHARE = 0.05
# A scale is named where the logarithm of the prior's scale follows its logarithm with at least this correlation.
MIN_CORRELATION = 0.5

# Draws of a guide by which it is told whether its latent numbers are independent. Correlations of independent numbers
# stay below the limit, which is six standard errors.
NUM_DRAWS = 4096
LARGEST_CORRELATION = 6 / math.sqrt(NUM_DRAWS)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NonCentring:
    """A site whose prior depends on other latents.

    Attributes:
        site: its name.
        scale: the latent that the prior's scale follows, or "".
        nats: what the non-centred form is worth, see the module's docstring.
    """

    site: str
    scale: str
    nats: float


@dataclass(frozen=True)
class Structure:
    """What a posterior has that simple guides have not.

    Attributes:
        non_centring: the sites that can be written non-centred, the one that is worth most first.
        correlation: what a full covariance is worth against independent numbers, nats.
        num_modes: how many modes have a share of the mass that counts.
    """

    non_centring: tuple[NonCentring, ...] = ()
    correlation: float = 0.0
    num_modes: int = 1


def structure_of(truth: Truth, problem: int = 0) -> Structure:
    """The structure of one problem's posterior; that of a plain one where the truth has no points to tell it from."""
    if not truth.points:
        return Structure()
    num_modes = int((truth.modes[problem].share >= MIN_SHARE).sum())
    points = _even_points(truth, problem)
    if len(points) < MIN_POINTS_PER_NUMBER * points.shape[1]:
        return Structure(num_modes=num_modes)
    u = points.cpu().numpy()
    correlation = (np.log(u.var(0)).sum() - _log_det(u)) / 2
    try:
        sites = _non_centring(truth, problem, points)
    except (RuntimeError, ValueError) as error:  # a model that can be run at one point, and not at many
        _log.info("%s: no non-centred form was tried: %s", truth.target.name, error)
        sites = ()
    return Structure(sites, float(max(correlation, 0.0)), num_modes)


def _even_points(truth: Truth, problem: int) -> Tensor:
    """Points of equal weight, `(S, D)`: every weighted point as often as its weight says, by systematic resampling."""
    points = truth.points[0]
    num = max(1, min(NUM_POINTS, MAX_NUMBERS // max(1, truth.target.width)))
    cumulative = points.log_weight[problem].exp().cumsum(0)
    at = (torch.arange(num, dtype=cumulative.dtype, device=cumulative.device) + 0.5) / num * cumulative[-1]
    return points.u[problem][torch.searchsorted(cumulative, at).clamp(max=len(cumulative) - 1)]


def _log_det(points: np.ndarray) -> float:
    """log det of the covariance of points `(S, D)`."""
    return float(np.linalg.slogdet(np.cov(points.T, ddof=0).reshape(points.shape[1], -1))[1])


def _non_centring(truth: Truth, problem: int, points: Tensor) -> tuple[NonCentring, ...]:
    """Every site that can be written non-centred, with what that is worth."""
    form = Reparametrisation.of(truth.target, problem)
    if not form.site_terms:
        return ()
    with torch.no_grad():
        changed, frames = form.relative(points)
    u, v = points.cpu().numpy(), changed.cpu().numpy()
    before, found, first = _log_det(u), [], 0
    for site in truth.target.latents:
        own = slice(first, first + site.unconstrained_shape.numel())
        first = own.stop
        if site.name not in frames:
            continue
        both = u.copy()
        both[:, own] = v[:, own]
        log_scale = frames[site.name].conditional_sd.log().reshape(len(u), -1).cpu().numpy()
        nats = (before - _log_det(both)) / 2 - log_scale.sum(1).mean()
        if np.isfinite(nats):
            found.append(NonCentring(site.name, _scale_of(truth, u, log_scale.mean(1)), float(nats)))
    return tuple(sorted(found, key=lambda one: -one.nats))


def _scale_of(truth: Truth, u: np.ndarray, log_scale: np.ndarray) -> str:
    """The positive latent that the logarithm of a prior's scale, `(S,)`, follows most closely; "" where none does."""
    best, name, first = MIN_CORRELATION, "", 0
    for site in truth.target.latents:
        if is_scale(site.support, site.unconstrained_shape) and np.ptp(u[:, first]) > 0 and np.ptp(log_scale) > 0:
            near = abs(float(np.corrcoef(u[:, first], log_scale)[0, 1]))
            best, name = (near, site.name) if near > best else (best, name)
        first += site.unconstrained_shape.numel()
    return name


def is_independent(fit: Fit) -> bool | None:
    """Whether the latent numbers of a fitted guide are independent, as draws of its first replica tell.

    It is None where that is not asked: for a single number, and for targets of several problems.
    """
    if fit.target.dim < 2 or fit.target.num_problems > 1:
        return None
    u = fit.target.unconstrain({name: value[0, 0] for name, value in fit.draw(NUM_DRAWS, fit.seed + 2).items()})
    points = u.cpu().numpy()
    if not (np.isfinite(points).all() and (points.std(0) > 0).all()):
        return None
    return bool(np.abs(np.corrcoef(points.T) - np.eye(points.shape[1])).max() < LARGEST_CORRELATION)
