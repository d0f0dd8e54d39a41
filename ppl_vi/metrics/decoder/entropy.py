"""E_q[log q] of mixtures of Gaussians, with its first and second derivatives in closed form at every node.

The coordinates of a mixture are its log weights and the matrix `A_k = [loc_k, L_k]` of each component, which takes
`c = (1, e)` to a point z = A_k c. At the point of node c of component k,

    l_j = log w_j + log Normal(z; loc_j, L_j L_j') = log w_j - |y_j|^2 / 2 - log det L_j + constant,
    y_j = L_j^-1 (z - loc_j) = B_kj c,

is quadratic in c, and log q is the logarithm of sum_j exp(l_j). With the responsibilities r_j = exp(l_j) / q,

    d log q  = sum_j r_j dl_j,
    d2 log q = sum_j r_j d2l_j + sum_{i<j} r_i r_j (dl_i - dl_j) (dl_i - dl_j)'.

The derivatives of l_j in the coordinates are, too:

    dy_j  = Z_kj c,   Z_kj = L_j^-1 dA_k - L_j^-1 dA_j [(1, 0); B_kj],
    dl_j  = -c' B_kj' Z_kj c + d log w_j - tr(Y_j),   Y_j = L_j^-1 dL_j,
    d2l_j = -|Z_kj c|^2 + 2 y_j' Y_j Z_kj c + tr(Y_j Y_j).

So all sums over nodes are those of r_j c c' and of r_i r_j c c' c c' alone.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vi.metrics.decoder.elbo import row_blocks
from ppl_vi.metrics.decoder.lattice_values import inverted
from ppl_vi.numerics.mixtures import LOG_2PI, GaussianMixtures
from ppl_vi.numerics.rules import gaussian_rule, num_rule_levels

# How far the nodes of each level's rule reach, in standard deviations: nodes beyond have less mass than the level has
# error. Finer levels reach as far as the last.
LEVEL_REACH = (5.0, 5.0, 5.5, 6.0, 6.5, 7.0)


class Expansion(NamedTuple):
    """A function of `N` mixtures with its derivatives in their `C = K + K D (1 + D)` coordinates.

    Attributes:
        value: `(N,)`.
        slope: first derivatives, `(N, C)`.
        curvature: second derivatives, `(N, C, C)`.
    """

    value: Tensor
    slope: Tensor
    curvature: Tensor


class NodeSums(NamedTuple):
    """Weighted sums over the nodes of each component k.

    Attributes:
        log_q: of log q, `(N, K)`.
        second: of r_j c c', `(N, K, K, 1 + D, 1 + D)`, by k and j.
        fourth: of r_i r_j s s', where s are the U products of two entries of c, `(N, K, K (K - 1) / 2, U, U)`, by k and
            the pairs i < j.
    """

    log_q: Tensor
    second: Tensor
    fourth: Tensor


class Derivatives(NamedTuple):
    """The derivatives of y_j and l_j at the nodes of k in the `C` coordinates, which are the last axis.

    Attributes:
        scale: Y_j = L_j^-1 dL_j, `(N, K, D, D, C)`.
        whitened: Z_kj, by which dy_j = Z_kj c, `(N, K, K, D, 1 + D, C)`.
        log_density: dl_j as coefficients of the U products of two entries of c, `(N, K, K, U, C)`.
    """

    scale: Tensor
    whitened: Tensor
    log_density: Tensor


def affine(mixture: GaussianMixtures) -> Tensor:
    """The matrices A = [loc, L] of the components, `(..., K, D, 1 + D)`: a point of one is its product with (1, e)."""
    return torch.cat([mixture.locs[..., None], mixture.trils], -1)


def coordinates(mixture: GaussianMixtures) -> Tensor:
    """The coordinates of a mixture: log weights, then the entries of `affine`, `(..., C)`."""
    return torch.cat([mixture.log_weights, affine(mixture).flatten(-3)], -1)


def negative_entropy(
    mixture: GaussianMixtures, level: int, curved: bool = True, *, levels: Tensor | None = None
) -> Expansion:
    """E_q[log q], nats, by rules, and the derivatives of that very sum.

    The narrower the others that a component sees, the finer is its rule: otherwise a search for the best mixture would
    hide narrow components between the nodes of wide ones.

    Args:
        mixture: `N` of them.
        level: of the rule of components that are all of one width.
        curved: whether the second derivatives are wanted; they are 0 otherwise.
        levels: of each component's rule, `(N, K)`; those of `rule_levels` by default.
    """
    to_white = _whitening(mixture)
    derivatives = _derivatives(mixture, to_white)
    levels = rule_levels(mixture, level) if levels is None else levels
    sums = _node_sums(mixture, to_white, level, levels, curved)
    first, second = _products(mixture.locs.shape[-1])
    share, products = mixture.log_weights.exp(), sums.second[..., first, second]
    by_component = torch.einsum("nk,nkju,nkjup->nkp", share, products, derivatives.log_density)
    log_q, slope = share * sums.log_q, by_component.sum(1)
    num = share.shape[1]
    slope[:, :num] += log_q
    curvature = slope.new_zeros(*slope.shape, slope.shape[1])
    if curved:
        curvature = _own_curvature(share, sums, to_white, derivatives) + _pair_curvature(share, sums, derivatives)
        # the component's own weight, w_k = exp(log w_k), stands before its sum
        curvature[:, :num] += by_component
        curvature[:, :, :num] += by_component.mT
        torch.diagonal(curvature, dim1=1, dim2=2)[:, :num] += log_q
    return Expansion(log_q.sum(-1), slope, curvature)


@lru_cache
def _rule(level: int, finer: int, dim: int) -> tuple[Tensor, Tensor]:
    """The rule of level `finer`, without the nodes that lie too far out to matter to one of `level`."""
    nodes, weights = gaussian_rule(finer, dim)
    if not finer:  # the rule of a single Gaussian, whose log density it integrates exactly as it is
        return nodes, weights
    kept = nodes.square().sum(-1) <= LEVEL_REACH[min(level, len(LEVEL_REACH) - 1)] ** 2
    return nodes[kept], weights[kept] / weights[kept].sum()


def rule_levels(mixture: GaussianMixtures, level: int) -> Tensor:
    """The level of each component's rule, `(N, K)`.

    The spacing shrinks by powers of `1 / sqrt(2)` with the width of the narrowest component, as the component sees it.

    Args:
        mixture: `N` of them.
        level: of the rule of components that are all of one width.
    """
    dim, trils = mixture.locs.shape[-1], mixture.trils
    if trils.shape[1] == 1:
        return torch.zeros(trils.shape[:2], dtype=torch.long, device=trils.device)  # log q is quadratic
    matrix = inverted(trils)[:, None] @ trils[:, :, None]
    matrix = torch.where(matrix.isfinite(), matrix, 1.0)
    # Schatten's 4-norm lies between the largest singular value and D^(1/4) times that
    stretch = (matrix.mT @ matrix).square().sum((-2, -1)).amax(-1).log2() / 4
    return (level + (2 * stretch - math.log2(dim) / 2).ceil().clamp(min=0)).clamp(max=num_rule_levels(dim) - 1).long()


def _node_sums(mixture: GaussianMixtures, to_white: Tensor, level: int, levels: Tensor, curved: bool) -> NodeSums:
    """The sums over the nodes of each component by its own rule; `fourth` is 0 if not `curved`."""
    dim = mixture.locs.shape[-1]
    log_scale = torch.diagonal(mixture.trils, dim1=-2, dim2=-1).log().sum(-1)
    constant = (mixture.log_weights - log_scale - dim * LOG_2PI / 2)[:, None].expand(to_white.shape[:3])
    to_white, constant, flat = to_white.flatten(0, 1), constant.flatten(0, 1), levels.flatten()
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    rows: list[Tensor] = []
    for finer in flat.unique().tolist():
        nodes, weights = (part.to(to_white) for part in _rule(level, finer, dim))
        same = (flat == finer).nonzero()[:, 0]
        for block in row_blocks(len(same), len(nodes) * to_white.shape[1]):
            rows.append(same[block])
            found.append(_summed(to_white[same[block]], constant[same[block]], nodes, weights, curved))
    order = torch.cat(rows).argsort()
    log_q, second, fourth = (torch.cat(part)[order].unflatten(0, levels.shape) for part in zip(*found, strict=True))
    return NodeSums(log_q, second[..., _place(dim, 2)], fourth[..., _place(dim, 4)])


def _summed(
    to_white: Tensor, constant: Tensor, nodes: Tensor, weights: Tensor, curved: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums over the nodes of `M` components that have one rule.

    They are of log q, `(M,)`, of r_j and the U products of two entries of c, `(M, K, U)`, and of r_i r_j and the V
    products of four entries, `(M, K (K - 1) / 2, V)`.
    """
    dim = nodes.shape[-1]
    c = torch.cat([torch.ones_like(nodes[:, :1]), nodes], -1)
    log_density = constant[..., None] - (to_white @ c.T).square().sum(-2) / 2
    largest = log_density.amax(1, keepdim=True)
    density = (log_density - largest).exp()
    total = density.sum(1, keepdim=True)
    log_q, responsibility = (largest + total.log())[:, 0], density / total
    second = responsibility @ (weights[:, None] * c[:, _multiples(dim, 2)].prod(-1))
    i, j = torch.triu_indices(responsibility.shape[1], responsibility.shape[1], 1)
    products = weights[:, None] * c[:, _multiples(dim, 4)].prod(-1)
    fourth = products.new_zeros(len(log_q), len(i), products.shape[1])
    if curved:
        fourth = (responsibility[:, i] * responsibility[:, j]) @ products
    return log_q @ weights, second, fourth


