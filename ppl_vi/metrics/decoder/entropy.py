"""E_q[log q] of mixtures of Gaussians, with its first and second derivatives by hand.

A mixture's coordinates are its log weights and, of each component, `[loc, L]`, which takes `c = (1, e)` to a point.
At the point of node c of component k, `l_j = log w_j + log Normal(L_k e + loc_k; loc_j, L_j L_j')` is quadratic in c,
and log q the logarithm of sum_j exp(l_j). With the responsibilities r_j = exp(l_j) / q,

    d log q  = sum_j r_j dl_j,
    d2 log q = sum_j r_j d2l_j + sum_{i<j} r_i r_j (dl_i - dl_j) (dl_i - dl_j)',

and since dl_j and d2l_j are quadratic in c, too, sums over the nodes are those of r_j c c' and r_i r_j c c' c c' alone.
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

REACH = (5.0, 5.0, 5.5, 6.0, 6.5, 7.0)  # of each level's nodes, standard deviations


class Expansion(NamedTuple):
    """A function of `N` mixtures with its derivatives in their `C = K + K D (1 + D)` coordinates."""

    value: Tensor  # (N,)
    slope: Tensor  # (N, C)
    curvature: Tensor  # (N, C, C)


class Sums(NamedTuple):
    """Sums over the nodes of each component, by their weights."""

    log_q: Tensor  # (N, K), of log q
    second: Tensor  # (N, K, K, 1 + D, 1 + D), of r_j c c' at the nodes of each k
    fourth: Tensor  # (N, K, K (K - 1) / 2, U, U), of r_i r_j s s', s the U products of two coordinates of c; i < j


class Moves(NamedTuple):
    """What the coordinates do, with y = L_j^-1 (z - loc_j) at the nodes of k and `C` coordinates at the end.

    dy = Z c and dl_j = -y' Z c + d log w_j - tr(Y).
    """

    own: Tensor  # (N, K, D, D, C), Y: L_j^-1 dL_j
    white: Tensor  # (N, K, K, D, 1 + D), B: y = B c
    moved: Tensor  # (N, K, K, D, 1 + D, C), Z
    log_density: Tensor  # (N, K, K, U, C), dl_j as coefficients of the U products


def affine(mixture: GaussianMixtures) -> Tensor:
    """`[loc, L]` `(..., K, D, 1 + D)`: a point of a component is its product with `(1, e)`."""
    return torch.cat([mixture.locs[..., None], mixture.trils], -1)


def coordinates(mixture: GaussianMixtures) -> Tensor:
    """Log weights, then `affine`, `(..., C)`."""
    return torch.cat([mixture.log_weights, affine(mixture).flatten(-3)], -1)


def negative_entropy(
    mixture: GaussianMixtures, level: int, curved: bool = True, *, levels: Tensor | None = None
) -> Expansion:
    """E_q[log q], nats, by rules, and the derivatives of that very sum.

    Where a component sees narrower ones its rule is as much finer: else a search for the best mixture would hide
    narrow components between the nodes of wide ones.

    Args:
        mixture: `N` of them.
        level: of the rule of components that are all of one width.
        curved: whether the second derivatives are wanted; they are 0 otherwise.
        levels: of each component's rule, `(N, K)`; those of `rule_levels` by default.
    """
    moves = _moves(mixture)
    levels = rule_levels(mixture, level) if levels is None else levels
    sums = _sums(mixture, moves.white, level, levels, curved)
    first, second = _products(mixture.locs.shape[-1])
    share, twice = mixture.log_weights.exp(), sums.second[..., first, second]
    each = torch.einsum("nk,nkju,nkjup->nkp", share, twice, moves.log_density)
    held, slope = share * sums.log_q, each.sum(1)
    num = share.shape[1]
    slope[:, :num] += held
    curvature = slope.new_zeros(*slope.shape, slope.shape[1])
    if curved:
        curvature = _bent(share, sums, moves) + _spread(share, sums, moves)
        curvature[:, :num] += each
        curvature[:, :, :num] += each.mT
        torch.diagonal(curvature, dim1=1, dim2=2)[:, :num] += held
    return Expansion(held.sum(-1), slope, curvature)


@lru_cache
def _rule(level: int, finer: int, dim: int) -> tuple[Tensor, Tensor]:
    """The rule of level `finer`, without the nodes that are too far out to matter for one of `level`."""
    nodes, weights = gaussian_rule(finer, dim)
    if not finer:  # one Gaussian's, exact as it is
        return nodes, weights
    kept = nodes.square().sum(-1) <= REACH[min(level, len(REACH) - 1)] ** 2
    return nodes[kept], weights[kept] / weights[kept].sum()


def rule_levels(mixture: GaussianMixtures, level: int) -> Tensor:
    """The level of each component's rule, `(N, K)`: the spacing shrinks as the narrowest component does, by powers of
    `1 / sqrt(2)`.

    Args:
        mixture: `N` of them.
        level: of the rule of components that are all of one width.
    """
    dim, trils = mixture.locs.shape[-1], mixture.trils
    if trils.shape[1] == 1:
        return torch.zeros(trils.shape[:2], dtype=torch.long, device=trils.device)  # log q is quadratic
    matrix = inverted(trils)[:, None] @ trils[:, :, None]
    matrix = torch.where(matrix.isfinite(), matrix, 1.0)
    # Schatten's 4-norm: the largest singular value, and no more than D^(1/4) times it
    stretch = (matrix.mT @ matrix).square().sum((-2, -1)).amax(-1).log2() / 4
    return (level + (2 * stretch - math.log2(dim) / 2).ceil().clamp(min=0)).clamp(max=num_rule_levels(dim) - 1).long()


def _sums(mixture: GaussianMixtures, white: Tensor, level: int, levels: Tensor, curved: bool) -> Sums:
    """Over the nodes of each component; those of four coordinates are 0 if not `curved`."""
    dim = mixture.locs.shape[-1]
    log_scale = torch.diagonal(mixture.trils, dim1=-2, dim2=-1).log().sum(-1)
    constant = (mixture.log_weights - log_scale - dim * LOG_2PI / 2)[:, None].expand(white.shape[:3])
    white, constant, flat = white.flatten(0, 1), constant.flatten(0, 1), levels.flatten()
    found: list[Tensor] = []
    order: list[Tensor] = []
    for finer in flat.unique().tolist():
        nodes, weights = (part.to(white) for part in _rule(level, finer, dim))
        rows = (flat == finer).nonzero()[:, 0]
        for block in row_blocks(len(rows), len(nodes) * white.shape[1]):
            order.append(rows[block])
            found.append(_summed(white[rows[block]], constant[rows[block]], nodes, weights, curved))
    sums = torch.cat(found)[torch.cat(order).argsort()].unflatten(0, levels.shape)
    num, (first, _) = levels.shape[1], _products(dim)
    log_q, second, fourth = sums.split([1, num * len(first), sums.shape[-1] - 1 - num * len(first)], -1)
    fourth = fourth.unflatten(-1, (num * (num - 1) // 2, len(_multiples(dim, 4))))[..., _place(dim, 4)]
    return Sums(log_q[..., 0], second.unflatten(-1, (num, -1))[..., _place(dim, 2)], fourth)


def _summed(white: Tensor, constant: Tensor, nodes: Tensor, weights: Tensor, curved: bool) -> Tensor:
    """The sums for a few components with one rule, one after another in a row, `(M, 1 + K U + K (K - 1) / 2 V)`."""
    c = torch.cat([torch.ones_like(nodes[:, :1]), nodes], -1)
    log_density = constant[..., None] - (white @ c.T).square().sum(-2) / 2
    most = log_density.amax(1, keepdim=True)
    share = (log_density - most).exp()
    total = share.sum(1, keepdim=True)
    log_q, share = (most + total.log())[:, 0], share / total
    i, j = torch.triu_indices(share.shape[1], share.shape[1], 1)
    first = (log_q @ weights)[:, None]
    second = share @ (weights[:, None] * c[:, _multiples(nodes.shape[-1], 2)].prod(-1))
    quads = weights[:, None] * c[:, _multiples(nodes.shape[-1], 4)].prod(-1)
    fourth = (share[:, i] * share[:, j]) @ quads if curved else quads.new_zeros(len(share), len(i), quads.shape[1])
    return torch.cat([first, second.flatten(1), fourth.flatten(1)], -1)


def _moves(mixture: GaussianMixtures) -> Moves:
    """Of all pairs of a component k, whose nodes they are, and a component j."""
    num, dim = mixture.locs.shape[1:]
    eye = torch.eye(num * dim * (1 + dim)).to(mixture.locs)
    one = torch.nn.functional.pad(eye, (num, 0)).reshape(num, dim, 1 + dim, -1)  # each component's own [loc, L]
    inverse = inverted(mixture.trils)
    there = affine(mixture)[:, :, None].repeat(1, 1, num, 1, 1)
    there[..., 0] -= mixture.locs[:, None]
    white = inverse[:, None] @ there
    whole = torch.cat([torch.eye(1 + dim).to(white)[:1].expand(*white.shape[:3], 1, -1), white], -2)  # (1, y) = whole c
    own = torch.einsum("njde,jecp->njdcp", inverse, one)
    moved = torch.einsum("njde,keap->nkjdap", inverse, one) - torch.einsum("njdcp,nkjca->nkjdap", own, whole)
    change = -torch.einsum("nkjda,nkjdbp->nkjabp", white, moved)
    change[..., 0, 0, :] += torch.eye(num, eye.shape[0] + num).to(eye)
    change[..., 0, 0, :] -= own[..., 1:, :].diagonal(dim1=2, dim2=3).sum(-1)[:, None]
    first, second = _products(dim)
    twice = torch.where((first == second)[:, None], 0.5, 1.0).to(eye)
    log_density = twice * (change[..., first, second, :] + change[..., second, first, :])
    return Moves(own[..., 1:, :], white, moved, log_density)


def _bent(share: Tensor, sums: Sums, moves: Moves) -> Tensor:
    """Sum of r_j d2l_j, d2l_j = -|Z c|^2 + 2 y' Y Z c + tr(Y Y), `(N, C, C)`."""
    weighted = torch.einsum("nk,nkjab,nkjdbp->nkjdap", share, sums.second, moves.moved)
    stretched = (weighted.flatten(1, 4).mT @ moves.moved.flatten(1, 4)).neg()
    turned = torch.einsum("nkjda,nkjfap->njdfp", moves.white, weighted)
    mass = torch.einsum("nk,nkj->nj", share, sums.second[..., 0, 0])
    other = turned + mass[:, :, None, None, None] * moves.own.transpose(2, 3) / 2
    mixed = moves.own.flatten(1, 3).mT @ other.flatten(1, 3)
    return stretched + mixed + mixed.mT


