"""`sweep`: runs what is missing of a plan, and stores every task when it ends.

The process that calls it is the only one that writes. Workers get a task and give back its rows, by `shared` of
`ppl_vi.runtime.processes` on this machine or by `ppl_vi.sweeps.dask_mapper` on a cluster.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from contextvars import Context
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cloudpickle

from ppl_vi.runtime import signals
from ppl_vi.runtime.display import shown
from ppl_vi.runtime.processes import shared
from ppl_vi.runtime.stages import Callback, listener, listening, stage, tell_details
from ppl_vi.sweeps.cluster import cluster_of
from ppl_vi.sweeps.files import plan_from_file
from ppl_vi.sweeps.keys import all_versions, key_of
from ppl_vi.sweeps.models import sendable
from ppl_vi.sweeps.plan import Plan, plan_of
from ppl_vi.sweeps.store import Store, StoredTask
from ppl_vi.sweeps.tasks import (
    Job,
    Mapper,
    Outcome,
    Task,
    TruthDone,
    TruthJob,
    compute_truth,
    run_task,
    score_columns,
    task_killed,
    tasks_of,
    truth_killed,
)

WITHOUT_SCORES = ("failed", "killed")


@dataclass(frozen=True)
class Sources:
    """The numbers by which a file has models, guides and versions."""

    models: dict[str, int]
    guides: dict[str, int]
    versions: int


def sweep(
    models: Any,
    guides: Any = None,
    *,
    file: str | Path,
    objective: str | Sequence[str] = "trace_elbo",
    lr: float | Sequence[float] = 0.2,
    num_steps: int | Sequence[int] = 1000,
    num_particles: int | str | Sequence[int | str] = "auto",
    seed: int | str | Sequence[int] = range(4),
    engine: str = "auto",
    num_draws: int = 1000,
    block: int | str = "auto",
    exclude: Sequence[Mapping[str, Any]] = (),
    num_workers: int = 1,
    cluster: Any = None,
    retry: bool = False,
    progress: Callback | bool = False,
) -> Iterator[dict[str, Any]]:
    """Fits every combination of models, guides, settings and seeds, and yields the rows as they come.

    Whatever is finished is in `file`, and the same call goes on from there: rows that are there already come first.

    Args:
        models: a model, a list of them, or a dict by label: `ppl_vi.Target`, of one problem or many, Pyro models,
            pairs of a Pyro model and the tuple of its arguments, `"module:attribute"`; or the path of a plan, a TOML
            file, that has all of the entries below.
        guides: a guide, a list of them, or a dict by label, as `ppl_vi.compare` takes them.
        file: the SQLite file of the results; it is made where it is missing.
        objective, lr, num_steps, num_particles: as `ppl_vi.fit` takes them; a list stands for each of its values.
        seed: a seed, a list of them, or a text such as "0:100" for 0 to 99.
        engine: as `ppl_vi.fit` takes it.
        num_draws: draws for importance sampling, k-hat and ESS.
        block: how many seeds, from a multiple of this number on, are fitted as one batch. A fit's numbers depend on it.
            "auto" puts seeds 0 to 3 together, 4 to 9, and then each ten.
        exclude: dicts of values of `model`, `guide`, `objective` and so on; what matches one of them is left out.
        num_workers: how many processes of this machine share the fits; no number depends on it.
        cluster: lets the workers of a Dask cluster do the fits instead: the address of its scheduler, a TOML file that
            names a deployer, or a cluster or client of `distributed`.
        retry: whether to do again what failed or was killed before.
        progress: as `ppl_vi.fit` takes it.

    Yields:
        A dict for each fit, as the columns of `ppl_vi.load_results`.

    Raises:
        PlanError: entries are wrong, with a line for each.
        StoreError: the file can't be used, or written.
        ClusterError: the cluster can't be used.
    """
    if guides is None and isinstance(models, str | Path) and str(models).endswith(".toml"):
        plan = plan_from_file(Path(models)).plan
    else:
        entries = {
            "models": models, "guides": guides if guides is not None else [], "objective": objective, "lr": lr,
            "num_steps": num_steps, "num_particles": num_particles, "seed": seed, "engine": engine,
            "num_draws": num_draws, "block": block, "exclude": list(exclude),
        }  # fmt: skip
        plan = plan_of(entries)
    return _rows(plan, Path(file), num_workers, cluster, retry, progress)


def _rows(
    plan: Plan, file: Path, num_workers: int, cluster: Any, retry: bool, progress: Callback | bool
) -> Iterator[dict[str, Any]]:
    display = shown() if progress is True else nullcontext(progress or None)
    with Store(file, score_columns()) as store, display as callback:
        work = Work.of(plan, store, retry)
        for task in work.stored:
            yield from rows_of(work, task)
        running = run(work, num_workers, cluster)
        while True:
            with listening(callback):  # a generator must not hold this open while it yields
                outcome = next(running, None)
            if outcome is None:
                return
            yield from rows_of(work, outcome.task)


def rows_of(work: Work, task: Task) -> Iterator[dict[str, Any]]:
    """The rows of a task that is stored, as far as the plan has its seeds."""
    selected = work.store.connection.execute("SELECT * FROM results WHERE key = ?", (task.key,))
    names = [column[0] for column in selected.description]
    seeds, at = set(work.plan.seeds), names.index("seed")
    yield from (dict(zip(names, row, strict=True)) for row in selected.fetchall() if row[at] in seeds)


@dataclass(frozen=True, eq=False)
class Work:
    """What there is to do of a plan.

    Attributes:
        plan: the plan.
        store: where the results go.
        sources: the plan's models, guides and versions in the file.
        stored: the tasks that are done.
        missing: the others.
        num_damaged: how many tasks had rows in the file that were damaged, and are computed again.
        finished: the number of fits of each task that was stored since.
    """

    plan: Plan
    store: Store
    sources: Sources
    stored: tuple[Task, ...]
    missing: tuple[Task, ...]
    num_damaged: int = 0
    finished: list[int] = field(default_factory=list)

    @staticmethod
    def of(plan: Plan, store: Store, retry: bool = False) -> Work:
        """Looks up what is there. Rows that are damaged are removed, so that they are computed again."""
        versions = all_versions()
        store.drop(damaged := store.damaged())
        there = store.tasks()
        tasks = tasks_of(plan, versions)
        stored = tuple(task for task in tasks if _is_done(task, there.get(task.key), retry))
        keys = {task.key for task in stored}
        missing = tuple(_with_stored_seeds(task, there.get(task.key), retry) for task in tasks if task.key not in keys)
        sources = Sources(
            {label: store.source("model", label, model.key) for label, model in plan.models.items()},
            {label: store.source("guide", label, guide.key) for label, guide in plan.guides.items()},
            store.source("versions", "versions", key_of(versions), versions),
        )
        store.note(planned=[task.key for task in tasks], num_planned=sum(task.num_fits for task in tasks))
        return Work(plan, store, sources, stored, missing, len(damaged))

    @property
    def num_missing(self) -> int:
        """The number of fits that are to be computed."""
        return sum(task.num_fits for task in self.missing)


def _is_done(task: Task, stored: StoredTask | None, retry: bool) -> bool:
    if stored is None or not set(task.seeds) <= set(stored.seeds):
        return False
    return not (retry and stored.status in WITHOUT_SCORES)


def _with_stored_seeds(task: Task, stored: StoredTask | None, retry: bool) -> Task:
    """The task with the seeds that are stored besides, since a task is stored as a whole."""
    if stored is None:
        return task
    renewed = retry and stored.status in WITHOUT_SCORES
    together = tuple(sorted({*task.seeds, *stored.seeds}))
    return replace(task, seeds=together, num_stored=0 if renewed else len(stored.seeds))


def run(work: Work, num_workers: int, cluster: Any = None) -> Iterator[Outcome]:
    """Does what is missing, and yields each task's outcome once it is stored.

    Args:
        work: what there is to do.
        num_workers: how many processes share it.
        cluster: does it instead; see `sweep`.

    Raises:
        ClusterError: the cluster can't be used.
    """
    if not work.missing:
        return
    if cluster is None:
        yield from run_by(shared, work, num_workers)
        return
    cluster = cluster_of(cluster)
    from ppl_vi.sweeps.dask_client import on_cluster  # which needs Dask, that need not be installed

    with on_cluster(cluster) as mapper:
        yield from run_by(mapper, work, num_workers)


def run_by(mapper: Mapper, work: Work, num_workers: int) -> Iterator[Outcome]:
    """Does what is missing by a mapper, and yields each task's outcome once it is stored."""
    processes = min(num_workers, len(work.missing))
    truths = _truths(work, processes, mapper)
    largest_first = sorted(work.missing, key=_size, reverse=True)  # so that the processes end at about the same time
    jobs = [_job(work, task, truths[task.setting.model]) for task in largest_first]
    with stage("sweep", "fit", work.num_missing) as running:
        for outcome in _in_detail(mapper(run_task, jobs, processes, task_killed)):
            with signals.saving():
                work.store.write_task(_task_row(outcome, work), score_columns(), outcome.rows)
                work.finished.append(outcome.task.num_fits)
            running.advance(outcome.task.num_fits)
            yield outcome


