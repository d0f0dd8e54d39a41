"""Weighted samples of the latents' own numbers: the posterior's, from the truth's points, and a guide's.

A truth has points with weights for each problem: the nodes of quadrature rules, or reference draws. A guide has the
nodes of its noise rules, carried to the latents. Either is a `Sample`, by which moments and probabilities are sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.special import gammaincinv

from ppl_vi.metrics.sampled.noise_rules import GuideNodes
from ppl_vi.target.evaluation import log_joint
from ppl_vi.target.sites import numbers_of
from ppl_vi.target.target import Target
from ppl_vi.truth import Points, Truth

# The number of points that are spread evenly over a posterior. They come from two scramblings of the Sobol points in
# turn, so that there are two independent halves.
NUM_EVEN_POINTS = 2**15
# Degrees of freedom of the Student t density that these points are drawn from. With fewer its tails are heavier than
# those of most posteriors, which leaves fewer effective points.
STUDENT_DEGREES = 5.0
# Fewer effective points than these are too few for probabilities and quantiles: the rule's own nodes are used instead.
MIN_EFFECTIVE_POINTS = 1000


@dataclass(frozen=True)
class Sample:
    """Weighted points.

    Attributes:
        z: `N` points of `K` numbers each, `(N, K)`.
        weight: `(N,)`, summing to 1.
    """

    z: np.ndarray
    weight: np.ndarray

    def numbers(self, some: np.ndarray) -> Sample:
        """The same points, of which only some of the `K` numbers are kept."""
        return Sample(self.z[:, some], self.weight)

    def mean(self) -> np.ndarray:
        """The weighted mean, `(K,)`."""
        return self.weight @ self.z

    def sd(self) -> np.ndarray:
        """The weighted standard deviation, `(K,)`."""
        return np.sqrt(self.weight @ (self.z - self.mean()) ** 2)

    def covariance(self) -> np.ndarray:
        """The weighted covariance, `(K, K)`."""
        centred = self.z - self.mean()
        return (self.weight[:, None] * centred).T @ centred


@dataclass(frozen=True)
class NumberSample:
    """The marginal distribution of one number, interpolated linearly between its points.

    Attributes:
        z: the points, in order, each once, `(N,)`.
        up_to: the probability below each point and half of the point's own, `(N,)`.
    """

    z: np.ndarray
    up_to: np.ndarray

    @staticmethod
    def of(sample: Sample, k: int) -> NumberSample:
        """The marginal of number `k`."""
        order = np.argsort(sample.z[:, k], kind="stable")
        return NumberSample.of_sorted(sample.z[order, k], sample.weight[order])

    @staticmethod
    def of_sorted(z: np.ndarray, weight: np.ndarray) -> NumberSample:
        """That of points in order, `(N,)`, with weights, of which some may be equal and some may weigh nothing."""
        present = weight > 0
        z, weight = z[present], weight[present]
        first = np.ones(len(z), bool)
        first[1:] = z[1:] != z[:-1]  # nodes of a lattice share their numbers
        each = np.bincount(np.cumsum(first) - 1, weight) if len(z) else weight
        return NumberSample(z[first], np.cumsum(each) - each / 2)

    def thinned(self) -> NumberSample:
        """Every other point of it: what changes with them tells how far interpolation may be off."""
        return NumberSample(self.z[::2], self.up_to[::2])

    def cdf(self, z: np.ndarray) -> np.ndarray:
        """P(Z <= z)."""
        return np.interp(z, self.z, self.up_to, left=0.0, right=1.0)

    def quantile(self, probability: np.ndarray) -> np.ndarray:
        """The inverse of `cdf`."""
        return np.interp(probability, self.up_to, self.z)


@dataclass(frozen=True, eq=False)
class Batches:
    """A sample whose points belong to batches that are left out one after another, each number sorted once for all.

    Attributes:
        sample: `N` points of `K` numbers.
        label: the batch of each point, `(N,)`.
    """

    sample: Sample
    label: np.ndarray

    @cached_property
    def names(self) -> np.ndarray:
        """The labels of the batches, in order."""
        return np.unique(self.label)

    @cached_property
    def _sorted(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        orders = (np.argsort(z, kind="stable") for z in self.sample.z.T)
        return [(self.sample.z[o, k], self.sample.weight[o], self.label[o]) for k, o in enumerate(orders)]

    def without(self, name: int) -> tuple[Sample, tuple[NumberSample, ...]]:
        """The sample without a batch, and the marginals of its numbers."""
        kept = self.label != name
        total = self.sample.weight[kept].sum()
        numbers = []
        for z, weight, label in self._sorted:
            some = label != name
            numbers.append(NumberSample.of_sorted(z[some], weight[some] / total))
        return Sample(self.sample.z[kept], self.sample.weight[kept] / total), tuple(numbers)


@dataclass(frozen=True)
class PosteriorSample:
    """The truth's points for one problem.

    Attributes:
        moments: the points that integrate smooth functions best.
        even: points that are spread more evenly, for probabilities and quantiles, which the gaps between the nodes of
            a rule would make coarse; the same points where these are draws.
    """

    moments: Sample
    even: Sample

    def numbers(self, some: np.ndarray) -> PosteriorSample:
        """The same points, of which only some of the `K` numbers are kept."""
        return PosteriorSample(self.moments.numbers(some), self.even.numbers(some))


def number_names(target: Target) -> tuple[str, ...]:
    """What the latents' numbers are called, site after site."""
    names: list[str] = []
    for site in target.latents:
        indices = np.ndindex(*site.shape)
        names += [f"{site.name}[{','.join(map(str, i))}]" if i else site.name for i in indices]
    return tuple(names)


