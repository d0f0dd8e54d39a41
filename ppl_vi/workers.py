"""Work shared among processes, so that Ctrl-C keeps what is finished."""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import joblib
from joblib.externals import loky
from joblib.externals.loky.process_executor import TerminatedWorkerError

WorkerKilledError = TerminatedWorkerError
Job = TypeVar("Job")
Result = TypeVar("Result")


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shared(work: Callable[[Job], Result], jobs: Iterable[Job], num_workers: int) -> Iterator[Result]:
    """Yields each job's result when it is finished, whichever comes first.

    Whatever ends this early, such as Ctrl-C, ends the workers, too.

    Args:
        work: importable by name, or a `functools.partial` of such a function.
        jobs: each is taken when its turn comes.
        num_workers: processes; with one, the work is done in this one.

    Raises:
        WorkerKilledError: a process was killed from outside; what all of them were at is lost.
    """
    if num_workers <= 1:
        yield from map(work, jobs)
        return
    parallel = joblib.Parallel(num_workers, return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs")
    try:
        with interrupts_held():
            results = parallel(joblib.delayed(work)(job) for job in jobs)
        yield from results
    except BaseException:
        loky.get_reusable_executor().shutdown(wait=False, kill_workers=True)
        raise


def alone(work: Callable[[Job], Result], job: Job) -> Result:
    """One job in a process of its own.

    Raises:
        WorkerKilledError: it was killed from outside.
    """
    (result,) = shared(work, [job], 2)
    return result


@contextmanager
def woken(module: str, num_workers: int) -> Iterator[None]:
    """Starts the processes that `shared` will use; they import a module meanwhile, and are ready when this ends."""
    if num_workers <= 1:
        yield
        return
    with interrupts_held():
        parallel = joblib.Parallel(num_workers, return_as="generator_unordered", batch_size=1)
        ready = parallel(joblib.delayed(_import)(module) for _ in range(num_workers))
    try:
        yield
    finally:
        list(ready)


def _import(module: str) -> None:
    importlib.import_module(module)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Holds back Ctrl-C; processes started meanwhile inherit that for good, and so leave it to this one."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
