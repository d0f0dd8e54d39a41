"""`compare`: any Pyro model, the guides that one chooses between, one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ppl_vi.comparison.comparison import Comparison, Entry, FitSettings
from ppl_vi.comparison.run import check_settings, compare_each, one_thread
from ppl_vi.report import table
from ppl_vi.svi.result import Fit
from ppl_vi.target.target import Target
from ppl_vi.truth import ground_truth

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from xarray import DataTree


@dataclass(frozen=True, eq=False, repr=False)
class ModelComparison(Comparison):
    """Guides on one model: `print` shows the table, `plot` the figures, `to_datatree` hands over to ArviZ."""

    def __str__(self) -> str:
        return table.as_text(self.records(), width=table.terminal().width)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.target.name}: {', '.join(entry.guide for entry in self.entries)}>"

    def __getitem__(self, guide: str) -> Fit:
        """The fit of one of the guides.

        Raises:
            KeyError: there is none, since the guide was refused or failed; the message says why.
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
        """The figures by name: marginals, gaps, reverse KL and ELBO against steps."""
        from ppl_vi.report import model_plots

        return {name: draw(self, 0) for name, draw in model_plots.FIGURES.items()}

    def to_datatree(self, num_draws: int = 1000, seed: int = 0) -> DataTree:
        """Everything for ArviZ: a child for each fitted guide, and `truth` where it has points.

        Each child is what ArviZ takes for one model (`result.to_datatree()["mean field"]`), with groups

        - `posterior`: draws of the guide, a chain a replica;
        - `sample_stats`: `lp`, the log joint, and `log_q`, the log guide density, of each draw, nats;
        - `loss_history`: the objective's estimate of minus the ELBO at every step, a chain a replica, nats;

        and in its attributes how it was fitted.

        Args:
            num_draws: of each replica, and of each of the truth's chains.
            seed: of the draws.
        """
        from ppl_vi.report import datatree

        return datatree.of_comparison(self, num_draws, seed)


def compare(
    model: Callable[..., Any] | Target,
    guides: Mapping[str, Any] | Sequence[Any],
    args: tuple[Any, ...] = (),
    *,
    seed: int = 0,
    num_replicas: int = 4,
    num_steps: int = 1000,
    num_particles: int = 256,
    num_draws: int = 10_000,
    lr: float = 0.2,
    objective: str = "trace_elbo",
    engine: str = "auto",
    started: Callable[[str], None] | None = None,
) -> ModelComparison:
    """Fits guides to a model's posterior and measures how far each is from the truth, and why.

    A guide that can't be compared, or fails, becomes a row with its reason; the others go on.

    Args:
        model: a Pyro model, or a target that was made of one.
        guides: families by label or in a list: classes of Pyro's autoguides, functions of the model, names
            (`"AutoNormal"`, `"package.module:attribute"`), or guides of your own as functions or modules.
        args: the model's positional arguments.
        seed: of initial values, noise and draws.
        num_replicas: independent fits of each guide.
        num_steps: SVI steps at most.
        num_particles: draws a step.
        num_draws: for importance sampling, k-hat and ESS.
        lr: Adam's first step, in units of each parameter's own curvature.
        objective: `trace_elbo`, `stl`, `renyi:0.5`, `iwae:8` …
        engine: "auto", "compiled", "batched" or "pyro".
        started: called with each guide's name when its turn comes.

    Raises:
        TypeError: the model or args are not what they should be.
        ValueError: the model can't be handled, with the reason; there are no guides, or two of one name; a setting.
        UncertifiedTruthError: there is no truth to measure by.
    """
    settings = FitSettings(objective, engine, num_steps, num_particles, num_replicas, lr, seed, num_draws)
    found = begun(model, guides, args, settings)
    for step in compare_each(found, list(found.families), with_curves=True, started=started):
        found = step
    return found


def begun(
    model: Callable[..., Any] | Target,
    guides: Mapping[str, Any] | Sequence[Any],
    args: tuple[Any, ...],
    settings: FitSettings,
) -> ModelComparison:
    """The comparison with its truth and without entries; arguments and errors as of `compare`."""
    named = labelled(guides)
    check_settings(settings)
    target = target_of(model, args)
    with one_thread():
        truth = ground_truth(target, seed=settings.seed)
    return ModelComparison(target, truth, settings, labels=(), families=named)


def target_of(model: Callable[..., Any] | Target, args: tuple[Any, ...]) -> Target:
    """One problem from a model and its arguments, or the one that is given.

    Raises:
        ValueError: a target with arguments of its own was given some, or poses several problems.
    """
    if not isinstance(model, Target):
        return Target.of(model, args)
    if args:
        raise ValueError("args go with a model; a target has its own")
    if model.num_problems != 1:
        raise ValueError(
            f"expected a target of one problem; '{model.name}' poses {model.num_problems}, one for each row of its "
            "arguments: pose one problem of all the data by Target.of(model, args), or choose a row by Target.rows"
        )
    return model


def labelled(guides: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    """Guides by label; in a list each goes by its own name.

    Raises:
        ValueError: there are none, or two of one name.
        TypeError: not a dict or a list.
    """
    if isinstance(guides, Mapping):
        named = dict(guides)
    elif isinstance(guides, list | tuple):
        names = [g if isinstance(g, str) else getattr(g, "__name__", type(g).__name__) for g in guides]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two guides are called '{twice}': give them in a dict, each with a label of its own")
        named = dict(zip(names, guides, strict=True))
    else:
        raise TypeError(f"guides must be a dict of label to guide, or a list; got {type(guides).__name__}")
    if not named:
        raise ValueError("there must be at least one guide")
    return named
