"""What a truth is: the posterior and log p(x) of each problem, with an error and the checks that certify them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ppl_vi.runtime.pickling import Pickled
from ppl_vi.runtime.showing import Summarized, short_repr
from ppl_vi.target.evaluation import log_joint
from ppl_vi.target.sites import Latents
from ppl_vi.target.target import Target
from ppl_vi.target.trees import posterior_tree
from ppl_vi.truth.modes import Modes, modes_of

if TYPE_CHECKING:
    from xarray import DataTree

Grade = Literal["certified", "checked", "uncertified"]


class UncertifiedTruthError(RuntimeError):
    """Raised where independent routes to log p(x) disagree, so that there is no truth to measure guides by."""


@dataclass(frozen=True)
class Check:
    """One check of a truth: a figure that must not exceed its tolerance. Only an uncertified truth has failed one.

    Attributes:
        name: what was compared or estimated, with its unit. Differences of log p(x) along one latent number by
            tanh-sinh quadrature are relative to max(1, |log p(x)|).
        error: the figure, the largest of all problems.
        tolerance: what it may be at most.
    """

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the figure is within the tolerance; a nan is not."""
        return self.error <= self.tolerance

    @property
    def failure(self) -> str:
        """The check as a reason against the truth."""
        return f"{self.name}: {self.error:.2g}, at most {self.tolerance:g} is allowed"


def worst_checks(checks: Iterable[Check]) -> tuple[Check, ...]:
    """For each name the check with the largest figure, in the order of their first appearance; nan counts as inf."""
    worst: dict[str, Check] = {}
    for check in checks:
        if check.name not in worst or _figure(check) > _figure(worst[check.name]):
            worst[check.name] = check
    return tuple(worst.values())


def _figure(check: Check) -> float:
    return math.inf if math.isnan(check.error) else check.error


@dataclass(frozen=True, eq=False)
class Points:
    """Weighted points that represent each problem's posterior in unconstrained space.

    A posterior mean E[f] is approximated by `(log_weight.exp() * f).sum(1)`. Points of weight 0 do not count, even if f
    is nan there.

    Attributes:
        u: the points, `(B, S, D)`, in the coordinates of `Target.constrain`.
        log_weight: logs of weights that add up to 1 in each problem, `(B, S)`.
        group: an index for each point, `(S,)`: points of different groups, such as chains, are independent, and the
            spread of the groups gives standard errors.
        kind: "rule" for the nodes of a quadrature rule, or "draws".
    """

    u: Tensor
    log_weight: Tensor
    group: Tensor
    kind: Literal["rule", "draws"]

    __repr__ = short_repr

    def mean(self, values: Tensor) -> Tensor:
        """The weighted mean `(B, ...)` of values `(B, S, ...)`."""
        return weighted_mean(self.log_weight, values)

    def std_error(self, values: Tensor) -> Tensor:
        """The standard error of `mean` from the spread of the groups, `(B, ...)`.

        With G groups of weights w_g and means m_g it is the square root of G / (G - 1) sum_g (w_g (m_g - m))^2. It is 0
        for a rule, and inf for draws of a single group.
        """
        mean = self.mean(values)
        if self.kind == "rule":
            return torch.zeros_like(mean)
        groups = self.group.unique()
        if len(groups) < 2:
            return torch.full_like(mean, torch.inf)
        squares = torch.zeros_like(mean)
        for group in groups:
            members = self.group == group
            log_weight = self.log_weight[:, members]
            total = log_weight.logsumexp(1)
            deviation = weighted_mean(log_weight - total[:, None], values[:, members]) - mean
            share = total.exp().reshape((-1,) + (1,) * (mean.dim() - 1))
            squares += (share * deviation).square()
        return (squares * len(groups) / (len(groups) - 1)).sqrt()


def weighted_mean(log_weight: Tensor, values: Tensor) -> Tensor:
    """The sum `(B, ...)` of `exp(log_weight)` `(B, S)` times values `(B, S, ...)`, over points of positive weight."""
    weight = log_weight.exp().reshape(log_weight.shape + (1,) * (values.dim() - 2))
    return torch.where(weight > 0, weight * values, 0.0).sum(1)


