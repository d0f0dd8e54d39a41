"""`measure`: how far draws from any system are from the exact posterior, by every metric that they allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ppl_vi.approximations.approximation import Approximation, LogDensity
from ppl_vi.approximations.matching import MatchedDraws, Transforms, matched
from ppl_vi.approximations.reading import approximation_of
from ppl_vi.comparison.comparison import Entry, FitSettings
from ppl_vi.comparison.curves import curves_of_draws
from ppl_vi.comparison.records import record_of_draws
from ppl_vi.comparison.run import one_thread
from ppl_vi.metrics.draws.scorecard import DrawsScorecard, measured
from ppl_vi.model_comparison import ModelComparison
from ppl_vi.report.draws_table import listing
from ppl_vi.runtime.display import following
from ppl_vi.runtime.stages import Callback
from ppl_vi.svi.result import Fit
from ppl_vi.target.isolation import one_at_a_time
from ppl_vi.truth import Truth

if TYPE_CHECKING:
    from pandas import DataFrame
    from xarray import DataTree


@dataclass(frozen=True, eq=False, repr=False)
class Measurement(DrawsScorecard):
    """What `measure` returns: every metric of draws against the truth, with its standard error.

    `print` shows all of it. `scores["mean_error"]` is an `Estimate`; `record()` is a row as fitted guides have it, and
    `comparison` a table with this one row, which can be printed, saved and shown as a page. To put it in a table beside
    fitted guides, give it to `ppl_vi.compare(model, guides, approximations={"Stan ADVI": measurement})`.
    """

    def __str__(self) -> str:
        return listing(self)

    @property
    def label(self) -> str:
        """What its row is called."""
        return self.approximation.name or "draws"

    @cached_property
    def comparison(self) -> ModelComparison:
        """A comparison with this row alone."""
        entry = Entry(self.label, (), measured=self)
        settings = FitSettings(num_replicas=1, seed=self.seed)
        bare = ModelComparison(self.truth.target, self.truth, settings, (), (), {self.label: self.approximation})
        record, curves = record_of_draws(bare, self.label, self), curves_of_draws(self, bare)
        return ModelComparison(
            bare.target,
            bare.truth,
            settings,
            (),
            (Entry(entry.guide, (record,), curves, measured=self),),
            bare.families,
        )

    def record(self) -> dict[str, Any]:
        """The row in plain JSON values, with the keys that the record of a fitted guide has."""
        return self.comparison.records()[0]

    def to_dataframe(self, by: Literal["guide", "latent"] = "latent") -> DataFrame:
        """The marginal scores of each latent number, or the row itself; see `ModelComparison.to_dataframe`."""
        return self.comparison.to_dataframe(by)

    def to_datatree(self) -> DataTree:
        """The draws for ArviZ, beside draws of the truth; see `ModelComparison.to_datatree`."""
        return self.comparison.to_datatree()


@one_at_a_time()
def measure(
    truth: Truth,
    approximation: Any,
    *,
    log_q: np.ndarray | LogDensity | None = None,
    names: Mapping[str, str] | None = None,
    transforms: Transforms | None = None,
    name: str = "",
    seed: int = 0,
    progress: Callback | bool = False,
) -> Measurement:
    """Measures draws of any system against the exact posterior.

    With log q the ELBO is mean(log p(x, z) - log q(z)), and the reverse KL is log p(x) less that. Without it the draws
    still tell the errors of means, standard deviations, quantiles, intervals and covariances, and Wasserstein-1, the
    energy distance, MMD and a classifier's share. What can't be told is nan, and its `reason` says why. Standard errors
    count the draws' autocorrelation and, where the truth is of draws, the truth's own.

    Args:
        truth: what `ppl_vi.ground_truth` returns, of one problem.
        approximation: an `Approximation`; a dict of arrays `(chain, draw, *shape)` by site; a pandas `DataFrame` with
            columns such as `theta`, `theta[0]`, `theta[0,1]` or Stan's `theta.1.2`, and columns `chain` and `draw` if
            there are several chains; ArviZ's `InferenceData` or xarray's `DataTree` with a group `posterior`; the path
            of a `.csv` of Stan, an `.nc` or an `.npz`, or a list of `.csv`, one a chain; or a `Fit`.
        log_q: log q of each draw, nats, `(chain, draw)`, or a function of draws `{name: (n, *shape)}` that returns
            `(n,)`: a normalised density over the variables as they are in the draws, before `names` and `transforms`.
        names: what the model calls a variable of the draws, `{"theirs": "ours"}`.
        transforms: for a variable in another parametrisation the model's site and a function of tensors that makes it
            of one draw's value, `{"log_sigma": ("sigma", torch.exp)}`. The log determinant of its Jacobian is taken
            into log q.
        name: what tables call it.
        seed: of the truth's points that the draws are compared with.
        progress: as `ppl_vi.fit` takes it.

    Raises:
        TypeError: the truth or the draws have another form.
        ValueError: the draws do not fit the model's latent sites, are not finite or do not vary, or log q does not fit
            them; the message says which, and what to do.
        FileNotFoundError: there is no such file.
    """
    if not isinstance(truth, Truth):
        raise TypeError(f"truth must be what ppl_vi.ground_truth returns; got {type(truth).__name__}")
    if truth.target.num_problems != 1:
        raise ValueError(
            f"draws are of one problem; '{truth.target.name}' poses {truth.target.num_problems}: choose one by "
            "Target.rows and compute its truth"
        )
    given = approximation.approximation(seed=seed) if isinstance(approximation, Fit) else approximation
    sites = {site.name for site in truth.target.latents}
    with following(progress, "draws"), one_thread():
        found, remarks = approximation_of(given, log_q=log_q, name=name, known=sites - set(names or {}))
        return measurement_of(truth, found, matched(truth.target, found, names, transforms), seed, remarks)


def measurement_of(
    truth: Truth, found: Approximation, draws: MatchedDraws, seed: int, remarks: Sequence[str]
) -> Measurement:
    """What is measured of draws that were read and matched to the model's sites."""
    card = measured(truth, found, draws, seed)
    parts = {field.name: getattr(card, field.name) for field in fields(card)}
    return Measurement(**(parts | {"remarks": (*remarks, *card.remarks)}))
