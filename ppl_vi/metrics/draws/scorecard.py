"""`DrawsScorecard`: all metrics of draws from any system against the truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ppl_vi.approximations.approximation import Approximation
from ppl_vi.approximations.matching import MatchedDraws
from ppl_vi.metrics import table
from ppl_vi.metrics.draws.batches import MIN_BATCHES, are_short
from ppl_vi.metrics.draws.scores import NO_SPREAD, MeasuredDraws
from ppl_vi.metrics.estimate import Estimate
from ppl_vi.metrics.sampled.marginals import Marginals
from ppl_vi.runtime.pickling import Pickled
from ppl_vi.runtime.showing import Summarized
from ppl_vi.runtime.stages import stage
from ppl_vi.truth import Truth

SHORT = (
    "the draws are worth {worth:.0f} independent ones, too few for batches that do not depend on each other: standard "
    "errors are likely too small"
)


@dataclass(frozen=True, eq=False, repr=False)
class DrawsScorecard(Pickled, Summarized):
    """Everything that was measured of an approximation's draws.

    Attributes:
        approximation: the draws by the target's own sites, with log q of each where it is known.
        truth: the truth that they are measured against.
        scores: every metric by name, `(1, 1)` each. A value that can't be computed is nan, and the estimate's reason
            says why.
        marginals: the scores of each latent number; None where the truth does not tell its distribution.
        num_independent: how many independent draws the draws are worth, by their effective sample size.
        remarks: what was done to make the draws fit, and what was left out, in a line each.
        seed: of the truth's points that the draws are compared with.
        noise: for the scores of a worst number how far from its ideal the worst is expected to be where only the
            noise of finitely many draws, and of a truth of draws, makes them differ. An approximation is wrong where
            its score is well above that. For `sd_ratio` it is how far the ratio is from 1, in proportion.
            Of quantiles it is up to a quarter too large where fewer than some 4,000 independent draws are at hand, and
            of standard deviations a tenth too small where fewer than 200 are, see `ppl_vi.metrics.draws.batches`.
    """

    approximation: Approximation
    truth: Truth
    scores: dict[str, Estimate]
    marginals: Marginals | None
    num_independent: float
    remarks: tuple[str, ...] = ()
    seed: int = 0
    noise: Mapping[str, float] = field(default_factory=dict)

    def heading(self) -> str:
        """Such as `Measurement of Stan ADVI on eight_schools`."""
        return f"Measurement of {self.approximation.name or 'draws'} on {self.truth.target.name}"

    def summary(self) -> Mapping[str, str]:
        """Every metric that is known, with its standard error."""
        told = {name: told_of(estimate) for name, estimate in self.scores.items()}
        return {name.replace("_", " "): text for name, text in told.items() if text} | (
            {} if self.truth.trusted.all() else {"": "the truth is uncertified"}
        )


def told_of(estimate: Estimate) -> str:
    """An estimate as `0.123 ± 0.004 nats`; "" where it is not known."""
    value, std_error = float(estimate.value[0, 0]), float(estimate.std_error[0, 0])
    if np.isnan(value):
        return ""
    unit = "" if estimate.unit in ("1", "z") else f" {estimate.unit}"
    return f"{value:.4g}{f' ± {std_error:.2g}' if std_error > 0 else ''}{unit}"


def measured(truth: Truth, approximation: Approximation, matched: MatchedDraws, seed: int = 0) -> DrawsScorecard:
    """All metrics of draws that were matched to the target's sites.

    Raises:
        ValueError: the target poses several problems, there are fewer than `MIN_BATCHES` draws, or they do not vary.
    """
    if truth.target.num_problems != 1:
        raise ValueError(
            f"draws are of one problem; '{truth.target.name}' poses {truth.target.num_problems}: choose one by "
            "Target.rows and compute its truth"
        )
    draws = MeasuredDraws(truth, matched, seed)
    if len(draws.every) < MIN_BATCHES:
        raise ValueError(
            f"{len(draws.every)} draws of '{approximation.name or 'the approximation'}': at least {MIN_BATCHES} are "
            "needed, since with fewer no standard error can be told"
        )
    if not np.ptp(draws.every, axis=0).any():
        raise ValueError(f"{len(draws.every)} draws of '{approximation.name or 'the approximation'}': {NO_SPREAD}")
    with stage("scoring"):
        scores = table.on_samples(draws)
    worth = len(draws.every) / draws.time
    remarks = matched.remarks
    if are_short(*draws.shape, draws.time):
        remarks += (SHORT.format(worth=worth),)
    own = {name: value.cpu().numpy() for name, value in matched.latents.items()}
    named = Approximation(own, matched.log_q, approximation.name, approximation.system, approximation.seconds)
    return DrawsScorecard(named, truth, scores, draws.marginals, worth, remarks, seed, draws.noise)