@dataclass(frozen=True, eq=False)
class Expectation:
    """A posterior expectation of each problem.

    Attributes:
        value: `(B, ...)`.
        std_error: Monte Carlo standard error, `(B, ...)`; 0 by quadrature.
        error: difference from a second, independent quadrature rule, `(B, ...)`; 0 for draws.
    """

    value: Tensor
    std_error: Tensor
    error: Tensor

    __repr__ = short_repr


class OneNumberPosterior(Protocol):
    """A posterior over one number."""

    def cdf(self, z: np.ndarray) -> np.ndarray:
        """P(Z <= z), `(B, S)` to `(B, S)`."""

    def quantile(self, probability: np.ndarray) -> np.ndarray:
        """The inverse of `cdf`, `(B, S)` to `(B, S)`."""

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation, `(B,)` each."""


@dataclass(frozen=True, eq=False, repr=False)
class Truth(Pickled, Summarized):
    """The posterior and log p(x) of each of a target's `B` problems.

    Attributes:
        target: the target whose posterior it is.
        method: how log p(x) was computed, as a table shows it.
        log_evidence: log p(x), nats, `(B,)`.
        log_evidence_error: bound on the numerical error of log p(x), nats, `(B,)`.
        checks: all checks, each with the figure of the problem that is worst off.
        line: distribution function, quantiles and moments, where quadrature ran along one latent number; else None.
        reasons: for each problem why its log p(x) must not be trusted, or "", `(B,)`; () where all may be trusted.
        grade: "certified" by a closed form or a proved bound; "checked" by independent routes that agree, under
            `assumptions`; "uncertified" where a check failed, for the reason in `reasons`. Of several problems the
            lowest grade counts. `certified` and `trusted` tell them apart.
        assumptions: what the checks take for granted.
        log_evidence_std_error: standard error of log p(x) by Monte Carlo, nats, `(B,)`; 0 by quadrature.
        make_points: computes `points` when they are first asked for; None where there are none.
    """

    target: Target
    method: str
    log_evidence: np.ndarray
    log_evidence_error: np.ndarray
    checks: tuple[Check, ...]
    line: OneNumberPosterior | None = None
    reasons: tuple[str, ...] = ()
    grade: Grade = "checked"
    assumptions: tuple[str, ...] = ()
    log_evidence_std_error: np.ndarray = field(default_factory=lambda: np.zeros(()))
    make_points: Callable[[], tuple[Points, ...]] | None = None

    def __post_init__(self) -> None:
        spread = np.broadcast_to(self.log_evidence_std_error, self.log_evidence.shape)
        object.__setattr__(self, "log_evidence_std_error", spread)

    def heading(self) -> str:
        """Such as `Truth of eight_schools`."""
        return f"Truth of {self.target.name}"

    def summary(self) -> Mapping[str, str]:
        """log p(x) with its error, how it was computed, how far it can be trusted and under which assumptions."""
        error = self.log_evidence_error + 2 * self.log_evidence_std_error
        few = [f"{value:.6f} ± {e:.1g}" for value, e in zip(self.log_evidence[:3], error[:3], strict=True)]
        many = f", ... of {len(self.log_evidence)} problems" if len(self.log_evidence) > 3 else ""
        return {
            "log p(x)": f"{', '.join(few)}{many} nats",
            "by": self.method,
            "": self.grade,
            "because": next((reason for reason in self.reasons if reason), ""),
        }

    def to_datatree(self, num_draws: int = 1000, seed: int = 0, *, num_chains: int = 4, problem: int = 0) -> DataTree:
        """Draws of one problem's posterior for ArviZ, with the model's plates as dimensions.

        They are taken from `points` by their weights, with replacement: the chains are independent draws.

        Args:
            num_draws: how many draws of each chain.
            seed: the seed of the draws.
            num_chains: how many chains.
            problem: which of the target's problems.

        Raises:
            ValueError: there are no points to draw from.
        """
        flat = self.draws(num_chains * num_draws, problem=problem, seed=seed)
        tree = posterior_tree(
            self.target, {name: value.unflatten(0, (num_chains, num_draws)) for name, value in flat.items()}
        )
        tree.attrs.update(self.attributes(problem))
        return tree

    def draws(self, num: int = 1000, *, problem: int = 0, seed: int = 0) -> Latents:
        """Draws of one problem's posterior, from `points` by their weights: for each site `(num, *site.shape)`.

        Raises:
            ValueError: there are no points to draw from.
        """
        if not self.points:
            raise ValueError(f"the truth of '{self.target.name}' by {self.method} has no points to draw from")
        points = self.points[0]
        weight = points.log_weight[problem].exp().cpu().numpy()
        chosen = np.random.default_rng(seed).choice(len(weight), num, p=weight / weight.sum())
        return self.target.constrain(points.u[problem][torch.from_numpy(chosen).to(points.u.device)])[0]

    def attributes(self, problem: int = 0) -> dict[str, float | str]:
        """log p(x) and how far it can be trusted, in values that files of ArviZ can hold."""
        return {
            "log_evidence": float(self.log_evidence[problem]),
            "log_evidence_error": float(self.log_evidence_error[problem]),
            "log_evidence_std_error": float(self.log_evidence_std_error[problem]),
            "truth_method": self.method,
            "truth_grade": self.grade,
            "truth_assumptions": "; ".join(self.assumptions),
        }

    @cached_property
    def points(self) -> tuple[Points, ...]:
        """Weighted points that represent the posterior: two independent rules, the better one first, or draws.

        () where there are none, as for a target with a decoder.
        """
        return self.make_points() if self.make_points is not None else ()

    @cached_property
    def modes(self) -> tuple[Modes, ...]:
        """The modes of each problem's posterior, with the mass and the moments around each; () without points."""
        if not self.points:
            return ()
        best = self.points[0]
        return tuple(modes_of(self.target, b, best.u[b], best.log_weight[b]) for b in range(len(self.log_evidence)))

    def expectation(self, function: Callable[[Latents], Tensor]) -> Expectation:
        """E[f(z) | x] of every problem.

        Args:
            function: latents `(B, S, *site.shape)` to `(B, S, ...)`.

        Raises:
            ValueError: there are no points to compute it from.
        """
        if not self.points:
            raise ValueError(f"the truth of '{self.target.name}' by {self.method} has no points to average over")
        values = [function(self.target.constrain(points.u)[0]) for points in self.points]
        means = [points.mean(value) for points, value in zip(self.points, values, strict=True)]
        error = (means[0] - means[-1]).abs()
        return Expectation(means[0], self.points[0].std_error(values[0]), error)

    @property
    def trusted(self) -> np.ndarray:
        """Which problems passed every check, `(B,)`: their own grade is "certified" or "checked".

        Only these may be averaged, or used to measure guides. Where one problem makes the grade "uncertified", problems
        without a reason against them are still trusted.
        """
        if not self.reasons:
            return np.full(len(self.log_evidence), self.grade != "uncertified")
        return np.array([not reason for reason in self.reasons])

    @property
    def certified(self) -> np.ndarray:
        """Which problems are trusted thanks to a closed form or a proved bound, `(B,)`.

        This takes the grade "certified", which is that of all problems together: where one fails, none is certified.
        """
        return self.trusted & (self.grade == "certified")

    def _line(self) -> OneNumberPosterior:
        if self.line is None:
            raise ValueError(
                f"the truth of '{self.target.name}' by {self.method} has no cdf, quantiles or moments; only "
                "quadrature over one latent number has them"
            )
        return self.line

    def log_prob(self, latents: Latents) -> Tensor:
        """The normalised posterior log density at latents `(B, S, *site.shape)`, `(B, S)`, nats."""
        evidence = torch.from_numpy(self.log_evidence).to(self.target.device)
        return log_joint(self.target, latents) - evidence[:, None]

    def cdf(self, z: np.ndarray) -> np.ndarray:
        """P(Z <= z), `(B, S)` to `(B, S)`."""
        return self._line().cdf(np.asarray(z, dtype=np.float64))

    def quantile(self, probability: np.ndarray) -> np.ndarray:
        """The z with `cdf(z) = probability`, `(B, S)` to `(B, S)`."""
        return self._line().quantile(np.asarray(probability, dtype=np.float64))

    @cached_property
    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        return self._line().moments()

    @property
    def mean(self) -> np.ndarray:
        """Posterior mean, `(B,)`."""
        return self._moments[0]

    @property
    def sd(self) -> np.ndarray:
        """Posterior standard deviation, `(B,)`."""
        return self._moments[1]
