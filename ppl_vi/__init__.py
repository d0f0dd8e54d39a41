"""The ruler for variational inference in Pyro: how far a guide is from the exact posterior, and why.

`compare` does everything in one call, and the file `compare.py` is the one to open first. Its parts are a `Target` (a
Pyro model with its data), `ground_truth` (the posterior and log p(x), with a stated error), `fit` (a guide family
fitted by SVI) and `score` (the fit measured against the truth).
"""

from ppl_vi._version import __version__
from ppl_vi.compare import ModelComparison, compare
from ppl_vi.metrics import Estimate, Scorecard, score
from ppl_vi.runtime.stages import Stage
from ppl_vi.svi.fit import UnsuitableObjectiveError, fit
from ppl_vi.svi.result import Fit
from ppl_vi.svi.support import SupportMismatchError
from ppl_vi.target.target import Target
from ppl_vi.truth import Truth, UncertifiedTruthError, ground_truth

__all__ = [
    "Estimate",
    "Fit",
    "ModelComparison",
    "Scorecard",
    "Stage",
    "SupportMismatchError",
    "Target",
    "Truth",
    "UncertifiedTruthError",
    "UnsuitableObjectiveError",
    "__version__",
    "compare",
    "fit",
    "ground_truth",
    "score",
]


def __dir__() -> list[str]:
    """The public names alone, for completion in a shell or a notebook."""
    return list(__all__)
