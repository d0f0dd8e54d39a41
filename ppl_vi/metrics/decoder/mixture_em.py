"""Mixtures of Gaussians fitted to posteriors by expectation maximisation (EM): where a mixture's search starts.

The posterior is evaluated at nodes spread around all of its modes, and mixtures are fitted to the weighted nodes. That
minimises the forward KL, so that every mode with mass is covered; the search for the least reverse KL starts there.

Sources: Dempster, Laird and Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm; Veach and
Guibas (1995), Optimally combining sampling techniques for Monte Carlo rendering (the balance heuristic, by which
the nodes around several Gaussians become one rule).
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

# Level of the rule around each mode, by the number of latents, and how far its nodes reach, in standard deviations.
# Finer and wider rules have more nodes, and a start needs no more digits.
RULE_LEVEL = {1: 4, 2: 3, 3: 2}
RULE_REACH = 4.0
# The most nodes by which a posterior is represented: those of the largest weights. More of them make EM slower.
MAX_POSTERIOR_POINTS = 384
# The Gaussian at a mode, the best in reverse KL, is narrower than the posterior there, so its rule is made wider by
# this factor.
MODE_WIDENING = 1.25
# Where a component is split, its halves lie this many of its standard deviations from its middle; at 1 they would have
# no width left along that axis.
SPLIT_DISTANCE = 0.6
# Steps of EM after each split.
NUM_EM_STEPS = 15
# Without these two floors EM can shrink a component onto one node. COVARIANCE_FLOOR times the covariance of the modes
# is added to each component's covariance, and no component's weight is smaller than WEIGHT_FLOOR.
COVARIANCE_FLOOR = 0.05
WEIGHT_FLOOR = 1e-4


class WeightedPosterior(NamedTuple):
    """Posteriors of `B` problems as weighted points.

    Attributes:
        z: the points, `(B, S, D)`.
        weight: of sum 1, `(B, S)`.
        scale: the mean covariance of the Gaussians at the modes, `(B, D, D)`.
    """

    z: Tensor
    weight: Tensor
    scale: Tensor


class Components(NamedTuple):
    """Components of mixtures.

    Attributes:
        weight: `(B, K)`.
        loc: `(B, K, D)`.
        cov: `(B, K, D, D)`.
    """

    weight: Tensor
    loc: Tensor
    cov: Tensor


@torch.no_grad()
def em_fit(target: Target, modes: GaussianMixtures, num_components: int) -> GaussianMixtures:
    """Mixtures of Gaussians near each posterior.

    A single Gaussian is split, along its widest axis, and split again until there are enough components; a few steps of
    EM follow each split.

    Args:
        target: `B` problems with a decoder.
        modes: Gaussians near each posterior's modes, `(B, H)`; weights of -inf where there are fewer.
        num_components: `K`.
    """
    posterior = _weighted_posterior(target, modes)
    components = _fitted(posterior, posterior.weight[:, None])
    while components.weight.shape[1] < num_components:
        components = _split(components)
        for _ in range(NUM_EM_STEPS):
            components = _fitted(posterior, _responsibilities(posterior, components))
    return GaussianMixtures(components.weight.log(), components.loc, torch.linalg.cholesky(components.cov))


def _weighted_posterior(target: Target, modes: GaussianMixtures) -> WeightedPosterior:
    """The posteriors at the nodes around every mode, weighted by posterior density over the modes' whole mixture."""
    nodes, weights = (part.to(modes.locs) for part in gaussian_rule(RULE_LEVEL[target.dim], target.dim))
    near = nodes.square().sum(-1) <= RULE_REACH**2
    wide = modes._replace(trils=MODE_WIDENING * modes.trils)
    z = wide.points(nodes[near])
    log_rule = (modes.log_weights[..., None] + weights[near].log()).flatten(1)
    flat = z.flatten(1, 2)
    everyone = torch.arange(len(z), device=z.device)
    log_joint = log_likelihood_at(target, flat, everyone) + log_prior(flat)
    weight = (log_rule + log_joint - wide.log_prob(flat)).softmax(-1)
    mass = weight.unflatten(-1, z.shape[1:3]).sum(-1)
    scale = torch.einsum("bh,bhde->bde", mass, modes.trils @ modes.trils.mT)
    weight, kept = weight.topk(min(MAX_POSTERIOR_POINTS, weight.shape[1]), -1)
    z = flat.take_along_dim(kept[..., None], 1)
    return WeightedPosterior(z, weight / weight.sum(-1, keepdim=True), scale)


