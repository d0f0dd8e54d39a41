"""Results of sweeps: read as a DataFrame, summed up in a table, and merged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from ppl_vi.sweeps.checks import StoreError, check_file
from ppl_vi.sweeps.schema import TASK_COLUMNS, TRUTH_COLUMNS
from ppl_vi.sweeps.store import Reader, Store

if TYPE_CHECKING:
    from pandas import DataFrame
    from xarray import DataTree

# What tells the combinations of a sweep apart; the seeds of one are one line of the summary.
GROUP = ("model", "problem", "x", "guide", "objective", "lr", "num_steps", "num_particles")
# What tells the fits of a model and guide apart.
DIMENSIONS = ("objective", "lr", "num_steps", "num_particles", "problem", "seed")
# The rate of a sweep is taken over so many tasks, the last ones.
RECENT_TASKS = 50


@overload
def load_results(
    file: str | Path, where: str = "", stale: bool = False, *, datatree: Literal[False] = False
) -> DataFrame: ...


@overload
def load_results(file: str | Path, where: str = "", stale: bool = False, *, datatree: Literal[True]) -> DataTree: ...


def load_results(
    file: str | Path, where: str = "", stale: bool = False, *, datatree: bool = False
) -> DataFrame | DataTree:
    """The results of a sweep, a row for each fit.

    Beside `name`, a metric has the columns `name_error`, a bound on its numerical error, and `name_std_error`, its
    Monte Carlo standard error. Numbers that do not exist are nan.

    Args:
        file: that `sweep` has written.
        where: a condition on the columns in SQL, such as `"guide = 'gamma' and lr < 0.1"`.
        stale: whether to have the rows, too, that the last sweep has left behind because the model, the guide or a
            version was another one; the column `stale` tells them apart.
        datatree: whether to have them as the `DataTree` that ArviZ reads, with the group `model/guide` for each model
            and guide. There the columns are variables with the dimensions `objective`, `lr`, `num_steps`,
            `num_particles`, `problem` and `seed`; nan, or "", stands where there is no fit. Of a model's problems that
            differ in one number, this is the coordinate `x`.

    Raises:
        StoreError: the file can't be used, or the condition is none.
        ValueError: a tree is asked for, and two fits would have one place, as a stale one beside the one after it.
    """
    if datatree:
        if stale:
            raise ValueError("stale rows have no place of their own in a tree: leave out stale, or datatree")
        return tree_of(load_results(file, where))
    from pandas import DataFrame

    names, rows = table_of(file, where, stale)
    frame = DataFrame(rows, columns=names)
    frame["stale"] = frame["stale"].astype(bool)
    numbers = names[names.index("log_evidence") : names.index("engine")]
    return frame.astype({name: "float64" for name in (*numbers, "x", "lr") if name != "grade"})


def tree_of(frame: DataFrame) -> DataTree:
    """Results as a tree; see `load_results`."""
    from xarray import DataTree  # importing it takes a second

    groups = {}
    for (model, guide), rows in frame.groupby(["model", "guide"], sort=False):
        rows = rows.assign(num_particles=rows["num_particles"].astype(str))
        found = rows.set_index(list(DIMENSIONS)).drop(columns=["model", "guide", "x", "stale"])
        if not found.index.is_unique:
            raise ValueError(
                f"{guide} on {model}: two fits have one place, as of other batches of seeds, engines or num_draws: "
                "choose by where = 'block = 10', or take the DataFrame"
            )
        dataset = found.to_xarray()
        for name, values in dataset.items():
            if values.dtype == object:
                dataset[name] = values.fillna("").astype(str)
        x = rows.groupby("problem")["x"].first()
        if x.notna().all():
            dataset = dataset.assign_coords(x=("problem", x.to_numpy()))
        groups["/".join(part.replace("/", "_") for part in (str(model), str(guide)))] = dataset
    return DataTree.from_dict(groups)


def table_of(file: str | Path, where: str = "", stale: bool = False) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The columns and rows of a file of results; see `load_results`."""
    with Reader(Path(file)) as reader:
        reader.refuse_damaged()
        names = [name for _, name, *_ in reader.query("PRAGMA table_info(results)")]
        conditions = [*([] if stale else ["NOT stale"]), *([f"({where})"] if where else [])]
        chosen = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        try:
            rows = reader.query(f"SELECT * FROM results{chosen}")
        except StoreError as error:
            raise StoreError(f"--where {where!r}: {error.__cause__}; --csv shows all columns") from error
    order = [names.index(name) for name in (*GROUP, "seed", "key")]
    return names, sorted(rows, key=lambda row: [(row[i] is not None, str(type(row[i])), row[i]) for i in order])


def num_stale(file: str | Path) -> int:
    """How many rows of a file are stale."""
    with Reader(Path(file)) as reader:
        return int(reader.query("SELECT count(*) FROM results WHERE stale")[0][0])


def summary(file: str | Path, where: str = "", stale: bool = False) -> list[dict[str, Any]]:
    """A dict for each combination of a sweep: how many fits, of which status, and their reverse KL over seeds."""
    names, rows = table_of(file, where, stale)
    at = {name: i for i, name in enumerate(names)}
    # the observations of a batch of problems are one line
    group = [at[name] for name in GROUP if name not in ("problem", "x")] + [at["stale"]]
    found: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for row in rows:
        found.setdefault(tuple(row[i] for i in group), []).append(row)
    labels = [name for name in GROUP if name not in ("problem", "x")]
    return [dict(zip(labels, key, strict=False)) | _summed_up(some, at) for key, some in found.items()]


