"""Work shared among processes, so that neither a signal nor the death of a process costs what is finished.

The processes are copies of a server that has imported everything once, while the command was still getting ready, and
so start with nothing to import. They get and give back pickles by value (cloudpickle), so that a user's functions and
lambdas travel, too. What they tell of their stages reaches whoever listens here.

Each process works on one job at a time and has a pipe of its own, so that its death costs that job alone. No process
outlives the one that started it, its *master*, however that ends; what a process has started, such as a compiler, dies
with it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import wait
from typing import Generic, TypeVar

import cloudpickle

from ppl_vi.runtime import stages
from ppl_vi.runtime.stages import Stage
from ppl_vi.runtime.workers import START_METHOD, Worker, WorkerGoneError, interrupts_held, one_thread_each, worker_for

Job = TypeVar("Job")
Result = TypeVar("Result")

# Modules that every worker sooner or later imports, besides those that `wake` is given.
PRELOADED_MODULES = ("torch._dynamo", "arviz_stats.base", "ppl_vi.runtime.workers")


class WorkerKilledError(RuntimeError):
    """The process of a job was killed from outside, twice; the message says how."""


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def wake(num_workers: int, *modules: str) -> None:
    """Starts the server that the processes of `shared` are copied from, and returns while it imports modules."""
    if num_workers <= 1 or START_METHOD != "forkserver":
        return
    from multiprocessing import forkserver

    with one_thread_each(), interrupts_held():
        multiprocessing.get_context(START_METHOD).set_forkserver_preload([*modules, *PRELOADED_MODULES])
        forkserver.ensure_running()


def shared(
    work: Callable[[Job], Result],
    jobs: Iterable[Job],
    num_workers: int,
    killed: Callable[[Job, str], Result] | None = None,
) -> Iterator[Result]:
    """Yields each job's result when it is finished, whichever comes first.

    Whatever ends this early, such as Ctrl-C, ends the workers, too. Each has one thread. Whoever listens to stages here
    is told those of the workers as well, all those of a job before its result.

    A job whose process is killed from outside, as the system does where memory runs out, is done again when all others
    are finished, and with no other job beside it.

    Args:
        work: what is done with each job.
        jobs: each is taken from the iterator when a process is free for it.
        num_workers: processes; with one, the work is done in this one.
        killed: gives the result of a job whose process was killed the second time, too, from the job and a sentence
            that says how.

    Raises:
        WorkerKilledError: that has happened, and `killed` is not given.
    """
    if num_workers <= 1:
        yield from map(work, jobs)
        return
    packed = cloudpickle.dumps(work)
    listener = stages.listener()
    told_as = (listener.subject, listener.is_detail) if listener else None
    left, again, busy = iter(jobs), list[Job](), list[_Task[Job]]()

    def start(job: Job, tries: int) -> None:
        busy.append(_Task(worker_for(packed, cloudpickle.dumps(job), told_as), job, tries))

    try:
        while True:
            for job in islice(left, num_workers - len(busy)):
                start(job, 1)
            if not busy and again:
                start(again.pop(0), 2)
            if not busy:
                return
            for task in _ready(busy):
                try:
                    message = task.worker.receive()
                except WorkerGoneError as gone:
                    busy.remove(task)
                    if task.tries == 1:
                        again.append(task.job)
                    else:
                        yield _killed(killed, task.job, str(gone))
                    continue
                if isinstance(message, Stage):
                    stages.relay(message)
                else:
                    busy.remove(task)
                    task.worker.rest()
                    yield message.value()
    except BaseException:
        for task in busy:
            task.worker.end()
        raise


@dataclass(frozen=True, eq=False)
class _Task(Generic[Job]):
    """A job that a worker is working on, for the first or the second time."""

    worker: Worker
    job: Job
    tries: int


def _ready(busy: list[_Task[Job]]) -> list[_Task[Job]]:
    """The tasks whose workers have something to say, or are gone."""
    ready = wait([thing for task in busy for thing in task.worker.watched])
    return [task for task in busy if any(thing in ready for thing in task.worker.watched)]


def _killed(killed: Callable[[Job, str], Result] | None, job: Job, how: str) -> Result:
    if killed is None:
        raise WorkerKilledError(how)
    return killed(job, how)


def travels(value: object) -> bool:
    """Whether a value can be sent to another process."""
    try:
        cloudpickle.dumps(value)
    except Exception:  # whatever a user's object says of it
        return False
    return True
