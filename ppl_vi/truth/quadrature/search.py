"""A search for the posterior of one problem that uses no tree: a wide scan, ascents to modes, importance sampling.

The scan evaluates the density at Sobol points of a box around the prior draws. Newton's method ascends from its highest
places. An importance sampler with a Student t density at each mode then estimates log p(x), and draws from about the
posterior by resampling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from ppl_vi.numerics.mixtures import LOG_2PI
from ppl_vi.numerics.newton import eigen, minimize, minimize_by
from ppl_vi.numerics.sobol import sobol_points
from ppl_vi.target.log_density import Density
from ppl_vi.truth.importance.proposal import Derivatives
from ppl_vi.truth.importance.searches import hidden_modes
from ppl_vi.truth.quadrature.standardized import vanished

# Points of the wide scan, and draws of the importance sampler: powers of 2, as Sobol points ask for.
LOG2_NUM_SCANNED = 15
LOG2_NUM_DRAWS = 14
# The box of the scan reaches beyond the prior draws by this multiple of their range, on either side.
BOX_MARGIN = 0.5
# Ascents begin at up to NUM_PEAK_STARTS scanned points that are higher than their NUM_NEIGHBOURS nearest neighbours
# (times the number of latent numbers), and at NUM_RANDOM_STARTS scanned points chosen at random. More starts would find
# more of the modes of a rugged posterior, at the cost of one run of Newton's method each.
NUM_PEAK_STARTS, NUM_NEIGHBOURS, NUM_RANDOM_STARTS = 24, 3, 12
# Ascents end where a step promises to gain no more nats than this, or after so many steps.
ASCENT_TOLERANCE, MAX_ASCENT_STEPS = 1e-8, 60
# All ascents together may have temporaries of so many numbers, 32 MiB in double precision. Where they would have more,
# second derivatives are differences of gradients, by code that streams over the data.
MAX_ASCENT_NUMBERS = 2**22
# Two ends of ascents are one mode if they are no farther apart along any axis, in standard deviations of the mode.
SAME_MODE_DISTANCE = 0.5
# Where second derivatives at a mode are nan or infinite, its standard deviation is set to the width of the box divided
# by this.
UNKNOWN_MODE_DIVISOR = 64.0
# A mode whose estimated mass lies more nats than this below the heaviest one's, a share of 1e-13, is left out.
MAX_NATS_BELOW_HEAVIEST = 30.0
# The importance sampler's Student t densities have DEGREES_OF_FREEDOM, so that their tails are heavier than those of
# nearly any posterior. Each mode has at least about MIN_MODE_SHARE of them, whatever its estimated mass. UNIFORM_SHARE
# of all draws are spread evenly over the box.
DEGREES_OF_FREEDOM = 4.0
MIN_MODE_SHARE = 0.05
UNIFORM_SHARE = 0.1
# Rounds of importance sampling from which the importance sampler learns a mean and a covariance before the last one.
NUM_LEARNING_ROUNDS = 2
# Draws of about the posterior that are handed out.
NUM_RESAMPLED = 1024
NEGATIVE_ARGUMENT = "does the model take the root or the logarithm of a negative number there?"
FINITE_AT_ENDS = (
    "where latents are rounded onto an end of their support, the density must be finite there. In place of a latent "
    "whose support begins elsewhere, draw one whose support begins at 0, and add the shift to it"
)


@dataclass(frozen=True, eq=False)
class Modes:
    """The modes that ascents reached, the highest first.

    Attributes:
        u: `(M, D)`.
        value: log density there, `(M,)`, nats.
        factor: L of the normal density with covariance L L' that has the same curvature, `(M, D, D)`.
    """

    u: Tensor
    value: Tensor
    factor: Tensor

    def __getitem__(self, index: Tensor | list[int]) -> Modes:
        return Modes(self.u[index], self.value[index], self.factor[index])

    @property
    def log_mass(self) -> Tensor:
        """Log of the integral of the normal density with the same peak and curvature, `(M,)`, nats."""
        return self.value + self.u.shape[1] * LOG_2PI / 2 + torch.linalg.slogdet(self.factor)[1]


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What the search found.

    Attributes:
        modes: at least one.
        scanned: points of the scan at which the log density is finite, `(N, D)`.
        sample: draws of about the posterior, `(S, D)`.
        log_evidence: log p(x) by importance sampling, nats.
        std_error: of it, nats, by the delta method.
        efficiency: effective number of the importance sampler's draws divided by their number.
    """

    modes: Modes
    scanned: Tensor
    sample: Tensor
    log_evidence: float
    std_error: float
    efficiency: float


