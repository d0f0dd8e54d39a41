"""Scores over the truth's points that are of all latent numbers together: the forward KL and the covariance."""

from __future__ import annotations

import numpy as np
import torch

from ppl_vi.compiler.many_points import chunks
from ppl_vi.metrics.estimate import SMALLER, Estimate
from ppl_vi.metrics.sampled.noise_rules import GuideNodes
from ppl_vi.metrics.sampled.weighted_samples import Sample, split_sample, unconstrained_samples
from ppl_vi.svi.result import Fit
from ppl_vi.target.evaluation import drawn_at_once, log_joint
from ppl_vi.target.sites import latents_of
from ppl_vi.truth import Points, Truth


def relative_covariance_error(truth: Truth, nodes: GuideNodes) -> Estimate:
    """The largest |eigenvalue| of `L^-1 C_q L^-T - I`, where `C_p = L L'`, for covariances in unconstrained space.

    By so much the guide's variance along some direction is wrong, relative to the posterior's.

    Args:
        truth: with points.
        nodes: where noise rules take the members.
    """
    target = truth.target
    shape = nodes.z.shape[:2]
    value, std_error, error = (np.empty(shape) for _ in range(3))
    weight = nodes.rules.weight.cpu().numpy()
    for b in range(shape[0]):
        sets = unconstrained_samples(truth, b)
        several = len(sets) > 1
        answers = sets[:2] if several else split_sample(sets[0], truth.points[0].group)
        share = 1.0 if several else 0.5  # two halves differ by twice the standard error of the whole
        exact, *halves = (sample.covariance() for sample in (sets[0], *answers))
        for r in range(shape[1]):
            u = target.unconstrain(latents_of(target.latents, nodes.z[b, r])).cpu().numpy()
            by_rule = [Sample(points, w).covariance() for points, w in zip(u, weight, strict=True)]
            mean = np.mean(by_rule, 0)
            value[b, r] = largest_eigenvalue(mean, exact)
            one, two = (largest_eigenvalue(mean, half) for half in halves)
            error[b, r] = share * abs(one - two)
            odd, even = (largest_eigenvalue(np.mean(half, 0), exact) for half in (by_rule[::2], by_rule[1::2]))
            std_error[b, r] = abs(odd - even) / 2
    return Estimate(value, std_error, error, "1")


def largest_eigenvalue(guide: np.ndarray, posterior: np.ndarray) -> float:
    """The largest |eigenvalue| of `L^-1 C_q L^-T - I`, where `C_p = L L'`."""
    factor = np.linalg.cholesky(posterior)
    inverse = np.linalg.inv(factor)
    return float(np.abs(np.linalg.eigvalsh(inverse @ guide @ inverse.T) - 1).max())


def forward_kl(fit: Fit, truth: Truth) -> Estimate:
    """KL(p || q) = E_p[log p(z | x) - log q(z)], nats, over the truth's points.

    Where the truth has two rules, the error is their difference; where it has draws, the standard error comes from the
    spread of the means of the independent groups of them.
    """
    shape = fit.theta.shape[:2]
    weights = [points.log_weight.cpu().numpy() for points in truth.points]
    weights = [np.exp(log_weight)[:, None] for log_weight in weights]
    log_ratios = [_log_ratio(fit, truth, points) for points in truth.points]
    values = [_weighted_sum(*pair) for pair in zip(weights, log_ratios, strict=True)]
    value, error = values[0], np.broadcast_to(truth.log_evidence_error[:, None], shape)
    reason = SMALLER if np.isinf(value).any() else ""
    if len(values) > 1:
        with np.errstate(invalid="ignore"):
            return Estimate(value, np.zeros(shape), error + np.abs(value - values[1]), "nats", reason)
    group = truth.points[0].group.cpu().numpy()
    means = np.stack([_group_mean(weights[0], log_ratios[0], group == g) for g in np.unique(group)])
    return Estimate(value, means.std(0, ddof=1) / len(means) ** 0.5, error.copy(), "nats", reason)


def _log_ratio(fit: Fit, truth: Truth, points: Points) -> np.ndarray:
    """log p(z | x) - log q(z) of every member at each problem's points, `(B, R, S)`."""
    target = truth.target
    latents, _ = target.constrain(points.u.to(fit.theta))
    log_p = log_joint(target, latents) - torch.from_numpy(truth.log_evidence).to(target.device)[:, None]
    return np.asarray(log_p.cpu().numpy()[:, None] - _log_guide(fit, latents))


def _log_guide(fit: Fit, latents: dict[str, torch.Tensor]) -> np.ndarray:
    """log q of every member at each problem's points, `(B, R, S)`."""
    batch, replicas = fit.theta.shape[:2]
    num = next(iter(latents.values())).shape[1]
    size = max(1, drawn_at_once(fit.target) // (batch * replicas))
    parts = []
    for some in chunks(num, size):
        each = {name: value[:, None, some] for name, value in latents.items()}
        parts.append(fit.log_prob({name: value.expand(-1, replicas, *value.shape[2:]) for name, value in each.items()}))
    return torch.cat(parts, -1).cpu().numpy()


def _weighted_sum(weight: np.ndarray, log_ratio: np.ndarray) -> np.ndarray:
    """The sum over points of weight `(B, 1, S)`, `(B, R)`; where a point's weight is 0 its ratio does not count."""
    present = weight > 0
    with np.errstate(invalid="ignore"):
        return np.where(present, weight * np.where(present, log_ratio, 0.0), 0.0).sum(-1)


def _group_mean(weight: np.ndarray, log_ratio: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The weighted mean over the chosen points alone, `(B, R)`."""
    share = weight[..., chosen] / weight[..., chosen].sum(-1, keepdims=True)
    return (share * log_ratio[..., chosen]).sum(-1)
