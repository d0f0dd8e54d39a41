"""The ELBO of an amortized family's members with its first and second derivatives, by quadrature.

The ELBO is first expanded in the coordinates of the mixture (`entropy.coordinates`): log q by rules around each
component, the log likelihood by moments on lattices. The chain rule then gives its derivatives in the family's local
parameters, and a change of units makes Fisher's information on these the identity, so that a step of length d changes
q by d^2 / 2 nats at most, however narrow q is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from ppl_vi.guides.amortized import Head
from ppl_vi.metrics.decoder.elbo import row_blocks
from ppl_vi.metrics.decoder.entropy import Expansion, affine, coordinates, negative_entropy, rule_levels
from ppl_vi.metrics.decoder.lattice_values import MAX_TILES, CachedLattice, Gaussians, inverted, stein
from ppl_vi.numerics.mixtures import LOG_2PI, GaussianMixtures
from ppl_vi.numerics.rules import gaussian_rule
from ppl_vi.target.evaluation import log_likelihood_at
from ppl_vi.target.target import Target

# This share of each parameter's own Fisher information is added to it, because directions that leave q as it is, such
# as a shift of all logits, have none. A larger share slows the steps along directions that hardly change q.
FISHER_RIDGE = 1e-8
# In Fisher's information of the log weights, each component counts as if its weight were at least this. With a smaller
# number, a step can take a light component so far from the posterior that it never returns.
MIN_FISHER_WEIGHT = 0.01
# The most tiles in the box around a mixture's component on the coarsest lattice. Only a component that is thin or far
# too long has more, and it is then summed by a rule of its own.
MAX_COMPONENT_TILES = 128
# A rule that is finer than it need be by no more than so many levels is kept, which saves a new sum.
MAX_EXCESS_LEVELS = 1
# The last level at which the log likelihood is summed on the coarsest lattice; each level beyond halves the spacing.
COARSEST_LATTICE_LEVEL = 2


class ElboRules(NamedTuple):
    """The rules by which the ELBO of each of `N` mixtures is summed: as fine as its components are narrow.

    Attributes:
        lattice: level of the lattice by which log p(x | z) is summed under each component, `(N, K)`.
        entropy: level of the rule by which log q is summed under each component, `(N, K)`.
    """

    lattice: Tensor
    entropy: Tensor

    @classmethod
    def of(cls, mixture: GaussianMixtures, level: int) -> ElboRules:
        """The rules that are due to mixtures at a level."""
        gaussians = Gaussians.of(mixture, mixture.locs[:, 0, 0])  # the problems do not matter here
        lattice = CachedLattice.levels(gaussians, max(level - COARSEST_LATTICE_LEVEL, 0))
        return cls(lattice.reshape(mixture.locs.shape[:2]), rule_levels(mixture, max(level, 1)))

    def rows(self, rows: Tensor) -> ElboRules:
        """The rules of some of the mixtures."""
        return ElboRules(self.lattice[rows], self.entropy[rows])

    def fitted(self, due: ElboRules) -> ElboRules:
        """The rules that are `due` where these are coarser, or finer by more than is worth keeping."""
        parts = (
            torch.where((part < other) | (part > other + MAX_EXCESS_LEVELS), other, part)
            for part, other in zip(self, due, strict=True)
        )
        return ElboRules(*parts)

    def differs(self, other: ElboRules) -> Tensor:
        """Whether any rule of a mixture is another, `(N,)`."""
        return (self.lattice != other.lattice).any(-1) | (self.entropy != other.entropy).any(-1)


@dataclass
class ElboExpansion:
    """The ELBO at `N` members of a family and the derivatives of minus the ELBO, in units of Fisher's information.

    Attributes:
        value: the ELBO, `(N,)`, nats.
        gradient: of minus the ELBO, `(N, P)`; nan where there is no finite one.
        hessian: likewise, `(N, P, P)`.
        metric: lower Cholesky factor of Fisher's information on the parameters, `(N, P, P)`: the gradient in the
            parameters themselves is its product with `gradient`.
        rules: by which the ELBO was summed.
    """

    value: Tensor
    gradient: Tensor
    hessian: Tensor
    metric: Tensor
    rules: ElboRules

    def put(self, rows: Tensor, other: ElboExpansion) -> None:
        """Overwrites some rows by those of another expansion."""
        for name in ("value", "gradient", "hessian", "metric"):
            getattr(self, name)[rows] = getattr(other, name)
        for part, new in zip(self.rules, other.rules, strict=True):
            part[rows] = new

    def rows(self, rows: Tensor) -> ElboExpansion:
        """Some of the members."""
        value, gradient, hessian = self.value[rows], self.gradient[rows], self.hessian[rows]
        return ElboExpansion(value, gradient, hessian, self.metric[rows], self.rules.rows(rows))


@torch.no_grad()
def elbo_expansion(
    lattice: CachedLattice,
    head: Head,
    local: Tensor,
    problem: Tensor,
    level: int,
    *,
    curved: bool = True,
    rules: ElboRules | None = None,
) -> ElboExpansion:
    """Expands the ELBO at members of a family.

    Args:
        lattice: of the target.
        head: the family.
        local: the members' parameters, `(N, P)`.
        problem: that of each member, `(N,)`.
        level: of the rules.
        curved: whether the Hessian is wanted; it says nothing otherwise.
        rules: by which to sum; those that are due at the level by default.
    """
    mixture = GaussianMixtures(*head.components(local))
    rules = ElboRules.of(mixture, level) if rules is None else rules
    entropy = negative_entropy(mixture, max(level, 1), curved, levels=rules.entropy)
    log_joint = _expected_log_joint(lattice, mixture, problem, level, rules.lattice, curved)
    loss = Expansion(*(part - other for part, other in zip(entropy, log_joint, strict=True)))
    jacobian = vmap(jacrev(lambda one: _coordinates_at(head, one)))(local)
    gradient, hessian = _in_parameters(head, local, loss, jacobian, curved)
    metric = _fisher(mixture, jacobian)
    metric = metric + FISHER_RIDGE * torch.diag_embed(torch.diagonal(metric, dim1=1, dim2=2))
    usable = loss.value.isfinite() & hessian.isfinite().all(-1).all(-1) & metric.isfinite().all(-1).all(-1)
    eye = torch.eye(local.shape[-1]).to(metric)
    root, info = torch.linalg.cholesky_ex(torch.where(usable[:, None, None], metric, eye))
    usable = usable & (info == 0)
    gradient = torch.linalg.solve_triangular(root, gradient[..., None], upper=False).squeeze(-1)
    half = torch.linalg.solve_triangular(root, (hessian + hessian.mT) / 2, upper=False)
    hessian = torch.linalg.solve_triangular(root, half.mT, upper=False)
    gradient = torch.where(usable[:, None], gradient, torch.full_like(gradient, torch.nan))
    return ElboExpansion(-loss.value, gradient, (hessian + hessian.mT) / 2, root, rules)


def _coordinates_at(head: Head, local: Tensor) -> Tensor:
    """The coordinates of one member's mixture, `(C,)`."""
    return coordinates(GaussianMixtures(*head.components(local)))


