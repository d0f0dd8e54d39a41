"""`SampledFit`: what sampled scores are computed from, a fit's members on common nodes of noise and the truth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vi.metrics.estimate import ROUNDING, Estimate
from ppl_vi.metrics.family_gap import BestMember, bounds_of
from ppl_vi.metrics.objective_gap import ObjectiveOptima, maximises_elbo, objective_optima
from ppl_vi.metrics.sampled.best_member import Projection, reverse_kl_projection
from ppl_vi.metrics.sampled.elbo_on_nodes import no_gradient
from ppl_vi.metrics.sampled.marginals import Marginals, marginals
from ppl_vi.metrics.sampled.noise_rules import (
    GuideNodes,
    ScoredNodes,
    guide_nodes,
    noise_rules,
    scored_nodes,
    sobol_rules,
)
from ppl_vi.metrics.search_starts import search_starts
from ppl_vi.runtime.stages import stage
from ppl_vi.svi.result import Fit
from ppl_vi.truth import Truth

# Rules grow until the standard error of every ELBO is at most ELBO_TOLERANCE, in nats, since smaller gaps hardly ever
# matter, or at most this share of log p(x)'s own standard error, which divergences have in any case.
ELBO_TOLERANCE, EVIDENCE_ERROR_SHARE = 1e-4, 0.1
# The first and the largest number of nodes of a rule; the number is quadrupled while the standard error is too large.
MIN_RULE_NODES, MAX_RULE_NODES = 2**9, 2**14
# Where a node takes more numbers than WIDE, the first rules have as few nodes as WIDE_RULE_NODES: many nodes take
# seconds there, and posteriors given much data, which are nearly normal, seldom need them.
WIDE, WIDE_RULE_NODES = 10_000, 2**7
# Nodes of the rule by which replicas are put in order, the best of which are where searches for the best member start.
NUM_ORDER_NODES = 2**9
# Nodes of each rule by which marginal scores are computed.
NUM_MARGINAL_NODES = 2**12


def mean_over_rules(by_rule: Tensor, unit: str, reason: str = "") -> Estimate:
    """The mean over independent rules `(B, R, S)` with its standard error; `reason` says why one is infinite."""
    values = by_rule.cpu().numpy()
    with np.errstate(invalid="ignore"):
        value = values.mean(-1)
        finite = np.isfinite(values).all(-1)
        spread = np.where(finite[..., None], values, 0.0).std(-1, ddof=1) / values.shape[-1] ** 0.5
    std_error = np.where(finite, spread, np.nan)
    return Estimate(value, std_error, np.zeros_like(value), unit, reason if not finite.all() else "")


def with_evidence_errors(truth: Truth, difference: Estimate) -> Estimate:
    """A difference of the log evidence and something else, with the log evidence's own errors added."""
    return replace(
        difference,
        std_error=np.hypot(difference.std_error, truth.log_evidence_std_error[:, None]),
        error=difference.error + truth.log_evidence_error[:, None],
    )


class BestSeen(NamedTuple):
    """The best of all members seen for each problem.

    Attributes:
        theta: its parameters, `(B, D)`.
        elbo_by_rule: its ELBO by each rule, `(B, 1, S)`, nats.
        shortfall: how far it may fall short of the family's best member, `(B, 1)`, nats.
    """

    theta: Tensor
    elbo_by_rule: Tensor
    shortfall: np.ndarray


class AtObjective(NamedTuple):
    """The objective's own optimum near each replica.

    Attributes:
        elbo_by_rule: the ELBO there by each rule, `(B, R, S)`, nats; nan where the optimum can't be found.
        std_error: how far the optima on two sets of noise are from it, `(B, R)`, nats.
        reason: why it can't be found, or "".
    """

    elbo_by_rule: Tensor
    std_error: np.ndarray
    reason: str


