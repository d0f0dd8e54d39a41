"""The scores of guides over any number of latents, by weighted points of the guides and of the truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ppl_vi.metrics.estimate import LEAK, ROUNDING, Estimate
from ppl_vi.metrics.family_gap import BestMember, never
from ppl_vi.metrics.sampled.best_member import Projection, reverse_kl_projection
from ppl_vi.metrics.sampled.elbo_on_nodes import no_gradient
from ppl_vi.metrics.sampled.marginals import Marginals, forward_kl, marginals, relative_covariance_error
from ppl_vi.metrics.sampled.noise_rules import ScoredNodes, guide_nodes, noise_rules, scored_nodes, sobol_rules
from ppl_vi.svi.result import Fit
from ppl_vi.truth import Truth

TOLERANCE = 1e-4  # nats, the standard error of an ELBO that is sought
FEWEST, MOST = 2**11, 2**14  # nodes of a rule: doubled twice at most, where the error asks for it
MARGINAL_POINTS = 2**12  # of each rule for the marginals


def sampled_scores(
    fit: Fit, truth: Truth, *, upper_bound: bool = False
) -> tuple[dict[str, Estimate], BestMember | None, Marginals | None]:
    """Measures every replica of a fit, and the family's best member, on common nodes of noise.

    The ELBO, the reverse KL and the gaps carry the standard error over independently randomised rules; that of the
    optimization gap is of the difference itself. The forward KL, moments and marginal scores are over the truth's
    points.

    Args:
        fit: the fits.
        truth: of the same target.
        upper_bound: whether the family has many local optima.
    """
    lacking = fit.support_mismatch or no_gradient(fit.program)
    rough = (
        None if lacking else scored_nodes(fit, fit.theta, noise_rules(fit.program.latent_draws, FEWEST, fit.seed + 10))
    )
    found = None
    if rough is not None:
        found = reverse_kl_projection(fit, _elbo(rough).mean(-1).cpu().numpy(), truth.log_evidence, fit.seed + 20)
    theta = fit.theta if found is None else torch.cat([fit.theta, found.theta], 1)
    seen = _seen(fit, theta)
    per_rule = _elbo(seen)
    replicas = fit.num_replicas
    own = per_rule[:, :replicas]
    elbo, divergence = _bound(truth, own)
    scores = {
        "elbo": _infinite(fit, elbo, -np.inf),
        "reverse_kl": _infinite(fit, divergence, np.inf),
        "leaked_mass": estimate(seen.rules.mean(1.0 - seen.inside[:, :replicas].to(per_rule)), "1"),
    }
    scores["elbo_gap"] = scores["reverse_kl"]
    if fit.support_mismatch:
        continued = seen.rules.mean(seen.log_joint[:, :replicas] - seen.log_guide[:, :replicas])
        scores["surrogate_elbo"] = estimate(continued, "nats")
        scores["family_gap"] = never(len(truth.log_evidence), fit.support_mismatch)
    elif lacking:
        unknown = np.full((len(truth.log_evidence), 1), np.nan)
        scores["family_gap"] = Estimate(unknown, unknown, unknown, "nats", lacking)
    best = None
    if found is not None:
        best, gap = _best(truth, found, theta, per_rule, replicas, upper_bound)
        scores["family_gap"], scores["optimization_gap"] = best.divergence, gap
    over, more = _over_points(fit, truth)
    return scores | more, best, over


def _over_points(fit: Fit, truth: Truth) -> tuple[Marginals | None, dict[str, Estimate]]:
    """The scores over the truth's points, if it has any: those of each number, and those of all together."""
    if not truth.points:
        return None, {}
    marginal = guide_nodes(fit, fit.theta, sobol_rules(fit.program.latent_draws, MARGINAL_POINTS, fit.seed + 30))
    over = marginals(truth, marginal)
    over = replace(over, scores={name: tuple(_doubted(truth, e) for e in each) for name, each in over.scores.items()})
    scores = {name: over.worst(name) for name in ("mean_error", "sd_ratio", "wasserstein", "coverage_90")}
    if not fit.support_mismatch:
        scores["relative_covariance_error"] = _doubted(truth, relative_covariance_error(truth, marginal))
    if not fit.program.unsupported_density():
        scores["forward_kl"] = forward_kl(fit, truth)
    return over, scores


