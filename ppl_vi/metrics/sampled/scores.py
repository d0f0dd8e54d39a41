"""The scores of guides over any number of latents: each a small function of a `SampledFit`.

A function that returns None says that its score does not apply to the fit or to the truth. `ppl_vi.metrics.table` lists
all scores.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ppl_vi.metrics.estimate import LEAK, ROUNDING, Estimate
from ppl_vi.metrics.family_gap import MANY_LOCAL_OPTIMA, never
from ppl_vi.metrics.sampled import joint_scores
from ppl_vi.metrics.sampled.sampled_fit import SampledFit, mean_over_rules, with_evidence_errors


def elbo(sampled: SampledFit) -> Estimate:
    """E_q[log p(x, z) - log q(z)], nats; -inf for a guide that leaks mass."""
    if sampled.fit.support_mismatch:
        return _infinite(sampled, -np.inf)
    found = mean_over_rules(sampled.replicas(sampled.elbo_by_rule), "nats", LEAK)
    return replace(found, error=_rounding(found))


def reverse_kl(sampled: SampledFit) -> Estimate:
    """KL(q || p) = log p(x) - ELBO, nats; infinite for a guide that leaks mass.

    The ELBO is rounded, and the divergence with it: far from the prior, where the ELBO is -2.5e15, that leaves no digit
    after the point.
    """
    if sampled.fit.support_mismatch:
        return _infinite(sampled, np.inf)
    by_rule = sampled.log_evidence - sampled.replicas(sampled.elbo_by_rule)
    found = mean_over_rules(by_rule, "nats", LEAK)
    return with_evidence_errors(sampled.truth, replace(found, error=_rounding(elbo(sampled))))


def _rounding(elbo: Estimate) -> np.ndarray:
    """What rounding an ELBO, as large as it is, may cost, nats."""
    return ROUNDING * np.where(np.isfinite(elbo.value), np.abs(elbo.value), 0.0)


def _infinite(sampled: SampledFit, value: float) -> Estimate:
    """A score that is infinite since the guide has mass outside the support, whether a node fell there or not."""
    nothing = np.zeros(sampled.fit.theta.shape[:2])
    return Estimate(nothing + value, nothing, nothing, "nats", LEAK)


def leaked_mass(sampled: SampledFit) -> Estimate:
    """The guide's mass outside the posterior's support."""
    outside = 1.0 - sampled.replicas(sampled.nodes.inside).to(sampled.elbo_by_rule)
    return mean_over_rules(sampled.nodes.rules.mean(outside), "1")


def surrogate_elbo(sampled: SampledFit) -> Estimate | None:
    """The ELBO that validation off reports: the model's formula continued outside its support, nats.

    Only a guide that leaks mass has one that differs from its ELBO.
    """
    if not sampled.fit.support_mismatch:
        return None
    nodes = sampled.nodes
    log_weight = sampled.replicas(nodes.log_joint) - sampled.replicas(nodes.log_guide)
    return mean_over_rules(nodes.rules.mean(log_weight), "nats")


def family_gap(sampled: SampledFit) -> Estimate:
    """The reverse KL of the family's best member, nats, `(B, 1)`; nan where it can't be searched for."""
    if sampled.best is not None:
        return sampled.best.divergence
    num_problems = len(sampled.truth.log_evidence)
    if sampled.fit.support_mismatch:
        return never(num_problems, sampled.fit.support_mismatch)
    unknown = np.full((num_problems, 1), np.nan)
    return Estimate(unknown, unknown, unknown, "nats", sampled.no_search)


def start_gap(sampled: SampledFit) -> Estimate | None:
    """How far the ELBO of the best optimum near each replica lies below that of the family's best member, nats."""
    if sampled.best_seen is None:
        return None
    if sampled.nearby_by_rule is None:
        unknown = np.full(sampled.fit.theta.shape[:2], np.nan)
        return Estimate(unknown, unknown, unknown, "nats", MANY_LOCAL_OPTIMA)
    gap = mean_over_rules(sampled.best_seen.elbo_by_rule - sampled.nearby_by_rule, "nats")
    return replace(gap, error=gap.error + np.where(gap.value == 0, 0.0, sampled.best_seen.shortfall))


