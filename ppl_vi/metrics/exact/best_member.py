"""Why a guide is far from the posterior: its family can't do better, or the optimiser fell short."""

from __future__ import annotations

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
from ppl_vi.svi.result import Fit
from ppl_vi.target.sites import off_edge
from ppl_vi.truth import Truth

TOLERANCE = 1e-10  # nats, of Newton's method
ALIKE = 1e-9  # nats: a search that came no lower than that below one that converged has arrived, too
MAX_STEPS = 100
MAX_STEPS_UPPER_BOUND = 25  # for families of which only an upper bound is promised, and whose steps are dear
REACH = (-100.0, 20.0)  # of the panels from the mode, in unconstrained space
NOTHING = -2000.0
NUM_STARTS = 3  # of each problem: the replicas that came nearest


def best_member(fit: Fit, truth: Truth, fitted: Estimate, upper_bound: bool = False) -> BestMember:
    """The family's best member for each problem, by Newton's method on deterministic quadrature in float64.

    Several starts a problem, the replicas of smallest reverse KL; the best result counts, its divergence computed
    anew on the adaptive grid of the scores. A start already found better than any result is kept.

    Args:
        fit: gives the family and the starts.
        truth: the posterior.
        fitted: the replicas' reverse KL.
        upper_bound: whether the family is known to have many local optima.
    """
    batch, replicas = fitted.value.shape
    num = min(NUM_STARTS, replicas)
    finite = np.where(np.isfinite(fitted.value), fitted.value, np.inf)
    nearest = torch.from_numpy(np.argsort(finite, 1)[:, :num].copy()).to(fit.theta.device)
    starts = torch.take_along_dim(fit.theta, nearest[..., None], 1)
    polished = _polish(fit, truth, starts, MAX_STEPS_UPPER_BOUND if upper_bound else MAX_STEPS)
    if polished is None:
        by_noise = reverse_kl_projection(fit, -fitted.value, truth.log_evidence, fit.seed + 20)
        found, converged = by_noise.theta, np.repeat(by_noise.converged[:, None], by_noise.theta.shape[1], 1)
        promise = np.zeros(converged.shape)
    else:
        found, converged, promise = polished
    candidates = torch.cat([found, starts], 1)
    divergence = reverse_kl(quadrature_grid(fit, truth, candidates))
    order = np.where(np.isnan(divergence.value), np.inf, divergence.value)
    best = order.argmin(1)
    rows = np.arange(batch)
    num_found = converged.shape[1]
    own = np.where(best < num_found, best, np.minimum(best - num_found, num_found - 1))  # its search, or that from it
    arrived = (converged & (order[:, :num_found] <= order[rows, best][:, None] + ALIKE)).any(1) | converged[rows, own]
    left = np.where(arrived & (not upper_bound), promise[rows, own], 0.0)  # others are told apart by `converged`
    chosen = Estimate(
        divergence.value[rows, best][:, None],
        np.zeros((batch, 1)),
        (divergence.error[rows, best] + left)[:, None],
        "nats",
        "an upper bound: the best of several local searches" if upper_bound else "",
    )
    theta = candidates[torch.arange(batch), torch.from_numpy(best)]
    return BestMember(theta, chosen, upper_bound, arrived)


def _polish(fit: Fit, truth: Truth, starts: Tensor, max_steps: int) -> tuple[Tensor, np.ndarray, np.ndarray] | None:
    """Newton's method on `int q log(q/p) - q + p` over fixed panels, from `starts` `(B, S, D)`.

    Gives the points, whether each search converged and what it still promised, nats, both `(B, S)`.

    None for a guide whose support is smaller than the posterior's: at the nodes outside it has no derivatives.
    """
    target, (batch, num, dim) = truth.target, starts.shape
    site = target.latents[0].name
    u, log_weight = _nodes(truth)
    values, log_slope = target.constrain(u[..., None])
    values = off_edge(target.latents, values)
    log_p = target.log_joint(values) - torch.from_numpy(truth.log_evidence).to(u.device)[:, None] + log_slope
    # a node where neither density has mass by far is moved to the mode, with weight 0: derivatives overflow out there
    log_q = fit.log_prob_at(starts, {site: values[site][:, None].expand(-1, num, *values[site].shape[1:])})
    empty = (torch.maximum(log_q.amax(1) + log_slope, log_p) < NOTHING)[:, :, None]
    if bool((torch.isneginf(log_q.amax(1)) & ~empty[..., 0]).any()):
        return None
    at_mode, slope_at_mode = target.constrain(target.laplace.loc[:, None])
    z = torch.where(empty.reshape(empty.shape[:2] + (1,) * (values[site].dim() - 2)), at_mode[site], values[site])
    log_slope = torch.where(empty[..., 0], slope_at_mode, log_slope)
    log_p = torch.where(empty[..., 0], torch.zeros_like(log_p), log_p)
    log_weight = torch.where(empty[..., 0], -torch.inf, log_weight)

    def divergence(theta: Tensor, z: Tensor, slope: Tensor, p: Tensor, weight: Tensor, *row: Tensor) -> Tensor:
        log_q = vmap(lambda point: fit.program.log_guide(theta, row, {site: point}))(z) + slope
        q = (log_q + weight).exp()
        return (q * (log_q - p) - q).sum() + 1.0

    problem = torch.arange(batch, device=u.device).repeat_interleave(num)
    args = tuple(tensor[problem] for tensor in (z, log_slope, log_p, log_weight, *target.args))
    found = minimize(divergence, starts.reshape(-1, dim), args=args, tolerance=TOLERANCE, max_steps=max_steps)
    converged, gain = (part.reshape(batch, num).cpu().numpy() for part in (found.converged, found.gain))
    return found.x.reshape(batch, num, dim), converged, gain


def _nodes(truth: Truth) -> tuple[Tensor, Tensor]:
    """Nodes in unconstrained space and log weights, `(B, S)`: panels that spread from the posterior's mode."""
    laplace = truth.target.laplace
    mode, width = laplace.loc[:, 0].cpu().numpy(), laplace.scale[:, 0].cpu().numpy()
    unit = np.maximum(width, 1.0)[:, None]
    edges = geometric_edges(mode, width, far_ends(truth.target, mode[None], width[None]))
    # further out nothing has mass, and second derivatives overflow
    edges = np.clip(edges, mode[:, None] + REACH[0] * unit, mode[:, None] + REACH[1] * unit)
    middle, half = (edges[:, 1:] + edges[:, :-1]) / 2, (edges[:, 1:] - edges[:, :-1]) / 2
    u = (middle[..., None] + half[..., None] * NODES).reshape(len(edges), -1)
    with np.errstate(divide="ignore"):
        weight = np.log(half[..., None] * WEIGHTS).reshape(len(edges), -1)
    device = truth.target.device
    return torch.from_numpy(u).to(device), torch.from_numpy(weight).to(device)