def search(density: Density, prior: Tensor, start: Tensor, seed: int) -> SearchResult:
    """Scans a wide box, ascends to modes, and draws from about the posterior.

    Args:
        density: of one problem.
        prior: draws of the prior, `(N, D)`.
        start: a point of finite density, `(D,)`.
        seed: of all points and draws.

    Raises:
        ValueError: the density is nowhere positive, grows without bound, or is infinite or nan inside the support.

    Source: Owen and Zhou (2000), Safe and effective importance sampling (a mixture with a part that is spread widely).
    """
    low, high = _box(prior, start)
    scanned, value = _scan(density, prior, start, low, high, seed)
    modes = ascended(density, _starts(scanned, value, high - low, seed), high - low)
    hidden = hidden_modes(density, prior, modes.u, modes.factor, seed)
    if len(hidden):
        modes = ascended(density, torch.cat([modes.u, hidden]), high - low)
    proposal = Proposal(modes, low, high)
    for again in range(1, NUM_LEARNING_ROUNDS + 1):
        proposal = proposal.learned(*proposal.draw(density, seed + again))
    u, log_weight = proposal.draw(density, seed + NUM_LEARNING_ROUNDS + 1)
    log_mean = float(log_weight.logsumexp(0)) - math.log(len(u))
    relative = (log_weight - log_mean).exp()
    generator = torch.Generator(u.device).manual_seed(seed)
    chosen = torch.multinomial(relative, NUM_RESAMPLED, replacement=True, generator=generator)
    std_error = float(relative.std()) / math.sqrt(len(u))
    efficiency = float(relative.sum() ** 2 / relative.square().sum()) / len(u)
    return SearchResult(modes, scanned, u[chosen], log_mean, std_error, efficiency)


