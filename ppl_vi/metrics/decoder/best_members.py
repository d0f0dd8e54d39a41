"""The member of an amortized family nearest to each posterior: many starts, Newton's method on quadrature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from ppl_vi.guides.amortized import Head
from ppl_vi.metrics.decoder.elbo import row_blocks
from ppl_vi.metrics.decoder.entropy import Expansion, affine, coordinates, negative_entropy, rule_levels
from ppl_vi.metrics.decoder.lattice_values import MOST_TILES, CachedLattice, Gaussians, inverted, lattice_elbo, stein
from ppl_vi.metrics.decoder.starts import mixed, multistart
from ppl_vi.numerics.mixtures import LOG_2PI, GaussianMixtures
from ppl_vi.numerics.newton import descent_step, predicted_gain
from ppl_vi.numerics.rules import gaussian_rule, num_rule_levels
from ppl_vi.target.evaluation import log_likelihood_at
from ppl_vi.target.target import Target

ROUGH = 1e-6  # nats, of the first search
RIVAL = 0.2  # nats: an optimum that much lower by the coarse rule may still win by a finer one
SETTLED = 3e-8  # nats that a finer rule would still climb
TOLERANCE = 1e-10  # nats, of Newton's method
ACCEPTED = 1e-6  # relative to max(1, |ELBO|): a larger error of quadrature is reported as no convergence
ALIKE = 0.01  # nats that two densities of one optimum differ by at most
RIDGE = 1e-8  # of Fisher's metric, relative to each parameter's own
MAX_STEPS = 100
ROUNDS = ((6, 3.0), (6, 1.0), (12, RIVAL), (MAX_STEPS, RIVAL))  # first search: steps, nats its rivals are within
# of mixtures, which have many optima of nearly one height and starts near them
MIXED_ROUNDS = ((0, 0.03), (6, 0.01), (12, 0.003), (MAX_STEPS, 0.001))
LIGHTEST = 0.01  # a component's odds count as if it weighed no less
SMALL = 128  # tiles of a mixture's component on the coarsest lattice: only one thin or far too long has more
WASTED = 1  # levels that a rule may be finer than is due
COARSE = 2  # the last level for which the coarsest lattice will do


@dataclass(frozen=True)
class BestMembers:
    """The best member of a family for each problem.

    Attributes:
        local: its local parameters, `(B, num_outputs)`.
        elbo: its ELBO, by lattices that were refined until they agreed, `(B,)`, nats.
        elbo_error: of quadrature, `(B,)`, nats.
        converged: whether a further step promises no more than `ACCEPTED`, by the last rule and by the next finer,
            and the error is no larger, `(B,)`: flat directions, as of equal components, do not count.
    """

    local: Tensor
    elbo: Tensor
    elbo_error: Tensor
    converged: Tensor


def best_members(
    target: Target, head: Head, local: Tensor, *, starts: Tensor | None = None, tiles: CachedLattice | None = None
) -> BestMembers:
    """Maximises the ELBO of each problem over the family's local parameters.

    Starts are the encoder's own parameters, those of `multistart`, and what the caller adds: with a poorer family's
    best members (`embed`) among them those of a family that holds it are never worse. Newton's method has the exact
    Hessian of the quadrature; since an optimiser exploits a rule of few nodes, the rules grow until two in a row have
    one optimum.

    Args:
        target: with a decoder.
        head: the family.
        local: the encoder's parameters, `(B, num_outputs)`, float64.
        starts: further ones, `(B, M, num_outputs)`.
        tiles: of the target, where there are some already.

    Raises:
        ValueError: the target has no decoder or more latents than quadrature reaches.

    Source: Cremer, Li and Duvenaud (2018), Inference suboptimality in variational autoencoders; their per-datum best
    has one start and a stochastic optimiser.
    """
    given = local[:, None] if starts is None else torch.cat([local[:, None], starts], 1)
    given = given.detach()
    tiles = CachedLattice(target) if tiles is None else tiles
    if tiles.target is not target:
        raise ValueError(f"the tiles are of target '{tiles.target.name}', not of '{target.name}'")
    found, index = multistart(tiles, head, given[:, 0]) if head.num_components == 1 else mixed(tiles, head, given)
    everyone = torch.arange(len(local), device=local.device)
    theta = torch.cat([given.flatten(0, 1), found])
    index = torch.cat([everyone.repeat_interleave(given.shape[1]), index])
    theta, index = _rough(tiles, head, theta, index)
    theta, index, promise = _polish(tiles, head, theta, index)
    final = lattice_elbo(tiles, head, theta, index)
    chosen = _best(final.value, index, len(local))
    sure = torch.maximum(promise, final.error)[chosen] <= ACCEPTED * final.value[chosen].abs().clamp(min=1)
    return BestMembers(theta[chosen], final.value[chosen], final.error[chosen], sure)


@torch.no_grad()
def embed(head: Head, other: Head, local: Tensor) -> Tensor:
    """Another family's members in `head`'s family, `(..., num_outputs)`: exact where `head` holds that one Gaussian,
    else a start near the Gaussian with its mean and covariance."""
    log_weights, locs, trils = other.components(local)
    share = log_weights.exp()[..., None]
    loc = (share * locs).sum(-2)
    away = locs - loc[..., None, :]
    each = trils @ trils.mT + away[..., :, None] * away[..., None, :]
    return head.initial(loc, torch.linalg.inv((share[..., None] * each).sum(-3)))


def _best(value: Tensor, index: Tensor, num_problems: int) -> Tensor:
    """The row of each problem's largest value, `(B,)`."""
    order = torch.argsort(torch.where(value.isnan(), -torch.inf, value), stable=True)
    row = torch.empty(num_problems, dtype=torch.long, device=value.device)
    for problem, place in zip(index[order].tolist(), order.tolist(), strict=True):
        row[problem] = place  # the last one written is the largest
    return row