def _size(task: Task) -> int:
    """The steps of all fits of a task."""
    return task.num_problems * task.settings.num_replicas * task.settings.num_steps


def _truths(work: Work, num_workers: int, mapper: Mapper) -> dict[str, TruthDone]:
    """The truth of each model of which something is missing."""
    labels = list(dict.fromkeys(task.setting.model for task in work.missing))
    jobs = [TruthJob(label, cloudpickle.dumps(work.plan.models[label].target)) for label in labels]
    found = {}
    with stage("truths", "model", len(jobs)) as running:
        for done in _in_detail(mapper(compute_truth, jobs, min(num_workers, len(jobs)), truth_killed)):
            found[done.label] = done
            x = work.plan.models[done.label].x
            rows = [row | {"x": x[row["problem"]] if x else None} for row in done.rows]
            with signals.saving():
                work.store.write_truth(work.sources.models[done.label], rows)
            running.advance()
    return found


def _in_detail(items: Iterable[Any]) -> Iterator[Any]:
    """The same items, made where stages are told as details: other steps that are told are cut by the clock."""
    context, iterator, end = Context(), iter(items), object()
    context.run(tell_details, listener())
    try:
        while (item := context.run(next, iterator, end)) is not end:
            yield item
    finally:
        close: Callable[[], None] = getattr(iterator, "close", lambda: None)
        close()


def _job(work: Work, task: Task, truth: TruthDone) -> Job:
    model, guide = work.plan.models[task.setting.model], work.plan.guides[task.setting.guide]
    return Job(task, sendable(guide.family), truth.comparison, model.source, truth.reason)


def _task_row(outcome: Outcome, work: Work) -> dict[str, Any]:
    task, settings = outcome.task, outcome.task.settings
    return {
        "key": task.key,
        "model": work.sources.models[task.setting.model],
        "guide": work.sources.guides[task.setting.guide],
        "versions": work.sources.versions,
        **{name: value for name, value in asdict(task.setting).items() if name not in ("model", "guide")},
        "engine": settings.engine,
        "num_draws": settings.num_draws,
        "first_seed": settings.seed,
        "block": settings.num_replicas,
        "seeds": json.dumps(task.seeds),
        "num_fits": settings.num_replicas * task.num_problems,
        "status": outcome.status,
        "reason": outcome.reason,
        "engine_used": outcome.engine,
        "engine_reason": outcome.engine_reason,
        "fit_seconds": outcome.fit_seconds,
        "score_seconds": outcome.score_seconds,
        "notes": json.dumps(outcome.notes),
    }
