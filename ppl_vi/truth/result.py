"""What a truth is: the posterior and its log evidence, with the checks that certify them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ppl_vi.target.sites import Latents
from ppl_vi.target.target import Target

Grade = Literal["certified", "checked", "uncertified"]


class UncertifiedTruthError(RuntimeError):
    """The independent routes to the truth disagree, so there is none to measure by."""


@dataclass(frozen=True)
class Check:
    """One check of a truth: one that it passed, unless the truth is uncertified.

    Attributes:
        name: what was compared, or which figure had to stay below its tolerance.
        error: the largest figure over the problems; a difference of log evidences in quadrature over one number is
            relative to max(1, |log p(x)|).
        tolerance: what it had to stay below.
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
    """Weighted points that stand for each problem's posterior in unconstrained space.

    E[f] is about `(log_weight.exp() * f).sum(1)`. Where the weight of a point is 0 it says nothing, and f may be nan.

    Attributes:
        u: `(B, S, D)`, in the coordinates of `Target.constrain`.
        log_weight: `(B, S)`, of logsumexp 0.
        group: which of several independent chains a point belongs to, `(S,)`: their spread gives the standard error.
        kind: "rule", of a quadrature, or "draws".
    """

    u: Tensor
    log_weight: Tensor
    group: Tensor
    kind: Literal["rule", "draws"]

    def mean(self, values: Tensor) -> Tensor:
        """The weighted mean of values `(B, S, ...)`, `(B, ...)`."""
        return weighted_mean(self.log_weight, values)

    def std_error(self, values: Tensor) -> Tensor:
        """The standard error of `mean` from the spread of the groups, `(B, ...)`; 0 for a rule.

        With mean m, weight w_g and mean m_g of each group, the square root of G / (G - 1) sum_g (w_g (m_g - m))^2.
        """
        mean = self.mean(values)
        if self.kind == "rule":
            return torch.zeros_like(mean)
        groups = self.group.unique()
        if len(groups) < 2:
            return torch.full_like(mean, torch.inf)
        away = torch.zeros_like(mean)
        for one in groups:
            mine = self.group == one
            log_weight = self.log_weight[:, mine]
            total = log_weight.logsumexp(1)
            part = weighted_mean(log_weight - total[:, None], values[:, mine]) - mean
            share = total.exp().reshape((-1,) + (1,) * (mean.dim() - 1))
            away += (share * part).square()
        return (away * len(groups) / (len(groups) - 1)).sqrt()


def weighted_mean(log_weight: Tensor, values: Tensor) -> Tensor:
    """The sum of `exp(log_weight)` `(B, S)` times values `(B, S, ...)`; nan counts where there is weight only."""
    weight = log_weight.exp().reshape(log_weight.shape + (1,) * (values.dim() - 2))
    return torch.where(weight > 0, weight * values, 0.0).sum(1)


@dataclass(frozen=True, eq=False)
class Expectation:
    """A posterior expectation.

    Attributes:
        value: `(B, ...)`.
        std_error: its Monte Carlo standard error; 0 by quadrature.
        error: what a second, independent rule differs by; 0 for draws.
    """

    value: Tensor
    std_error: Tensor
    error: Tensor


class OneNumberPosterior(Protocol):
    """A posterior over one number."""

    def cdf(self, z: np.ndarray) -> np.ndarray:
        """P(Z <= z), `(B, S)` to `(B, S)`."""

    def quantile(self, probability: np.ndarray) -> np.ndarray:
        """The inverse of `cdf`."""

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation, `(B,)` each."""


@dataclass(frozen=True, eq=False)
class Truth:
    """The exact posterior of each of a target's `B` problems.

    Attributes:
        target: whose.
        method: how it was computed.
        log_evidence: log p(x), nats, `(B,)`.
        log_evidence_error: bound on its error, nats, `(B,)`.
        checks: what certifies it.
        line: cdf, quantiles and moments, where the latent is one number; else None.
        reasons: why a problem's log evidence is not to be trusted, "" where it is, `(B,)`; () where all are.
        grade: "certified" by a closed form or a proved bound; "checked" by independent routes that agree, under
            `assumptions`; "uncertified", with the reason in `reasons`. Of several problems, the lowest. `trusted` and
            `certified` say the same of each problem.
        assumptions: what the checks take for granted.
        log_evidence_std_error: of a log evidence by Monte Carlo, `(B,)`, nats; 0 by quadrature.
        make_points: what `points` are computed by, when asked for.
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

    @cached_property
    def points(self) -> tuple[Points, ...]:
        """Weighted points that stand for the posterior: two independent rules, the better one first, or draws.

        () where there are none: for a decoded target.
        """
        return self.make_points() if self.make_points is not None else ()

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
        """Which problems passed every check, be their grade "certified" or "checked", `(B,)`.

        No other problem may be averaged or measured by. Where one problem makes the grade "uncertified", those without
        a reason against them are trusted all the same.
        """
        if not self.reasons:
            return np.full(len(self.log_evidence), self.grade != "uncertified")
        return np.array([not reason for reason in self.reasons])

    @property
    def certified(self) -> np.ndarray:
        """Which problems are trusted by a closed form or a proved bound, that is by the grade "certified", `(B,)`.

        The grade is that of all problems together: where one of them fails, none counts as certified.
        """
        return self.trusted & (self.grade == "certified")

    def _line(self) -> OneNumberPosterior:
        if self.line is None:
            raise ValueError("cdf, quantiles and moments are known where a target of one latent number has no decoder")
        return self.line

    def log_prob(self, latents: Latents) -> Tensor:
        """The normalised posterior log density at latents `(B, S, *site.shape)`, `(B, S)`, nats."""
        evidence = torch.from_numpy(self.log_evidence).to(self.target.device)
        return self.target.log_joint(latents) - evidence[:, None]

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
