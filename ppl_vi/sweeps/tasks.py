"""Tasks: the batches of fits that a sweep is made of, and how one is done, in whichever process.

A task is one combination of a plan and one block of seeds, fitted by one call of `ppl_vi.fit`. A fit's numbers depend
on the batch that it is part of. So what a task computes follows from its key alone: all problems of its model, and all
seeds of its block, whichever of them are asked for or are there already.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import cloudpickle
import numpy as np

from ppl_vi.comparison.comparison import Comparison, Entry, FitSettings
from ppl_vi.comparison.run import compare_one, one_thread
from ppl_vi.metrics.scorecard import Scorecard
from ppl_vi.metrics.table import METRICS
from ppl_vi.runtime.memory import allowing
from ppl_vi.runtime.stages import listening
from ppl_vi.svi.engines.choice import many_fits
from ppl_vi.sweeps.keys import REVISION, key_of, source_digest
from ppl_vi.sweeps.plan import Plan, Setting
from ppl_vi.target.target import Target
from ppl_vi.truth import Truth, ground_truth

# What a task may take of memory on top of what its process holds: always the same, since how work is cut into pieces,
# and with it the last digits of sums, depends on it. Tasks that need more fail, and say so.
TASK_BYTES = 2e9
# The parts of a metric's estimate, as columns of the store are called: `reverse_kl`, `reverse_kl_error` and so on.
PARTS = ("value", "error", "std_error")


class SourceChangedError(RuntimeError):
    """A model's code has changed while a sweep was running."""


@dataclass(frozen=True)
class Task:
    """A batch of fits.

    Attributes:
        key: tells it from any other; holds all that determines its numbers.
        setting: what is fitted, and how.
        settings: the same for the fit; its seed is the first of the block.
        seeds: those of the block that are asked for, or stored already, rising.
        model_key, guide_key: parts of the key.
        num_problems: of the model.
        num_stored: how many of the seeds are stored already.
    """

    key: str
    setting: Setting
    settings: FitSettings
    seeds: tuple[int, ...]
    model_key: str
    guide_key: str
    num_problems: int
    num_stored: int = 0

    @property
    def num_fits(self) -> int:
        """How many fits are asked for, and not stored."""
        return self.num_problems * (len(self.seeds) - self.num_stored)


def tasks_of(plan: Plan, versions: dict[str, str]) -> list[Task]:
    """The tasks of a plan, those of a model after another."""
    batches: dict[range, list[int]] = {}
    for seed in plan.seeds:
        batches.setdefault(plan.batch_of(seed), []).append(seed)
    return [
        _task(plan, setting, batch, tuple(seeds), versions)
        for setting in plan.settings
        for batch, seeds in batches.items()
    ]


def _task(plan: Plan, setting: Setting, batch: range, seeds: tuple[int, ...], versions: dict[str, str]) -> Task:
    model, guide = plan.models[setting.model], plan.guides[setting.guide]
    settings = plan.fit_settings(setting, batch)
    # the labels are part of the key, because rows of one key are one entry of the results
    key = key_of(REVISION, asdict(setting), asdict(settings), model.key, guide.key, versions)
    return Task(key, setting, settings, seeds, model.key, guide.key, model.target.num_problems)


@dataclass(frozen=True)
class TruthJob:
    """The truth of a model that is to be computed; `target` is pickled."""

    label: str
    target: bytes


@dataclass(frozen=True, eq=False)
class TruthDone:
    """The truth of a model.

    Attributes:
        label: of the model.
        comparison: a pickled comparison that holds it, for the tasks; None where there is none.
        rows: for each problem what the store holds of it, by column.
        reason: why there is none, or "".
    """

    label: str
    comparison: bytes | None
    rows: tuple[dict[str, Any], ...] = ()
    reason: str = ""


def compute_truth(job: TruthJob) -> TruthDone:
    """The truth of a model. One that can't be computed is told in `reason`."""
    began = time.perf_counter()
    try:
        with one_thread(), allowing(TASK_BYTES), listening(None, job.label):
            target: Target = cloudpickle.loads(job.target)
            truth = ground_truth(target)
            _ = truth.modes
        rows = tuple(_truth_row(truth, b, time.perf_counter() - began) for b in range(target.num_problems))
        return TruthDone(job.label, cloudpickle.dumps(Comparison(target, truth, FitSettings(), ())), rows)
    except (Exception, SystemExit) as error:  # a model may raise anything
        return TruthDone(job.label, None, reason=_reason(error))


def truth_killed(job: TruthJob, how: str) -> TruthDone:
    """What is told of a truth whose process was killed, twice."""
    return TruthDone(job.label, None, reason=f"the truth can't be computed: {how}, also when it was tried again")


def _truth_row(truth: Truth, problem: int, seconds: float) -> dict[str, Any]:
    return {
        "problem": problem,
        "log_evidence": float(truth.log_evidence[problem]),
        "log_evidence_error": float(truth.log_evidence_error[problem]),
        "log_evidence_std_error": float(truth.log_evidence_std_error[problem]),
        "method": truth.method,
        "grade": truth.grade if truth.trusted[problem] else "uncertified",
        "grade_reason": truth.reasons[problem] if truth.reasons else "",
        "truth_seconds": seconds,
    }