def _spread(share: Tensor, sums: Sums, moves: Moves) -> Tensor:
    """Sum of r_i r_j (dl_i - dl_j) (dl_i - dl_j)' over pairs, `(N, C, C)`."""
    i, j = torch.triu_indices(share.shape[1], share.shape[1], 1)
    apart = moves.log_density[:, :, i] - moves.log_density[:, :, j]
    weighted = (share[:, :, None, None, None] * sums.fourth) @ apart
    return weighted.flatten(1, 3).mT @ apart.flatten(1, 3)


@lru_cache
def _multiples(dim: int, degree: int) -> Tensor:
    """The coordinates of c in each product of `degree` of them, `(U or V, degree)`."""
    return torch.tensor(list(itertools.combinations_with_replacement(range(1 + dim), degree)))


def _products(dim: int) -> tuple[Tensor, Tensor]:
    """Which two coordinates of c each of the U products has, `(U,)` each."""
    first, second = _multiples(dim, 2).unbind(-1)
    return first, second


@lru_cache
def _place(dim: int, degree: int) -> Tensor:
    """The number of the product: of any two coordinates of c `(1 + D, 1 + D)`, of any two products of two `(U, U)`."""
    number = {tuple(row): at for at, row in enumerate(_multiples(dim, degree).tolist())}
    parts = [[a] for a in range(1 + dim)] if degree == 2 else _multiples(dim, 2).tolist()
    return torch.tensor([[number[tuple(sorted(one + other))] for other in parts] for one in parts])
