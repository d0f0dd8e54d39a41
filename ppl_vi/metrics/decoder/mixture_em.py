"""Mixtures of Gaussians matched to posteriors by expectation maximisation: where a mixture's search starts.

The posterior is weighed at nodes spread over all of its hills, and Gaussians are fitted to the weighted nodes. That
minimises the forward KL, which covers every hill that has mass; the search for the least reverse KL starts there.

Sources: Dempster, Laird and Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm; Veach and
Guibas (1995), Optimally combining sampling techniques for Monte Carlo rendering, for several Gaussians' nodes as one
rule.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vi.numerics.mixtures import GaussianMixtures
from ppl_vi.numerics.rules import gaussian_rule
from ppl_vi.target.decoder import log_prior
from ppl_vi.target.evaluation import log_likelihood_at
from ppl_vi.target.target import Target

LEVEL = {1: 4, 2: 3, 3: 2}  # of the rule around each hill
REACH = 4.0  # of its nodes, standard deviations
MOST = 384  # points that a posterior is reduced to
WIDENED = 1.25  # a hill's Gaussian, the best of which is narrower than the posterior
APART = 0.6  # of the halves of a component, standard deviations from its middle
NUM_STEPS = 15  # of EM after each splitting
NARROWEST = 0.05  # a component's covariance, of the hills' own
LIGHTEST = 1e-4  # weight


class Weighed(NamedTuple):
    """Posteriors of `B` problems as weighted points, and the scale of their hills."""

    z: Tensor  # (B, S, D)
    weight: Tensor  # (B, S), of sum 1
    scale: Tensor  # (B, D, D), the hills' mean covariance


class MixtureParts(NamedTuple):
    """Components of mixtures."""

    mass: Tensor  # (B, K)
    loc: Tensor  # (B, K, D)
    cov: Tensor  # (B, K, D, D)


@torch.no_grad()
def em_fit(target: Target, hills: GaussianMixtures, num_components: int) -> GaussianMixtures:
    """Mixtures of Gaussians near each posterior.

    One Gaussian is split, along its widest axis, until there are enough; after each splitting come a few steps of EM.

    Args:
        target: `B` problems with a decoder.
        hills: Gaussians near each posterior's hills, `(B, H)`; weights of -inf where there are fewer.
        num_components: `K`.
    """
    posterior = _weighed(target, hills)
    parts = _moments(posterior, posterior.weight[:, None])
    while parts.mass.shape[1] < num_components:
        parts = _split(parts)
        for _ in range(NUM_STEPS):
            parts = _moments(posterior, _responsibilities(posterior, parts))
    return GaussianMixtures(parts.mass.log(), parts.loc, torch.linalg.cholesky(parts.cov))


def _weighed(target: Target, hills: GaussianMixtures) -> Weighed:
    """The posteriors at the nodes of every hill, weighed by the density of all of them together."""
    nodes, weights = (part.to(hills.locs) for part in gaussian_rule(LEVEL[target.dim], target.dim))
    near = nodes.square().sum(-1) <= REACH**2
    wide = hills._replace(trils=WIDENED * hills.trils)
    z = wide.points(nodes[near])
    each = (hills.log_weights[..., None] + weights[near].log()).flatten(1)
    flat = z.flatten(1, 2)
    everyone = torch.arange(len(z), device=z.device)
    log_joint = log_likelihood_at(target, flat, everyone) + log_prior(flat)
    weight = (each + log_joint - wide.log_prob(flat)).softmax(-1)
    mass = weight.unflatten(-1, z.shape[1:3]).sum(-1)
    scale = torch.einsum("bh,bhde->bde", mass, hills.trils @ hills.trils.mT)
    weight, kept = weight.topk(min(MOST, weight.shape[1]), -1)
    return Weighed(flat.take_along_dim(kept[..., None], 1), weight / weight.sum(-1, keepdim=True), scale)


def _moments(posterior: Weighed, share: Tensor) -> MixtureParts:
    """The mass, mean and covariance of the points that belong to each component by `share`, `(B, K, S)`."""
    mass = share.sum(-1)
    within = share / mass.clamp(min=torch.finfo(mass.dtype).tiny)[..., None]
    loc = within @ posterior.z
    away = posterior.z[:, None] - loc[:, :, None]
    cov = (within[..., None] * away).mT @ away + NARROWEST * posterior.scale[:, None]
    mass = mass.clamp(min=LIGHTEST)
    return MixtureParts(mass / mass.sum(-1, keepdim=True), loc, cov)


def _responsibilities(posterior: Weighed, parts: MixtureParts) -> Tensor:
    """Each component's share in each point's weight, `(B, K, S)`."""
    tril = torch.linalg.cholesky(parts.cov)
    white = torch.linalg.solve_triangular(tril, (posterior.z[:, None] - parts.loc[:, :, None]).mT, upper=False)
    log_scale = torch.diagonal(tril, dim1=-2, dim2=-1).log().sum(-1)
    log_density = (parts.mass.log() - log_scale)[..., None] - white.square().sum(-2) / 2
    return log_density.softmax(1) * posterior.weight[:, None]


def _split(parts: MixtureParts) -> MixtureParts:
    """The component that spreads most mass is cut in two halves of the same mean and covariance."""
    eigenvalues, axes = torch.linalg.eigh(parts.cov)
    rows = torch.arange(len(parts.mass), device=parts.mass.device)
    chosen = (parts.mass * eigenvalues[..., -1]).argmax(-1)
    step = APART * axes[rows, chosen, :, -1] * eigenvalues[rows, chosen, -1:].sqrt()
    mass, loc, cov = (part.clone() for part in parts)
    mass[rows, chosen] /= 2
    cov[rows, chosen] -= step[:, :, None] * step[:, None, :]
    other = loc[rows, chosen] - step
    loc[rows, chosen] += step
    return MixtureParts(
        torch.cat([mass, mass[rows, chosen][:, None]], 1),
        torch.cat([loc, other[:, None]], 1),
        torch.cat([cov, cov[rows, chosen][:, None]], 1),
    )


def padded(log_weights: Tensor, loc: Tensor, tril: Tensor, index: Tensor, num_problems: int) -> GaussianMixtures:
    """Gaussians `(N,)` of the problems `index`, each problem's as one mixture."""
    num = torch.bincount(index, minlength=num_problems)
    order = index.argsort(stable=True)
    slot = torch.arange(len(index), device=index.device) - (num.cumsum(0) - num)[index[order]]
    shape, dim = (num_problems, int(num.max())), loc.shape[-1]
    at = index[order], slot
    weights = log_weights.new_full(shape, -math.inf).index_put(at, log_weights[order])
    locs = loc.new_zeros(*shape, dim).index_put(at, loc[order])
    trils = torch.eye(dim).to(tril).repeat(*shape, 1, 1).index_put(at, tril[order])
    return GaussianMixtures(weights.log_softmax(-1), locs, trils)
