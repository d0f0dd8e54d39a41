"""`compare`: fits several guides to one Pyro model and measures each against the truth, in one call."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from torch import nn

from ppl_vi.approximations.approximation import Approximation
from ppl_vi.approximations.matching import matched
from ppl_vi.approximations.reading import approximation_of
from ppl_vi.comparison import saving
from ppl_vi.comparison.comparison import Comparison, Entry, FitSettings
from ppl_vi.comparison.run import check_settings, compare_each, learned_by_first, one_thread
from ppl_vi.guides import RefusedFamilyError, find_family
from ppl_vi.guides.given import GivenGuide, fitted, taken
from ppl_vi.metrics.draws.scorecard import DrawsScorecard
from ppl_vi.report import table
from ppl_vi.report.brief import brief
from ppl_vi.report.frames import frame_of
from ppl_vi.report.verdict import Verdict, verdict_on
from ppl_vi.runtime.display import following
from ppl_vi.runtime.files import write_text
from ppl_vi.runtime.memory import bounded, bytes_of
from ppl_vi.runtime.names import guide_and_file
from ppl_vi.runtime.pickling import Pickled
from ppl_vi.runtime.stages import Callback
from ppl_vi.svi.result import Fit
from ppl_vi.svi.setup import TOLERANCE
from ppl_vi.target.isolation import one_at_a_time
from ppl_vi.target.posing import posed
from ppl_vi.target.target import Target
from ppl_vi.truth import ground_truth

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from xarray import DataTree

MOST_SHOWN = 6  # guides that a comparison's `repr` names


@dataclass(frozen=True, eq=False, repr=False)
class ModelComparison(Pickled, Comparison):
    """The result of `compare`: several guides, fitted to one model and measured against its posterior.

    `print` shows the verdict and the table, and so does a notebook, with a figure. `table(full=True)` has all columns,
    `verdict()` the verdict's fields, `result["label"]` the fit of one guide and `best` that of the nearest, `plot()`
    the figures, `records()` and `to_dataframe()` all numbers; `to_datatree()` is for ArviZ, and `save` keeps it all.
    """

    def __str__(self) -> str:
        return self._text(stream=sys.stdout)

    def __repr__(self) -> str:
        names = [entry.guide for entry in self.entries]
        more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
        return f"<{type(self).__name__} of {self.target.name}: {', '.join(names[:MOST_SHOWN])}{more}>"

    def _repr_html_(self) -> str:
        from ppl_vi.report import html

        return html.of_comparison(self, self.verdict().text)

    def table(self, *, full: bool = False, width: int | None = None) -> str:
        """The verdict and the table as text.

        Args:
            full: whether the table has all columns, instead of six.
            width: in characters, that of the terminal by default, or 120. A wider table is cut into several.
        """
        return self._text(full=full, width=width, stream=sys.stdout)

    def _text(self, *, full: bool = False, width: int | None = None, stream: TextIO | None = None) -> str:
        """The table, for a stream in signs that it can take."""
        layout = table.layout_of(self)
        show = partial(table.show, layout=layout if full else brief(layout), verdicts=[self.verdict().text])
        text = table.as_text(self.records(), show, width=width or table.terminal().width, stream=stream)
        return text.rstrip("\n")

    def verdict(self) -> Verdict:
        """Which guide to take and what it costs, whose intervals are too narrow, and what would mend it."""
        return self._verdict

    @cached_property
    def _verdict(self) -> Verdict:
        return verdict_on(self)

    @property
    def best(self) -> Fit | Approximation | None:
        """What the verdict takes, the nearest to the posterior: the fit of a guide, or draws that were measured.

        It is None where there is no such guide, as where the truth is uncertified.
        """
        guide = self.verdict().best
        return None if guide is None else self[guide]

    def __getitem__(self, guide: str) -> Fit | Approximation:
        """The fit of one of the guides: `result["AutoNormal"].guide()`, `.draws()`, `.to_datatree()`.

        Of draws from elsewhere it is the `Approximation` that was measured.

        Raises:
            KeyError: there is no such guide, or it was skipped or failed; the message says why.
        """
        entries: dict[str, Entry] = {entry.guide: entry for entry in self.entries}
        if guide not in entries:
            raise KeyError(f"no guide '{guide}'; there are {', '.join(entries)}")
        card, measured = entries[guide].card, entries[guide].measured
        if measured is not None:
            return measured.approximation
        if card is None:
            record = entries[guide].records[0]
            raise KeyError(f"guide '{guide}' has no fit: {record['status']}, {record['reason']}")
        return card.fit

    def __iter__(self) -> Iterator[str]:
        return (entry.guide for entry in self.entries)

    def plot(self) -> dict[str, Figure]:
        """The figures by name: "marginals", "gaps", and, against SVI steps, "reverse_kl" and "elbo".

        A notebook shows what is returned.
        """
        from ppl_vi.report import html, model_plots

        return html.Figures({name: draw(self, 0) for name, draw in model_plots.FIGURES.items()})

    def to_dataframe(self, by: Literal["guide", "latent"] = "guide") -> DataFrame:
        """All numbers as a pandas `DataFrame`, the nearest guide first.

        Args:
            by: "guide" for a row a guide, with each metric and, as `metric_error`, what it may be off by, and for
                draws, as `metric_noise`, what noise alone makes of the scores of a worst number; "latent" for a row a
                guide and latent number, with the marginal scores.

        Raises:
            ValueError: `by` is something else.
        """
        return frame_of(self.records(), by)

    def save(self, folder: str | Path) -> None:
        """Writes the comparison into a folder, for `ppl_vi.load`: truth, fits, scores and curves, as plain arrays.

        A comparison that lies there already is replaced once all is written. `ppl-vi report` makes a page of the folder
        by `report.json`, which holds what is shown there.

        Raises:
            OSError: it can't be written.
        """
        from ppl_vi.report import page_data  # importing matplotlib takes a second

        saving.save(self, Path(folder))
        write_text(Path(folder) / page_data.FILE, page_data.to_text(page_data.data_of(self)))

    def to_datatree(self, num_draws: int = 1000, seed: int = 0) -> DataTree:
        """The comparison for ArviZ: a child for each fitted guide, and one for the truth where it has points.

        Each child (`result.to_datatree()["mean field"]`) is what ArviZ expects of one model, see `Fit.to_datatree`.
        A slash in a guide's label is an underscore in the name of its child.

        Args:
            num_draws: how many draws of each replica, and how many in each chain of the truth.
            seed: the seed of the draws.
        """
        from ppl_vi.report import datatree

        return datatree.of_comparison(self, num_draws, seed)


@one_at_a_time()
def load(
    folder: str | Path,
    model: Callable[..., Any] | Target,
    args: Any = (),
    *,
    kwargs: Mapping[str, Any] | None = None,
    guides: Mapping[str, Any] | Sequence[Any] = (),
    import_guides: bool = False,
) -> ModelComparison:
    """Reads a comparison that `ModelComparison.save` has written.

    No code is run that a file names, unless `import_guides` allows it: model and data are given, and so are guides of
    your own. Everything else is as it was when it was saved.

    Args:
        folder: the folder.
        model: the model that was compared on, or a target that was made of it.
        args, kwargs: the model's arguments, as `compare` takes them.
        guides: guides of your own, by the labels that they had. ppl_vi's and Pyro's are known by name.
        import_guides: whether guides that a file names as `package.module:attribute` may be imported and called. Allow
            it only for files that you trust: importing a module runs it.

    Raises:
        FileNotFoundError: there is no comparison in the folder.
        DamagedFileError: (a ValueError) a file is truncated, changed, or no part of this comparison.
        ValueError: it is of another model, other data or another version, or a guide has to be given.
    """
    given = labelled(guides) if guides else {}
    return saving.load(ModelComparison, Path(folder), target_of(model, args, kwargs), given, import_guides)


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
    guides: Mapping[str, Any] | Sequence[Any] = (),
    args: Any = (),
    *,
    kwargs: Mapping[str, Any] | None = None,
    approximations: Mapping[str, Any] | None = None,
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
    start: str = "mode",
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
        approximations: draws from other systems by label, each in a form that `ppl_vi.measure` takes, or what it has
            returned. They are rows of the same table, measured against the same truth.
        seed: the seed of initial values, noise and draws, and of the truth.
        num_replicas: the number of independent fits of each guide.
        num_steps: the largest number of SVI steps; 0 measures guides with the values that they have, a function with
            those in Pyro's parameter store.
        num_particles: the number of draws of the guide in each step, or "auto"; see `ppl_vi.fit`.
        num_draws: the number of draws for importance sampling, k-hat and ESS.
        lr: the size of Adam's first step, as a multiple of the size that each parameter's own curvature gives.
        tolerance: how much a converged fit may still gain nearby, nats.
        objective: what SVI maximises, by name: "trace_elbo", "score_function", "trace_mean_field_elbo", "stl",
            "tail_adaptive", "renyi:0.5", "iwae:8", "dadvi" or "natural_gradient".
        engine: "auto", "compiled", "batched" or "pyro"; see `ppl_vi.fit`.
        max_memory: what this process may hold in all, libraries and data included, as a text such as "4GB" or in GiB;
            None is what it holds at the start and half of what is free then. Truth, fits, best members and scores are
            computed in pieces that keep within it, to the same numbers but for rounding. A guide that can't keep
            within it becomes a row with the reason.
        start: where replicas start, "mode" or "pathfinder"; see `ppl_vi.fit`.
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
        objective, engine, num_steps, num_particles, num_replicas, lr, seed, num_draws, max_bytes, tolerance, start
    )
    with following(progress):
        found = begun(model, guides, args, settings, kwargs, approximations)
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
    approximations: Mapping[str, Any] | None = None,
) -> ModelComparison:
    """A comparison that has its truth and no entries yet; the arguments and errors are those of `compare`."""
    guides = labelled(guides) if guides or not approximations else {}
    named = {label: as_it_is_now(guide, settings.num_steps == 0) for label, guide in guides.items()}
    check_settings(settings)
    target = target_of(model, args, kwargs)
    if target.learnable is not None and not named:
        raise ValueError("the model has parameters of its own, which a guide has to learn: name one in guides")
    with one_thread(), bounded(settings.max_memory):
        if target.learnable is not None:
            target = learned_by_first(target, named, settings)
        named |= approximations_of(target, approximations or {}, named)
        truth = ground_truth(target, seed=settings.seed)
    return ModelComparison(target, truth, settings, labels=(), families=named)


def approximations_of(target: Target, given: Mapping[str, Any], taken: Collection[str]) -> dict[str, Approximation]:
    """Draws from other systems by label.

    Raises:
        TypeError: they are no dict, or draws have a form that is not read.
        ValueError: a label is that of a guide, or draws do not fit the model; the message says why.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"approximations must be a dict of label to draws; got {type(given).__name__}")
    known, found = {site.name for site in target.latents}, {}
    for label, data in given.items():
        if label in taken:
            raise ValueError(f"a guide and an approximation are both called '{label}': give them different labels")
        try:
            held = data.approximation if isinstance(data, DrawsScorecard) else data
            held = held.approximation() if isinstance(held, Fit) else held
            found[label], _ = approximation_of(held, name=label, known=known)
            matched(target, found[label])
        except (TypeError, ValueError) as error:
            raise type(error)(f"approximation '{label}': {error}") from error
    return found


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
        one = f"'{guides}'" if isinstance(guides, str) else getattr(guides, "__name__", "guide")
        hint = f": write [{one}] for one guide" if isinstance(guides, str) or callable(guides) else ""
        raise TypeError(f"guides must be a dict of label to guide, or a list; got {type(guides).__name__}{hint}")
    if not named:
        raise ValueError("there must be at least one guide")
    return named


def _label(guide: Any) -> str:
    """What a guide without a label is called."""
    if isinstance(guide, GivenGuide):
        return guide.name.rpartition(":")[2]
    return guide if isinstance(guide, str) else str(getattr(guide, "__name__", type(guide).__name__))