def _summed_up(rows: Sequence[tuple[Any, ...]], at: dict[str, int]) -> dict[str, Any]:
    statuses = [row[at["status"]] for row in rows]
    values = sorted(row[at["reverse_kl"]] for row in rows if row[at["reverse_kl"]] is not None)
    seconds = [(row[at["fit_seconds"]] or 0.0) + (row[at["score_seconds"]] or 0.0) for row in rows]
    reasons = dict.fromkeys(row[at["reason"]] for row in rows if row[at["reason"]])
    return {
        "fits": len(rows),
        "statuses": {name: statuses.count(name) for name in dict.fromkeys(statuses)},
        "reverse_kl": (values[(len(values) - 1) // 2] if values else None),
        "least": values[0] if values else None,
        "most": values[-1] if values else None,
        "seconds": sum(seconds),
        "reasons": list(reasons),
    }


def merge(files: Sequence[str | Path], out: str | Path) -> dict[str, int]:
    """Puts the results of several files into a new one; what is in several of them is there once.

    Where files have other numbers for one task, as from other machines, those of the first file stay. What was current
    in the file that was written to last is current.

    Returns:
        The number of tasks, of those that were in several files, and of those with other numbers.

    Raises:
        StoreError: a file can't be used, or `out` is there already.
    """
    out = Path(out)
    if out.exists():
        raise StoreError(f"'{out}' is there already: give the name of a new file")
    readers: list[Reader] = []
    try:
        for file in files:
            readers.append(Reader(Path(file)))
            readers[-1].refuse_damaged()
        readers.sort(key=_last_written)
        columns = list(dict.fromkeys(name for reader in readers for name in reader.score_columns))
        partial = out.with_name(out.name + ".part")
        partial.unlink(missing_ok=True)
        with Store(partial, columns) as store:
            counts = _merged(store, [next(one for one in readers if one.path == Path(file)) for file in files])
            for reader in readers:  # the newest last, so that what it has is current
                for kind, label, key in reader.query("SELECT kind, label, key FROM sources WHERE current"):
                    store.source(kind, label, key)
        partial.rename(out)
        partial.with_name(partial.name + "-lock").unlink(missing_ok=True)
        return counts
    finally:
        for reader in readers:
            reader.connection.close()


def _last_written(reader: Reader) -> float:
    return float(reader.query("SELECT coalesce(max(finished), 0) FROM tasks")[0][0])


def _merged(store: Store, readers: Sequence[Reader]) -> dict[str, int]:
    counts = {"tasks": 0, "common": 0, "different": 0}
    for reader in readers:
        sources = {
            number: store.source(kind, label, key, json.loads(details))
            for number, kind, label, key, details in reader.query("SELECT id, kind, label, key, details FROM sources")
        }
        for model, *values in reader.query(f"SELECT {', '.join(TRUTH_COLUMNS)} FROM truths"):
            store.write_truth(sources[model], [dict(zip(TRUTH_COLUMNS[1:], values, strict=True))])
        there = store.tasks()
        for number, *values in reader.query(f"SELECT id, {', '.join(TASK_COLUMNS)} FROM tasks ORDER BY id"):
            task = dict(zip(TASK_COLUMNS, values, strict=True))
            task |= {kind: sources[task[kind]] for kind in ("model", "guide", "versions")}
            own = {row[:2]: row for row in store.in_order(reader.score_columns, reader.rows(number))}
            known = there.get(task["key"])
            counts["common" if known else "tasks"] += 1
            held = {} if known is None else {row[:2]: row for row in store.rows(known.id)}
            counts["different"] += any(held[place] != row for place, row in own.items() if place in held)
            if not set(own) <= set(held):
                together = own | held
                task["seeds"] = json.dumps(sorted({seed for _, seed in together}))
                store.write_task(task, store.score_columns, list(together.values()))
    return counts


def progress_of(file: str | Path) -> tuple[int, int, float | None]:
    """How many fits of the last sweep are stored, how many there will be, and how many were stored a second lately."""
    with Reader(Path(file)) as reader:
        notes: dict[str, Any] = {name: json.loads(value) for name, value in reader.query("SELECT * FROM notes")}
        planned = set(notes.get("planned", ()))
        found = reader.query("SELECT key, num_fits / block, seeds, finished FROM tasks ORDER BY finished")
    done = [(problems * len(json.loads(seeds)), at) for key, problems, seeds, at in found if key in planned]
    recent, rate = done[-RECENT_TASKS:], None
    if len(recent) > 1 and recent[-1][1] > recent[0][1]:
        rate = sum(num for num, _ in recent[1:]) / (recent[-1][1] - recent[0][1])
    return sum(num for num, _ in done), int(notes.get("num_planned", 0)), rate


def stored_seeds(file: str | Path) -> dict[str, list[int]]:
    """The seeds of each task that is stored, by key; {} where there is no file."""
    if not check_file(Path(file)):
        return {}
    with Reader(Path(file)) as reader:
        return {key: json.loads(seeds) for key, seeds in reader.query("SELECT key, seeds FROM tasks")}


def totals(file: str | Path) -> dict[str, int]:
    """How many rows of a file have which status, without those that are stale."""
    with Reader(Path(file)) as reader:
        return dict(
            reader.query("SELECT status, count(*) FROM results WHERE NOT stale GROUP BY status ORDER BY 2 DESC")
        )
