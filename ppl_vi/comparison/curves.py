"""TODO."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ppl_vi.comparison.axes import NUM_BINS, binned
from ppl_vi.comparison.comparison import Comparison, Curves
from ppl_vi.comparison.records import middle_replica
from ppl_vi.metrics.exact.divergence import reverse_kl_of_many
from ppl_vi.metrics.exact.grid import quadrature_grid
from ppl_vi.metrics.sampled.noise_rules import guide_nodes, noise_rules, scored_nodes, sobol_rules
from ppl_vi.metrics.sampled.weighted_samples import guide_samples, pooled
from ppl_vi.metrics.scorecard import Scorecard

WAY_POINTS, WAY_RULES = 1024, 2  # on which the way of several numbers is measured
DENSITY_POINTS = 2**13  # of each of 8 rules
NUM_FOLLOWED = 3  # replicas whose way is measured: the best, the middle and the worst one


def curves_of(card: Scorecard, comparison: Comparison) -> Curves:
    """The curves of a scored fit where the comparison takes them."""
    fitted, z = card.fit, comparison.z
    steps, way = (np.empty(0, np.int64), np.empty((len(z), 0, 0)))
    if len(fitted.steps) and not fitted.support_mismatch:
        steps, way = fitted.steps, _way(card)
    middle = torch.tensor([middle_replica(card, b) for b in range(len(z))], device=fitted.theta.device)
    theta = torch.take_along_dim(fitted.theta, middle[:, None, None], 1)
    exact = card.truth.line is not None
    return Curves(z, _density(card, theta, z) if exact else _densities(card, theta, comparison.edges), steps, way)


def _densities(card: Scorecard, theta: Tensor, edges: np.ndarray) -> np.ndarray:
    """Of several numbers, from draws on Sobol points, `(B, K, NUM_BINS)`."""
    if not edges.shape[1]:
        return np.empty((len(edges), 0, NUM_BINS))
    fitted = card.fit
    seen = guide_nodes(fitted, theta, sobol_rules(fitted.program.latent_draws, DENSITY_POINTS, fitted.seed + 50))
    return np.array([binned(pooled(guide_samples(seen, b, 0)), edge) for b, edge in enumerate(edges)])


def _density(card: Scorecard, theta: Tensor, z: np.ndarray) -> np.ndarray:
    fitted, site = card.fit, card.fit.target.latents[0]
    values = torch.from_numpy(z).to(theta)
    at = values.reshape((len(z), 1, -1, *site.shape))
    density = fitted.log_prob_at(theta, {site.name: at})[:, 0].exp()
    if not fitted.support_mismatch:  # outside its support a density's formula may give anything
        density = torch.where(site.support.check(values), density, 0.0)
    return density.cpu().numpy()


def _way(card: Scorecard) -> np.ndarray:
    """Reverse KL along the trajectory of the best, middle and worst replica, `(B, F, T)`."""
    fitted = card.fit
    order = np.argsort(card.scores["reverse_kl"].value, 1, kind="stable")
    at = np.unique(np.linspace(0, fitted.num_replicas - 1, NUM_FOLLOWED).round().astype(int))
    followed = torch.from_numpy(order[:, at]).to(fitted.trajectory.device)
    theta = torch.take_along_dim(fitted.trajectory, followed[None, :, :, None], 2).permute(1, 2, 0, 3)
    if card.truth.line is not None:
        return reverse_kl_of_many(quadrature_grid(fitted, card.truth, theta.flatten(1, 2))).reshape(theta.shape[:3])
    seen = scored_nodes(
        fitted, theta.flatten(1, 2), noise_rules(fitted.program.latent_draws, WAY_POINTS, fitted.seed + 60, WAY_RULES)
    )
    elbo = seen.rules.mean(seen.log_weight).mean(-1).cpu().numpy()
    return (card.truth.log_evidence[:, None] - elbo).reshape(theta.shape[:3])
