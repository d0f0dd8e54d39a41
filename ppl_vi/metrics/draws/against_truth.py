"""`DrawsOnTruth`: what metrics of draws are computed from, an approximation's draws beside the truth's points."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ppl_vi.approximations.matching import MatchedDraws
from ppl_vi.metrics.draws.batches import MAX_BATCHES, autocorrelation_time, batch_labels
from ppl_vi.metrics.sampled.importance import Weights
from ppl_vi.metrics.sampled.weighted_samples import (
    Batches,
    NumberSample,
    PosteriorSample,
    Sample,
    halves,
    number_names,
    posterior_of,
    varying,
)
from ppl_vi.target.evaluation import log_joint
from ppl_vi.target.sites import numbers_of
from ppl_vi.truth import Truth

# Draws, and points of the truth, of which all pairs are compared.
NUM_PAIRED = 2000
# Points through which the marginal of a posterior over one number is taken, beside all draws. They lie evenly between
# so many quantiles: the distribution function is exact at each point, wherever it is.
NUM_POINTS, NUM_QUANTILES = 4096, 128
NO_POINTS = "the truth has no points to compare the draws with"


@dataclass(frozen=True, eq=False)
class TrueMarginals:
    """What the truth says of each of `K` numbers: means and standard deviations `(K,)`, and the distributions."""

    means: np.ndarray
    sds: np.ndarray
    numbers: tuple[NumberSample, ...]

    @staticmethod
    def of(posterior: PosteriorSample) -> TrueMarginals:
        """Those of weighted points."""
        numbers = tuple(NumberSample.of(posterior.even, k) for k in range(posterior.even.z.shape[1]))
        return TrueMarginals(posterior.moments.mean(), posterior.moments.sd(), numbers)

    def thinned(self, most: int | None = None) -> TrueMarginals:
        """The same by every other point of the distributions, or by no more than `most` of them."""
        steps = [2 if most is None else -(-len(number.z) // most) for number in self.numbers]
        thin = (NumberSample(n.z[::step], n.up_to[::step]) for n, step in zip(self.numbers, steps, strict=True))
        return TrueMarginals(self.means, self.sds, tuple(thin))


@dataclass(frozen=True, eq=False)
class DrawsOnTruth:
    """Draws of one problem beside its truth: what each metric of draws is a function of.

    Attributes:
        truth: of the problem.
        matched: the draws, as the target's sites have them.
        seed: of what is drawn of the truth, and of the order in which weights are taken.
    """

    truth: Truth
    matched: MatchedDraws
    seed: int = 0

    @cached_property
    def every(self) -> np.ndarray:
        """All latent numbers of the draws, `(N, K)`, chain after chain."""
        sites = self.truth.target.latents
        return numbers_of(sites, self.matched.latents).flatten(0, 1).cpu().numpy().astype(np.float64)

    @cached_property
    def shape(self) -> tuple[int, int]:
        """How many chains there are, and how many draws in each."""
        chains, draws = next(iter(self.matched.latents.values())).shape[:2]
        return chains, draws

    @cached_property
    def outside(self) -> np.ndarray:
        """Which draws lie outside the model's support, `(N,)`."""
        return ~self.truth.target.inside(self.matched.latents).flatten().cpu().numpy()

    @cached_property
    def time(self) -> float:
        """The draws' autocorrelation time."""
        return autocorrelation_time(self.every.reshape(*self.shape, -1))

    @cached_property
    def labels(self) -> np.ndarray:
        """The batch of each draw, `(N,)`: batches are nearly independent."""
        return batch_labels(*self.shape, self.time)

    @cached_property
    def log_weight(self) -> np.ndarray | None:
        """log p(x, z) - log q(z) of each draw, nats, `(N,)`, -inf outside the support; None without log q."""
        if self.matched.log_q is None:
            return None
        flat = {name: value.flatten(0, 1)[None] for name, value in self.matched.latents.items()}
        joint = log_joint(self.truth.target, flat)[0].cpu().numpy()
        return np.where(self.outside, -np.inf, joint - self.matched.log_q.ravel())

    @cached_property
    def order(self) -> np.ndarray:
        """A random order of the draws, so that groups of them that follow one another are nearly independent."""
        return np.random.default_rng(self.seed).permutation(len(self.every))

    @cached_property
    def weights(self) -> Weights | None:
        """The importance weights in random order; None without log q."""
        return None if self.log_weight is None else Weights(self.log_weight[self.order][None, None])

    @cached_property
    def has_marginals(self) -> bool:
        """Whether the truth tells each number's distribution."""
        return self.truth.line is not None or bool(self.truth.points)

    @cached_property
    def some(self) -> np.ndarray:
        """The numbers that vary."""
        return np.arange(self.every.shape[1]) if self.truth.line is not None else varying(self.truth)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What they are called."""
        return tuple(number_names(self.truth.target)[k] for k in self.some)

    @cached_property
    def sample(self) -> Sample:
        """The draws of the numbers that vary, of equal weight."""
        return equal(self.every[:, self.some])

    @cached_property
    def true(self) -> TrueMarginals:
        """The truth's marginals: of a single number by quadrature, else by its points."""
        if self.truth.line is None:
            return TrueMarginals.of(posterior_of(self.truth, 0).numbers(self.some))
        p = (np.arange(NUM_POINTS) + 0.5) / NUM_POINTS
        few = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
        known = np.unique(np.concatenate([p[[0, -1]], few, np.arange(1, 20) / 20]))
        quantiles = self.truth.quantile(known[None])[0]
        z = np.unique(np.concatenate([quantiles, np.interp(p, known, quantiles), self.every[:, 0]]))
        return TrueMarginals(self.truth.mean[:1], self.truth.sd[:1], (NumberSample(z, self.truth.cdf(z[None])[0]),))

    @cached_property
    def other_truths(self) -> list[TrueMarginals]:
        """Other answers of the truth, by whose differences its errors are told.

        Of draws they are those without one of their groups after another. Of rules they are two independent answers,
        and one of fewer points. Quadrature over one number has none: its error is far below that of any draws.
        """
        if self.truth.line is not None:
            return []
        if self.truth.points[0].kind == "draws":
            best = posterior_of(self.truth, 0).numbers(self.some).even
            batches = Batches(best, self.groups)
            each = (batches.without(g) for g in batches.names)
            return [TrueMarginals(sample.mean(), sample.sd(), numbers) for sample, numbers in each]
        two = [TrueMarginals.of(half.numbers(self.some)) for half in halves(self.truth, 0)]
        return [*two, self.true.thinned()]

    @cached_property
    def groups(self) -> np.ndarray:
        """For a truth of draws the independent group of each, `(S,)`; at most `MAX_BATCHES` of them."""
        index = self.truth.points[0].group.cpu().numpy()
        place = np.unique(index, return_inverse=True)[1]
        num = int(place.max()) + 1
        return place if num <= MAX_BATCHES else place * MAX_BATCHES // num

    @cached_property
    def scale(self) -> tuple[np.ndarray, np.ndarray]:
        """The posterior's means and standard deviations, in whose units distances are taken."""
        return self.true.means, self.true.sds

    @cached_property
    def paired(self) -> Batched:
        """At most `NUM_PAIRED` of the draws, evenly spaced, in the posterior's standard deviations."""
        index = np.unique(np.linspace(0, len(self.every) - 1, NUM_PAIRED).round().astype(int))
        return Batched((self.sample.z[index] - self.scale[0]) / self.scale[1], self.labels[index])

    @cached_property
    def true_paired(self) -> Batched:
        """As many points of the truth, of equal weight, likewise.

        Points of a rule follow one another in the order of a low-discrepancy sequence, in which any that are evenly
        spaced lie together in a part of the posterior. They are therefore chosen in random order.
        """
        rng = np.random.default_rng([self.seed, 1])
        if self.truth.line is not None:
            z, label = self.truth.quantile(rng.uniform(size=(1, NUM_PAIRED)))[0][:, None], None
        else:
            even = posterior_of(self.truth, 0).numbers(self.some).even
            is_draws = self.truth.points[0].kind == "draws" and len(np.unique(self.groups)) > 1
            order = np.arange(len(even.z)) if is_draws else rng.permutation(len(even.z))
            cumulative = np.cumsum(even.weight[order])
            at = (np.arange(NUM_PAIRED) + rng.uniform()) / NUM_PAIRED * cumulative[-1]
            chosen = order[np.searchsorted(cumulative, at).clip(max=len(order) - 1)]
            z, label = even.z[chosen], self.groups[chosen] if is_draws else None
        label = np.arange(len(z)) % MAX_BATCHES if label is None else label
        return Batched((z - self.scale[0]) / self.scale[1], label)

    def unconstrained(self) -> np.ndarray:
        """The draws in unconstrained space, `(N, D)`."""
        u = self.truth.target.unconstrain(self.matched.latents)
        return u.flatten(0, 1).to(torch.float64).cpu().numpy()


@dataclass(frozen=True, eq=False)
class Batched:
    """One of two samples that are compared: points `(N, K)` and the batch of each, `(N,)`."""

    z: np.ndarray
    label: np.ndarray


def equal(z: np.ndarray) -> Sample:
    """Points of equal weight."""
    return Sample(z, np.full(len(z), 1 / len(z)))


def part(sample: Sample, kept: np.ndarray) -> Sample:
    """Some of the points of a sample."""
    return Sample(sample.z[kept], sample.weight[kept] / sample.weight[kept].sum())
