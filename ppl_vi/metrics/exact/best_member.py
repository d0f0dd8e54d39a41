"""The member of a family nearest to the posterior in reverse KL, for one latent number: Newton's method on quadrature.

The divergence of this member from the posterior is the family gap. By how much a fitted guide's divergence is larger is
the optimization gap.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from ppl_vi.metrics.estimate import Estimate
from ppl_vi.metrics.exact.divergence import reverse_kl
from ppl_vi.metrics.exact.grid import NODES, WEIGHTS, far_ends, geometric_edges, quadrature_grid
from ppl_vi.metrics.family_gap import BestMember
from ppl_vi.metrics.sampled.best_member import reverse_kl_projection
from ppl_vi.numerics.newton import minimize
from ppl_vi.runtime.stages import stage
from ppl_vi.svi.result import Fit
from ppl_vi.target.evaluation import log_joint
from ppl_vi.target.sites import off_edge
from ppl_vi.truth import Truth

# A search has converged where a further step of Newton's method promises no more than this, in nats.
NEWTON_TOLERANCE = 1e-10
# A search that ended no more than this, in nats, from one that converged has found the same optimum: the errors of
# quadrature and of Newton's method are both smaller.
SAME_OPTIMUM = 1e-9
# The most steps of Newton's method. There are fewer for families whose family gap is only an upper bound, because each
# of their steps takes long.
MAX_NEWTON_STEPS = 100
MAX_NEWTON_STEPS_UPPER_BOUND = 25
# How far panels reach below and above the posterior's mode in unconstrained space, in widths of the posterior or, where
# these are smaller, in units. Beyond, no density has mass, and second derivatives overflow.
PANEL_REACH = (-100.0, 20.0)
# A node at which the log densities of guide and posterior in u are both below this is left out: it has no mass, and its
# derivatives may overflow.
MIN_LOG_DENSITY = -2000.0
# Searches start from this many replicas of each problem, those of smallest reverse KL. More of them take longer and may
# find a better optimum.
NUM_STARTS = 3


def best_member(fit: Fit, truth: Truth, fitted: Estimate, upper_bound: bool = False) -> BestMember:
    """The family's best member for each problem, by Newton's method on deterministic quadrature in float64.

    Searches start from several replicas of each problem, those of smallest reverse KL. The best result counts, with its
    divergence computed anew on the adaptive grid of the scores. A start that is better than any result is kept.

    Args:
        fit: gives the family and the starts.
        truth: the posterior.
        fitted: the replicas' reverse KL, `(B, R)`.
        upper_bound: whether the family is known to have many local optima.
    """
    batch, replicas = fitted.value.shape
    finite = np.where(np.isfinite(fitted.value), fitted.value, np.inf)
    nearest = np.argsort(finite, 1)[:, : min(NUM_STARTS, replicas)].copy()
    starts = torch.take_along_dim(fit.theta, torch.from_numpy(nearest).to(fit.theta.device)[..., None], 1)
    with stage("best member"):
        found = _newton_searches(fit, truth, starts, MAX_NEWTON_STEPS_UPPER_BOUND if upper_bound else MAX_NEWTON_STEPS)
    if found is None:
        found = _searches_on_noise(fit, truth, fitted)
    candidates = torch.cat([found.theta, starts], 1)
    divergence = reverse_kl(quadrature_grid(fit, truth, candidates))
    order = np.where(np.isnan(divergence.value), np.inf, divergence.value)
    rows, best = np.arange(batch), order.argmin(1)
    num = found.theta.shape[1]
    search = np.where(best < num, best, np.minimum(best - num, num - 1))  # where a start is best, the one from there
    as_low = order[:, :num] <= order[rows, best][:, None] + SAME_OPTIMUM
    converged = (found.converged & as_low).any(1) | found.converged[rows, search]
    # where the search has not converged, or is only local, what it promised says nothing
    promised = np.where(converged & (not upper_bound), found.gain[rows, search], 0.0)
    chosen = Estimate(
        divergence.value[rows, best][:, None],
        np.zeros((batch, 1)),
        (divergence.error[rows, best] + promised)[:, None],
        "nats",
        "an upper bound: the best of several local searches" if upper_bound else "",
    )
    theta = candidates[torch.arange(batch), torch.from_numpy(best)]
    return BestMember(theta, chosen, upper_bound, converged)


class Searches(NamedTuple):
    """Where `S` searches for each problem's best member ended.

    Attributes:
        theta: the members, `(B, S, D)`.
        converged: whether each search converged, `(B, S)`.
        gain: how much a further step still promised, `(B, S)`, nats.
    """

    theta: Tensor
    converged: np.ndarray
    gain: np.ndarray


def _searches_on_noise(fit: Fit, truth: Truth, fitted: Estimate) -> Searches:
    """Searches on fixed noise, for guides whose density has no derivatives at some nodes."""
    projection = reverse_kl_projection(fit, -fitted.value, truth.log_evidence, fit.seed + 20)
    converged = np.repeat(projection.converged[:, None], projection.theta.shape[1], 1)
    return Searches(projection.theta, converged, np.zeros(converged.shape))


class Nodes(NamedTuple):
    """The nodes of fixed panels over each problem's posterior, `(B, P)`.

    Attributes:
        z: the latent number at each node, with its event shape.
        log_slope: log dz/du.
        log_p: the posterior's log density in u.
        log_weight: of each node, by which sums become integrals over u.
    """

    z: Tensor
    log_slope: Tensor
    log_p: Tensor
    log_weight: Tensor


def _newton_searches(fit: Fit, truth: Truth, starts: Tensor, max_steps: int) -> Searches | None:
    """Newton's method on `int q log(q/p) - q + p` over fixed panels, from `starts` `(B, S, D)`.

    None for a guide whose support is smaller than the posterior's: at nodes outside it, its density has no derivatives.
    """
    target, (batch, num, dim) = truth.target, starts.shape
    site = target.latents[0].name
    nodes = _nodes(fit, truth, starts)
    if nodes is None:
        return None

    def divergence(theta: Tensor, z: Tensor, slope: Tensor, p: Tensor, weight: Tensor, *row: Tensor) -> Tensor:
        log_q = vmap(lambda point: fit.program.log_guide(theta, row, {site: point}))(z) + slope
        q = (log_q + weight).exp()
        return (q * (log_q - p) - q).sum() + 1.0

    problem = torch.arange(batch, device=starts.device).repeat_interleave(num)
    args = tuple(tensor[problem] for tensor in (*nodes, *target.args))
    found = minimize(divergence, starts.reshape(-1, dim), args=args, tolerance=NEWTON_TOLERANCE, max_steps=max_steps)
    converged, gain = (part.reshape(batch, num).cpu().numpy() for part in (found.converged, found.gain))
    return Searches(found.x.reshape(batch, num, dim), converged, gain)


def _nodes(fit: Fit, truth: Truth, starts: Tensor) -> Nodes | None:
    """The nodes of panels over each problem's posterior; None where a start's guide has no density at one that counts.

    A node where neither the posterior nor the guide at any start has mass by far is moved to the mode, with weight 0,
    since derivatives overflow out there.
    """
    target, num = truth.target, starts.shape[1]
    site = target.latents[0].name
    u, log_weight = _panel_nodes(truth)
    values, log_slope = target.constrain(u[..., None])
    values = off_edge(target.latents, values)
    log_p = log_joint(target, values) - torch.from_numpy(truth.log_evidence).to(u.device)[:, None] + log_slope
    log_q = fit.log_prob_at(starts, {site: values[site][:, None].expand(-1, num, *values[site].shape[1:])}).amax(1)
    empty = torch.maximum(log_q + log_slope, log_p) < MIN_LOG_DENSITY
    if bool((torch.isneginf(log_q) & ~empty).any()):
        return None
    at_mode, slope_at_mode = target.constrain(target.laplace.loc[:, None])
    z = torch.where(empty.reshape(empty.shape + (1,) * (values[site].dim() - 2)), at_mode[site], values[site])
    return Nodes(
        z=z,
        log_slope=torch.where(empty, slope_at_mode, log_slope),
        log_p=torch.where(empty, torch.zeros_like(log_p), log_p),
        log_weight=torch.where(empty, -torch.inf, log_weight),
    )


def _panel_nodes(truth: Truth) -> tuple[Tensor, Tensor]:
    """Nodes in unconstrained space and log weights, `(B, P)`: panels that spread from the posterior's mode."""
    laplace = truth.target.laplace
    mode, width = laplace.loc[:, 0].cpu().numpy(), laplace.scale[:, 0].cpu().numpy()
    unit = np.maximum(width, 1.0)[:, None]
    edges = geometric_edges(mode, width, far_ends(truth.target, mode[None], width[None]))
    edges = np.clip(edges, mode[:, None] + PANEL_REACH[0] * unit, mode[:, None] + PANEL_REACH[1] * unit)
    middle, half = (edges[:, 1:] + edges[:, :-1]) / 2, (edges[:, 1:] - edges[:, :-1]) / 2
    u = (middle[..., None] + half[..., None] * NODES).reshape(len(edges), -1)
    with np.errstate(divide="ignore"):  # panels of no width have weight 0
        log_weight = np.log(half[..., None] * WEIGHTS).reshape(len(edges), -1)
    device = truth.target.device
    return torch.from_numpy(u).to(device), torch.from_numpy(log_weight).to(device)
