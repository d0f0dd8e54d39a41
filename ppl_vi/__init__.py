"""The ruler for variational inference in Pyro."""

from ppl_vi._version import __version__
from ppl_vi.compare import ModelComparison, compare
from ppl_vi.metrics import Estimate, Scorecard, score
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