def _whitening(mixture: GaussianMixtures) -> Tensor:
    """B_kj, by which y_j = B_kj c at the node c of component k, `(N, K, K, D, 1 + D)`."""
    from_j = affine(mixture)[:, :, None].repeat(1, 1, mixture.locs.shape[1], 1, 1)
    from_j[..., 0] -= mixture.locs[:, None]
    return inverted(mixture.trils)[:, None] @ from_j


def _derivatives(mixture: GaussianMixtures, to_white: Tensor) -> Derivatives:
    """The derivatives of y_j and l_j in the coordinates, as the module's docstring gives them."""
    num, dim = mixture.locs.shape[1:]
    inverse = inverted(mixture.trils)
    own = torch.eye(num * dim * (1 + dim)).to(mixture.locs)
    d_affine = torch.nn.functional.pad(own, (num, 0)).reshape(num, dim, 1 + dim, -1)  # dA_k
    d_log_weight = torch.eye(num, num + len(own)).to(own)
    first_row = torch.eye(1 + dim).to(own)[:1].expand(*to_white.shape[:3], 1, -1)
    with_one = torch.cat([first_row, to_white], -2)  # [(1, 0); B_kj], which takes c to (1, y_j)
    own_change = torch.einsum("njde,jecp->njdcp", inverse, d_affine)  # L_j^-1 dA_j
    whitened = torch.einsum("njde,keap->nkjdap", inverse, d_affine)
    whitened = whitened - torch.einsum("njdcp,nkjca->nkjdap", own_change, with_one)
    scale = own_change[..., 1:, :]
    form = -torch.einsum("nkjda,nkjdbp->nkjabp", to_white, whitened)  # dl_j = c' form c
    form[..., 0, 0, :] += d_log_weight
    form[..., 0, 0, :] -= scale.diagonal(dim1=2, dim2=3).sum(-1)[:, None]
    first, second = _products(dim)
    once = torch.where((first == second)[:, None], 0.5, 1.0).to(own)  # a square stands on the diagonal, once
    return Derivatives(scale, whitened, once * (form[..., first, second, :] + form[..., second, first, :]))