def _in_parameters(head: Head, local: Tensor, loss: Expansion, jacobian: Tensor, curved: bool) -> tuple[Tensor, Tensor]:
    """The gradient `(N, P)` and Hessian `(N, P, P)` in the parameters, by the chain rule.

    With the coordinates x of a mixture as functions of its parameters t, whose first derivatives are the Jacobian J,
    the gradient is J' slope, and the Hessian J' curvature J + sum_c slope_c d2x_c / dt2.
    """

    def along(one: Tensor, slope: Tensor) -> Tensor:
        return _coordinates_at(head, one) @ slope

    gradient = (loss.slope[:, None] @ jacobian).mT.squeeze(-1)
    hessian = jacobian.mT @ loss.curvature @ jacobian
    if curved:
        hessian = hessian + vmap(jacrev(grad(along)))(local, loss.slope)
    return gradient, hessian


def _fisher(mixture: GaussianMixtures, jacobian: Tensor) -> Tensor:
    """A bound on Fisher's information on the parameters in a draw, `(N, P, P)`.

    The sum over components of `v_k d log w_k^2 + |L_k^-1 [dm_k, dL_k]|^2 + tr(L_k^-1 dL_k L_k^-1 dL_k)`, with v_k = w_k
    but no less than `MIN_FISHER_WEIGHT`. With the factor w_k before the whole, and v_k = w_k, it would be the
    information in a draw and the component that it came from. But where a component has hardly any weight, such a
    metric lets a step carry the component out of sight, and makes slopes out of rounding: in units of w_k^(1/2),
    rounding of 1e-15 becomes 1e-15 / w_k^(1/2).

    Args:
        mixture: `N` of them.
        jacobian: derivatives of their `coordinates` by the parameters, `(N, C, P)`.
    """
    num, dim = mixture.locs.shape[1:]
    weight = mixture.log_weights.exp().clamp(min=MIN_FISHER_WEIGHT).sqrt()[..., None] * jacobian[:, :num]
    change = jacobian[:, num:].unflatten(1, (num, dim, -1))
    change = torch.einsum("nkde,nkecp->nkdcp", inverted(mixture.trils), change)  # L_k^-1 [dm_k, dL_k]
    scale = change[..., 1:, :]
    turned = scale.transpose(2, 3)
    return sum(
        (part.flatten(1, -2).mT @ other.flatten(1, -2) for part, other in ((change, change), (turned, scale))),
        weight.mT @ weight,
    )


