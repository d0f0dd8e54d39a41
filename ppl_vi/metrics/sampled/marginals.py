"""A guide's moments, quantiles, intervals and densities against weighted points that stand for the posterior."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from ppl_vi.compiler.many_points import chunks
from ppl_vi.metrics.estimate import Estimate
from ppl_vi.metrics.sampled.noise_rules import GuideNodes
from ppl_vi.svi.result import Fit
from ppl_vi.target.evaluation import drawn_at_once, log_joint
from ppl_vi.target.sites import latents_of, numbers_of
from ppl_vi.target.target import Target
from ppl_vi.truth import Truth

PROBABILITIES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Sample:
    """Weighted points `(N, K)` and their weights `(N,)`, summing to 1."""

    z: np.ndarray
    weight: np.ndarray

    def numbers(self, some: np.ndarray) -> Sample:
        """Some of the `K` numbers."""
        return Sample(self.z[:, some], self.weight)

    def mean(self) -> np.ndarray:
        """`(K,)`."""
        return self.weight @ self.z

    def sd(self) -> np.ndarray:
        """`(K,)`."""
        return np.sqrt(self.weight @ (self.z - self.mean()) ** 2)

    def covariance(self) -> np.ndarray:
        """`(K, K)`."""
        away = self.z - self.mean()
        return (self.weight[:, None] * away).T @ away


@dataclass(frozen=True)
class NumberSample:
    """One number's marginal: sorted points and the probability up to the middle of each."""

    z: np.ndarray
    up_to: np.ndarray

    @staticmethod
    def of(sample: Sample, k: int) -> NumberSample:
        """The marginal of number `k`."""
        present = sample.weight > 0
        z, place = np.unique(sample.z[present, k], return_inverse=True)  # nodes of a lattice coincide
        weight = np.bincount(place.ravel(), sample.weight[present])
        return NumberSample(z, np.cumsum(weight) - weight / 2)

    def thinned(self) -> NumberSample:
        """Every other point of it: interpolated between them, the line tells what interpolation may be off by."""
        return NumberSample(self.z[::2], self.up_to[::2])

    def cdf(self, z: np.ndarray) -> np.ndarray:
        """P(Z <= z)."""
        return np.interp(z, self.z, self.up_to, left=0.0, right=1.0)

    def quantile(self, probability: np.ndarray) -> np.ndarray:
        """The inverse of `cdf`."""
        return np.interp(probability, self.up_to, self.z)


def wasserstein(one: NumberSample, other: NumberSample) -> float:
    """int |F - G| dz, by the trapezoid over all points of both."""
    z = np.sort(np.concatenate([one.z, other.z]))
    gap = np.abs(one.cdf(z) - other.cdf(z))
    return float(((gap[1:] + gap[:-1]) / 2) @ np.diff(z))


@dataclass(frozen=True)
class PosteriorSample:
    """The truth's points for one problem.

    Attributes:
        moments: those that integrate smooth functions best.
        lines: those that are spread most evenly, for probabilities and quantiles: a rule of few nodes has none between.
    """

    moments: Sample
    lines: Sample

    def numbers(self, some: np.ndarray) -> PosteriorSample:
        """Some of the `K` numbers."""
        return PosteriorSample(self.moments.numbers(some), self.lines.numbers(some))


def marginal_scores(q: Sample, p: PosteriorSample, thin: bool = False) -> np.ndarray:
    """For each number: mean error, sd ratio, Wasserstein, coverage of 90% and 50%, five quantile errors, `(K, 10)`.

    Errors and distances are in standard deviations of the posterior's marginal. If `thin`, its lines are.
    """
    mean, sd = p.moments.mean(), p.moments.sd()
    rows = []
    for k in range(q.z.shape[1]):
        guide, posterior = NumberSample.of(q, k), NumberSample.of(p.lines, k)
        posterior = posterior.thinned() if thin else posterior
        quantiles = guide.quantile(np.array(PROBABILITIES))
        covered = posterior.cdf(quantiles)
        errors = (quantiles - posterior.quantile(np.array(PROBABILITIES))) / sd[k]
        distance = wasserstein(guide, posterior) / sd[k]
        central = [(q.mean()[k] - mean[k]) / sd[k], q.sd()[k] / sd[k], distance]
        rows.append([*central, covered[4] - covered[0], covered[3] - covered[1], *errors])
    return np.array(rows)


