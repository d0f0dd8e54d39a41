"""The density that importance sampling draws from, fitted to the posterior.

It begins as Laplace's approximation: Newton's method from several starts finds the modes, and each gets a normal
component with its curvature. Where weighted draws of it show that this is not near enough, a mixture of normal
densities is fitted to them. Every component has a heavy-tailed copy beside it, so that weights stay bounded in tails
that are heavier than normal ones.

Source: Cappé et al. (2008), Adaptive importance sampling in general mixture classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ppl_vi.compiler.many_points import pays
from ppl_vi.numerics.mixtures import DEGREES, WIDENING, StudentMixture, fit_student_mixture
from ppl_vi.numerics.newton import Minimum, minimize_by
from ppl_vi.target.log_density import Density
from ppl_vi.truth.chains.sampler import chains_at
from ppl_vi.truth.importance.weighted import effective_sizes

# Nats by which the log density at a mode may fall short of the highest value nearby. A larger tolerance saves a step of
# Newton's method and leaves the proposal off the centre by its square root, in standard deviations.
MODE_TOLERANCE = 1e-6
# Steps of Newton's method. A log-concave posterior takes about ten from a start far away.
MAX_NEWTON_STEPS = 60
# The second derivatives are differences of gradients, over this share of a coordinate's standard deviation: their
# relative error is about as large, and grows with the rounding error of a gradient where the share is smaller. Before
# the standard deviations are known the differences are over FIRST_DIFFERENCE units of unconstrained space, and from one
# step of Newton's method to the next they change at most by MAX_DIFFERENCE_RATIO.
DIFFERENCE = 1e-4
FIRST_DIFFERENCE = 1e-5
MAX_DIFFERENCE_RATIO = 100.0
# Differences are at least this, relative to the coordinate itself, for smaller ones are lost in its rounding.
MIN_DIFFERENCE = 1e-9
# Two searches have found the same mode if they ended within this many standard deviations of each other.
SAME_MODE = 0.1
# By Laplace's approximation, modes of less than e^-MAX_DEPTH times the mass of the greatest one have no mass. At most
# MAX_LIGHT_MODES of them keep a share of LIGHT_SHARE in all, so that draws and weights tell how little they have.
MAX_DEPTH, MAX_LIGHT_MODES, LIGHT_SHARE = 15.0, 20, 0.01
# Each mode's share in the proposal is what Laplace's approximation says, but at least MIN_SHARE in all divided by the
# number of modes, because that approximation may be far off.
MIN_SHARE = 0.1
# The share of the proposal that is heavy-tailed. A larger one bounds the weights in the tails by less, and wastes more
# draws on tails that the posterior does not have.
HEAVY_SHARE = 0.2
# The first round of the fit takes so many draws of the proposal, each further one twice as many.
NUM_FIT_DRAWS = 2000
# No further round is needed if the weighted draws are worth this share of as many draws of the posterior, for every
# mean and tail probability. Its own tails let a proposal that has exactly the posterior in its middle reach 0.85.
GOOD_EFFICIENCY = 0.7
# After the last round they must be worth this share: with less, the final draws would miss their criterion for
# effective sample sizes.
MIN_EFFICIENCY = 0.45
# No mixture can be fitted to weighted draws that are worth fewer draws of the posterior than this for each coordinate.
MIN_FIT_SIZE_PER_COORDINATE = 10
# Rounds of the fit, the first one with Laplace's approximation.
MAX_ROUNDS = 6


class Proposal(Protocol):
    """A density that draws are taken from."""

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        """Random points, `(num, D)`."""

    def log_prob(self, u: Tensor) -> Tensor:
        """The log density at points `(S, D)`, `(S,)`, nats."""

    def component_log_prob(self, u: Tensor) -> Tensor:
        """The log density of each of its components at points `(S, D)`, `(S, K)`, nats."""


@dataclass(frozen=True, eq=False)
class ProposalDraws:
    """Independent draws of a proposal.

    Attributes:
        u: the draws, `(S, D)`.
        value: the log density there, `(S,)`, nats.
        log_proposal: the log density of the proposal there, `(S,)`.
    """

    u: Tensor
    value: Tensor
    log_proposal: Tensor

    @staticmethod
    def of(proposal: Proposal, density: Density, num: int, generator: torch.Generator) -> ProposalDraws:
        """So many draws of a proposal for a density."""
        u = proposal.draw(num, generator)
        return ProposalDraws(u, values_at(density, u), proposal.log_prob(u))

    @property
    def log_ratio(self) -> Tensor:
        """The logarithms of the weights, not normalised, `(S,)`."""
        return self.value - self.log_proposal

    @cached_property
    def weight(self) -> Tensor:
        """The weights, which sum to 1, `(S,)`; nan where a density is nan."""
        return self.log_ratio.softmax(0)

    @property
    def effective_size(self) -> float:
        """1 / sum w^2: by about as many draws of the posterior the weighted draws could be replaced; nan if any is."""
        return 1 / float(self.weight.square().sum())

    def effective_sizes(self) -> tuple[float, float]:
        """The smallest effective sample sizes in bulk and tails, of every coordinate and of the log density.

        They are 0 where the density is nan at a draw, or 0 at all of them.
        """
        present = self.weight > 0
        if not bool(present.any()):
            return 0.0, 0.0
        return effective_sizes(torch.cat([self.u, self.value[:, None]], 1)[present], self.weight[present])


def values_at(density: Density, u: Tensor) -> Tensor:
    """The log density at points `(S, D)`, `(S,)`.

    The chains' machine code, which is there already, gives it with its gradient. Values alone take half the time, but
    machine code for them has first to be compiled, which does not always pay.
    """
    if pays(len(u), density.width) or not any(density.kernels.values()):
        return density(u)
    value = chains_at(density, u).value
    lost = value.isnan()  # beyond the support the formula may give nan
    return value.masked_scatter(lost, density(u[lost]))


@dataclass(frozen=True, eq=False)
class FittedProposal:
    """A proposal for the posterior.

    Attributes:
        proposal: the density.
        draws: weighted draws of it that nothing has been fitted to.
        modes: Laplace's approximation at all modes that searches found, those without mass too.
    """

    proposal: Proposal
    draws: ProposalDraws
    modes: StudentMixture


def fitted_proposal(density: Density, modes: StudentMixture, seed: int) -> FittedProposal | str:
    """The proposal for a density, or why there is none, in words.

    Args:
        density: the unnormalised log density.
        modes: Laplace's approximation at all its modes, those without mass too.
        seed: of draws and fits.
    """
    generator = torch.Generator().manual_seed(seed)
    light = _light_modes(modes)
    proposal = heavy_modes(modes).defended(HEAVY_SHARE).beside(light, LIGHT_SHARE)
    for round_number in range(MAX_ROUNDS):
        num, last = NUM_FIT_DRAWS << round_number, round_number + 1 == MAX_ROUNDS
        draws = ProposalDraws.of(proposal, density, num, generator)
        worth = min(draws.effective_sizes()) / num
        if worth >= (MIN_EFFICIENCY if last else GOOD_EFFICIENCY):
            return FittedProposal(proposal, draws, modes)
        if last or not draws.effective_size >= MIN_FIT_SIZE_PER_COORDINATE * density.dim:
            break
        chosen = torch.multinomial(draws.weight, num, replacement=True, generator=generator)
        proposal = fit_student_mixture(draws.u[chosen], math.inf, seed).defended(HEAVY_SHARE)
        proposal = proposal.beside(light, LIGHT_SHARE)
    return f"draws of the fitted proposal are worth {worth:.2g} of as many draws of the posterior"


def at_modes(density: Density, start: Tensor) -> tuple[StudentMixture, Tensor] | str:
    """Laplace's approximation at all modes that searches find, the one with most mass first, and where they ended.

    Or why there is none, in words.

    Args:
        density: the unnormalised log density.
        start: where the searches begin, `(N, D)`; the density must be finite there.
    """
    derivatives = Derivatives(density, len(start))
    if not bool(derivatives(start)[2].isfinite().all()):
        return "the log density has no finite derivatives where searches for modes begin"
    found = minimize_by(derivatives, start, tolerance=MODE_TOLERANCE, max_steps=MAX_NEWTON_STEPS)
    modes = _mixture(found)
    return f"none of {len(start)} searches has found a mode" if modes is None else (modes, found.x)


def _mixture(found: Minimum) -> StudentMixture | None:
    """Laplace's approximation: a normal component for each mode that was found; None where none was."""
    factor, failed = torch.linalg.cholesky_ex(found.hessian)  # L of the second derivatives L L'
    is_mode = found.converged & (failed == 0)
    log_mass = -found.value - torch.diagonal(factor, dim1=-2, dim2=-1).log().sum(-1)
    order = [int(i) for i in log_mass.argsort(descending=True) if bool(is_mode[i])]
    kept: list[int] = []
    for i in order:
        apart = [float(((found.x[i] - found.x[j]) @ factor[j]).norm()) for j in kept]
        if min(apart, default=math.inf) > SAME_MODE:
            kept.append(i)
    if not kept:
        return None
    covariance = torch.cholesky_inverse(factor[kept])
    log_share = log_mass[kept].log_softmax(0)
    return StudentMixture(log_share, found.x[kept], torch.linalg.cholesky(covariance), (math.inf,) * len(kept))