def _fitted(posterior: WeightedPosterior, share: Tensor) -> Components:
    """The M-step: the components whose shares in the points' weights are `share`, `(B, K, S)`."""
    mass = share.sum(-1)
    within = share / mass.clamp(min=torch.finfo(mass.dtype).tiny)[..., None]
    loc = within @ posterior.z
    centred = posterior.z[:, None] - loc[:, :, None]
    cov = (within[..., None] * centred).mT @ centred + COVARIANCE_FLOOR * posterior.scale[:, None]
    weight = mass.clamp(min=WEIGHT_FLOOR)
    return Components(weight / weight.sum(-1, keepdim=True), loc, cov)


def _responsibilities(posterior: WeightedPosterior, components: Components) -> Tensor:
    """The E-step: each component's share in each point's weight, `(B, K, S)`."""
    tril = torch.linalg.cholesky(components.cov)
    centred = (posterior.z[:, None] - components.loc[:, :, None]).mT
    white = torch.linalg.solve_triangular(tril, centred, upper=False)
    log_scale = torch.diagonal(tril, dim1=-2, dim2=-1).log().sum(-1)
    log_density = (components.weight.log() - log_scale)[..., None] - white.square().sum(-2) / 2
    return log_density.softmax(1) * posterior.weight[:, None]


def _split(components: Components) -> Components:
    """Splits the component of largest weight times variance into halves that keep its mean and covariance."""
    eigenvalues, axes = torch.linalg.eigh(components.cov)
    rows = torch.arange(len(components.weight), device=components.weight.device)
    chosen = (components.weight * eigenvalues[..., -1]).argmax(-1)
    step = SPLIT_DISTANCE * axes[rows, chosen, :, -1] * eigenvalues[rows, chosen, -1:].sqrt()
    weight, loc, cov = (part.clone() for part in components)
    weight[rows, chosen] /= 2
    cov[rows, chosen] -= step[:, :, None] * step[:, None, :]
    other = loc[rows, chosen] - step
    loc[rows, chosen] += step
    return Components(
        torch.cat([weight, weight[rows, chosen][:, None]], 1),
        torch.cat([loc, other[:, None]], 1),
        torch.cat([cov, cov[rows, chosen][:, None]], 1),
    )


def padded(log_weights: Tensor, loc: Tensor, tril: Tensor, problem: Tensor, num_problems: int) -> GaussianMixtures:
    """The Gaussians of each problem as one mixture, with weights of -inf where there are fewer.

    Args:
        log_weights: of `N` Gaussians, `(N,)`.
        loc: their means, `(N, D)`.
        tril: Cholesky factors of their covariances, `(N, D, D)`.
        problem: that of each, `(N,)`.
        num_problems: `B`.
    """
    num = torch.bincount(problem, minlength=num_problems)
    order = problem.argsort(stable=True)
    slot = torch.arange(len(problem), device=problem.device) - (num.cumsum(0) - num)[problem[order]]
    shape, dim = (num_problems, int(num.max())), loc.shape[-1]
    at = problem[order], slot
    weights = log_weights.new_full(shape, -math.inf).index_put(at, log_weights[order])
    locs = loc.new_zeros(*shape, dim).index_put(at, loc[order])
    trils = torch.eye(dim).to(tril).repeat(*shape, 1, 1).index_put(at, tril[order])
    return GaussianMixtures(weights.log_softmax(-1), locs, trils)
