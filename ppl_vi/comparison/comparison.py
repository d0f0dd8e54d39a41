"""Many families on one target: fitted, scored, and laid out as records."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch

from ppl_vi.comparison.axes import BEYOND, NUM_BINS, NUM_POINTS, SHOWN, binned, limits_of, tails_of
from ppl_vi.metrics.sampled.weighted_samples import NumberSample, posterior_of
from ppl_vi.metrics.scorecard import Scorecard
from ppl_vi.target.target import Target
from ppl_vi.truth import Truth


@dataclass(frozen=True)
class FitSettings:
    """How every family of a comparison is fitted; see `ppl_vi.svi.fit.fit`."""

    objective: str = "trace_elbo"
    engine: str = "auto"
    num_steps: int = 1000
    num_particles: int = 256
    num_replicas: int = 16
    lr: float = 0.2
    seed: int = 0
    num_draws: int = 10_000
    max_memory: float | None = None


@dataclass(frozen=True, eq=False)
class Comparison:
    """Families on one target, as far as they are done.

    Attributes:
        target: the problems.
        truth: what they are measured by.
        settings: of the fits.
        labels: what a table calls each problem, for the toy its x; () where tables go by the target's name, and by the
            number of the problem where there are several, as a detailed comparison always does.
        entries: one a family.
        families: what is meant by the name of an entry, where the name alone does not say it.
        detailed: whether records also carry the model's name, the truth's grade and the scores of several latents, and
            entries the scored fits.
    """

    target: Target
    truth: Truth
    settings: FitSettings
    labels: tuple[float, ...]
    entries: tuple[Entry, ...] = ()
    families: dict[str, Any] = field(default_factory=dict)
    detailed: bool = False

    def records(self) -> list[dict[str, Any]]:
        """One record a (problem, family), in plain JSON values; infinite ones are the strings "inf" and "-inf"."""
        return [entry.records[b] for b in range(self.target.num_problems) for entry in self.entries]

    @cached_property
    def z(self) -> np.ndarray:
        """Where curves are taken: a one-dimensional latent's mass and a bit beyond, `(B, NUM_POINTS)`; the middles of
        bins, `(B, K, NUM_BINS)`, where there are several numbers."""
        if self.truth.line is None:
            edges = self.edges
            return (edges[..., 1:] + edges[..., :-1]) / 2
        limits = limits_of(self.target.latents[0])[0]
        tails = tails_of(self.truth.quantile(np.tile(SHOWN, (self.target.num_problems, 1))))
        low, high = np.maximum(tails[:, :1], limits[0]), np.minimum(tails[:, 1:], limits[1])
        return low + (high - low) * np.linspace(-BEYOND, 1 + BEYOND, NUM_POINTS)

    @cached_property
    def edges(self) -> np.ndarray:
        """Of the bins of several numbers, `(B, K, NUM_BINS + 1)`; none where the truth has no points."""
        if not self.truth.points:
            return np.empty((self.target.num_problems, 0, NUM_BINS + 1))
        grid = np.linspace(0, 1, NUM_BINS + 1)
        rows = []
        for b in range(self.target.num_problems):
            sample = posterior_of(self.truth, b).even
            lines = [NumberSample.of(sample, k) for k in range(sample.z.shape[1])]
            tails = tails_of(np.array([line.quantile(np.array(SHOWN)) for line in lines]))
            edges = tails[:, :1] + (tails[:, 1:] - tails[:, :1]) * np.array([-BEYOND, 1 + BEYOND])
            limits = np.concatenate([limits_of(site) for site in self.target.latents])
            low, high = np.clip(edges, limits[:, :1], limits[:, 1:]).T[..., None]
            rows.append(low + (high - low) * grid)
        return np.array(rows)

    def posterior(self, problem: int) -> np.ndarray:
        """The exact density at `z()` of one problem, 0 outside the support, `(K, Z)`."""
        if self.truth.line is None:
            return binned(posterior_of(self.truth, problem).even, self.edges[problem])
        site, z = self.target.latents[0], self.z
        values = torch.from_numpy(z).to(self.target.device)
        log_density = self.truth.log_prob({site.name: values.reshape((*z.shape, *site.shape))})
        return torch.where(site.support.check(values), log_density.exp(), 0.0).cpu().numpy()[problem][None]


Some = TypeVar("Some", bound=Comparison)


@dataclass(frozen=True, eq=False)
class Curves:
    """What the figures show of a family: plain arrays.

    Attributes:
        z: latents, `(B, Z)`, or where there are several numbers `(B, K, Z)`.
        density: of the replica of median reverse KL at `z`, likewise.
        steps: SVI steps taken, `(T,)`; empty where a fit has no trajectory.
        reverse_kl: on the way there, exact, nats, `(B, F, T)`; the `F` replicas go from the best to the worst.
    """

    z: np.ndarray
    density: np.ndarray
    steps: np.ndarray
    reverse_kl: np.ndarray


@dataclass(frozen=True, eq=False)
class Entry:
    """One family of a comparison: plain values, so that it travels between processes.

    Attributes:
        guide: its name.
        records: one a problem.
        curves: for the figures; None where the family was skipped or failed, or where they weren't asked for.
        card: the scored fits, of a detailed comparison in one process: from another one they can't be sent.
    """

    guide: str
    records: tuple[dict[str, Any], ...]
    curves: Curves | None = None
    card: Scorecard | None = None
