"""`Plan`: what a sweep computes, from a TOML file, from the command line or from Python, checked whole before it runs.

A plan is every combination of models, guides, objectives, step sizes, steps and draws but for those that are excluded,
each with the same seeds. Every wrong entry is a line of its own, with its place.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ppl_vi.comparison.comparison import FitSettings
from ppl_vi.comparison.run import check_settings
from ppl_vi.runtime.names import ENGINES, MAX_LR, objective_of
from ppl_vi.sweeps.models import Guide, Model, guide_of, model_of
from ppl_vi.sweeps.options import AXES, OPTIONS, Complaints, Place, PlanError, seeds_of, whole

# The seeds that are fitted as one batch where the plan does not say how many: 0 to 3, which are the default ones, 4 to
# 9, and then each ten. The same seeds are together whatever is asked for, so that a longer sweep keeps what there is.
# Larger batches save little: of a model with one problem ten fits take as long as one, and with 100 they take longer.
FIRST_BATCHES = (range(4), range(4, 10))
LATER_BATCH = 10


@dataclass(frozen=True)
class Setting:
    """One combination: a model and a guide by label, and how the guide is fitted."""

    model: str
    guide: str
    objective: str
    lr: float
    num_steps: int
    num_particles: int | str


@dataclass(frozen=True, eq=False)
class Plan:
    """What a sweep computes.

    Attributes:
        models, guides: by label.
        settings: the combinations, without those that are excluded.
        seeds: of each combination, rising.
        block: how many seeds are fitted as one batch, see `batch_of`; None where the plan does not say.
        engine, num_draws: as `ppl_vi.comparison.comparison.FitSettings` has them.
    """

    models: dict[str, Model]
    guides: dict[str, Guide]
    settings: tuple[Setting, ...]
    seeds: tuple[int, ...]
    block: int | None
    engine: str
    num_draws: int

    @property
    def num_fits(self) -> int:
        """The number of fits of all problems."""
        return sum(self.models[setting.model].target.num_problems for setting in self.settings) * len(self.seeds)

    def batch_of(self, seed: int) -> range:
        """The seeds that are fitted as one batch with this one, whichever of them are asked for.

        A fit's numbers depend on the batch that it is part of. So the batch depends on the plan's `block` alone.
        """
        if self.block is None:
            for batch in FIRST_BATCHES:
                if seed in batch:
                    return batch
        size = self.block or LATER_BATCH
        return range(seed - seed % size, seed - seed % size + size)

    def fit_settings(self, setting: Setting, batch: range) -> FitSettings:
        """How a batch of a combination is fitted."""
        return FitSettings(
            objective=setting.objective,
            engine=self.engine,
            num_steps=setting.num_steps,
            num_particles=setting.num_particles,  # type: ignore[arg-type]
            num_replicas=len(batch),
            lr=setting.lr,
            seed=batch.start,
            num_draws=self.num_draws,
        )


def plan_of(entries: Mapping[str, Any], where: Callable[[Place], str] = str) -> Plan:
    """A plan of its entries.

    Args:
        entries: by the names in `OPTIONS`; an axis is a value or a list of them.
        where: what a place is called in a message.

    Raises:
        PlanError: entries are wrong; the message has a line for each.
    """
    wrong = Complaints(where)
    for name in entries:
        if name not in OPTIONS:
            wrong.add(Place(name), f"unknown entry '{name}'; there are {', '.join(OPTIONS)}")
    values = {name: _list(entries.get(name, default)) for name, default in OPTIONS.items()}
    axes = {name: _axis(name, values[name], wrong) for name in AXES}
    seeds = seeds_of(values["seed"], wrong)
    engine = _one("engine", values, wrong, _engine)
    num_draws = _one("num_draws", values, wrong, lambda value: whole(value, 2))
    block = _one("block", values, wrong, lambda value: None if value == "auto" else whole(value, 1))
    guides = _labelled("guides", values["guides"], wrong, guide_of)
    excluded = _exclusions(values["exclude"], wrong)
    models = _labelled("models", values["models"], wrong, model_of)
    settings = _settings(models, guides, axes, excluded, wrong)
    plan = Plan(models, guides, settings, seeds, block, str(engine), num_draws or 0)
    if not wrong.lines:
        _check_together(plan, wrong)
    if wrong.lines:
        raise PlanError(wrong.lines)
    return plan


def _list(value: Any) -> list[Any]:
    if isinstance(value, range | tuple | list):
        return list(value)
    if isinstance(value, Mapping) and not {"model", "target", "guide"} & set(value) and not set(value) & set(AXES):
        return [{"label": label, "given": given} for label, given in value.items()]
    return [value]


def _one(name: str, values: dict[str, list[Any]], wrong: Complaints, read: Callable[[Any], Any]) -> Any:
    if len(values[name]) != 1:
        wrong.add(Place(name), f"expected one value, got {len(values[name])}")
        return None
    return wrong.read(Place(name), read, values[name][0])


def _axis(name: str, values: list[Any], wrong: Complaints) -> list[Any]:
    """The values of an axis, each once."""
    if not values:
        wrong.add(Place(name), "expected at least one value, got an empty list")
    read = [wrong.read(Place(name, i), AXIS_READERS[name], value) for i, value in enumerate(values)]
    return list(dict.fromkeys(value for value in read if value is not None))


def _lr(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a step size, got {value!r}")
    if not 0 < value <= MAX_LR:
        raise ValueError(f"lr must be above 0 and at most {MAX_LR:g}, got {value}")
    return float(value)


def _objective(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected the name of an objective, got {value!r}")
    objective_of(value)
    return value


def _engine(value: Any) -> str:
    if value not in ENGINES:
        raise ValueError(f"unknown engine {value!r}; there are {', '.join(ENGINES)}")
    return str(value)


NAMED = ("model", "guide", *AXES)  # what an exclusion may name
AXIS_READERS: dict[str, Callable[[Any], Any]] = {
    "objective": _objective,
    "lr": _lr,
    "num_steps": lambda value: whole(value, 1),
    "num_particles": lambda value: value if value == "auto" else whole(value, 1),
}


def _labelled(name: str, values: list[Any], wrong: Complaints, read: Callable[[Any], Any]) -> dict[str, Any]:
    """Models or guides by label."""
    found: dict[str, Any] = {}
    if not values:
        wrong.add(Place(name), "expected at least one, got none")
    for i, value in enumerate(values):
        one = wrong.read(Place(name, i), read, value)
        if one is not None and one.label in found:
            wrong.add(Place(name, i), f"two {name} are called '{one.label}': give each a name of its own by name = ...")
        elif one is not None:
            found[one.label] = one
    return found


def _exclusions(values: list[Any], wrong: Complaints) -> list[dict[str, list[Any]]]:
    found = []
    for i, value in enumerate(values):
        if not isinstance(value, Mapping) or not value:
            wrong.add(Place("exclude", i), f"expected a table of {', '.join(NAMED)}, got {value!r}")
            continue
        for name in set(value) - set(NAMED):
            wrong.add(Place("exclude", i), f"unknown name '{name}'; there are {', '.join(NAMED)}")
        found.append({name: _list(each) for name, each in value.items()})
    return found


def _settings(
    models: dict[str, Model],
    guides: dict[str, Guide],
    axes: dict[str, list[Any]],
    excluded: list[dict[str, list[Any]]],
    wrong: Complaints,
) -> tuple[Setting, ...]:
    hits, kept = [0] * len(excluded), []
    for combination in itertools.product(models, guides, *axes.values()):
        setting = Setting(*combination)
        matches = [i for i, one in enumerate(excluded) if all(getattr(setting, n) in one[n] for n in one if n in NAMED)]
        for i in matches:
            hits[i] += 1
        if not matches:
            kept.append(setting)
    if not wrong.lines:
        for i, hit in enumerate(hits):
            if not hit:
                wrong.add(Place("exclude", i), f"nothing in the plan matches {excluded[i]}")
        if not kept:
            wrong.add(Place("exclude"), "everything is excluded, so that nothing is left to compute")
    return tuple(kept)


def _check_together(plan: Plan, wrong: Complaints) -> None:
    """Whether each combination's settings fit together."""
    told = set()
    for setting in plan.settings:
        try:
            check_settings(plan.fit_settings(setting, plan.batch_of(plan.seeds[0])))
        except ValueError as error:
            if str(error) not in told:
                told.add(str(error))
                wrong.add(
                    Place("objective"),
                    f"objective '{setting.objective}' with num_particles "
                    f"{setting.num_particles}: {error}; leave the pair out by exclude",
                )