def _rough(tiles: CachedLattice, head: Head, theta: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Climbs from every start by the coarsest rule; each problem's best optimum and its rivals go on.

    Climbs that have met, and those that fell far behind, are dropped between the rounds.
    """
    for steps, within in ROUNDS if head.num_components == 1 else MIXED_ROUNDS:
        theta, climb = ascend(tiles, head, theta, index, 0, ROUGH, steps)
        kept = _rivals(head, theta, index, climb.value, within)
        theta, index = theta[kept], index[kept]
        if bool(climb.converged[kept].all()):
            break
    return theta, index


@torch.no_grad()
def _rivals(head: Head, theta: Tensor, index: Tensor, value: Tensor, within: float) -> Tensor:
    """Rows of the different q of each problem whose values are within reach of its best, in order."""
    mixture, num = GaussianMixtures(*head.components(theta)), int(index.max()) + 1
    value = torch.where(value.isnan(), -torch.inf, value)
    pending, kept = torch.arange(len(index), device=index.device), []
    top = value[_best(value, index, num)][index] if len(index) else value
    pending = pending[(value >= top - within)[pending]]
    while len(pending):
        found, group = index[pending].unique(return_inverse=True)
        best = pending[_best(value[pending], group, len(found))]
        kept.append(best)
        pending = pending[~_alike(mixture.rows(pending), mixture.rows(best[group]))]
    return torch.cat(kept).sort().values


def _alike(one: GaussianMixtures, other: GaussianMixtures) -> Tensor:
    """Whether two mixtures have one density, however their components are numbered, `(N,)`."""
    middle = other.locs.flatten(1, -2)
    spread = (other.locs[:, :, None] + 2 * other.trils.mT).flatten(1, 2)
    z = torch.cat([middle, spread, 2 * other.locs.repeat_interleave(other.locs.shape[-1], 1) - spread], 1)
    return (one.log_prob(z) - other.log_prob(z)).abs().amax(-1) < ALIKE


def _polish(tiles: CachedLattice, head: Head, theta: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Climbs by finer and finer rules until the next would not climb farther.

    As the rules' errors fall, so does how far behind a rival may be.

    Returns:
        The optima that are left, the problem of each, and what a further step promises by the last rule or the
        next, `(M,)`, nats.
    """
    behind = RIVAL / 10 if head.num_components == 1 else MIXED_ROUNDS[-1][1]
    value, promise = torch.zeros_like(theta[:, 0]), torch.full_like(theta[:, 0], torch.inf)
    settled = torch.zeros_like(index, dtype=torch.bool)
    for level in range(2, num_rule_levels(tiles.dim) - 1):
        pending = (~settled).nonzero()[:, 0]
        found, climb = ascend(tiles, head, theta[pending], index[pending], level, TOLERANCE)
        theta, value = theta.index_copy(0, pending, found), value.index_copy(0, pending, climb.value)
        finer = _look(tiles, head, found, index[pending], level + 1, curved=False)
        gains = [predicted_gain(gradient, climb.hessian) for gradient in (climb.gradient, finer.gradient)]
        promise = promise.index_copy(0, pending, torch.maximum(*gains))
        settled = promise <= SETTLED * value.abs().clamp(min=1)
        kept = _rivals(head, theta, index, value, behind * 0.1 ** (level - 2))
        theta, index, value, promise, settled = (part[kept] for part in (theta, index, value, promise, settled))
        if bool(settled.all()):
            break
    return theta, index, promise


class ElboRules(NamedTuple):
    """By which rules the ELBO of each of `N` mixtures is summed: as fine as its components are narrow."""

    lattice: Tensor  # (N, K), of log p(x | z) under each component
    entropy: Tensor  # (N, K), of log q

    @classmethod
    def of(cls, mixture: GaussianMixtures, level: int) -> ElboRules:
        """Those of a level."""
        lattice = CachedLattice.levels(Gaussians.of(mixture, mixture.locs[:, 0, 0]), max(level - COARSE, 0))
        return cls(lattice.reshape(mixture.locs.shape[:2]), rule_levels(mixture, max(level, 1)))

    def rows(self, index: Tensor) -> ElboRules:
        """Some of them."""
        return ElboRules(self.lattice[index], self.entropy[index])

    def fitted(self, due: ElboRules) -> ElboRules:
        """Those that are `due` where these are coarser, or too fine to be worth it."""
        parts = (
            torch.where((part < other) | (part > other + WASTED), other, part)
            for part, other in zip(self, due, strict=True)
        )
        return ElboRules(*parts)

    def differs(self, other: ElboRules) -> Tensor:
        """`(N,)`."""
        return (self.lattice != other.lattice).any(-1) | (self.entropy != other.entropy).any(-1)


@dataclass
class Climb:
    """Where each of `N` climbs is.

    Attributes:
        value: the ELBO, `(N,)`, nats.
        gradient: of minus the ELBO, in units of the Fisher metric, `(N, P)`.
        hessian: likewise, `(N, P, P)`.
        metric: Cholesky factor of the Fisher information, `(N, P, P)`.
        converged: whether a further step promises less than the tolerance, `(N,)`.
        rules: by which they were computed.
    """

    value: Tensor
    gradient: Tensor
    hessian: Tensor
    metric: Tensor
    converged: Tensor
    rules: ElboRules

    def put(self, rows: Tensor, other: Climb) -> None:
        """Overwrites some rows."""
        for name in ("value", "gradient", "hessian", "metric"):
            getattr(self, name)[rows] = getattr(other, name)
        for part, new in zip(self.rules, other.rules, strict=True):
            part[rows] = new

    def rows(self, index: Tensor) -> Climb:
        """Some of them."""
        value, gradient, hessian = self.value[index], self.gradient[index], self.hessian[index]
        return Climb(value, gradient, hessian, self.metric[index], self.converged[index], self.rules.rows(index))


def ascend(
    tiles: CachedLattice,
    head: Head,
    theta: Tensor,
    index: Tensor,
    level: int,
    tolerance: float,
    max_steps: int = MAX_STEPS,
) -> tuple[Tensor, Climb]:
    """Newton's method in a trust region for the ELBO by one rule.

    Steps are measured by the Fisher information: one of length d changes q by d^2 / 2 nats at most, however narrow it
    is. Only the climbs that have not arrived are computed.

    Args:
        tiles: of the target.
        head: the family.
        theta: starts, `(N, num_outputs)`.
        index: the problem of each, `(N,)`.
        level: of the rule.
        tolerance: nats that a further step may still promise.
        max_steps: iterations at most.

    Returns:
        The parameters reached, `(N, num_outputs)`, and their `Climb`.

    Source: Nocedal and Wright (2006), Numerical optimization, chapter 4.
    """
    theta = theta.clone()
    climb = _look(tiles, head, theta, index, level)
    radius = torch.ones_like(climb.value)
    noise = 32 * torch.finfo(theta.dtype).eps
    for _ in range(max_steps):
        gain = predicted_gain(climb.gradient, climb.hessian)
        climb.converged = gain <= tolerance + noise * climb.value.abs()
        active = (~climb.converged & gain.isfinite() & (radius.square() > tolerance)).nonzero()[:, 0]
        if not len(active):
            break
        gradient, curvature = climb.gradient[active], climb.hessian[active]
        step = descent_step(gradient, curvature, radius[active])
        promised = -(step * gradient).sum(-1) - (step * (curvature @ step[..., None]).squeeze(-1)).sum(-1) / 2
        own = torch.linalg.solve_triangular(climb.metric[active].mT, step[..., None], upper=True).squeeze(-1)
        # by the same rule as the point it leaves: the two sums differ by the step alone
        trial = _look(tiles, head, theta[active] + own, index[active], level, rules=climb.rules.rows(active))
        rise = trial.value - climb.value[active] + noise * climb.value[active].abs()
        usable = trial.gradient.isfinite().all(-1) & trial.hessian.isfinite().all(-1).all(-1)
        better = usable & (rise >= 0.1 * promised.clamp(min=0))
        length = torch.linalg.vector_norm(step, dim=-1)
        radius[active] = torch.where(better, torch.maximum(radius[active], 2 * length), length / 4)
        theta[active[better]] += own[better]
        climb.put(active[better], trial.rows(better.nonzero()[:, 0]))
        if bool(better.any()):
            _refit(tiles, head, theta, index, level, climb, active[better])
    return theta, climb


def _refit(
    tiles: CachedLattice, head: Head, theta: Tensor, index: Tensor, level: int, climb: Climb, moved: Tensor
) -> None:
    """Looks again, by the rules that are due, from where components have become too narrow or wide for theirs."""
    rules = climb.rules.rows(moved).fitted(ElboRules.of(GaussianMixtures(*head.components(theta[moved])), level))
    wrong = rules.differs(climb.rules.rows(moved)).nonzero()[:, 0]
    if len(wrong):
        rows = moved[wrong]
        climb.put(rows, _look(tiles, head, theta[rows], index[rows], level, rules=rules.rows(wrong)))


@torch.no_grad()
def _look(
    tiles: CachedLattice,
    head: Head,
    theta: Tensor,
    index: Tensor,
    level: int,
    curved: bool = True,
    *,
    rules: ElboRules | None = None,
) -> Climb:
    """Value, and gradient and Hessian of minus the ELBO in Fisher's units; the Hessian is 0 if not `curved`."""
    base = GaussianMixtures(*head.components(theta))
    rules = ElboRules.of(base, level) if rules is None else rules
    entropy = negative_entropy(base, max(level, 1), curved, levels=rules.entropy)
    energy = _energy(tiles, base, index, level, rules.lattice, curved)
    value, slope, curvature = (part - other for part, other in zip(entropy, energy, strict=True))

    def point(theta: Tensor) -> Tensor:
        return coordinates(GaussianMixtures(*head.components(theta)))

    def along(theta: Tensor, slope: Tensor) -> Tensor:
        return point(theta) @ slope

    chart = vmap(jacrev(point))(theta)
    gradient, second = (slope[:, None] @ chart).mT, chart.mT @ curvature @ chart
    if curved:
        second = second + vmap(jacrev(grad(along)))(theta, slope)
    metric = _fisher(base, chart)
    # of directions that leave q as it is, such as a shift of all logits, a metric knows nothing
    metric = metric + RIDGE * torch.diag_embed(torch.diagonal(metric, dim1=1, dim2=2))
    usable = value.isfinite() & second.isfinite().all(-1).all(-1) & metric.isfinite().all(-1).all(-1)
    root, info = torch.linalg.cholesky_ex(
        torch.where(usable[:, None, None], metric, torch.eye(theta.shape[-1]).to(metric))
    )
    usable = usable & (info == 0)
    gradient = torch.linalg.solve_triangular(root, gradient, upper=False).squeeze(-1)
    half = torch.linalg.solve_triangular(root, (second + second.mT) / 2, upper=False)
    second = torch.linalg.solve_triangular(root, half.mT, upper=False)
    nan = torch.full_like(gradient, torch.nan)
    gradient = torch.where(usable[:, None], gradient, nan)
    return Climb(-value, gradient, (second + second.mT) / 2, root, torch.zeros_like(usable), rules)


def _fisher(base: GaussianMixtures, chart: Tensor) -> Tensor:
    """A bound on Fisher's information on the parameters in a draw, `(N, P, P)`.

    The sum over components of `v_k d log w_k^2 + |L_k^-1 [dm_k, dL_k]|^2 + tr(L_k^-1 dL_k L_k^-1 dL_k)`, with v_k = w_k
    but no less than `LIGHTEST`. With the factor w_k before the whole, and v_k = w_k, it would be the information in a
    draw and the component it came from. But where a component has hardly any weight, that lets a step carry it out of
    sight, and makes slopes out of rounding: in units of w_k^(1/2) these are rounding's 1e-15 / w_k^(1/2).

    Args:
        base: `N` mixtures.
        chart: derivatives of their `coordinates` by the parameters, `(N, C, P)`.
    """
    num, dim = base.locs.shape[1:]
    weight = base.log_weights.exp().clamp(min=LIGHTEST).sqrt()[..., None] * chart[:, :num]
    move = chart[:, num:].unflatten(1, (num, dim, -1))
    move = torch.einsum("nkde,nkecp->nkdcp", inverted(base.trils), move)
    own = move[..., 1:, :]
    turned = own.transpose(2, 3)
    return sum(
        (part.flatten(1, -2).mT @ other.flatten(1, -2) for part, other in ((move, move), (turned, own))),
        weight.mT @ weight,
    )


def _energy(
    tiles: CachedLattice, base: GaussianMixtures, index: Tensor, level: int, lattice: Tensor, curved: bool
) -> Expansion:
    """E_q[log p(x, z)]."""
    value, slope, curvature = _moments(tiles, base, index, level, lattice, curved)
    at, num = affine(base).flatten(2), base.locs.shape[1]
    size = at.shape[-1]
    each = at.new_zeros(*at.shape[:2], 1 + size, 1 + size)
    each[..., 0, 0] = value - at.square().sum(-1) / 2 - base.locs.shape[-1] * LOG_2PI / 2
    each[..., 0, 1:] = each[..., 1:, 0] = slope.flatten(2) - at
    each[..., 1:, 1:] = curvature.flatten(4).flatten(2, 3) - torch.eye(size).to(at)
    each *= base.log_weights.exp()[..., None, None]
    rest = torch.arange(num * size, device=at.device).reshape(num, size)
    place = torch.cat([torch.arange(num, device=at.device)[:, None], num + rest], -1)
    whole = at.new_zeros(len(at), place.numel(), place.numel())
    whole[:, place[:, :, None], place[:, None, :]] = each
    slopes = at.new_zeros(len(at), place.numel())
    slopes[:, place] = each[..., 0, :]
    return Expansion(each[..., 0, 0].sum(-1), slopes, whole)


def _moments(
    tiles: CachedLattice, base: GaussianMixtures, index: Tensor, level: int, lattice: Tensor, curved: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """E[f], E[grad f (1, e)'] and E[Hess f x (1, e) (1, e)'] of f = log p(x | z) under each component.

    Shapes `(N, K)`, `(N, K, D, 1 + D)` and `(N, K, D, 1 + D, D, 1 + D)`; the last is 0 if not `curved`.
    """
    degree = 4 if curved else 2
    gaussians = Gaussians.of(base, index)
    finer = max(level - COARSE, 0)
    most = MOST_TILES if base.locs.shape[1] == 1 else min(SMALL << tiles.dim * finer, MOST_TILES)
    value, sums = tiles.moments(gaussians, lattice.flatten(), degree, most)
    inverse = inverted(gaussians.tril)
    first, second = (part.to(base.locs) for part in stein(tiles.dim, degree))
    slope = torch.einsum("mia,mk,kic->mac", inverse, sums, first)
    curvature = torch.einsum("mia,mjb,mk,kicjd->macbd", inverse, inverse, sums, second)
    shape = base.log_weights.shape
    found = tuple(part.unflatten(0, shape) for part in (value, slope, curvature))
    lost = found[0].isnan().any(-1).nonzero()[:, 0]
    if len(lost):
        ruled = _ruled_moments(tiles.target, base.rows(lost), index[lost], level, curved)
        for part, other in zip(found, ruled, strict=True):
            part[lost] = other
    return found


def _ruled_moments(
    target: Target, base: GaussianMixtures, index: Tensor, level: int, curved: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`_moments` by a rule of its own for each component, where the decoder is differentiated."""
    nodes, weights = (part.to(base.locs) for part in gaussian_rule(level, target.dim))
    basis = torch.cat([torch.ones_like(nodes[:, :1]), nodes], -1)
    first, second = weights[:, None] * basis, weights[:, None, None] * basis[:, :, None] * basis[:, None, :]
    parts = []
    for block in row_blocks(len(index), base.locs.shape[1] * len(nodes)):
        z = base.rows(block).points(nodes)
        jets = (part.unflatten(1, z.shape[1:3]) for part in _jets(target, z.flatten(1, 2), index[block], curved))
        value, slope, curvature = jets
        slopes = torch.einsum("nksa,sc->nkac", slope, first)
        curvatures = torch.einsum("nksab,scd->nkacbd", curvature, second)
        parts.append((value @ weights, slopes, curvatures))
    value, slope, curvature = (torch.cat(part) for part in zip(*parts, strict=True))
    return value, slope, curvature


@torch.enable_grad()
def _jets(target: Target, z: Tensor, index: Tensor, curved: bool) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x | z) at `(N, S, D)`, its gradient `(N, S, D)` and Hessian `(N, S, D, D)`, 0 if not `curved`."""
    z = z.detach().requires_grad_()
    value = log_likelihood_at(target, z, index)
    (slope,) = torch.autograd.grad(value.sum(), z, create_graph=curved)
    if not curved:
        return value.detach(), slope, z.new_zeros((*z.shape, z.shape[-1]))
    columns = [torch.autograd.grad(part.sum(), z, retain_graph=True)[0] for part in slope.unbind(-1)]
    return value.detach(), slope.detach(), torch.stack(columns, -1)