def optimization_gap(sampled: SampledFit) -> Estimate | None:
    """How far each replica's ELBO lies below that of the best optimum near it, nats.

    Where that optimum is not searched for, the family's best member takes its place. The standard error is that of the
    difference itself, which is smaller than those of the two ELBOs.
    """
    if sampled.best_seen is None:
        return None
    by_rule, error = _elbo_near(sampled), sampled.best_seen.shortfall
    at = sampled.at_objective
    if at is not None:
        known = np.isfinite(at.std_error)
        by_rule = torch.where(torch.from_numpy(known).to(by_rule.device)[..., None], at.elbo_by_rule, by_rule)
        error = np.where(known, 0.0, error)
    gap = mean_over_rules(by_rule - sampled.replicas(sampled.elbo_by_rule), "nats")
    spread = 0.0 if at is None else np.where(known, at.std_error, 0.0)
    return replace(gap, std_error=np.hypot(gap.std_error, spread), error=gap.error + error)


def objective_gap(sampled: SampledFit) -> Estimate | None:
    """How far the ELBO at the objective's own optimum lies below its best nearby; None where SVI maximises the ELBO."""
    if sampled.best_seen is None or sampled.at_objective is None:
        return None
    gap = mean_over_rules(_elbo_near(sampled) - sampled.at_objective.elbo_by_rule, "nats")
    at, shortfall = sampled.at_objective, sampled.best_seen.shortfall
    error, std_error = gap.error + shortfall, np.hypot(gap.std_error, at.std_error)
    return replace(gap, std_error=std_error, error=error, reason=at.reason)


def _elbo_near(sampled: SampledFit) -> torch.Tensor:
    """The ELBO of the best optimum near each replica by each rule, or of the best member where none is searched for."""
    assert sampled.best_seen is not None
    replicas = sampled.replicas(sampled.elbo_by_rule)
    best = sampled.best_seen.elbo_by_rule.expand_as(replicas)
    return best if sampled.nearby_by_rule is None else sampled.nearby_by_rule


def mean_error(sampled: SampledFit) -> Estimate | None:
    """(E_q z - E_p z) / sd_p of the latent number where it is farthest from 0."""
    return _worst(sampled, "mean_error")


def sd_ratio(sampled: SampledFit) -> Estimate | None:
    """sd_q / sd_p of the latent number where it is farthest from 1, as a ratio."""
    return _worst(sampled, "sd_ratio")


def wasserstein(sampled: SampledFit) -> Estimate | None:
    """The Wasserstein-1 distance of marginals, in standard deviations, of the latent number where it is largest."""
    return _worst(sampled, "wasserstein")


def coverage_90(sampled: SampledFit) -> Estimate | None:
    """The posterior mass of the guide's central 90% interval, of the latent number where it is farthest from 0.9."""
    return _worst(sampled, "coverage_90")


def _worst(sampled: SampledFit, name: str) -> Estimate | None:
    """A marginal score of the number where it is worst; None where the truth has no points."""
    return None if sampled.marginals is None else sampled.marginals.worst(name)


def relative_covariance_error(sampled: SampledFit) -> Estimate | None:
    """By how much the guide's variance is wrong along some direction, relative to the posterior's.

    None where the truth has no points, or where a guide outside the support has no unconstrained covariance.
    """
    if not sampled.truth.points or sampled.fit.support_mismatch:
        return None
    found = joint_scores.relative_covariance_error(sampled.truth, sampled.marginal_nodes)
    return sampled.with_unknown_errors(found)


def forward_kl(sampled: SampledFit) -> Estimate | None:
    """KL(p || q) = E_p[log p - log q], nats; None where the truth has no points or the guide no density."""
    if not sampled.truth.points or sampled.fit.program.unsupported_density():
        return None
    return joint_scores.forward_kl(sampled.fit, sampled.truth)
