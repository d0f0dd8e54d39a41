"""How far an approximation of `benchmarks.ppls` is from the posterior, and from the best member of its family.

A Gaussian of unconstrained numbers u is known exactly from draws with log q: `log q(u)` is a quadratic function of u,
and its coefficients are found by least squares. Its reverse KL is then computed by scrambled Sobol points, with a
standard error from several scrambles, which is far below that of plain draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtri
from scipy.stats import qmc

from ppl_vi.approximations.approximation import Approximation
from ppl_vi.approximations.matching import matched
from ppl_vi.metrics.draws.scores import MeasuredDraws, reverse_kl, worst
from ppl_vi.metrics.estimate import Estimate
from ppl_vi.numerics.quadratic import gaussian_through
from ppl_vi.truth import Truth

NUM_SCRAMBLES, LOG2_POINTS = 16, 13
MAX_RESIDUAL = 1e-6  # nats by which log q may differ from a quadratic function: an rms over the draws


@dataclass(frozen=True)
class Divergence:
    """Reverse KL of an approximation, nats; nan where that can't be told.

    Attributes:
        reverse_kl, reverse_kl_std_error: by Sobol points where it is a Gaussian of unconstrained numbers.
        drawn_kl, drawn_kl_std_error: by its own draws and their log q, as `ppl_vi.measure` has it.
        is_gaussian: whether log q is that of a Gaussian of unconstrained numbers.
    """

    reverse_kl: float
    reverse_kl_std_error: float
    drawn_kl: float
    drawn_kl_std_error: float
    is_gaussian: bool


@dataclass(frozen=True)
class Moments:
    """By how much moments of an approximation are wrong, by its draws, of the number where each is worst.

    Attributes:
        mean_error, mean_error_std_error: in posterior sds.
        sd_ratio, sd_ratio_std_error: a ratio.
    """

    mean_error: float
    mean_error_std_error: float
    sd_ratio: float
    sd_ratio_std_error: float


def divergence_of(truth: Truth, approximation: Approximation) -> Divergence:
    """The reverse KL of one approximation."""
    drawn = _pair(reverse_kl(MeasuredDraws(truth, matched(truth.target, approximation), 0)))
    gaussian = gaussian_of(truth, approximation)
    exact = drawn if gaussian is None else gaussian_kl(truth, *gaussian)
    return Divergence(*exact, *drawn, gaussian is not None)


def moments_of(truth: Truth, approximation: Approximation) -> Moments:
    """The errors of one approximation's moments."""
    draws = MeasuredDraws(truth, matched(truth.target, approximation), 0)
    return Moments(*_pair(worst("mean_error", "sd")(draws)), *_pair(worst("sd_ratio", "1")(draws)))


def _pair(estimate: Estimate) -> tuple[float, float]:
    return float(estimate.value[0, 0]), float(estimate.std_error[0, 0])


def gaussian_of(truth: Truth, approximation: Approximation) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean `(D,)` and Cholesky factor `(D, D)` of a Gaussian in unconstrained numbers; None where it is none."""
    found = matched(truth.target, approximation)
    if found.log_q is None:
        return None
    u = truth.target.unconstrain({name: value[0] for name, value in found.latents.items()})
    log_q = found.log_q[0] + truth.target.constrain(u)[1].numpy()
    return gaussian_through(u.numpy(), log_q, MAX_RESIDUAL)


def gaussian_kl(truth: Truth, loc: np.ndarray, scale: np.ndarray) -> tuple[float, float]:
    """Reverse KL of a Gaussian in unconstrained numbers from the posterior, and its standard error, nats."""
    dim = len(loc)
    entropy = np.log(np.diag(scale)).sum() + dim * (math.log(2 * math.pi) + 1) / 2
    each = []
    for seed in range(NUM_SCRAMBLES):
        points = ndtri(qmc.Sobol(dim, seed=seed).random_base2(LOG2_POINTS))
        latents, log_jacobian = truth.target.constrain(torch.from_numpy(loc + points @ scale.T))
        joint = truth.target.log_joint({name: value[None] for name, value in latents.items()})[0]
        each.append(float((joint + log_jacobian).mean()))
    elbo, std_error = np.mean(each) + entropy, np.std(each, ddof=1) / math.sqrt(NUM_SCRAMBLES)
    evidence_error = float(np.broadcast_to(truth.log_evidence_std_error, 1)[0])
    return float(truth.log_evidence[0] - elbo), math.hypot(std_error, evidence_error)