def _own_curvature(share: Tensor, sums: NodeSums, to_white: Tensor, derivatives: Derivatives) -> Tensor:
    """The sum of r_j d2l_j over nodes and components, `(N, C, C)`."""
    scale, whitened = derivatives.scale, derivatives.whitened
    weighted = torch.einsum("nk,nkjab,nkjdbp->nkjdap", share, sums.second, whitened)
    squares = (weighted.flatten(1, 4).mT @ whitened.flatten(1, 4)).neg()
    turned = torch.einsum("nkjda,nkjfap->njdfp", to_white, weighted)
    mass = torch.einsum("nk,nkj->nj", share, sums.second[..., 0, 0])
    other = turned + mass[:, :, None, None, None] * scale.transpose(2, 3) / 2
    mixed = scale.flatten(1, 3).mT @ other.flatten(1, 3)
    return squares + mixed + mixed.mT


def _pair_curvature(share: Tensor, sums: NodeSums, derivatives: Derivatives) -> Tensor:
    """The sum of r_i r_j (dl_i - dl_j) (dl_i - dl_j)' over nodes and pairs of components, `(N, C, C)`."""
    i, j = torch.triu_indices(share.shape[1], share.shape[1], 1)
    difference = derivatives.log_density[:, :, i] - derivatives.log_density[:, :, j]
    weighted = (share[:, :, None, None, None] * sums.fourth) @ difference
    return weighted.flatten(1, 3).mT @ difference.flatten(1, 3)


@lru_cache
def _multiples(dim: int, degree: int) -> Tensor:
    """Which entries of c each product of `degree` of them has: `(U, 2)` or `(V, 4)`."""
    return torch.tensor(list(itertools.combinations_with_replacement(range(1 + dim), degree)))


def _products(dim: int) -> tuple[Tensor, Tensor]:
    """The first and the second entry of c in each of the U products of two, `(U,)` each."""
    first, second = _multiples(dim, 2).unbind(-1)
    return first, second


@lru_cache
def _place(dim: int, degree: int) -> Tensor:
    """The numbers of products among those of `_multiples`.

    For degree 2 they are those of any two entries of c, `(1 + D, 1 + D)`; for degree 4 of any two products of two,
    `(U, U)`.
    """
    number = {tuple(row): at for at, row in enumerate(_multiples(dim, degree).tolist())}
    parts = [[a] for a in range(1 + dim)] if degree == 2 else _multiples(dim, 2).tolist()
    return torch.tensor([[number[tuple(sorted(one + other))] for other in parts] for one in parts])