def _box(prior: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """The lower and upper ends `(D,)` of a box that holds the prior draws and `start` with room to spare."""
    low, high = prior.amin(0), prior.amax(0)
    low, high = torch.minimum(low, start - 1), torch.maximum(high, start + 1)
    margin = BOX_MARGIN * (high - low)
    return low - margin, high + margin


def _scan(
    density: Density, prior: Tensor, start: Tensor, low: Tensor, high: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Points `(N, D)` all over the box, prior draws and `start`, which comes last; and their log densities `(N,)`."""
    unit = sobol_points(density.dim, LOG2_NUM_SCANNED, np.random.default_rng(seed))
    everywhere = low + (high - low) * torch.from_numpy(unit).to(start)
    scanned = torch.cat([everywhere, prior, start[None]])
    value = density(scanned)
    _refuse(density, scanned, value == torch.inf, "infinite", FINITE_AT_ENDS)
    usable = value.isfinite()
    if not bool(usable.any()):
        raise ValueError(f"the log joint of '{density.name}' is finite at none of {len(scanned)} points")
    return scanned[usable], value[usable]


def _refuse(density: Density, u: Tensor, bad: Tensor, what: str, advice: str) -> None:
    """Raises an error about the first of points `(S, D)` that are marked in `bad` `(S,)`, if any is.

    Raises:
        ValueError: a point is marked; the message says what its log density is, at which site, and what to do.
    """
    if bool(bad.any()):
        place = density.culprit(u[bad][0], *density.numbers)
        raise ValueError(f"{density.name}: the log density is {what}, at {place}: {advice}")


def _starts(scanned: Tensor, value: Tensor, width: Tensor, seed: int) -> Tensor:
    """Points `(M, D)` from which ascents begin.

    They are the highest scanned points that lie above all their neighbours, the last scanned point, and some at random.
    """
    in_box_widths = (scanned / width).cpu().numpy()
    num_neighbours = NUM_NEIGHBOURS * scanned.shape[1]
    _, nearest = cKDTree(in_box_widths).query(in_box_widths, k=1 + num_neighbours)
    highest_neighbour = value[torch.from_numpy(nearest[:, 1:])].amax(1)
    peaks = torch.where(value > highest_neighbour, value, -torch.inf)
    tops = peaks.topk(min(NUM_PEAK_STARTS, int(peaks.isfinite().sum()))).indices
    generator = torch.Generator(scanned.device).manual_seed(seed)
    others = torch.randint(len(scanned), (NUM_RANDOM_STARTS,), generator=generator)
    return torch.cat([scanned[tops], scanned[-1:], scanned[others]])


def ascended(density: Density, starts: Tensor, width: Tensor) -> Modes:
    """The modes that Newton's method reaches from starts `(M, D)`, without those of negligible mass.

    Of ends that coincide, one is kept. A direction in which the density is flat or rises is given the width of the box,
    `width` `(D,)`, as its standard deviation.

    Raises:
        ValueError: the density grows without bound.
    """

    def energy(u: Tensor) -> Tensor:
        return -density.of_one(u)

    with density.isolated():
        if len(starts) * density.dim * density.width > MAX_ASCENT_NUMBERS:
            derivatives = Derivatives(density, len(starts))
            found = minimize_by(derivatives, starts, tolerance=ASCENT_TOLERANCE, max_steps=MAX_ASCENT_STEPS)
        else:
            found = minimize(energy, starts, tolerance=ASCENT_TOLERANCE, max_steps=MAX_ASCENT_STEPS)
    ends = Modes(found.x, -found.value, _factors(found.hessian, width))
    kept: list[int] = []
    for i in ends.value.argsort(descending=True).tolist():
        away = [torch.linalg.solve(ends.factor[k], ends.u[i] - ends.u[k]).abs().max() for k in kept]
        if all(float(distance) > SAME_MODE_DISTANCE for distance in away):
            kept.append(i)
    modes = ends[kept]
    # A value whose rounding error alone exceeds a nat, or a mass that is nan or infinite, was on its way to infinity.
    if not bool(modes.log_mass[0].isfinite()) or float(modes.value[0]) > 1 / torch.finfo(density.dtype).eps:
        place = [round(number, 1) for number in modes.u[0].tolist()]
        raise ValueError(
            f"{density.name}: the log density grows without bound; it is {float(modes.value[0]):.2g} at {place} in "
            f"unconstrained space. Which factor of the model grows faster than the priors fall?"
        )
    log_mass = torch.where(modes.log_mass.isnan(), -torch.inf, modes.log_mass)
    return modes[log_mass > log_mass.max() - MAX_NATS_BELOW_HEAVIEST]


def _factors(hessian: Tensor, width: Tensor) -> Tensor:
    """Factors L with L L' the inverse of each Hessian `(M, D, D)` of the negative log density, `(M, D, D)`."""
    known = hessian.isfinite().all(-1).all(-1)
    unknown = torch.diag((width / UNKNOWN_MODE_DIVISOR).square().reciprocal())
    curvature, axes = eigen(torch.where(known[:, None, None], hessian, unknown))
    floor = float(width.max()) ** -2
    return axes * torch.where(curvature > floor, curvature, floor).rsqrt()[:, None]


@dataclass(frozen=True, eq=False)
class Proposal:
    """The density that importance sampling draws from, a mixture.

    It has a Student t density at each mode, others that were learned from weighted draws, and a part that is uniform on
    a box.

    Attributes:
        modes: of the log density.
        low: lower ends of the box, `(D,)`.
        high: upper ends, `(D,)`.
        learned_loc: locations of the learned densities, `(D,)` each.
        learned_factor: their factors, `(D, D)` each.
    """

    modes: Modes
    low: Tensor
    high: Tensor
    learned_loc: tuple[Tensor, ...] = ()
    learned_factor: tuple[Tensor, ...] = ()

    def _components(self) -> tuple[Tensor, Tensor, Tensor]:
        """Shares `(K,)`, locations `(K, D)` and factors `(K, D, D)` of all Student t densities."""
        share = torch.softmax(self.modes.log_mass, 0).clamp(min=MIN_MODE_SHARE)
        share = share / share.sum()
        if not self.learned_loc:
            return share, self.modes.u, self.modes.factor
        learned_share = share.new_full((len(self.learned_loc),), 1 / len(self.learned_loc))
        loc = torch.cat([self.modes.u, torch.stack(self.learned_loc)])
        factor = torch.cat([self.modes.factor, torch.stack(self.learned_factor)])
        return torch.cat([share, learned_share]) / 2, loc, factor

    def draw(self, density: Density, seed: int) -> tuple[Tensor, Tensor]:
        """Draws `(S, D)` and their log weights, log density minus log proposal, `(S,)`, nats.

        Raises:
            ValueError: the density is infinite at a draw, or nan where it had not `vanished` on the way there.
        """
        share, loc, factor = self._components()
        num, dim = 2**LOG2_NUM_DRAWS, density.dim
        generator = torch.Generator(loc.device).manual_seed(seed)
        which = torch.multinomial(share, num, replacement=True, generator=generator)
        normal = torch.randn(num, dim, generator=generator, dtype=loc.dtype)
        chi_square = np.random.default_rng(seed).chisquare(DEGREES_OF_FREEDOM, num) / DEGREES_OF_FREEDOM
        t = normal * torch.from_numpy(chi_square).to(loc)[:, None].rsqrt()
        u = loc[which] + (factor[which] @ t[..., None]).squeeze(-1)
        uniform = torch.rand(num, dim + 1, generator=generator, dtype=loc.dtype)
        from_box = uniform[:, -1] < UNIFORM_SHARE
        u[from_box] = (self.low + (self.high - self.low) * uniform[:, :-1])[from_box]
        value = density(u)
        lost = value.isnan()
        if bool(lost.any()):
            value[lost] = torch.where(vanished(density, u[lost], self.modes.u[0]), -torch.inf, torch.nan)
        _refuse(density, u, value.isnan(), "nan inside the support", NEGATIVE_ARGUMENT)
        _refuse(density, u, value == torch.inf, "infinite", FINITE_AT_ENDS)
        return u, value - self.log_prob(u)

    def log_prob(self, u: Tensor) -> Tensor:
        """The log density of the mixture at points `(S, D)`, `(S,)`, nats."""
        (share, loc, factor), dim, k = self._components(), u.shape[1], DEGREES_OF_FREEDOM
        constant = math.lgamma((k + dim) / 2) - math.lgamma(k / 2) - dim / 2 * math.log(k * math.pi)
        parts = []
        for one_share, one_loc, one_factor in zip(share, loc, factor, strict=True):
            white = torch.linalg.solve(one_factor, (u - one_loc).mT)
            tail = (k + dim) / 2 * torch.log1p(white.square().sum(0) / k)
            parts.append(one_share.log() + constant - tail - torch.linalg.slogdet(one_factor)[1])
        student = torch.stack(parts).logsumexp(0)
        inside = ((u >= self.low) & (u <= self.high)).all(1)
        uniform = torch.where(inside, -(self.high - self.low).log().sum(), -torch.inf)
        return torch.logaddexp(student + math.log(1 - UNIFORM_SHARE), uniform + math.log(UNIFORM_SHARE))

    def learned(self, u: Tensor, log_weight: Tensor) -> Proposal:
        """With one more component that has the mean and covariance of weighted draws, if that covariance is regular."""
        weight = torch.softmax(log_weight, 0)
        mean = weight @ u
        away = u - mean
        covariance = (weight[:, None] * away).mT @ away
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if bool(failed) or not bool(factor.isfinite().all()):
            return self
        return replace(self, learned_loc=(*self.learned_loc, mean), learned_factor=(*self.learned_factor, factor))
