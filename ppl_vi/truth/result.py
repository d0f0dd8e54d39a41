"""What a truth is: the posterior and its log evidence, with the checks that certify them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ppl_vi.target import Latents, Target


class UncertifiedTruthError(RuntimeError):
    """The independent routes to the truth disagree, so there is none to measure by."""


@dataclass(frozen=True)
class Check:
    """One check that a truth passed.

    Attributes:
        name: what was compared.
        error: the largest difference in log p(x) over the problems, relative to max(1, |log p(x)|).
        tolerance: what it had to stay below.
    """

    name: str
    error: float
    tolerance: float


class Line(Protocol):
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
        reasons: why a problem's log evidence is not certified, "" where it is, `(B,)`; () where all are.
    """

    target: Target
    method: str
    log_evidence: np.ndarray
    log_evidence_error: np.ndarray
    checks: tuple[Check, ...]
    line: Line | None = None
    reasons: tuple[str, ...] = ()

    @property
    def certified(self) -> np.ndarray:
        """Which problems passed every check, `(B,)`: no other may be averaged or measured by."""
        return np.array([not reason for reason in self.reasons or [""] * len(self.log_evidence)])

    def _line(self) -> Line:
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