@dataclass(frozen=True, eq=False)
class SampledFit:
    """A fit with any number of latents beside the truth: what each sampled score is a function of.

    Everything that several scores need is computed once, when it is first asked for.

    Attributes:
        fit: the fits.
        truth: of the same target.
        upper_bound: whether the family has many local optima, so that its family gap is only an upper bound; None where
            the searches tell.
    """

    fit: Fit
    truth: Truth
    upper_bound: bool | None = None

    @cached_property
    def no_search(self) -> str:
        """Why the family's best member is not searched for; "" where it is."""
        return self.fit.support_mismatch or no_gradient(self.fit.program)

    @cached_property
    def projection(self) -> Projection | None:
        """Candidates for the family's best member; None where it is not searched for."""
        if self.no_search:
            return None
        with stage("ELBO of each replica"):
            rules = noise_rules(self.fit.program.latent_draws, NUM_ORDER_NODES, self.fit.seed + 10, num_rules=1)
            elbo = elbo_by_rule(scored_nodes(self.fit, self.fit.theta, rules)).mean(-1).cpu().numpy()
        starts = search_starts(self.fit, self.truth)
        return reverse_kl_projection(
            self.fit, elbo, self.truth.log_evidence, self.fit.seed + 20, starts=starts, local=not self.upper_bound
        )

    @cached_property
    def objective_optima(self) -> ObjectiveOptima | None:
        """The objective's own optima; None where SVI maximises the ELBO, or where no best member is searched for."""
        return None if self.no_search or maximises_elbo(self.fit) else objective_optima(self.fit)

    @cached_property
    def theta(self) -> Tensor:
        """The members: `R` replicas, then candidates for the best member and other optima, `(B, M, D)`.

        The last are the objective's own optima, `3 R` of them, where there are any.
        """
        if self.projection is None:
            return self.fit.theta
        optima = self.objective_optima
        own = self.fit.theta[:, :0] if optima is None else optima.theta.flatten(1, 2)
        return torch.cat([self.fit.theta, self.projection.theta, self.projection.others, own], 1)

    @cached_property
    def at_objective(self) -> AtObjective | None:
        """The objective's own optimum near each replica; None where SVI maximises the ELBO."""
        optima, (batch, num) = self.objective_optima, self.fit.theta.shape[:2]
        if optima is None:
            return None
        if optima.reason:
            unknown = torch.full((batch, num, self.elbo_by_rule.shape[-1]), torch.nan).to(self.elbo_by_rule)
            return AtObjective(unknown, np.full((batch, num), np.nan), optima.reason)
        of_all = self.elbo_by_rule[:, -3 * num :].unflatten(1, (num, 3))
        mean = of_all.mean(-1).cpu().numpy()
        return AtObjective(of_all[:, :, 0], np.abs(mean[..., 1:] - mean[..., :1]).max(-1), "")

    @cached_property
    def nodes(self) -> ScoredNodes:
        """The members on rules that grow until all ELBOs are known well enough, up to `MAX_RULE_NODES`."""
        enough = np.maximum(ELBO_TOLERANCE, EVIDENCE_ERROR_SHARE * self.truth.log_evidence_std_error)[:, None]
        num = MIN_RULE_NODES if self.fit.target.width <= WIDE else WIDE_RULE_NODES
        while True:
            rules = noise_rules(self.fit.program.latent_draws, num, self.fit.seed + 40 + num)
            nodes = scored_nodes(self.fit, self.theta, rules)
            error = mean_over_rules(elbo_by_rule(nodes), "nats").std_error
            if num >= MAX_RULE_NODES or not np.any(error > enough):  # nan, of an infinite ELBO, is not above
                return nodes
            num *= 4

    @cached_property
    def elbo_by_rule(self) -> Tensor:
        """The members' ELBOs by each rule, `(B, M, S)`, nats."""
        return elbo_by_rule(self.nodes)

    def replicas(self, members: Tensor) -> Tensor:
        """The replicas' part of what there is of each member: `(B, M, ...)` to `(B, R, ...)`."""
        return members[:, : self.fit.num_replicas]

    @cached_property
    def log_evidence(self) -> Tensor:
        """log p(x), `(B, 1, 1)`, nats."""
        return torch.from_numpy(self.truth.log_evidence).to(self.elbo_by_rule)[:, None, None]

    @cached_property
    def best_seen(self) -> BestSeen | None:
        """The best of all members seen, replicas and candidates; None where none is searched for."""
        if self.projection is None:
            return None
        mean = self.elbo_by_rule.mean(-1).cpu().numpy()
        order = np.where(np.isnan(mean), -np.inf, mean)
        best = torch.from_numpy(order.argmax(1)).to(self.elbo_by_rule.device)
        rows = torch.arange(len(best), device=best.device)
        # How far an optimum is expected to fall short of the best member, or does fall short of the best member seen:
        # a search may have stopped far from the optimum.
        first = self.fit.num_replicas
        with np.errstate(invalid="ignore"):  # where all that were seen are infinitely far, no shortfall is known
            seen = np.abs(mean.max(1) - mean[:, first : first + 2].mean(1))
        shortfall = np.maximum(self.projection.shortfall, seen)[:, None]
        shortfall = shortfall + ROUNDING * np.maximum(1.0, np.abs(mean.max(1)))[:, None]
        return BestSeen(self.theta[rows, best], self.elbo_by_rule[rows, best][:, None], shortfall)

    @cached_property
    def best(self) -> BestMember | None:
        """The family's best member; None where none is searched for."""
        if self.best_seen is None or self.projection is None:
            return None
        difference = mean_over_rules(self.log_evidence - self.best_seen.elbo_by_rule, "nats")
        divergence = with_evidence_errors(self.truth, difference)
        found = self.projection
        bounds = bounds_of(self.upper_bound, found.different, found.converged)
        reason = next(filter(None, bounds), "")
        divergence = replace(divergence, error=divergence.error + self.best_seen.shortfall, reason=reason)
        return BestMember(
            self.best_seen.theta, divergence, bool(self.upper_bound), found.converged, bounds, arrived=self._arrived
        )

    @property
    def _arrived(self) -> np.ndarray | None:
        """Whether the search for the best optimum near each replica arrived, `(B, R)`; None where there was none."""
        found = self.projection
        if found is None or found.of_replica is None:
            return None
        padded = np.concatenate([found.arrived, np.ones((len(found.arrived), 1), bool)], 1)  # -1 is the lowest of all
        return np.take_along_axis(padded, found.of_replica % padded.shape[1], 1)

    @cached_property
    def nearby_by_rule(self) -> Tensor | None:
        """The ELBO of the best optimum near each replica by each rule, `(B, R, S)`; None where it is not searched for.

        It is the replica's own where that is higher.
        """
        if self.best_seen is None or self.projection is None or self.projection.of_replica is None:
            return None
        replicas, of_replica = self.replicas(self.elbo_by_rule), torch.from_numpy(self.projection.of_replica)
        best, num = self.best_seen.elbo_by_rule.expand_as(replicas), replicas.shape[1]
        first = num + self.projection.theta.shape[1]
        places = (first + of_replica.clamp(min=0)).to(replicas.device)[..., None].clamp(max=self.theta.shape[1] - 1)
        own = torch.take_along_dim(self.elbo_by_rule, places, 1)
        own = torch.where((replicas.mean(-1) > own.mean(-1))[..., None], replicas, own)
        is_best = (of_replica < 0).to(replicas.device)[..., None] | (own.mean(-1) >= best.mean(-1))[..., None]
        return torch.where(is_best, best, own)

    @cached_property
    def marginal_nodes(self) -> GuideNodes:
        """The replicas on evenly spread nodes, for probabilities and quantiles."""
        rules = sobol_rules(self.fit.program.latent_draws, NUM_MARGINAL_NODES, self.fit.seed + 30)
        return guide_nodes(self.fit, self.fit.theta, rules)

    @cached_property
    def marginals(self) -> Marginals | None:
        """The scores of each latent number; None where the truth has no points."""
        if not self.truth.points:
            return None
        found = marginals(self.truth, self.marginal_nodes)
        scores = {name: tuple(self.with_unknown_errors(e) for e in each) for name, each in found.scores.items()}
        return replace(found, scores=scores)

    def with_unknown_errors(self, score: Estimate) -> Estimate:
        """A score over the truth's points: its error has no bound where that of the log evidence has none."""
        unknown = np.where(np.isinf(self.truth.log_evidence_error), np.inf, 0.0)[:, None]
        return replace(score, error=score.error + unknown)


def elbo_by_rule(nodes: ScoredNodes) -> Tensor:
    """E_q[log p(x, z) - log q(z)] of each member by each rule, `(B, M, S)`, nats."""
    return nodes.rules.smooth_mean(nodes.log_weight)