NAMES = ("mean_error", "sd_ratio", "wasserstein", "coverage_90", "coverage_50", *(f"quantile_error_{100 * p:.0f}"
                                                                                for p in PROBABILITIES))  # fmt: skip
NUM_EVEN = 2**15  # evenly spread points, of two scramblings in turn
DEGREES = 5.0  # of freedom of the density that they are drawn from: heavier tails than most posteriors have
FEWEST = 1000  # effectively, for probabilities
MOMENTS = ("mean_error", "sd_ratio")
UNITS = dict.fromkeys(NAMES, "sd") | {"sd_ratio": "1", "coverage_90": "1", "coverage_50": "1"}
IDEAL = dict.fromkeys(NAMES, 0.0) | {"sd_ratio": 1.0, "coverage_90": 0.9, "coverage_50": 0.5}


@dataclass(frozen=True, eq=False)
class Marginals:
    """The marginal scores of every latent number that varies.

    Attributes:
        names: of the numbers, `site` or `site[i,j]`.
        scores: for each name of `NAMES` the estimates of each number, `(B, R)` each.
    """

    names: tuple[str, ...]
    scores: dict[str, tuple[Estimate, ...]]

    def worst(self, name: str) -> Estimate:
        """The number farthest from what a perfect guide has."""
        stacked = [np.stack([getattr(e, part) for e in self.scores[name]]) for part in ("value", "std_error", "error")]
        away = np.abs(np.log(stacked[0])) if name == "sd_ratio" else np.abs(stacked[0] - IDEAL[name])
        at = np.where(np.isnan(away), np.inf, away).argmax(0)[None]
        value, std_error, error = (np.take_along_axis(part, at, 0)[0] for part in stacked)
        return Estimate(value, std_error, error, UNITS[name])


def number_names(target: Target) -> tuple[str, ...]:
    """What the latents' numbers are called, site after site."""
    names: list[str] = []
    for site in target.latents:
        indices = np.ndindex(*site.shape)
        names += [f"{site.name}[{','.join(map(str, i))}]" if i else site.name for i in indices]
    return tuple(names)


def flattened(target: Target, u: torch.Tensor) -> np.ndarray:
    """Unconstrained points `(..., D)` to the latents' own numbers, `(..., K)`."""
    return numbers_of(target.latents, target.constrain(u)[0]).cpu().numpy()


def posterior_samples(truth: Truth, problem: int) -> list[Sample]:
    """The truth's points for one problem in the latents' own numbers, the best set first."""
    return [
        Sample(flattened(truth.target, points.u[problem]), np.exp(_numpy(points.log_weight[problem])))
        for points in truth.points
    ]


def _numpy(values: object) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def posterior_of(truth: Truth, problem: int) -> PosteriorSample:
    """The truth's points for one problem, and points that are spread evenly."""
    best = posterior_samples(truth, problem)[0]
    if truth.points[0].kind == "draws":
        return PosteriorSample(best, best)
    return PosteriorSample(best, evenly_spread(truth, problem) or best)