def _expected_log_joint(
    lattice: CachedLattice, mixture: GaussianMixtures, problem: Tensor, level: int, levels: Tensor, curved: bool
) -> Expansion:
    """E_q[log p(x, z)] in the coordinates: the prior's part in closed form, the likelihood's by `_moments`."""
    likelihood = _moments(lattice, mixture, problem, level, levels, curved)
    at, num = affine(mixture).flatten(2), mixture.locs.shape[1]
    size = at.shape[-1]
    # of each component, derivatives in its log weight (the first row and column) and its affine map
    each = at.new_zeros(*at.shape[:2], 1 + size, 1 + size)
    each[..., 0, 0] = likelihood.value - at.square().sum(-1) / 2 - mixture.locs.shape[-1] * LOG_2PI / 2
    each[..., 0, 1:] = each[..., 1:, 0] = likelihood.slope.flatten(2) - at
    each[..., 1:, 1:] = likelihood.curvature.flatten(4).flatten(2, 3) - torch.eye(size).to(at)
    each *= mixture.log_weights.exp()[..., None, None]
    # where each component's log weight and affine map stand among the coordinates
    rest = torch.arange(num * size, device=at.device).reshape(num, size)
    place = torch.cat([torch.arange(num, device=at.device)[:, None], num + rest], -1)
    curvature = at.new_zeros(len(at), place.numel(), place.numel())
    curvature[:, place[:, :, None], place[:, None, :]] = each
    slope = at.new_zeros(len(at), place.numel())
    slope[:, place] = each[..., 0, :]
    return Expansion(each[..., 0, 0].sum(-1), slope, curvature)


class LikelihoodMoments(NamedTuple):
    """Expectations of f = log p(x | z) and its derivatives under each component of `N` mixtures, z = m + L e.

    Attributes:
        value: E[f], `(N, K)`.
        slope: E[grad f (1, e)'], `(N, K, D, 1 + D)`.
        curvature: E[Hess f x (1, e) (1, e)'], `(N, K, D, 1 + D, D, 1 + D)`.
    """

    value: Tensor
    slope: Tensor
    curvature: Tensor


def _moments(
    lattice: CachedLattice, mixture: GaussianMixtures, problem: Tensor, level: int, levels: Tensor, curved: bool
) -> LikelihoodMoments:
    """The moments on lattices, and by rules where no lattice serves; the curvature is 0 if not `curved`."""
    degree = 4 if curved else 2
    gaussians = Gaussians.of(mixture, problem)
    max_tiles = MAX_TILES
    if mixture.locs.shape[1] > 1:
        finer = max(level - COARSEST_LATTICE_LEVEL, 0)
        max_tiles = min(MAX_COMPONENT_TILES << lattice.dim * finer, MAX_TILES)
    moments = lattice.moments(gaussians, levels.flatten(), degree, max_tiles)
    inverse = inverted(gaussians.tril)
    first, second = (part.to(mixture.locs) for part in stein(lattice.dim, degree))
    slope = torch.einsum("mia,mk,kic->mac", inverse, moments.central, first)
    curvature = torch.einsum("mia,mjb,mk,kicjd->macbd", inverse, inverse, moments.central, second)
    shape = mixture.log_weights.shape
    found = LikelihoodMoments(*(part.unflatten(0, shape) for part in (moments.mean, slope, curvature)))
    lost = found.value.isnan().any(-1).nonzero()[:, 0]
    if len(lost):
        ruled = _ruled_moments(lattice.target, mixture.rows(lost), problem[lost], level, curved)
        for part, other in zip(found, ruled, strict=True):
            part[lost] = other
    return found


def _ruled_moments(
    target: Target, mixture: GaussianMixtures, problem: Tensor, level: int, curved: bool
) -> LikelihoodMoments:
    """The moments by a rule of its own for each component, at whose nodes the decoder is differentiated."""
    nodes, weights = (part.to(mixture.locs) for part in gaussian_rule(level, target.dim))
    basis = torch.cat([torch.ones_like(nodes[:, :1]), nodes], -1)
    first, second = weights[:, None] * basis, weights[:, None, None] * basis[:, :, None] * basis[:, None, :]
    parts = []
    for block in row_blocks(len(problem), mixture.locs.shape[1] * len(nodes)):
        z = mixture.rows(block).points(nodes)
        jets = (part.unflatten(1, z.shape[1:3]) for part in _jets(target, z.flatten(1, 2), problem[block], curved))
        value, slope, curvature = jets
        slopes = torch.einsum("nksa,sc->nkac", slope, first)
        curvatures = torch.einsum("nksab,scd->nkacbd", curvature, second)
        parts.append((value @ weights, slopes, curvatures))
    return LikelihoodMoments(*(torch.cat(part) for part in zip(*parts, strict=True)))


@torch.enable_grad()
def _jets(target: Target, z: Tensor, problem: Tensor, curved: bool) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x | z) at `(N, S, D)`, its gradient `(N, S, D)` and Hessian `(N, S, D, D)`, 0 if not `curved`."""
    z = z.detach().requires_grad_()
    value = log_likelihood_at(target, z, problem)
    (slope,) = torch.autograd.grad(value.sum(), z, create_graph=curved)
    if not curved:
        return value.detach(), slope, z.new_zeros((*z.shape, z.shape[-1]))
    columns = [torch.autograd.grad(part.sum(), z, retain_graph=True)[0] for part in slope.unbind(-1)]
    return value.detach(), slope.detach(), torch.stack(columns, -1)
