"""The curves of a scored fit: its density along the axes of the comparison, and its reverse KL along the SVI steps.

With one latent number both are computed from densities. With several, each number's density is counted in bins over
Sobol points of the guide, and the reverse KL is log p(x) minus an ELBO on quasi-random noise.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ppl_vi.comparison.axes import NUM_BINS, binned
from ppl_vi.comparison.comparison import Comparison, Curves
from ppl_vi.comparison.records import middle_replica
from ppl_vi.metrics.draws.scorecard import DrawsScorecard
from ppl_vi.metrics.exact.divergence import reverse_kl_of_many
from ppl_vi.metrics.exact.grid import quadrature_grid
from ppl_vi.metrics.sampled.noise_rules import guide_nodes, noise_rules, scored_nodes, sobol_rules
from ppl_vi.metrics.sampled.sampled_fit import WIDE
from ppl_vi.metrics.sampled.weighted_samples import NumberSample, Sample, guide_samples, pooled
from ppl_vi.metrics.scorecard import Scorecard
from ppl_vi.target.sites import numbers_of

NUM_FOLLOWED = 3  # replicas whose reverse KL is followed: the best, the middle and the worst one
# The noise on which an ELBO is taken at every recorded step, with several latent numbers: nodes of a rule, and rules.
# It is less than the scores take (2^11 to 2^14 nodes), because there are many steps and a figure shows few digits.
NUM_TRAJECTORY_NODES, NUM_TRAJECTORY_RULES = 1024, 2
# The nodes where each takes more numbers than WIDE, as on much data: the curves of 100,000 rows would take 40 s else.
WIDE_TRAJECTORY_NODES = 128
# Half of the window over which the density of N draws of one number is counted, in sd / N^(1/5): for normals, that
# which makes the mean squared error least with a rectangular kernel (Silverman 1986, Density estimation, section 3.4).
WINDOW = 1.84
NUM_DENSITY_NODES = 2**13  # nodes of each rule over which a guide's density is counted in bins


def curves_of(card: Scorecard, comparison: Comparison) -> Curves:
    """The curves of a scored fit where the comparison takes them."""
    fitted, z = card.fit, comparison.z
    steps, reverse_kl = (np.empty(0, np.int64), np.empty((len(z), 0, 0)))
    if len(fitted.steps) and not fitted.support_mismatch:
        steps, reverse_kl = fitted.steps, _reverse_kl_by_step(card)
    middle = torch.tensor([middle_replica(card, b) for b in range(len(z))], device=fitted.theta.device)
    theta = torch.take_along_dim(fitted.theta, middle[:, None, None], 1)
    one_number = card.truth.line is not None
    density = _density(card, theta, z) if one_number else _binned_densities(card, theta, comparison.edges)
    return Curves(z, density, steps, reverse_kl)


def curves_of_draws(card: DrawsScorecard, comparison: Comparison) -> Curves:
    """The density of draws from elsewhere: in bins, or of a single number over a window around each point."""
    sites = comparison.target.latents
    latents = {site.name: torch.from_numpy(card.approximation.draws[site.name]) for site in sites}
    z = numbers_of(sites, latents).flatten(0, 1).cpu().numpy()
    sample = Sample(z, np.full(len(z), 1 / len(z)))
    if comparison.truth.line is None:
        edges = comparison.edges
        density = np.array([binned(sample, edge) for edge in edges]) if edges.shape[1] else np.empty((1, 0, NUM_BINS))
    else:
        number, half = NumberSample.of(sample, 0), WINDOW * float(z.std()) * len(z) ** -0.2
        density = (number.cdf(comparison.z + half) - number.cdf(comparison.z - half)) / (2 * half)
    return Curves(comparison.z, density, np.empty(0, np.int64), np.empty((1, 0, 0)))


def _binned_densities(card: Scorecard, theta: Tensor, edges: np.ndarray) -> np.ndarray:
    """The mean density of each of several numbers over the bins, from Sobol points of the guide, `(B, K, NUM_BINS)`."""
    if not edges.shape[1]:
        return np.empty((len(edges), 0, NUM_BINS))
    fitted = card.fit
    nodes = guide_nodes(fitted, theta, sobol_rules(fitted.program.latent_draws, NUM_DENSITY_NODES, fitted.seed + 50))
    return np.array([binned(pooled(guide_samples(nodes, b, 0)), edge) for b, edge in enumerate(edges)])


def _density(card: Scorecard, theta: Tensor, z: np.ndarray) -> np.ndarray:
    """The density of one latent number at `z`, `(B, Z)`, by the parameters `theta`, `(B, 1, D)`."""
    fitted, site = card.fit, card.fit.target.latents[0]
    values = torch.from_numpy(z).to(theta)
    at = values.reshape((len(z), 1, -1, *site.shape))
    density = fitted.log_prob_at(theta, {site.name: at})[:, 0].exp()
    if not fitted.support_mismatch:  # outside the guide's support the formula of its density may give any number
        density = torch.where(site.support.check(values), density, 0.0)
    return density.cpu().numpy()


def _reverse_kl_by_step(card: Scorecard) -> np.ndarray:
    """Reverse KL along the trajectory of the best, the middle and the worst replica, nats, `(B, F, T)`."""
    fitted = card.fit
    order = np.argsort(card.scores["reverse_kl"].value, 1, kind="stable")
    at = np.unique(np.linspace(0, fitted.num_replicas - 1, NUM_FOLLOWED).round().astype(int))
    followed = torch.from_numpy(order[:, at]).to(fitted.trajectory.device)
    theta = torch.take_along_dim(fitted.trajectory, followed[None, :, :, None], 2).permute(1, 2, 0, 3)
    members = theta.flatten(1, 2)
    if card.truth.line is not None:
        return reverse_kl_of_many(quadrature_grid(fitted, card.truth, members)).reshape(theta.shape[:3])
    num = NUM_TRAJECTORY_NODES if fitted.target.width <= WIDE else WIDE_TRAJECTORY_NODES
    rules = noise_rules(fitted.program.latent_draws, num, fitted.seed + 60, NUM_TRAJECTORY_RULES)
    nodes = scored_nodes(fitted, members, rules)
    elbo = nodes.rules.mean(nodes.log_weight).mean(-1).cpu().numpy()
    return (card.truth.log_evidence[:, None] - elbo).reshape(theta.shape[:3])