@dataclass(frozen=True)
class Job:
    """A task with all that it needs.

    Attributes:
        task: the task.
        family: what the user gave as the guide.
        comparison: a pickled comparison that holds the truth; None where there is none, for the reason in `reason`.
        source: the digest that the model's code must have; "" where the code itself was sent.
        reason: why there is no truth, or "".
    """

    task: Task
    family: Any
    comparison: bytes | None
    source: str
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a task gave.

    Attributes:
        task: the task.
        status: "done"; "skipped", "failed" or "killed" where there are no scores, for the reason in `reason`.
        rows: a row for each problem and seed that was asked for: problem, seed, status, stop reason, steps taken, and
            the parts of each metric.
        engine, engine_reason: by which engine the steps were taken, and why.
        fit_seconds, score_seconds: what the whole batch took.
        notes: units and reasons of the metrics.
    """

    task: Task
    status: str
    reason: str
    rows: list[tuple[Any, ...]]
    engine: str = ""
    engine_reason: str = ""
    fit_seconds: float = 0.0
    score_seconds: float = 0.0
    notes: dict[str, Any] | None = None


def run_task(job: Job) -> Outcome:
    """Fits and scores a task's batch.

    Raises:
        SourceChangedError: this process has imported another model than the one that the task's key is of.
    """
    if job.comparison is None:
        return without_scores(job.task, "failed", job.reason)
    began = time.perf_counter()
    label = job.task.setting.guide
    comparison: Comparison = cloudpickle.loads(job.comparison)
    if job.source and source_digest(comparison.target) != job.source:
        raise SourceChangedError(
            f"the code of '{job.task.setting.model}' has changed while the sweep was running: start it again, and what "
            "is finished of the earlier code is kept as stale"
        )
    comparison = replace(comparison, settings=job.task.settings, families={label: job.family})
    with allowing(TASK_BYTES), many_fits(), listening(None, _subject(job.task)):
        entry = compare_one(comparison, label)
    if entry.card is None:
        return without_scores(job.task, entry.records[0]["status"], entry.records[0]["reason"])
    return _outcome(job.task, entry, entry.card, time.perf_counter() - began)


def _subject(task: Task) -> str:
    """What a task is called while it runs."""
    first, last = task.settings.seed, task.settings.seed + task.settings.num_replicas - 1
    return f"{task.setting.guide}, seed {first}" if first == last else f"{task.setting.guide}, seeds {first} to {last}"


def task_killed(job: Job, how: str) -> Outcome:
    """What is told of a task whose process was killed, twice."""
    return without_scores(job.task, "killed", f"{how}, also when it was tried again")


def without_scores(task: Task, status: str, reason: str) -> Outcome:
    """The outcome of a task that gave no scores."""
    blank = (status, "", None, *[None] * (len(PARTS) * len(METRICS)))
    return Outcome(task, status, reason, [(b, s, *blank) for b in range(task.num_problems) for s in task.seeds])


def score_columns() -> list[str]:
    """The columns of the metrics, in the order of a row."""
    return [name if part == "value" else f"{name}_{part}" for name in METRICS for part in PARTS]


def _outcome(task: Task, entry: Entry, card: Scorecard, seconds: float) -> Outcome:
    fit = card.fit
    notes = {
        "units": {name: estimate.unit for name, estimate in card.scores.items()},
        "reasons": {name: estimate.reason for name, estimate in card.scores.items() if estimate.reason},
        "support_mismatch": fit.support_mismatch,
        "family_gap_is_upper_bound": [record["family_gap_is_upper_bound"] for record in entry.records],
        "optimization_gap_is_lower_bound": [record["optimization_gap_is_lower_bound"] for record in entry.records],
    }
    rows = list(_rows(task, card))
    return Outcome(task, "done", "", rows, fit.engine, fit.engine_reason, fit.seconds, seconds - fit.seconds, notes)


def _rows(task: Task, card: Scorecard) -> Iterator[tuple[Any, ...]]:
    """The rows, in the order of problems and seeds; numbers that do not exist are None."""
    fit, chosen = card.fit, np.array([seed - task.settings.seed for seed in task.seeds])
    shape = fit.status.shape
    missing = np.full(shape, np.nan)
    parts = [
        np.broadcast_to(getattr(card.scores[name], part), shape) if name in card.scores else missing
        for name in METRICS
        for part in PARTS
    ]
    numbers = np.stack(parts, -1)[:, chosen].astype(np.float64) + 0.0  # SQLite has no -0.0
    table = numbers.astype(object)
    table[np.isnan(numbers)] = None
    steps = np.broadcast_to(fit.num_steps, shape)
    for b in range(shape[0]):
        for place, r in enumerate(chosen.tolist()):
            status, stop = str(fit.status[b, r]), str(fit.stop_reason[b, r])
            yield (b, task.seeds[place], status, stop, int(steps[b, r]), *table[b, place].tolist())


def _reason(error: BaseException) -> str:
    first, *_ = str(error).strip().splitlines() or [""]
    return f"the truth can't be computed: {type(error).__name__}: {first}".removesuffix(": ")


# Does work on jobs and yields what becomes of each, in any order. `ppl_vi.runtime.processes.shared` is one; whoever
# runs tasks elsewhere, as on a cluster, writes another.
Mapper = Callable[[Callable[[Any], Any], Any, int, Callable[[Any, str], Any]], Iterator[Any]]
