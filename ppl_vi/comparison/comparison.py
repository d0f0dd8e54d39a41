"""`Comparison`: guide families on one target, with what each family's fits scored and the curves that figures show."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch

from ppl_vi.comparison.axes import MARGIN, NUM_BINS, NUM_POINTS, PROBABILITIES, axes_of, binned, limits_of
from ppl_vi.metrics.draws.scorecard import DrawsScorecard
from ppl_vi.metrics.sampled.weighted_samples import NumberSample, posterior_of
from ppl_vi.metrics.scorecard import Scorecard
from ppl_vi.runtime.showing import short_repr
from ppl_vi.svi.setup import TOLERANCE
from ppl_vi.target.target import Target
from ppl_vi.truth import Truth


@dataclass(frozen=True)
class FitSettings:
    """How every family of a comparison is fitted; see `ppl_vi.svi.fit.fit`, and `ppl_vi.score` for `num_draws`.

    `max_memory` is what all processes of the comparison may hold together, in bytes; None is what they hold at the
    start and half of what is free then.
    """

    objective: str = "trace_elbo"
    engine: str = "auto"
    num_steps: int = 1000
    num_particles: int | Literal["auto"] = "auto"
    num_replicas: int = 16
    lr: float = 0.2
    seed: int = 0
    num_draws: int = 10_000
    max_memory: float | None = None
    tolerance: float = TOLERANCE
    start: str = "mode"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Guide families on one target. It is frozen: each family that is done makes a new one with an entry more.

    Attributes:
        target: the problems.
        truth: the truth that all fits are measured against.
        settings: how every family is fitted.
        labels: for problems that differ in one number, that number for each problem: the toy's observation x. () for
            any other target, whose problems go by the model's name, and by their number where there are several.
        entries: the families that are done.
        families: a label's guide or family, where the label alone does not say which.
    """

    target: Target
    truth: Truth
    settings: FitSettings
    labels: tuple[float, ...]
    entries: tuple[Entry, ...] = ()
    families: dict[str, Any] = field(default_factory=dict)

    __repr__ = short_repr

    def records(self) -> list[dict[str, Any]]:
        """One record for each problem and family, in plain JSON values; infinite ones are the strings "inf", "-inf"."""
        return [entry.records[b] for b in range(self.target.num_problems) for entry in self.entries]

    def label(self, problem: int) -> str:
        """What tables and figures call a problem: `x = 1.5`, `my_model`, or `my_model, problem 3`."""
        if self.labels:
            return f"x = {self.labels[problem]:g}"
        return f"{self.target.name}, problem {problem}" if self.target.num_problems > 1 else self.target.name

    @cached_property
    def z(self) -> np.ndarray:
        """Where curves are taken: `NUM_POINTS` points of one latent number, `(B, NUM_POINTS)`, or the middles of the
        bins of several numbers, `(B, K, NUM_BINS)`."""
        if self.truth.line is None:
            edges = self.edges
            return (edges[..., 1:] + edges[..., :-1]) / 2
        limits = limits_of(self.target.latents[0])[0]
        axis = axes_of(self.truth.quantile(np.tile(PROBABILITIES, (self.target.num_problems, 1))))
        low, high = np.maximum(axis[:, :1], limits[0]), np.minimum(axis[:, 1:], limits[1])
        return low + (high - low) * np.linspace(-MARGIN, 1 + MARGIN, NUM_POINTS)

    @cached_property
    def edges(self) -> np.ndarray:
        """The edges of the bins of several numbers, `(B, K, NUM_BINS + 1)`, with `K = 0` where the truth has no points
        to count in them."""
        if not self.truth.points:
            return np.empty((self.target.num_problems, 0, NUM_BINS + 1))
        return np.array([self._edges_of(problem) for problem in range(self.target.num_problems)])

    def _edges_of(self, problem: int) -> np.ndarray:
        sample = posterior_of(self.truth, problem).even
        numbers = [NumberSample.of(sample, k) for k in range(sample.z.shape[1])]
        axes = axes_of(np.array([number.quantile(np.array(PROBABILITIES)) for number in numbers]))
        ends = axes[:, :1] + (axes[:, 1:] - axes[:, :1]) * np.array([-MARGIN, 1 + MARGIN])
        limits = np.concatenate([limits_of(site) for site in self.target.latents])
        low, high = np.clip(ends, limits[:, :1], limits[:, 1:]).T[..., None]
        return low + (high - low) * np.linspace(0, 1, NUM_BINS + 1)

    def posterior(self, problem: int) -> np.ndarray:
        """The posterior's density of each latent number at `z` of one problem, 0 outside the support, `(K, Z)`."""
        if self.truth.line is None:
            return binned(posterior_of(self.truth, problem).even, self.edges[problem])
        site, z = self.target.latents[0], self.z
        values = torch.from_numpy(z).to(self.target.device)
        log_density = self.truth.log_prob({site.name: values.reshape((*z.shape, *site.shape))})
        return torch.where(site.support.check(values), log_density.exp(), 0.0).cpu().numpy()[problem][None]


# Whoever hands in a `ModelComparison` gets a `ModelComparison` back.
SomeComparison = TypeVar("SomeComparison", bound=Comparison)


@dataclass(frozen=True, eq=False)
class Curves:
    """What the figures show of a family, as plain arrays.

    Attributes:
        z: where the density is taken, `(B, Z)` for one latent number, `(B, K, Z)` for several.
        density: the density at `z` of the replica of median reverse KL, with the shape of `z`.
        steps: the SVI steps after which the parameters were recorded, `(T,)`; empty where there is no reverse KL to
            follow.
        reverse_kl: the reverse KL at these steps, nats, `(B, F, T)`. The `F` replicas go from the best to the worst.
    """

    z: np.ndarray
    density: np.ndarray
    steps: np.ndarray
    reverse_kl: np.ndarray

    __repr__ = short_repr


class Signature(NamedTuple):
    """What tells a family from others: the names and shapes of its parameters, and its log density for some of them."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    density: np.ndarray


@dataclass(frozen=True, eq=False)
class Entry:
    """One family of a comparison.

    Attributes:
        guide: the family's name, or the user's label.
        records: one for each problem.
        curves: for the figures; None where the family was skipped or failed, or where no curves were asked for.
        card: the scored fits; None where there are none, and where another process did the work, because guides can't
            be sent from one process to another.
        signature: of the family; None where the family was skipped or failed, and for draws from elsewhere.
        measured: what was measured of draws from elsewhere; None for a family that was fitted.
    """

    guide: str
    records: tuple[dict[str, Any], ...]
    curves: Curves | None = None
    card: Scorecard | None = None
    signature: Signature | None = None
    measured: DrawsScorecard | None = None

    __repr__ = short_repr
