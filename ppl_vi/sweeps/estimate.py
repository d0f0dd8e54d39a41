"""How long a sweep will take: by what its file has measured already, else by trials."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cloudpickle

from ppl_vi.sweeps.checks import check_file
from ppl_vi.sweeps.plan import Plan
from ppl_vi.sweeps.store import Reader
from ppl_vi.sweeps.tasks import Job, Task, TruthDone, TruthJob, compute_truth, run_task

# A trial takes this share of the steps; its scores take as long as those of the whole.
TRIAL_SHARE = 0.1
# No further trial begins after so many seconds; what was not tried is taken to cost what the others do.
TRIAL_SECONDS = 30.0


@dataclass(frozen=True)
class Cost:
    """What a fit costs: seconds a step, and seconds besides."""

    step: float
    fixed: float

    def of(self, task: Task) -> float:
        """Seconds of a task in one process; a whole block is fitted, whichever of its seeds are asked for."""
        num = task.num_problems * task.settings.num_replicas
        return num * (self.fixed + self.step * task.settings.num_steps)


@dataclass(frozen=True)
class Estimate:
    """How long it will take in one process, and what that is known by."""

    seconds: float
    basis: str


def estimate(plan: Plan, tasks: Sequence[Task], file: Path) -> Estimate:
    """The time that tasks take in one process."""
    costs = _measured(file)
    pairs = dict.fromkeys((task.setting.model, task.setting.guide) for task in tasks)
    untried = [pair for pair in pairs if pair not in costs]
    basis, extra, began = f"by the fits in '{file}'", 0.0, time.monotonic()
    truths: dict[str, TruthDone] = {}
    for model, guide in untried:
        if time.monotonic() - began > TRIAL_SECONDS:
            break
        basis = f"by trials with {TRIAL_SHARE:.0%} of the steps"
        first = next(task for task in tasks if (task.setting.model, task.setting.guide) == (model, guide))
        if model not in truths:
            start = time.monotonic()
            truths[model] = compute_truth(TruthJob(model, cloudpickle.dumps(plan.models[model].target)))
            extra += time.monotonic() - start
        costs[model, guide] = _tried(plan, first, truths[model])
    known = [costs[pair] for pair in pairs if pair in costs]
    mean = Cost(sum(one.step for one in known) / len(known), sum(one.fixed for one in known) / len(known))
    seconds = sum(costs.get((task.setting.model, task.setting.guide), mean).of(task) for task in tasks)
    return Estimate(seconds + extra, basis)


def _tried(plan: Plan, task: Task, truth: TruthDone) -> Cost:
    num_steps = max(1, round(TRIAL_SHARE * task.settings.num_steps))
    trial = replace(task, settings=replace(task.settings, num_steps=num_steps))
    model, guide = plan.models[task.setting.model], plan.guides[task.setting.guide]
    done = run_task(Job(trial, guide.family, truth.comparison, model.source, truth.reason))
    num = task.num_problems * task.settings.num_replicas
    return Cost(done.fit_seconds / num / num_steps, done.score_seconds / num)


def _measured(file: Path) -> dict[tuple[str, str], Cost]:
    """What fits of each model and guide have cost in a file of results, which need not be there."""
    if not check_file(file):
        return {}
    with Reader(file) as reader:
        rows = reader.query(
            "SELECT m.label, g.label, sum(fit_seconds / num_fits) / sum(num_steps), avg(score_seconds / num_fits) "
            "FROM tasks t JOIN sources m ON m.id = t.model JOIN sources g ON g.id = t.guide "
            "WHERE status = 'done' GROUP BY m.label, g.label"
        )
    return {(model, guide): Cost(step, fixed) for model, guide, step, fixed in rows}