def _bound(truth: Truth, per_rule: Tensor) -> tuple[Estimate, Estimate]:
    """The ELBO, and by how much log p(x) exceeds it, from ELBOs by each rule, `(B, R, S)`.

    Its terms are rounded as it is: far from the prior, where it is -2.5e15, that leaves no digit after the point.
    """
    evidence = torch.from_numpy(truth.log_evidence).to(per_rule)[:, None, None]
    elbo = estimate(per_rule, "nats", LEAK)
    rounding = ROUNDING * np.where(np.isfinite(elbo.value), np.abs(elbo.value), 0.0)
    divergence = replace(estimate(evidence - per_rule, "nats", LEAK), error=rounding)
    return replace(elbo, error=rounding), _with_evidence(truth, divergence)


def _elbo(seen: ScoredNodes) -> Tensor:
    """E_q[log p(x, z) - log q(z)] by each rule, `(B, R, S)`."""
    return seen.rules.mean(seen.log_weight)


def _seen(fit: Fit, theta: Tensor) -> ScoredNodes:
    """The members on rules that grow until the ELBOs are known to `TOLERANCE`, or as far as they may grow."""
    num = FEWEST
    while True:
        seen = scored_nodes(fit, theta, noise_rules(fit.program.latent_draws, num, fit.seed + 40 + num))
        error = estimate(_elbo(seen), "nats").std_error
        if num >= MOST or not np.any(error > TOLERANCE):  # an ELBO that is infinite has no error
            return seen
        num *= 4


def _with_evidence(truth: Truth, divergence: Estimate) -> Estimate:
    """The log evidence's own errors on top."""
    spread = truth.log_evidence_std_error[:, None]
    return replace(
        divergence,
        std_error=np.hypot(divergence.std_error, spread),
        error=divergence.error + truth.log_evidence_error[:, None],
    )


def _doubted(truth: Truth, over_points: Estimate) -> Estimate:
    """A score over the truth's points, whose error has no bound where that of the log evidence has none."""
    unknown = np.where(np.isinf(truth.log_evidence_error), np.inf, 0.0)[:, None]
    return replace(over_points, error=over_points.error + unknown)


def _infinite(fit: Fit, score: Estimate, value: float) -> Estimate:
    """A guide with mass outside the support has an infinite divergence, whether a node fell there or not."""
    if not fit.support_mismatch:
        return score
    nothing = np.zeros_like(score.value)
    return Estimate(nothing + value, nothing, nothing, "nats", LEAK)


def _best(
    truth: Truth, found: Projection, theta: Tensor, per_rule: Tensor, replicas: int, upper_bound: bool
) -> tuple[BestMember, Estimate]:
    """The best of all members seen, and how far each replica falls short of it."""
    mean = per_rule.mean(-1).cpu().numpy()
    order = np.where(np.isnan(mean), -np.inf, mean)
    chosen = torch.from_numpy(order.argmax(1)).to(per_rule.device)
    rows = torch.arange(len(chosen), device=per_rule.device)
    top = per_rule[rows, chosen][:, None]
    evidence = torch.from_numpy(truth.log_evidence).to(per_rule)[:, None, None]
    # what an optimum is expected to fall short by, or does of the best: a search may have stopped far out
    seen = np.abs(mean.max(1) - mean[:, replicas : replicas + 2].mean(1))
    short = np.maximum(found.short, seen)[:, None]
    short = short + ROUNDING * np.maximum(1.0, np.abs(mean.max(1)))[:, None]
    divergence = _with_evidence(truth, estimate(evidence - top, "nats"))
    reason = "an upper bound: the best of several local searches" if upper_bound else ""
    divergence = replace(divergence, error=divergence.error + short, reason=reason)
    gap = estimate(top - per_rule[:, :replicas], "nats")
    gap = replace(gap, error=gap.error + short)
    return BestMember(theta[rows, chosen], divergence, upper_bound, found.converged), gap


def estimate(per_rule: Tensor, unit: str, reason: str = "") -> Estimate:
    """The mean over rules `(B, R, S)` with its standard error."""
    values = per_rule.cpu().numpy()
    with np.errstate(invalid="ignore"):
        value = values.mean(-1)
        finite = np.isfinite(values).all(-1)
        spread = np.where(finite[..., None], values, 0.0).std(-1, ddof=1) / values.shape[-1] ** 0.5
    std_error = np.where(finite, spread, np.nan)
    return Estimate(value, std_error, np.zeros_like(value), unit, reason if not finite.all() else "")
