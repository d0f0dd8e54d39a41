"""The member of a family nearest to the posterior in reverse KL, for one latent number: Newton's method on quadrature.

The divergence of this member from the posterior is the family gap. By how much a fitted guide's divergence is larger is
the optimization gap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from ppl_vi.metrics.estimate import Estimate
from ppl_vi.metrics.exact.divergence import reverse_kl
from ppl_vi.metrics.exact.grid import NODES, WEIGHTS, far_ends, geometric_edges, mode_centres, quadrature_grid
from ppl_vi.metrics.family_gap import BestMember, bounds_of
from ppl_vi.metrics.sampled.best_member import PATH_SHARES, descended, reverse_kl_projection
from ppl_vi.numerics.newton import minimize
from ppl_vi.numerics.vmapping import vmap_or_loop
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
# Two searches that ended farther apart than this, in nats, have found different optima.
OTHER_OPTIMUM = 1e-6
# A search's divergence on its panels may differ from that on the adaptive grid by this share of it, or so many nats.
RESOLVED_SHARE = 1e-5
# A member of which more mass than this is missing on the panels is not resolved by them.
MAX_MISSING_MASS = 1e-3
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


def best_member(
    fit: Fit,
    truth: Truth,
    fitted: Estimate,
    upper_bound: bool | None = None,
    starts: Tensor | None = None,
) -> BestMember:
    """The family's best member for each problem, by Newton's method on deterministic quadrature in float64.

    Searches start from several replicas of each problem, those of smallest reverse KL, from the members `starts`, and
    from each replica from which the straight path to the best optimum climbs. The best result counts, with its
    divergence computed anew on the adaptive grid of the scores. A start that is better than any result is kept.

    Args:
        fit: gives the family and the first starts.
        truth: the posterior.
        fitted: the replicas' reverse KL, `(B, R)`.
        upper_bound: whether the family is known to have many local optima, so that the family gap is an upper bound;
            False vouches that it is none, and None lets the searches tell.
        starts: further members from which searches start, `(B, K, D)`.
    """
    replicas = fitted.value.shape[1]
    finite = np.where(np.isfinite(fitted.value), fitted.value, np.inf)
    nearest = np.argsort(finite, 1)[:, : min(NUM_STARTS, replicas)].copy()
    begin = torch.take_along_dim(fit.theta, torch.from_numpy(nearest).to(fit.theta.device)[..., None], 1)
    begin = begin if starts is None else torch.cat([begin, starts], 1)
    with stage("best member"):
        panels = _panels(fit, truth, begin)
        if panels is None:
            return _best_on_noise(fit, truth, fitted, upper_bound, begin[:, nearest.shape[1] :])
        found = _newton_searches(panels, begin, MAX_NEWTON_STEPS_UPPER_BOUND if upper_bound else MAX_NEWTON_STEPS)
        local = None if upper_bound else _local(panels, fit, fitted, nearest, found)
    if local is not None:
        found, begin = found.joined(local.searches), torch.cat([begin, local.begin], 1)
    candidates = torch.cat([found.theta, begin], 1)
    divergence = reverse_kl(quadrature_grid(fit, truth, candidates))
    return _best_of(found, candidates, divergence, upper_bound, fitted, local)


def _best_of(
    found: Searches,
    candidates: Tensor,
    divergence: Estimate,
    upper_bound: bool | None,
    fitted: Estimate,
    local: Local | None,
) -> BestMember:
    """The best of the candidates `(B, C, D)`, the ends of all searches and then their starts, by their divergence."""
    batch, num = found.converged.shape
    order = np.where(np.isnan(divergence.value), np.inf, divergence.value)
    rows, best = np.arange(batch), order.argmin(1)
    search = np.where(best < num, best, best - num)  # where a start is best, the search from there
    lowest, ends = order[rows, best][:, None], order[:, :num]
    # on fixed panels a search may end where their nodes are too few
    is_resolved = np.abs(found.value - ends) <= RESOLVED_SHARE * np.maximum(1.0, ends)
    arrived = found.converged & is_resolved
    converged = (arrived & (ends <= lowest + SAME_OPTIMUM)).any(1) | arrived[rows, search]
    bounds = bounds_of(upper_bound, (arrived & (ends > lowest + OTHER_OPTIMUM)).any(1), converged)
    # where the search has not converged, or is only local, what it promised says nothing
    promised = np.where(converged & (not upper_bound), found.gain[rows, search], 0.0)
    nothing = np.zeros((batch, 1))
    error = (divergence.error[rows, best] + promised)[:, None]
    reason = next(filter(None, bounds), "")
    chosen = Estimate(divergence.value[rows, best][:, None], nothing, error, "nats", reason)
    theta = candidates[torch.arange(batch), torch.from_numpy(best)]
    near = () if local is None else _nearby(local.search, arrived, divergence, chosen, fitted)
    return BestMember(theta, chosen, bool(upper_bound), converged, bounds, *near)


def _nearby(
    place: np.ndarray, arrived: np.ndarray, divergence: Estimate, best: Estimate, fitted: Estimate
) -> tuple[Estimate, np.ndarray]:
    """The reverse KL of the best optimum near each replica, nats, and whether its search arrived, `(B, R)` each.

    It is the replica's own where its search ended higher.

    Args:
        place: the number of that optimum among the candidates, `(B, R)`; -1 where it is the best member.
        arrived: whether the searches that found the first candidates arrived, `(B, S)`.
        divergence: of the candidates, `(B, C)`.
        best: of the best member, `(B, 1)`.
        fitted: of the replicas, `(B, R)`.
    """
    at = np.maximum(place, 0)
    own, error, has_arrived = (
        np.take_along_axis(part, at, 1) for part in (divergence.value, divergence.error, arrived)
    )
    is_best = (place < 0) | ~(own > best.value + SAME_OPTIMUM)
    stays = ~is_best & (fitted.value < own)
    value = np.where(is_best, best.value, np.where(stays, fitted.value, own))
    error = np.where(is_best, best.error, np.where(stays, fitted.error, error))
    return Estimate(value, np.zeros_like(value), error, "nats"), is_best | has_arrived


class Searches(NamedTuple):
    """Where `S` searches for each problem's best member ended.

    Attributes:
        theta: the members, `(B, S, D)`.
        converged: whether each search converged, `(B, S)`.
        gain: how much a further step still promised, `(B, S)`, nats.
        value: the divergence on the nodes of the search, `(B, S)`, nats.
    """

    theta: Tensor
    converged: np.ndarray
    gain: np.ndarray
    value: np.ndarray

    def joined(self, others: Searches) -> Searches:
        """These searches and, after them, others."""
        arrays = (np.concatenate(parts, 1) for parts in zip(self[1:], others[1:], strict=True))
        return Searches(torch.cat([self.theta, others.theta], 1), *arrays)


class Local(NamedTuple):
    """By which search the best optimum near each replica is found.

    Attributes:
        search: the number of the search among all, `(B, R)`; -1 where the best optimum of all is near.
        searches: those that were made to this end, beside the first ones.
        begin: where these began, `(B, E, D)`.
    """

    search: np.ndarray
    searches: Searches
    begin: Tensor


def _local(panels: Panels, fit: Fit, fitted: Estimate, nearest: np.ndarray, found: Searches) -> Local:
    """Finds the best optimum near each replica.

    Replicas from which a search began have its end, others the best end if the straight path there never climbs.
    Searches begin from all that are left.
    """
    batch, replicas = fitted.value.shape
    theta = fit.theta.expand(batch, replicas, -1)
    finite = np.isfinite(fitted.value)
    lowest = np.where(found.converged, found.value, np.inf).argmin(1)
    end = found.theta[torch.arange(batch), torch.from_numpy(lowest)][:, None]
    search = np.full((batch, replicas), -1)
    np.put_along_axis(search, nearest, np.arange(nearest.shape[1])[None].repeat(batch, 0), 1)
    has_end = search >= 0
    paths = torch.cat([theta + share * (end - theta) for share in PATH_SHARES], 1)
    heights = panels.values(paths).reshape(batch, len(PATH_SHARES), replicas)
    heights = np.concatenate([heights, found.value[np.arange(batch), lowest][:, None, None].repeat(replicas, 2)], 1)
    leads_down = (np.diff(heights, axis=1) < 0).all(1)
    left = finite & ~has_end & ~leads_down
    search[~finite] = -1
    num = int(left.sum(1).max())
    which = np.argsort(~left, 1, kind="stable")[:, :num].copy()  # a problem of fewer has others, to no harm
    begin = torch.take_along_dim(theta, torch.from_numpy(which)[..., None], 1)
    begin = torch.where(begin.isfinite().all(-1, keepdim=True), begin, end)
    places = found.converged.shape[1] + np.arange(num)[None].repeat(batch, 0)
    chosen = np.take_along_axis(left, which, 1)
    np.put_along_axis(search, which, np.where(chosen, places, np.take_along_axis(search, which, 1)), 1)
    return Local(search, _newton_searches(panels, begin, MAX_NEWTON_STEPS), begin)


def _best_on_noise(fit: Fit, truth: Truth, fitted: Estimate, upper_bound: bool | None, starts: Tensor) -> BestMember:
    """The best member by searches on fixed noise, for guides whose density has no derivatives at some nodes."""
    projection = reverse_kl_projection(
        fit, -fitted.value, truth.log_evidence, fit.seed + 20, starts=starts, local=not upper_bound
    )
    candidates = torch.cat([projection.theta, fit.theta, projection.others], 1)
    divergence = reverse_kl(quadrature_grid(fit, truth, candidates))
    num = projection.theta.shape[1]
    order = np.where(np.isnan(divergence.value), np.inf, divergence.value)
    rows, best = np.arange(len(order)), order.argmin(1)
    bounds = bounds_of(upper_bound, projection.different, projection.converged)
    nothing, reason = np.zeros((len(order), 1)), next(filter(None, bounds), "")
    chosen = Estimate(order[rows, best][:, None], nothing, divergence.error[rows, best][:, None], "nats", reason)
    near: tuple[Estimate, np.ndarray] | tuple[()] = ()
    if projection.of_replica is not None:
        others = np.where(projection.of_replica < 0, -1, num + fit.num_replicas + projection.of_replica)
        arrived = np.ones(order.shape, bool)
        arrived[:, num + fit.num_replicas :] = projection.arrived
        near = _nearby(others, arrived, divergence, chosen, fitted)
    theta = candidates[torch.arange(len(order)), torch.from_numpy(best)]
    return BestMember(theta, chosen, bool(upper_bound), projection.converged, bounds, *near)


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


@dataclass(frozen=True, eq=False)
class Panels:
    """Reverse KL as a function of a guide's parameters, `int q log(q/p) - q + p` over the nodes of fixed panels.

    Attributes:
        fit: gives the family.
        truth: the posterior.
        nodes: of each problem.
    """

    fit: Fit
    truth: Truth
    nodes: Nodes

    def divergence(self, theta: Tensor, z: Tensor, slope: Tensor, p: Tensor, weight: Tensor, *row: Tensor) -> Tensor:
        """The divergence of one member `(D,)` from one problem's posterior, nats."""
        log_q = self._log_q(theta, z, slope, row)
        q = (log_q + weight).exp()
        return (q * (log_q - p) - q).sum() + 1.0

    def mass(self, theta: Tensor, z: Tensor, slope: Tensor, p: Tensor, weight: Tensor, *row: Tensor) -> Tensor:
        """The mass of one member `(D,)` on the panels: about 1 where they resolve it."""
        return (self._log_q(theta, z, slope, row) + weight).exp().sum()

    def _log_q(self, theta: Tensor, z: Tensor, slope: Tensor, row: tuple[Tensor, ...]) -> Tensor:
        """The log density of one member `(D,)` in u at the nodes, `(P,)`."""
        site = self.truth.target.latents[0].name
        return vmap(lambda point: self.fit.program.log_guide(theta, row, {site: point}))(z) + slope

    def args(self, num: int) -> tuple[Tensor, ...]:
        """What `divergence` takes beside the parameters, of each problem `num` times, `(B num, ...)`."""
        target = self.truth.target
        problem = torch.arange(target.num_problems, device=target.device).repeat_interleave(num)
        return tuple(tensor[problem] for tensor in (*self.nodes, *target.args))

    def values(self, theta: Tensor) -> np.ndarray:
        """The divergence of members `(B, S, D)`, `(B, S)`, nats."""
        return self._of_members(self.divergence, theta)

    def resolves(self, theta: Tensor) -> np.ndarray:
        """Whether the panels hold the mass of members `(B, S, D)`, `(B, S)`."""
        return np.asarray(np.abs(self._of_members(self.mass, theta) - 1) <= MAX_MISSING_MASS)

    def _of_members(self, function: Callable[..., Tensor], theta: Tensor) -> np.ndarray:
        num = theta.shape[1]
        with self.fit.program.isolated(), torch.no_grad():
            found = vmap_or_loop(function)(theta.flatten(0, 1), *self.args(num))
        return np.asarray(found.reshape(-1, num).cpu().numpy())


