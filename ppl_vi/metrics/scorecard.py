"""`score`: all metrics of a fit against the truth.

The metrics themselves are lines of the table in `ppl_vi.metrics.table`. This file prepares what they are computed from
(a quadrature grid, weighted points or draws), has the family's best member found, and marks the values that are lost in
their own numerical error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ppl_vi.guides import MULTIMODAL
from ppl_vi.guides.own import has_network
from ppl_vi.metrics import table
from ppl_vi.metrics.estimate import Estimate
from ppl_vi.metrics.exact.scores import FitOnGrid
from ppl_vi.metrics.family_gap import BestMember
from ppl_vi.metrics.sampled import importance
from ppl_vi.metrics.sampled.marginals import Marginals
from ppl_vi.metrics.sampled.sampled_fit import SampledFit
from ppl_vi.runtime.display import following
from ppl_vi.runtime.pickling import Pickled
from ppl_vi.runtime.showing import Summarized
from ppl_vi.runtime.stages import Callback, stage
from ppl_vi.svi.result import Fit
from ppl_vi.target.isolation import one_at_a_time
from ppl_vi.truth import Truth

# The scores that a scorecard shows of itself, and what it calls them.
SHOWN = {
    "elbo": "ELBO",
    "reverse_kl": "reverse KL",
    "family_gap": "family gap",
    "start_gap": "start gap",
    "optimization_gap": "optimization gap",
    "coverage_90": "90% interval covers",
    "khat": "k-hat",
}


@dataclass(frozen=True, eq=False, repr=False)
class Scorecard(Pickled, Summarized):
    """Everything that was measured of one family's fits, for all `B` problems and `R` replicas.

    Attributes:
        fit: the fits.
        truth: the truth that they are measured against.
        scores: every metric by name, `(B, R)` each. A value that does not exist, or that is lost in its own numerical
            error, is nan, and the estimate's reason says why.
        best: the family's best member; None where every member has an infinite divergence, or where it can't be found.
        marginals: the scores of each latent number, where there are several numbers and the truth has points.
    """

    fit: Fit
    truth: Truth
    scores: dict[str, Estimate]
    best: BestMember | None
    marginals: Marginals | None = None

    def heading(self) -> str:
        """Such as `Scorecard of AutoNormal on eight_schools`."""
        return f"Scorecard of {self.fit.family_name.rpartition(':')[2]} on {self.fit.target.name}"

    def summary(self) -> Mapping[str, str]:
        """The reverse KL with its parts, and the worst coverage: medians over problems and replicas."""
        shown = {SHOWN[name]: self.scores[name] for name in SHOWN if name in self.scores}
        known = {name: each for name, each in shown.items() if not np.isnan(each.value).all()}
        return {
            name: f"{np.nanmedian(each.value):.3g} {each.unit if each.unit != '1' else ''}".strip()
            for name, each in known.items()
        } | ({} if self.truth.trusted.all() else {"": "the truth is uncertified"})


@one_at_a_time()
def score(
    fit: Fit,
    truth: Truth,
    *,
    num_draws: int = 10_000,
    upper_bound: bool | None = None,
    progress: Callback | bool = False,
) -> Scorecard:
    """Measures every replica of a fit against the truth, by all metrics of `ppl_vi.metrics.METRICS`.

    With one latent number the metrics are computed by quadrature. With several they are computed on weighted points of
    the guide and of the truth (`SampledFit`). In either case draws of the guide alone give what a user without the
    truth would see: an estimate of the ELBO, importance-sampled log p(x), k-hat and ESS.

    Args:
        fit: the fits.
        truth: the truth of the same target.
        num_draws: how many draws of each guide the Monte Carlo figures are computed from.
        upper_bound: whether the family has many local optima, so that its family gap is only an upper bound; False
            vouches that it is none. None leaves it to `many_optima` and to the searches, which may end in different
            optima or not arrive.
        progress: as `ppl_vi.fit` takes it.

    Raises:
        ValueError: fit and truth are of different targets.
    """
    if truth.target is not fit.target:
        raise ValueError("the fit and the truth must be of the same target")
    with following(progress, fit.family_name.rpartition(":")[2]):
        scores, best, marginals = _against_truth(
            fit, truth, upper_bound if upper_bound is not None else many_optima(fit) or None
        )
        with stage("importance sampling"):
            weights = importance.weights(fit, num_draws, fit.seed + 1)
            scores |= table.on_draws(table.WeightedDraws(weights, _known_chi_square(scores)))
    best = best and replace(best, divergence=best.divergence.without_swamped())
    return Scorecard(fit, truth, scores, best, marginals and _without_swamped(marginals))


def many_optima(fit: Fit) -> bool:
    """Whether the family is known to have many local optima: its best member is then only the best of those found."""
    name = fit.family_name.rpartition(":")[2]
    return name in MULTIMODAL or (fit.target.dim > 1 and has_network(fit.program.guide))


def _against_truth(
    fit: Fit, truth: Truth, upper_bound: bool | None
) -> tuple[dict[str, Estimate], BestMember | None, Marginals | None]:
    """The scores, the family's best member, and the scores of each number where there are several."""
    if truth.line is None:
        sampled = SampledFit(fit, truth, upper_bound)
        _ = sampled.projection  # which has stages of its own
        with stage("scoring"):
            return table.on_points(sampled), sampled.best, sampled.marginals
    grid = FitOnGrid(fit, truth, fit.theta, upper_bound)
    _ = grid.best  # likewise
    with stage("scoring"):
        return table.on_grid(grid), grid.best, None


def _without_swamped(marginals: Marginals) -> Marginals:
    """The same with nan for each value that is lost in its numerical error."""
    scores = {name: tuple(each.without_swamped() for each in found) for name, found in marginals.scores.items()}
    return replace(marginals, scores=scores)


def _known_chi_square(scores: dict[str, Estimate]) -> np.ndarray | None:
    """The chi-square divergence as far as the scores tell, nan where they do not.

    Where it was not computed it is still infinite wherever the forward KL is, because it exceeds the forward KL.
    """
    if "chi_square" in scores:
        return scores["chi_square"].value
    forward = scores.get("forward_kl")
    return None if forward is None else np.where(np.isposinf(forward.value), np.inf, np.nan)