def evenly_spread(truth: Truth, problem: int) -> Sample | None:
    """Importance sampling on scrambled Sobol points from a Student density with a rule's own mean and covariance.

    A rule's nodes lie in clusters, which is fine for integrals of smooth functions and poor for probabilities. None
    where too few points have weight.
    """
    target, points = truth.target, truth.points[0]
    dim, rule = target.dim, Sample(_numpy(points.u[problem]), np.exp(_numpy(points.log_weight[problem])))
    factor, info = torch.linalg.cholesky_ex(torch.from_numpy(rule.covariance()))
    if int(info) or not bool(factor.isfinite().all()):
        return None
    engines = [torch.quasirandom.SobolEngine(dim + 1, scramble=True, seed=seed) for seed in range(2)]
    uniform = torch.stack([engine.draw(NUM_EVEN // 2, dtype=torch.float64) for engine in engines], 1).flatten(0, 1)
    uniform = uniform + 2.0**-31
    chi_square = torch.from_numpy(stats.chi2.ppf(uniform[:, -1].numpy(), DEGREES))
    t = torch.special.ndtri(uniform[:, :-1]) * (DEGREES / chi_square).sqrt()[:, None]
    u = torch.from_numpy(rule.mean()) + t @ factor.mT
    log_proposal = -(DEGREES + dim) / 2 * (1 + t.square().sum(-1) / DEGREES).log()  # up to a constant
    latents, log_slope = target.constrain(u.to(target.device)[None])
    log_density = log_joint(target, latents, torch.tensor([problem], device=target.device)) + log_slope
    log_weight = log_density[0].cpu().double() - log_proposal
    usable = ~log_weight.isnan()  # where a latent overflows there is no density
    weight = torch.softmax(torch.where(usable, log_weight, -torch.inf), 0).numpy()
    if not 1 / float(weight @ weight) > FEWEST:
        return None
    return Sample(flattened(target, u.to(target.device)), weight)


def halves(truth: Truth, problem: int) -> list[PosteriorSample]:
    """Two independent answers of the truth to any question: two rules, or two halves of the points."""
    samples = posterior_samples(truth, problem)
    lines = split_sample(posterior_of(truth, problem).lines, truth.points[0].group)
    moments = samples[:2] if len(samples) > 1 else lines
    return [PosteriorSample(*pair) for pair in zip(moments, lines, strict=True)]


def split_sample(sample: Sample, group: object) -> list[Sample]:
    """Half of the groups of points and the other half; every other point where there is one group."""
    of = _numpy(group)
    if len(of) != len(sample.weight) or len(np.unique(of)) < 2:
        of = np.arange(len(sample.weight))
    first = np.isin(of, np.unique(of)[::2])
    return [Sample(sample.z[part], sample.weight[part] / sample.weight[part].sum()) for part in (first, ~first)]


def shares(truth: Truth) -> np.ndarray:
    """What of the difference of two answers stands for each score's error, `(10,)`.

    Two rules differ by the error of the worse one. Two halves of the points differ by twice the whole's standard error.
    """
    return np.where([name in MOMENTS and len(truth.points) > 1 for name in NAMES], 1.0, 0.5)


def guide_samples(seen: GuideNodes, problem: int, replica: int) -> list[Sample]:
    """A member's points by each rule."""
    z, weight = seen.z[problem, replica].cpu().numpy(), seen.rules.weight.cpu().numpy()
    return [Sample(points, w) for points, w in zip(z, weight, strict=True)]


def pooled(samples: list[Sample]) -> Sample:
    """All of them as one."""
    return Sample(np.concatenate([s.z for s in samples]), np.concatenate([s.weight for s in samples]) / len(samples))


def varying(truth: Truth) -> np.ndarray:
    """Which numbers differ from point to point: the first row of a correlation's Cholesky factor is 1, 0, 0 …"""
    best = [posterior_samples(truth, problem)[0].z for problem in range(truth.target.num_problems)]
    return np.flatnonzero(np.ptp(np.concatenate(best), 0) > 0)


def marginals(truth: Truth, seen: GuideNodes) -> Marginals:
    """Marginal scores of every member; the standard error is the guide's rules', the error the truth's.

    The error has two parts: what two independent answers of the truth differ by, and what interpolation between its
    points may be off by.
    """
    batch, replicas = seen.z.shape[:2]
    some = varying(truth)
    names = tuple(number_names(truth.target)[k] for k in some)
    shape = (batch, replicas, len(names), len(NAMES))
    value, std_error, error = np.empty(shape), np.empty(shape), np.empty(shape)
    for b in range(batch):
        answers = [answer.numbers(some) for answer in halves(truth, b)]
        whole, share = posterior_of(truth, b).numbers(some), shares(truth)
        for r in range(replicas):
            parts = [part.numbers(some) for part in guide_samples(seen, b, r)]
            guide = pooled(parts)
            value[b, r] = marginal_scores(guide, whole)
            one, two = (marginal_scores(guide, answer) for answer in answers)
            error[b, r] = share * np.abs(one - two) + np.abs(value[b, r] - marginal_scores(guide, whole, thin=True))
            spread = np.stack([marginal_scores(pooled(half), whole) for half in (parts[::2], parts[1::2])])
            std_error[b, r] = np.abs(spread[0] - spread[1]) / 2
    scores = {
        name: tuple(
            Estimate(value[:, :, k, i], std_error[:, :, k, i], error[:, :, k, i], UNITS[name])
            for k in range(len(names))
        )
        for i, name in enumerate(NAMES)
    }
    return Marginals(names, scores)


def relative_covariance_error(truth: Truth, seen: GuideNodes) -> Estimate:
    """The largest |eigenvalue| of `L^-1 C_q L^-T - I`, `C_p = L L'`, covariances in unconstrained space.

    By it the guide's variance along some direction is wrong, relative to the posterior's.
    """
    target = truth.target
    batch, replicas = seen.z.shape[:2]
    value, std_error, error = (np.empty((batch, replicas)) for _ in range(3))
    weight = seen.rules.weight.cpu().numpy()
    for b in range(batch):
        sets = [Sample(_numpy(points.u[b]), np.exp(_numpy(points.log_weight[b]))) for points in truth.points]
        several = len(sets) > 1
        answers = sets[:2] if several else split_sample(sets[0], truth.points[0].group)
        share = 1.0 if several else 0.5
        for r in range(replicas):
            u = _unconstrained(target, seen.z[b, r])
            guide = [Sample(points, w).covariance() for points, w in zip(u, weight, strict=True)]
            mean = np.mean(guide, 0)
            value[b, r] = _relative(mean, sets[0].covariance())
            error[b, r] = share * abs(
                _relative(mean, answers[0].covariance()) - _relative(mean, answers[1].covariance())
            )
            odd, even = (_relative(np.mean(half, 0), sets[0].covariance()) for half in (guide[::2], guide[1::2]))
            std_error[b, r] = abs(odd - even) / 2
    return Estimate(value, std_error, error, "1")


def _unconstrained(target: Target, z: torch.Tensor) -> np.ndarray:
    return target.unconstrain(latents_of(target.latents, z)).cpu().numpy()


def _relative(guide: np.ndarray, posterior: np.ndarray) -> float:
    factor = np.linalg.cholesky(posterior)
    inverse = np.linalg.inv(factor)
    return float(np.abs(np.linalg.eigvalsh(inverse @ guide @ inverse.T) - 1).max())


def forward_kl(fit: Fit, truth: Truth) -> Estimate:
    """KL(p || q) = E_p[log p(z | x) - log q(z)], nats, over the truth's points."""
    target = truth.target
    shape = fit.theta.shape[:2]
    answers = []
    for points in truth.points:
        latents, _ = target.constrain(_tensor(points.u, fit))
        weight = np.exp(_numpy(points.log_weight))
        log_p = log_joint(target, latents) - torch.from_numpy(truth.log_evidence).to(target.device)[:, None]
        answers.append((points, weight, log_p.cpu().numpy()[:, None] - _log_guide(fit, latents)))
    values = []
    for _, weight, excess in answers:
        held = weight[:, None] > 0
        with np.errstate(invalid="ignore"):
            values.append(np.where(held, weight[:, None] * np.where(held, excess, 0.0), 0.0).sum(-1))
    error = np.broadcast_to(truth.log_evidence_error[:, None], shape)
    if len(values) > 1:
        with np.errstate(invalid="ignore"):
            return Estimate(values[0], np.zeros(shape), error + np.abs(values[0] - values[1]), "nats", _why(values[0]))
    points, weight, excess = answers[0]
    group = _numpy(points.group)
    means = np.stack([_grouped(weight, excess, group == g) for g in np.unique(group)])
    spread = means.std(0, ddof=1) / len(means) ** 0.5
    return Estimate(values[0], spread, error.copy(), "nats", _why(values[0]))


def _grouped(weight: np.ndarray, excess: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    share = weight[:, chosen] / weight[:, chosen].sum(-1, keepdims=True)
    return (share[:, None] * excess[..., chosen]).sum(-1)


def _why(value: np.ndarray) -> str:
    return "the guide has no mass where the posterior has some" if np.isinf(value).any() else ""


def _tensor(values: object, fit: Fit) -> torch.Tensor:
    return (values if isinstance(values, torch.Tensor) else torch.as_tensor(values)).to(fit.theta)


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
