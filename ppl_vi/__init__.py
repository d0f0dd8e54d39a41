"""The ruler for variational inference in Pyro: how far a guide is from the exact posterior, and why.

`compare` does everything in one call, and the file `model_comparison.py` is the one to open first. Its parts are a
`Target` (a Pyro model with its data), `ground_truth` (the posterior and log p(x), with a stated error), `fit` (a guide
family fitted by SVI) and `score` (the fit measured against the truth).

A name is imported when it is first asked for: Pyro and torch take seconds, and a command has to answer before.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ppl_vi._version import __version__

if TYPE_CHECKING:
    from ppl_vi.approximations.approximation import Approximation
    from ppl_vi.approximations.same_density import SameDensity, same_density
    from ppl_vi.guides.given import fitted
    from ppl_vi.measuring.measurement import Measurement, measure
    from ppl_vi.metrics import Estimate, Scorecard, score
    from ppl_vi.model_comparison import ComparisonInterruptedError, ModelComparison, compare, load
    from ppl_vi.runtime.archives import DamagedFileError
    from ppl_vi.runtime.stages import Stage
    from ppl_vi.svi.fit import UnsuitableObjectiveError, fit
    from ppl_vi.svi.result import Fit
    from ppl_vi.svi.support import SupportMismatchError
    from ppl_vi.sweeps.results import load_results
    from ppl_vi.sweeps.running import sweep
    from ppl_vi.target.target import Target
    from ppl_vi.truth import Truth, UncertifiedTruthError, ground_truth

__all__ = [
    "Approximation",
    "ComparisonInterruptedError",
    "DamagedFileError",
    "Estimate",
    "Fit",
    "Measurement",
    "ModelComparison",
    "SameDensity",
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
    "fitted",
    "ground_truth",
    "load",
    "load_results",
    "measure",
    "same_density",
    "score",
    "sweep",
]
_HOMES = {
    "approximations.approximation": ("Approximation",),
    "approximations.same_density": ("SameDensity", "same_density"),
    "guides.given": ("fitted",),
    "measuring.measurement": ("Measurement", "measure"),
    "metrics": ("Estimate", "Scorecard", "score"),
    "model_comparison": ("ComparisonInterruptedError", "ModelComparison", "compare", "load"),
    "runtime.archives": ("DamagedFileError",),
    "runtime.stages": ("Stage",),
    "svi.fit": ("UnsuitableObjectiveError", "fit"),
    "svi.result": ("Fit",),
    "svi.support": ("SupportMismatchError",),
    "sweeps.results": ("load_results",),
    "sweeps.running": ("sweep",),
    "target.target": ("Target",),
    "truth": ("Truth", "UncertifiedTruthError", "ground_truth"),
}


def __getattr__(name: str) -> Any:
    """A public name, or a module of the package such as `ppl_vi.distributions`."""
    for home, names in _HOMES.items():
        if name in names:
            globals()[name] = getattr(import_module(f"ppl_vi.{home}"), name)
            return globals()[name]
    if name.startswith("_") or find_spec(f"ppl_vi.{name}") is None:
        raise AttributeError(f"module 'ppl_vi' has no attribute '{name}'")
    return import_module(f"ppl_vi.{name}")


def __dir__() -> list[str]:
    """The public names alone, for completion in a shell or a notebook."""
    return list(__all__)