def _panels(fit: Fit, truth: Truth, starts: Tensor) -> Panels | None:
    """Panels over each problem's posterior; None for a guide whose support is smaller than the posterior's.

    At nodes outside its support, its density has no derivatives.
    """
    nodes = _nodes(fit, truth, starts)
    return None if nodes is None else Panels(fit, truth, nodes)


def _newton_searches(panels: Panels, starts: Tensor, max_steps: int) -> Searches:
    """Newton's method from `starts` `(B, S, D)`.

    A start that the panels do not resolve, because it lies far from the posterior, is first moved by a search on fixed
    noise, whose nodes go along with the guide.
    """
    batch, num, dim = starts.shape
    if num == 0:
        return Searches(starts, *(np.zeros((batch, 0), dtype) for dtype in (bool, float, float)))
    begin, resolved = starts.clone(), panels.resolves(starts)
    if not resolved.all():
        for b, r in np.argwhere(~resolved):
            begin[b, r] = descended(panels.fit, int(b), starts[b, r])
        resolved = panels.resolves(begin)
    usable = resolved & np.isfinite(panels.values(begin))
    converged, gain, value = np.zeros((batch, num), bool), np.zeros((batch, num)), np.full((batch, num), np.inf)
    if usable.any():
        at = torch.from_numpy(usable.ravel())
        args = tuple(arg[at] for arg in panels.args(num))
        found = minimize(
            panels.divergence, begin.reshape(-1, dim)[at], args=args, tolerance=NEWTON_TOLERANCE, max_steps=max_steps
        )
        begin.view(-1, dim)[at] = found.x
        for into, part in ((converged, found.converged), (gain, found.gain), (value, found.value)):
            into[usable] = part.cpu().numpy()
    return Searches(begin, converged & panels.resolves(begin), gain, value)


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
    """Nodes in unconstrained space and log weights, `(B, P)`: panels that spread from each of the posterior's modes."""
    edges = [_edges_around(truth, *one) for one in mode_centres(truth)]
    merged = np.sort(np.concatenate(edges, 1), 1)
    middle, half = (merged[:, 1:] + merged[:, :-1]) / 2, (merged[:, 1:] - merged[:, :-1]) / 2
    u = (middle[..., None] + half[..., None] * NODES).reshape(len(merged), -1)
    with np.errstate(divide="ignore"):  # panels of no width have weight 0
        log_weight = np.log(half[..., None] * WEIGHTS).reshape(len(merged), -1)
    device = truth.target.device
    return torch.from_numpy(u).to(device), torch.from_numpy(log_weight).to(device)


def _edges_around(truth: Truth, mode: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Edges of panels that spread from a mode of each problem, `(B, E)`."""
    unit = np.maximum(width, 1.0)[:, None]
    edges = geometric_edges(mode, width, far_ends(truth.target, mode[None], width[None]))
    return np.clip(edges, mode[:, None] + PANEL_REACH[0] * unit, mode[:, None] + PANEL_REACH[1] * unit)
