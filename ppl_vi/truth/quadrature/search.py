"""Where one problem's posterior may lie, found without a tree of cells: a wide scan, ascents, importance sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.stats import qmc
from torch import Tensor

from ppl_vi.numerics.mixtures import LOG_2PI
from ppl_vi.numerics.newton import minimize
from ppl_vi.target.log_density import Density
from ppl_vi.truth.quadrature.standardized import vanished

LOG2_SCANNED = 15  # points of the wide scan
LOG2_DRAWN = 14  # points of the importance sampler
NUM_TOPS = 24  # starts among the points scanned that lie above their neighbours
NEIGHBOURS = 3  # an axis
NUM_ANYWHERE = 12  # starts anywhere
WIDER = 0.5  # of the prior draws' range, by which the scan reaches beyond them
UNKNOWN = 64.0  # widths of a mode without second derivatives in that of the box
MODES_WITHIN = 30.0  # nats of the heaviest one's mass
DEGREES = 4.0  # of freedom of the proposal: its tails are heavier than nearly any posterior's
BROAD = 0.1  # of the proposal's mass, spread over the whole box
ROOT = "of what does the model take a root or a logarithm?"
AT_AN_END = (
    "where latents are rounded onto an end of their support, its density must be finite: draw a shifted latent as one "
    "that begins at 0, and add"
)
LEAST_SHARE = 0.05  # of any mode's component


@dataclass(frozen=True, eq=False)
class Modes:
    """Where ascents ended, best first.

    Attributes:
        u: `(M, D)`.
        value: log density there, `(M,)`, nats.
        factor: L of the normal density of covariance L L' with the same curvature, `(M, D, D)`.
    """

    u: Tensor
    value: Tensor
    factor: Tensor

    @property
    def log_mass(self) -> Tensor:
        """Of the normal density with the same peak and curvature, `(M,)`, nats."""
        return self.value + self.u.shape[1] * LOG_2PI / 2 + torch.linalg.slogdet(self.factor)[1]


@dataclass(frozen=True, eq=False)
class Found:
    """What the search found.

    Attributes:
        modes: ends of the ascents.
        scanned: points of the scan, `(N, D)`.
        value: log density there, `(N,)`, nats.
        sample: draws from about the posterior, by importance resampling, `(S, D)`.
        log_evidence: by importance sampling, nats.
        std_error: of it, nats, by the delta method.
        efficiency: effective share of the importance sampler's draws.
    """

    modes: Modes
    scanned: Tensor
    value: Tensor
    sample: Tensor
    log_evidence: float
    std_error: float
    efficiency: float


def search(density: Density, prior: Tensor, start: Tensor, seed: int) -> Found:
    """Scans a wide box by scrambled Sobol points, ascends from its tops and from anywhere, and draws from the ends.

    Args:
        density: of one problem.
        prior: draws of the prior, `(N, D)`.
        start: a point of finite density, `(D,)`.
        seed: of the points.

    Raises:
        ValueError: the density is nowhere positive.

    Source: Owen and Zhou (2000), Safe and effective importance sampling (the defensive mixture).
    """
    low, high = prior.amin(0), prior.amax(0)
    low, high = torch.minimum(low, start - 1), torch.maximum(high, start + 1)
    reach = WIDER * (high - low)
    low, high = low - reach, high + reach
    box = qmc.Sobol(density.dim, rng=np.random.default_rng(seed)).random_base2(LOG2_SCANNED)
    everywhere = low + (high - low) * torch.from_numpy(box).to(start)
    scanned = torch.cat([everywhere, prior, start[None]])
    value = density(scanned)
    _refuse(density, scanned, value == torch.inf, "infinite", AT_AN_END)
    usable = value.isfinite()
    if not bool(usable.any()):
        raise ValueError(f"the log joint of '{density.name}' is finite at none of {len(scanned)} points")
    scanned, value = scanned[usable], value[usable]
    modes = ascended(density, _starts(scanned, value, high - low, seed), high - low)
    proposal = Proposal(modes, low, high)
    for again in (1, 2):
        u, log_weight = proposal.draw(density, seed + again)
        proposal = proposal.learned(u, log_weight)
    u, log_weight = proposal.draw(density, seed + 3)
    log_mean = float(log_weight.logsumexp(0)) - math.log(len(u))
    relative = (log_weight - log_mean).exp()
    generator = torch.Generator(u.device).manual_seed(seed)
    chosen = torch.multinomial(relative, 1024, replacement=True, generator=generator)
    std_error = float(relative.std()) / math.sqrt(len(u))
    efficiency = float(relative.sum() ** 2 / relative.square().sum()) / len(u)
    return Found(modes, scanned, value, u[chosen], log_mean, std_error, efficiency)


def _refuse(density: Density, u: Tensor, bad: Tensor, what: str, mend: str) -> None:
    """Tells of the first of points `(S, D)` that are marked in `bad` `(S,)`.

    Raises:
        ValueError: there is one.
    """
    if bool(bad.any()):
        raise ValueError(
            f"{density.name}: the log density is {what}, at {density.culprit(u[bad][0], *density.numbers)}: {mend}"
        )


def _starts(scanned: Tensor, value: Tensor, width: Tensor, seed: int) -> Tensor:
    """The highest points that lie above their nearest neighbours, and others by chance, `(M, D)`."""
    apart = (scanned / width).cpu().numpy()
    _, near = cKDTree(apart).query(apart, k=1 + NEIGHBOURS * scanned.shape[1])
    around = value[torch.from_numpy(near[:, 1:])].amax(1)
    peaks = torch.where(value > around, value, -torch.inf)
    tops = peaks.topk(min(NUM_TOPS, int(peaks.isfinite().sum()))).indices
    generator = torch.Generator(scanned.device).manual_seed(seed)
    others = torch.randint(len(scanned), (NUM_ANYWHERE,), generator=generator)
    return torch.cat([scanned[tops], scanned[-1:], scanned[others]])


def ascended(density: Density, starts: Tensor, width: Tensor) -> Modes:
    """Newton's method from starts `(M, D)`; one of the ends that coincide is kept, and those of negligible mass go.

    A flat or rising direction at an end counts as no wider than the box, `width` `(D,)`.
    """

    def energy(u: Tensor) -> Tensor:
        return -density.of_one(u)

    with density.isolated():
        found = minimize(energy, starts, tolerance=1e-8, max_steps=60)
    u, value = found.x, -found.value
    known = found.hessian.isfinite().all(-1).all(-1)
    unknown = torch.diag((width / UNKNOWN).square().reciprocal())  # where second derivatives are no numbers
    curvature, axes = torch.linalg.eigh(torch.where(known[:, None, None], found.hessian, unknown))
    floor = float(width.max()) ** -2
    factor = axes * torch.where(curvature > floor, curvature, floor).rsqrt()[:, None]
    order = value.argsort(descending=True)
    kept: list[int] = []
    for i in order.tolist():
        away = [torch.linalg.solve(factor[k], u[i] - u[k]).abs().max() for k in kept]
        if all(float(distance) > 0.5 for distance in away):
            kept.append(i)
    modes = Modes(u[kept], value[kept], factor[kept])
    # of the highest: where rounding alone is a nat, or curvature is beyond numbers
    if not bool(modes.log_mass[0].isfinite()) or float(modes.value[0]) > 1 / torch.finfo(density.dtype).eps:
        where = [round(number, 1) for number in modes.u[0].tolist()]
        raise ValueError(
            f"{density.name}: the log density grows without bound, at {where} in unconstrained space to "
            f"{float(modes.value[0]):.2g}: which factor outgrows the priors?"
        )
    log_mass = torch.where(modes.log_mass.isnan(), -torch.inf, modes.log_mass)
    matters = log_mass > log_mass.max() - MODES_WITHIN
    return Modes(modes.u[matters], modes.value[matters], modes.factor[matters])


@dataclass(frozen=True, eq=False)
class Proposal:
    """A mixture of a Student t at each mode, those learned from weighted draws, and a uniform part on a box."""

    modes: Modes
    low: Tensor
    high: Tensor
    learned_loc: tuple[Tensor, ...] = ()
    learned_factor: tuple[Tensor, ...] = ()

    def _components(self) -> tuple[Tensor, Tensor, Tensor]:
        """Shares `(K,)`, locations `(K, D)` and factors `(K, D, D)`."""
        share = torch.softmax(self.modes.log_mass, 0).clamp(min=LEAST_SHARE)
        share = share / share.sum()
        if not self.learned_loc:
            return share, self.modes.u, self.modes.factor
        more = share.new_full((len(self.learned_loc),), 1 / len(self.learned_loc))
        loc = torch.cat([self.modes.u, torch.stack(self.learned_loc)])
        return torch.cat([share, more]) / 2, loc, torch.cat([self.modes.factor, torch.stack(self.learned_factor)])

    def draw(self, density: Density, seed: int) -> tuple[Tensor, Tensor]:
        """Points `(S, D)` and their log weights log density - log proposal `(S,)`, nats."""
        share, loc, factor = self._components()
        num, dim = 2**LOG2_DRAWN, density.dim
        generator = torch.Generator(loc.device).manual_seed(seed)
        which = torch.multinomial(share, num, replacement=True, generator=generator)
        normal = torch.randn(num, dim, generator=generator, dtype=loc.dtype)
        gamma = np.random.default_rng(seed).chisquare(DEGREES, num) / DEGREES
        t = normal * torch.from_numpy(gamma).to(loc)[:, None].rsqrt()
        u = loc[which] + (factor[which] @ t[..., None]).squeeze(-1)
        uniform = torch.rand(num, dim + 1, generator=generator, dtype=loc.dtype)
        broad = uniform[:, -1] < BROAD
        u[broad] = (self.low + (self.high - self.low) * uniform[:, :-1])[broad]
        value = density(u)
        lost = value.isnan()
        if bool(lost.any()):
            value[lost] = torch.where(vanished(density, u[lost], self.modes.u[0]), -torch.inf, torch.nan)
        _refuse(density, u, value.isnan(), "nan inside the support", ROOT)
        _refuse(density, u, value == torch.inf, "infinite", AT_AN_END)
        return u, value - self.log_prob(u)

    def log_prob(self, u: Tensor) -> Tensor:
        """At points `(S, D)`, `(S,)`, nats."""
        share, loc, factor = self._components()
        dim = u.shape[1]
        constant = math.lgamma((DEGREES + dim) / 2) - math.lgamma(DEGREES / 2) - dim / 2 * math.log(DEGREES * math.pi)
        parts = []
        for weight, at, scale in zip(share, loc, factor, strict=True):
            white = torch.linalg.solve(scale, (u - at).mT)
            tail = (DEGREES + dim) / 2 * torch.log1p(white.square().sum(0) / DEGREES)
            parts.append(weight.log() + constant - tail - torch.linalg.slogdet(scale)[1])
        inside = ((u >= self.low) & (u <= self.high)).all(1)
        box = -(self.high - self.low).log().sum()
        flat = torch.where(inside, box, -torch.inf) + math.log(BROAD)
        return torch.logaddexp(torch.stack(parts).logsumexp(0) + math.log(1 - BROAD), flat)

    def learned(self, u: Tensor, log_weight: Tensor) -> Proposal:
        """With one more component, of the mean and covariance of weighted draws, where these are not degenerate."""
        weight = torch.softmax(log_weight, 0)
        mean = weight @ u
        away = u - mean
        covariance = (weight[:, None] * away).mT @ away
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if bool(failed) or not bool(factor.isfinite().all()):
            return self
        return Proposal(self.modes, self.low, self.high, (*self.learned_loc, mean), (*self.learned_factor, factor))