def heavy_modes(modes: StudentMixture) -> StudentMixture:
    """Those of modes, the heaviest first, that have mass by Laplace's approximation.

    Their shares allow for its being far off.
    """
    kept = modes.log_share > modes.log_share[0] - MAX_DEPTH
    num = int(kept.sum())
    share = modes.log_share[kept].softmax(0) * (1 - MIN_SHARE) + MIN_SHARE / num
    return StudentMixture(share.log(), modes.loc[kept], modes.factor[kept], (math.inf,) * num)


def _light_modes(modes: StudentMixture) -> StudentMixture | None:
    """Heavy-tailed densities of equal shares at the modes that have no mass; None where there are none."""
    light = (modes.log_share <= modes.log_share[0] - MAX_DEPTH).nonzero()[:MAX_LIGHT_MODES, 0]
    if not len(light):
        return None
    even = torch.zeros_like(modes.log_share[light]).log_softmax(0)
    return StudentMixture(even, modes.loc[light], WIDENING * modes.factor[light], (DEGREES,) * len(light))


class Derivatives:
    """Minus the log density with its first and second derivatives, at `N` points that move by Newton's method.

    The second derivatives are differences of gradients: those come from the code that chains use, which streams over
    the data, and there are few coordinates.
    """

    def __init__(self, density: Density, num: int) -> None:
        self.density = density
        self.difference = torch.full((num, density.dim), FIRST_DIFFERENCE, dtype=density.dtype)

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value `(N,)`, gradient `(N, D)` and second derivatives `(N, D, D)`."""
        num, dim = u.shape
        h = torch.maximum(self.difference, MIN_DIFFERENCE * u.abs())
        moved = torch.cat([u[:, None], u[:, None] + torch.diag_embed(h)], 1)
        state = chains_at(self.density, moved.flatten(0, 1))
        value, slope = -state.value.reshape(num, -1), -state.slope.reshape(num, -1, dim)
        hessian = (slope[:, 1:] - slope[:, :1]) / (moved[:, 1:] - u[:, None]).diagonal(0, 1, 2)[..., None]
        hessian = (hessian + hessian.mT) / 2
        curvature = torch.diagonal(hessian, dim1=-2, dim2=-1).abs()
        wanted = torch.where(curvature.isfinite(), DIFFERENCE * curvature.rsqrt(), h)
        self.difference = wanted.clamp(h / MAX_DIFFERENCE_RATIO, h * MAX_DIFFERENCE_RATIO)
        return value[:, 0], slope[:, 0], hessian
