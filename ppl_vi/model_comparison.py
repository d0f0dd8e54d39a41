"""`compare`: fits several guides to one Pyro model and measures each against the truth, in one call."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from ppl_vi.comparison.comparison import Comparison, Entry, FitSettings
from ppl_vi.comparison.run import check_settings, compare_each, learned_by_first, one_thread
from ppl_vi.guides import RefusedFamilyError, find_family
from ppl_vi.guides.given import GivenGuide, fitted, taken
from ppl_vi.report import table
from ppl_vi.runtime.display import following
from ppl_vi.runtime.memory import bounded, bytes_of
from ppl_vi.runtime.names import guide_and_file
from ppl_vi.runtime.stages import Callback
from ppl_vi.svi.result import Fit
from ppl_vi.svi.setup import TOLERANCE
from ppl_vi.target.isolation import one_at_a_time
from ppl_vi.target.posing import posed
from ppl_vi.target.target import Target
from ppl_vi.truth import ground_truth

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from xarray import DataTree


@dataclass(frozen=True, eq=False, repr=False)
class ModelComparison(Comparison):
    """The result of `compare`: several guides, fitted to one model and measured against its posterior.

    `print` shows the table, `plot()` draws the figures, `records()` gives all numbers as dicts, `result["label"]` is
    the fit of one guide, and `to_datatree()` is for ArviZ.
    """

    def __str__(self) -> str:
        return table.as_text(self.records(), width=table.terminal().width, stream=sys.stdout)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.target.name}: {', '.join(entry.guide for entry in self.entries)}>"

    def __getitem__(self, guide: str) -> Fit:
        """The fit of one of the guides.

        Raises:
            KeyError: there is no such guide, or it was skipped or failed; the message says why.
        """
        entries: dict[str, Entry] = {entry.guide: entry for entry in self.entries}
        if guide not in entries:
            raise KeyError(f"no guide '{guide}'; there are {', '.join(entries)}")
        card = entries[guide].card
        if card is None:
            record = entries[guide].records[0]
            raise KeyError(f"guide '{guide}' has no fit: {record['status']}, {record['reason']}")
        return card.fit

    def plot(self) -> dict[str, Figure]:
        """The figures by name: "marginals", "gaps", and, against SVI steps, "reverse_kl" and "elbo"."""
        from ppl_vi.report import model_plots

        return {name: draw(self, 0) for name, draw in model_plots.FIGURES.items()}

    def to_datatree(self, num_draws: int = 1000, seed: int = 0) -> DataTree:
        """The comparison for ArviZ: a child for each fitted guide, and one for the truth where it has points.

        Each child (`result.to_datatree()["mean field"]`) is what ArviZ expects of one model. It has the groups

        - `posterior`: draws of the guide, one chain for each replica;
        - `sample_stats`: `lp`, the log joint, and `log_q`, the log guide density, of each draw, nats;
        - `loss_history`: the objective's estimate of minus the ELBO at every step, one chain for each replica, nats;

        and attributes that say how it was fitted.

        Args:
            num_draws: how many draws of each replica, and how many in each chain of the truth.
            seed: the seed of the draws.
        """
        from ppl_vi.report import datatree

        return datatree.of_comparison(self, num_draws, seed)


class ComparisonInterruptedError(KeyboardInterrupt):
    """Ctrl-C ended `compare`. In a shell or a notebook, `sys.last_value.comparison` has what was finished.

    Attributes:
        comparison: the guides that were finished, and the truth.
    """

    def __init__(self, comparison: ModelComparison) -> None:
        self.comparison = comparison
        done, total = len(comparison.entries), len(comparison.families)
        super().__init__(f"{done} of {total} guides were finished: sys.last_value.comparison has them")


@one_at_a_time()
def compare(
    model: Callable[..., Any] | Target,
    guides: Mapping[str, Any] | Sequence[Any],
    args: Any = (),
    *,
    kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    num_replicas: int = 4,
    num_steps: int = 1000,
    num_particles: int | Literal["auto"] = "auto",
    num_draws: int = 10_000,
    lr: float = 0.2,
    tolerance: float = TOLERANCE,
    objective: str = "trace_elbo",
    engine: str = "auto",
    max_memory: float | str | None = None,
    progress: Callback | bool = False,
) -> ModelComparison:
    """Fits guides to a model's posterior and measures how far each is from the truth, and why.

    A guide that can't be compared, or fails, becomes a row with its reason; the others go on.

    Where the model has parameters of its own, stated by `pyro.param` or `pyro.module`, the first guide learns them. All
    guides are then fitted to, and measured against, the model with these values: each guide would learn other values,
    and the guides would be measured against different posteriors. To see what another guide learns, name it first.

    Args:
        model: a Pyro model, or a target that was made of one.
        guides: the guides, in a dict by label or in a list: classes of Pyro's autoguides, functions of the model, names
            (`"AutoNormal"`, `"package.module:attribute"`), or guides of your own as functions or modules. An autoguide
            that is given as an object is fitted from the values that it has; what `ppl_vi.fitted` gives is measured as
            it is.
        args: the model's positional arguments, a tuple; a single tensor, array or table of pandas is the one argument.
        kwargs: the model's keyword arguments, a dict.
        seed: the seed of initial values, noise and draws, and of the truth.
        num_replicas: the number of independent fits of each guide.
        num_steps: the largest number of SVI steps; 0 measures guides with the values that they have, a function with
            those in Pyro's parameter store.
        num_particles: the number of draws of the guide in each step, or "auto"; see `ppl_vi.fit`.
        num_draws: the number of draws for importance sampling, k-hat and ESS.
        lr: the size of Adam's first step, as a multiple of the size that each parameter's own curvature gives.
        tolerance: how much a converged fit may still gain nearby, nats.
        objective: what SVI maximises, by name: "trace_elbo", "score_function", "trace_mean_field_elbo", "stl",
            "tail_adaptive", "renyi:0.5" or "iwae:8".
        engine: "auto", "compiled", "batched" or "pyro"; see `ppl_vi.fit`.
        max_memory: what this process may hold in all, libraries and data included, as a text such as "4GB" or in GiB;
            None is what it holds at the start and half of what is free then. Truth, fits, best members and scores are
            computed in pieces that keep within it, to the same numbers but for rounding. A guide that can't keep
            within it becomes a row with the reason.
        progress: True shows how far the work has come, on standard error or in a notebook; a function is called with
            each `ppl_vi.Stage`, and what it raises ends the work and is raised from here.

    Raises:
        TypeError: the model is not callable, the args are no tuple, the kwargs no dict, or the guides no dict or list.
        MemoryBoundError: the process holds more than `max_memory` already, or the truth can't be computed within it.
        ValueError: the model can't be used, the first guide can't learn its parameters, there are no guides or one of
            an unknown name, two guides have one name, or the settings don't fit together; the message says which of
            these.
        UncertifiedTruthError: the truth can't be computed, so that there is nothing to measure against.
        ComparisonInterruptedError: Ctrl-C came, or a notebook's stop button, while guides were compared; those that
            were finished are in the exception's `comparison`.
    """
    max_bytes = bytes_of(max_memory)
    settings = FitSettings(
        objective, engine, num_steps, num_particles, num_replicas, lr, seed, num_draws, max_bytes, tolerance
    )
    with following(progress):
        found = begun(model, guides, args, settings, kwargs)
        try:
            for step in compare_each(found, list(found.families), with_curves=True):
                found = step
        except KeyboardInterrupt as stop:
            raise ComparisonInterruptedError(found) from stop
    return found


def begun(
    model: Callable[..., Any] | Target,
    guides: Mapping[str, Any] | Sequence[Any],
    args: Any,
    settings: FitSettings,
    kwargs: Mapping[str, Any] | None = None,
) -> ModelComparison:
    """A comparison that has its truth and no entries yet; the arguments and errors are those of `compare`."""
    named = {label: as_it_is_now(guide, settings.num_steps == 0) for label, guide in labelled(guides).items()}
    check_settings(settings)
    target = target_of(model, args, kwargs)
    with one_thread(), bounded(settings.max_memory):
        if target.learnable is not None:
            target = learned_by_first(target, named, settings)
        truth = ground_truth(target, seed=settings.seed)
    return ModelComparison(target, truth, settings, labels=(), families=named)


def target_of(model: Callable[..., Any] | Target, args: Any, kwargs: Mapping[str, Any] | None = None) -> Target:
    """The target of a model and its arguments; a target that is given is returned as it is.

    Raises:
        ValueError: arguments were given beside a target, which has its own, or the target poses several problems.
    """
    target = posed(model, args, kwargs)
    if target.num_problems != 1:
        raise ValueError(
            f"expected a target of one problem; '{target.name}' poses {target.num_problems}, one for each row of its "
            "arguments: pose one problem of all the data by Target.of(model, args), or choose a row by Target.rows"
        )
    return target


def as_it_is_now(guide: Any, as_it_is: bool) -> Any:
    """A guide that has values, as a copy that nothing changes later; anything else as it is, if its name is known.

    Args:
        guide: what the user gave.
        as_it_is: whether it is to be measured with the values that it has.

    Raises:
        TypeError: it is nothing that could be a guide.
        ValueError: it is the name of no guide, or the file of its values can't be read.
    """
    with suppress(RefusedFamilyError):  # which its row will say
        if isinstance(guide, str):
            found = find_family(guide)
            if guide_and_file(guide)[1]:
                return fitted(guide)
            return taken(found, guide, is_fitted=as_it_is) if isinstance(found, nn.Module) else guide
        if isinstance(guide, nn.Module):
            return taken(guide, is_fitted=as_it_is)
        if not callable(guide) and not isinstance(guide, GivenGuide):
            raise TypeError(f"a guide must be a family, its name, a function or a module; got {guide!r:.40}")
    return guide


def labelled(guides: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    """Guides by label; a guide in a list is labelled with its own name.

    Raises:
        ValueError: there are none, or two of one name.
        TypeError: not a dict or a list.
    """
    if isinstance(guides, Mapping):
        named = dict(guides)
    elif isinstance(guides, list | tuple):
        names = [_label(guide) for guide in guides]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two guides are called '{twice}': give them in a dict, each with a label of its own")
        named = dict(zip(names, guides, strict=True))
    else:
        raise TypeError(f"guides must be a dict of label to guide, or a list; got {type(guides).__name__}")
    if not named:
        raise ValueError("there must be at least one guide")
    return named


def _label(guide: Any) -> str:
    """What a guide without a label is called."""
    if isinstance(guide, GivenGuide):
        return guide.name.rpartition(":")[2]
    return guide if isinstance(guide, str) else str(getattr(guide, "__name__", type(guide).__name__))