def flattened(target: Target, u: torch.Tensor) -> np.ndarray:
    """The latents' own numbers `(..., K)` at unconstrained points `(..., D)`."""
    return numbers_of(target.latents, target.constrain(u)[0]).cpu().numpy()


def posterior_samples(truth: Truth, problem: int) -> list[Sample]:
    """Each set of the truth's points for one problem in the latents' own numbers, the best set first."""
    return [
        Sample(flattened(truth.target, points.u[problem]), normalised_weight(points, problem))
        for points in truth.points
    ]


def unconstrained_samples(truth: Truth, problem: int) -> list[Sample]:
    """Each set of the truth's points for one problem in unconstrained space, the best set first."""
    return [Sample(points.u[problem].cpu().numpy(), normalised_weight(points, problem)) for points in truth.points]


def normalised_weight(points: Points, problem: int) -> np.ndarray:
    """The weights of one problem's points, which sum to 1, `(S,)`."""
    return np.exp(points.log_weight[problem].cpu().numpy())


def posterior_of(truth: Truth, problem: int) -> PosteriorSample:
    """The truth's points for one problem, and points that are spread evenly over the posterior."""
    best = posterior_samples(truth, problem)[0]
    if truth.points[0].kind == "draws":
        return PosteriorSample(best, best)
    return PosteriorSample(best, evenly_spread(truth, problem) or best)


def evenly_spread(truth: Truth, problem: int) -> Sample | None:
    """Weighted points that are spread evenly over one problem's posterior; None where too few of them have weight.

    They come by importance sampling: scrambled Sobol points from a Student density with the mean and covariance of the
    truth's rule. The rule's own nodes lie in clusters, which is fine for integrals of smooth functions and poor for
    probabilities.
    """
    target = truth.target
    dim, rule = target.dim, unconstrained_samples(truth, problem)[0]
    factor, info = torch.linalg.cholesky_ex(torch.from_numpy(rule.covariance()))
    if int(info) or not bool(factor.isfinite().all()):
        return None
    engines = [torch.quasirandom.SobolEngine(dim + 1, scramble=True, seed=seed) for seed in range(2)]
    uniform = torch.stack([engine.draw(NUM_EVEN_POINTS // 2, dtype=torch.float64) for engine in engines], 1).flatten(
        0, 1
    )
    uniform = uniform + 2.0**-31  # half the spacing of Sobol numbers: none is 0
    chi_square = torch.from_numpy(2 * gammaincinv(STUDENT_DEGREES / 2, uniform[:, -1].numpy()))
    t = torch.special.ndtri(uniform[:, :-1]) * (STUDENT_DEGREES / chi_square).sqrt()[:, None]
    u = torch.from_numpy(rule.mean()) + t @ factor.mT
    log_proposal = -(STUDENT_DEGREES + dim) / 2 * (1 + t.square().sum(-1) / STUDENT_DEGREES).log()  # up to a constant
    latents, log_slope = target.constrain(u.to(target.device)[None])
    log_density = log_joint(target, latents, torch.tensor([problem], device=target.device)) + log_slope
    log_weight = log_density[0].cpu().double() - log_proposal
    usable = ~log_weight.isnan()  # where a latent overflows there is no density
    weight = torch.softmax(torch.where(usable, log_weight, -torch.inf), 0).numpy()
    if not 1 / float(weight @ weight) > MIN_EFFECTIVE_POINTS:
        return None
    return Sample(flattened(target, u.to(target.device)), weight)


def halves(truth: Truth, problem: int) -> list[PosteriorSample]:
    """Two independent samples of one problem's posterior, by whose difference its errors are judged.

    They are two rules or, where the truth has one set of points alone, two halves of it.
    """
    samples = posterior_samples(truth, problem)
    even = split_sample(posterior_of(truth, problem).even, truth.points[0].group)
    moments = samples[:2] if len(samples) > 1 else even
    return [PosteriorSample(*pair) for pair in zip(moments, even, strict=True)]


def split_sample(sample: Sample, group: torch.Tensor) -> list[Sample]:
    """A sample in two halves, of every other group of points each; of every other point where there is one group.

    Args:
        sample: `N` points.
        group: of each of the truth's points; the halves are of points where the sample has others.
    """
    groups = group.cpu().numpy()
    if len(groups) != len(sample.weight) or len(np.unique(groups)) < 2:
        groups = np.arange(len(sample.weight))
    first = np.isin(groups, np.unique(groups)[::2])
    return [Sample(sample.z[part], sample.weight[part] / sample.weight[part].sum()) for part in (first, ~first)]


def guide_samples(nodes: GuideNodes, problem: int, replica: int) -> list[Sample]:
    """Where each rule's nodes take one member: a sample for each rule."""
    z, weight = nodes.z[problem, replica].cpu().numpy(), nodes.rules.weight.cpu().numpy()
    return [Sample(points, w) for points, w in zip(z, weight, strict=True)]


def pooled(samples: list[Sample]) -> Sample:
    """Samples of one distribution as a single one, in which each has the same share."""
    return Sample(np.concatenate([s.z for s in samples]), np.concatenate([s.weight for s in samples]) / len(samples))


def varying(truth: Truth) -> np.ndarray:
    """The numbers that differ from point to point.

    Others are constants, such as the first row 1, 0, 0, ... of a correlation's Cholesky factor.
    """
    best = [posterior_samples(truth, problem)[0].z for problem in range(truth.target.num_problems)]
    return np.flatnonzero(np.ptp(np.concatenate(best), 0) > 0)
